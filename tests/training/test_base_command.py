"""`citrate base`: the id and the size of a base, and the shipped one made again."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from typer.testing import CliRunner

from citrate_node.cli.base import app
from citrate_node.training import corpus
from citrate_node.training.base_model import BaseModel
from citrate_node.training.pretrain import PretrainSettings, pretrain


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_id_and_show_say_which_base_it_is(base: BaseModel) -> None:
    assert run("id").strip() == base.base_model_id.hex()
    assert json.loads(run("id", "--json")) == {"name": "embedded", "base_model_id": base.base_model_id.hex()}
    facts = json.loads(run("show", "--rank", "4", "--json"))
    assert facts["adapter_size_bytes"] == 4 * 40_960
    assert facts["adapter_tensors"] == 56
    assert "psf-2.0" in run("show")


def test_the_corpus_is_cut_again_from_the_library_at_hand(tmp_path: Path) -> None:
    """Byte for byte where it is the Python that the shipped one was cut from."""
    rows = [json.loads(line) for line in run("corpus", "--out", str(tmp_path), "--json").splitlines()]
    assert {row["name"] for row in rows} == set(corpus.read_index())
    if platform.python_version() in json.loads((corpus._assets() / "index.json").read_text())["origin"]:
        assert all(row["same_as_shipped"] for row in rows)


def test_pretraining_repeats_to_the_byte_and_learns(tmp_path: Path, base: BaseModel) -> None:
    """A short run; the whole one is the slow test below."""
    settings = PretrainSettings(steps=6, batch_sequences=4, sequence_bytes=64, warmup_steps=2, threads=1)
    losses: list[float] = []
    first = pretrain(tmp_path / "one", settings, lambda done, of, loss: losses.append(loss))
    pretrain(tmp_path / "two", settings)
    one, two = BaseModel.load(str(tmp_path / "one")), BaseModel.load(str(tmp_path / "two"))
    assert one.base_model_id == two.base_model_id != base.base_model_id
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert first.parameters == 885_888
    shapes = {name: tensor.shape for name, tensor in one.tensors.items()}
    assert shapes == {name: tensor.shape for name, tensor in base.tensors.items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_shipped_base_comes_out_of_its_command(tmp_path: Path) -> None:
    facts = json.loads(run("pretrain", "--out", str(tmp_path / "base"), "--json"))
    assert facts["loss_general"] == pytest.approx(1.5487, abs=0.02)
    if facts["instruction_set"] == "AVX512":  # where the shipped one was made
        assert facts["same_as_shipped"] is True
