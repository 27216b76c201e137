"""`citrate evaluate`: figures of the very weights that are deployed, and a bound that holds back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_training_run import SHORT, lines, run_of
from tiny_bases import bert, llama
from typer.testing import CliRunner

from citrate_node.cli.evaluate import app
from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import domain_rows, general_held_out
from citrate_node.training.evaluation import EvaluationSettings, evaluate, name_of, record
from citrate_node.training.export import export_adapter
from citrate_node.training.folder_adapter import load_folder, read_folder
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.provenance import TrainingFacts, held_back, read_provenance
from citrate_node.training.settings import LoraSettings
from citrate_node.training.suite import read_suite
from citrate_node.training.training_run import train

LORA = LoraSettings(rank=2, alpha=4)
SOURCE = "domain:web"
EXAMPLE_SUITE = Path(__file__).parents[2] / "examples" / "regression" / "suite.toml"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, base: BaseModel, trained_weights: Tensors) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "good"
    export_adapter(folder, base, LORA, trained_weights, TrainingFacts(method="local"))
    return folder


@pytest.fixture(scope="module")
def harmful(good: Path, base: BaseModel, trained_weights: Tensors) -> Path:
    """Its update turned round and made large: worse on everything."""
    folder = good.parent / "harmful"
    turned = {n: w * np.float32(-8 if ".lora_B." in n else 1) for n, w in trained_weights.items()}
    export_adapter(folder, base, LORA, turned, TrainingFacts(method="local"))
    return folder


@pytest.fixture
def copies(tmp_path: Path, good: Path, harmful: Path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(f, tmp_path / f.name)) for f in (good, harmful))  # type: ignore[return-value]


def test_the_losses_are_those_of_the_networks_own_trainer(
    good: Path, base: BaseModel, trainer: LoraTrainer
) -> None:
    (found,) = evaluate([good], base, EvaluationSettings((SOURCE,)))
    held_out = domain_rows(base, "web", 128)[1]
    from citrate_node.training.export import import_adapter

    _, weights = import_adapter(good, base)
    expected = [
        (trainer.loss(None, rows).loss, trainer.loss(weights, rows).loss)
        for rows in (held_out, general_held_out(base))
    ]
    assert [(row.loss_base, row.loss) for row in found.rows] == expected


def test_what_forgets_is_held_back_with_its_figures_and_can_be_forced(
    copies: tuple[Path, Path], base: BaseModel
) -> None:
    _, harmful = copies
    runner = CliRunner()
    refused = runner.invoke(app, [str(harmful), "--data", SOURCE, "--json"])
    assert refused.exit_code == 1
    figures = json.loads(refused.stdout)
    assert figures["passed"] is False
    assert figures["failures"][0].startswith("general text: loss ")
    assert json.loads((harmful / "evaluation.json").read_text()) == {
        key: value for key, value in figures.items() if key != "folder"
    }
    assert "held back by its evaluation" in str(held_back(harmful))
    forced = runner.invoke(app, [str(harmful), "--data", SOURCE, "--force", "a test of the bound"])
    assert forced.exit_code == 0
    found = read_provenance(harmful)
    assert found is not None
    assert [e.forced_reason for e in found.evaluations] == [None, "a test of the bound"]
    assert held_back(harmful) is None
    assert "promoted because: a test of the bound" in (harmful / "README.md").read_text()


def test_the_figures_go_into_provenance_and_card(copies: tuple[Path, Path], base: BaseModel) -> None:
    good, _ = copies
    (found,) = evaluate([good], base, EvaluationSettings((SOURCE,), general_worse_percent_max=50))
    record(found, None)
    kept = read_provenance(good)
    assert kept is not None
    (facts,) = kept.evaluations
    assert facts.passed is True
    assert facts.weights_sha256 == kept.weights.sha256
    assert facts.figures["loss_web_nats"] == found.rows[0].loss
    assert f"`loss_web_nats`: {found.rows[0].loss:.6g}" in (good / "README.md").read_text()


def test_a_base_in_four_bits_is_measured_as_such(good: Path, base: BaseModel) -> None:
    (plain,) = evaluate([good], base, EvaluationSettings((SOURCE,)))
    (small,) = evaluate([good], base, EvaluationSettings((SOURCE,), quantization="nf4"))
    assert small.facts(None).quantization == "nf4"
    assert 0 < abs(small.rows[0].loss_base - plain.rows[0].loss_base) < 0.2


def test_the_example_suite_holds_for_a_good_adapter_and_not_for_a_harmful_one(
    good: Path, harmful: Path, base: BaseModel
) -> None:
    settings = EvaluationSettings((SOURCE,), general_worse_percent_max=1e9, suite=read_suite(EXAMPLE_SUITE))
    fine, bad = evaluate([good, harmful], base, settings)
    assert fine.failures == ()
    assert len(fine.suite) == 2
    assert bad.suite[0].failures


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[prompt]]\nname='a'\nprompt='b'\nloss_nats_max=1", "needs a completion"),
        ("[[prompt]]\nname='a'\nprompt='b'", "asks for nothing"),
        ("[[prompt]]\nname='a'\nprompt='b'\ncontain=['x']", "unknown field contain"),
        ("[[prompt]]\nname='a'\nprompt='b'\ncontains='x'", "contains is 'x'"),
        ("[[prompt]]\nprompt='b'\ncontains=['x']", "needs a name and a prompt"),
        ("[[prompt]]\nname='a'\nprompt='b'\ncontains=['x']\nnew_tokens_max=0", "between 1 and 512"),
        ("prompt = 3", "must hold"),
        ("[[prompt", "cannot read the suite"),
    ],
)
def test_a_suite_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "suite.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_suite(tmp_path / "suite.toml")


def test_sources_need_names_of_their_own() -> None:
    assert [name_of(s) for s in ("domain:web", "data/my texts.jsonl", "folder:/x/notes/")] == [
        "web",
        "my_texts",
        "notes",
    ]
    with pytest.raises(ConfigError, match="each with a name of its own"):
        EvaluationSettings(("a/x.txt", "b/x.txt"))
    with pytest.raises(ConfigError, match="bound is -1"):
        EvaluationSettings((SOURCE,), general_worse_percent_max=-1)


@pytest.mark.parametrize(
    ("variant", "rank", "quantization"),
    [
        ("rslora", 8, "none"),
        ("rslora", 4, "none"),
        ("dora", 4, "none"),
        ("dora", 4, "nf4"),
        ("lora", 4, "nf4"),
    ],
)
def test_whatever_train_makes_is_measured_as_it_was_validated(
    tmp_path: Path, variant: Any, rank: int, quantization: Any
) -> None:
    """The loss on the validation part is the one that training kept the weights for."""
    base = llama(tmp_path / "base")
    source = lines(tmp_path / "lines.jsonl")
    settings = dataclasses.replace(
        SHORT, variant=variant, steps=6, lora=LoraSettings(rank, 8), quantization=quantization
    )
    run = run_of(base, source, tmp_path / "out", settings, local_only=True)
    trained = train(run)
    model = load_folder(tmp_path / "out", base, "causal", quantization=quantization)
    measured = model.measure(run.dataset.validation).loss
    assert measured == pytest.approx(trained.loss_validation, abs=1e-5)
    with model.without_adapter():
        assert model.measure(run.dataset.validation).loss == trained.loss_validation_base
    wanted = EvaluationSettings((source,), source, 1e9, quantization, SHORT.sequence_tokens)
    (found,) = evaluate([tmp_path / "out"], base, wanted)
    assert found.rows[0].loss < found.rows[0].loss_base
    assert found.facts(None).quantization == quantization


def test_a_head_for_labels_is_measured_by_the_labels_it_finds(tmp_path: Path) -> None:
    base = bert(tmp_path / "base")
    source = lines(tmp_path / "labelled.jsonl", labelled=True)
    settings = dataclasses.replace(SHORT, steps=30, batch_sequences=8, lora=LoraSettings(4, 8))
    train(run_of(base, source, tmp_path / "out", settings, labelled=True, local_only=True))
    (found,) = evaluate(
        [tmp_path / "out"], base, EvaluationSettings((source,), sequence_tokens=SHORT.sequence_tokens)
    )
    (row,) = found.rows  # general text has no labels
    assert row.loss < row.loss_base
    assert row.accuracy is not None
    assert row.accuracy > 0.9
    assert (found.general_worse_percent, found.failures) == (None, ())
    facts = found.facts(None)
    assert (facts.passed, facts.figures["accuracy_labelled"]) == (None, row.accuracy)
    record(found, None)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["general_worse_percent"] is None
    with pytest.raises(ConfigError, match="writes no text, so it cannot answer"):
        evaluate([tmp_path / "out"], base, EvaluationSettings((source,), suite=read_suite(EXAMPLE_SUITE)))
    (tmp_path / "out" / "labels.json").unlink()
    with pytest.raises(ConfigError, match="uses modules_to_save: classifier, score are trained whole"):
        evaluate([tmp_path / "out"], base, EvaluationSettings((source,)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank_pattern": {"q_proj": 2}}, "uses rank_pattern"),
        ({"bias": "all"}, "uses bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head are trained whole"),
        ({"use_dora": True, "use_rslora": True}, "together"),
        ({"peft_type": "IA3"}, "is not a LoRA adapter"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name_with_what_to_do(
    copies: tuple[Path, Path], base: BaseModel, change: dict[str, object], said: str
) -> None:
    good, _ = copies
    path = good / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=said):
        read_folder(good, base)


def test_a_base_that_a_hub_holds_in_four_bits_is_trained_on_and_measured(tmp_path: Path) -> None:
    """Its file is quantized already: nothing is asked for with --quantization."""
    from citrate_node.training.loading import load_model

    plain = llama(tmp_path / "plain")
    load_model(plain, "causal", quantization="nf4").save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "plain" / name, tmp_path / "base" / name)
    base = BaseModel.load(str(tmp_path / "base"))
    source = lines(tmp_path / "lines.jsonl")
    train(run_of(base, source, tmp_path / "out", dataclasses.replace(SHORT, steps=6)))
    wanted = EvaluationSettings((source,), source, 1e9, sequence_tokens=SHORT.sequence_tokens)
    (found,) = evaluate([tmp_path / "out"], base, wanted)
    assert found.rows[0].loss < found.rows[0].loss_base
