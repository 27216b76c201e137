"""A merged model is the base and the adapter in one, and says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from short_training import SMALL

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.adapter import AdapterConfig, AdapterLimits, AdapterWeights, decode_adapter
from citrate_node.training import merge as merging
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import NodeData
from citrate_node.training.export import export_adapter
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.merge import merge_adapter
from citrate_node.training.provenance import Provenance, TrainingFacts, read_provenance


@pytest.fixture
def trained(tmp_path: Path, base: BaseModel, trained_weights: Tensors) -> tuple[AdapterWeights, Provenance]:
    provenance = export_adapter(tmp_path / "adapter", base, SMALL, trained_weights, TrainingFacts("local"))
    data = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    return decode_adapter(data, AdapterLimits(1 << 20)), provenance


def test_the_merged_model_gives_the_logits_of_base_and_adapter(
    tmp_path: Path,
    base: BaseModel,
    trained: tuple[AdapterWeights, Provenance],
    trainer: LoraTrainer,
    node_data: NodeData,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    weights, provenance = trained
    result = merge_adapter(base, weights, provenance, tmp_path / "merged")
    trainer.load(weights.tensors())
    tokens = torch.from_numpy(np.maximum(node_data.held_out[:4], 0).astype(np.int64))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", use_safetensors=True).eval()
    with torch.no_grad():
        ours = trainer.model.eval()(input_ids=tokens).logits
        with trainer.model.disable_adapter():
            plain = trainer.model(input_ids=tokens).logits
        theirs = merged(input_ids=tokens).logits
    assert float((theirs - ours).abs().max()) < 1e-4 * float(ours.abs().max())
    assert float((plain - ours).abs().max()) > 1e-2 * float(ours.abs().max())
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert result.logits_difference_relative < 1e-4


def test_the_folder_is_a_base_of_its_own_with_the_adapters_provenance(
    tmp_path: Path, base: BaseModel, trained: tuple[AdapterWeights, Provenance]
) -> None:
    weights, provenance = trained
    out = tmp_path / "merged"
    result = merge_adapter(base, weights, provenance, out)
    found = BaseModel.load(str(out))
    assert result.merged_base_model_id == found.base_model_id.hex() != base.base_model_id.hex()
    assert (found.licence, found.byte_level) == ("psf-2.0", True)
    assert read_provenance(out) == provenance
    assert json.loads((out / "merge.json").read_text()) == dataclasses.asdict(result)
    assert not [path for path in out.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_half_precision_is_rounded_once_and_said(
    tmp_path: Path, base: BaseModel, trained: tuple[AdapterWeights, Provenance]
) -> None:
    result = merge_adapter(base, *trained, tmp_path / "half", "float16")
    assert result.dtype == "float16"
    assert 1e-5 < result.logits_difference_relative < 2e-2
    assert {tensor.dtype for tensor in BaseModel.load(str(tmp_path / "half")).tensors.values()} == {"F16"}


def test_an_adapter_of_another_base_is_not_merged(
    tmp_path: Path, base: BaseModel, trained: tuple[AdapterWeights, Provenance]
) -> None:
    weights, provenance = trained
    old = weights.config
    config = AdapterConfig(b"\x07" * 32, old.rank, old.alpha, old.targets)
    foreign = AdapterWeights(config, weights.manifest, weights.values.copy())
    with pytest.raises(ConfigError, match="made for base model 0707"):
        merge_adapter(base, foreign, provenance, tmp_path / "merged")


def test_a_folder_in_use_is_left_alone(
    tmp_path: Path, base: BaseModel, trained: tuple[AdapterWeights, Provenance]
) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        merge_adapter(base, *trained, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_a_merge_that_changed_the_logits_is_not_written(
    tmp_path: Path,
    base: BaseModel,
    trained: tuple[AdapterWeights, Provenance],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merging, "_ROUNDED", {"float16": 1e-7})
    with pytest.raises(ServiceError, match="logits differ by"):
        merge_adapter(base, *trained, tmp_path / "merged", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
