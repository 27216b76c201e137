"""An exported adapter is one that PEFT loads, with the logits the network measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from short_training import SMALL

from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterConfig, AdapterLimits, decode_adapter, from_tensors
from citrate_node.protocol.content_id import content_id
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import NodeData
from citrate_node.training.export import export_adapter, import_adapter
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.provenance import (
    BaseFacts,
    DataFacts,
    EvaluationFacts,
    Provenance,
    TrainingFacts,
    WeightsFacts,
    read_provenance,
)
from citrate_node.training.settings import LoraSettings

TRAINING = TrainingFacts(
    method="alternate",
    data=(DataFacts("aa" * 32, "two slices of the corpus", "psf-2.0", 120),),
    seed="00ff",
    checkpoints=3,
    steps=8,
    instruction_set="AVX512",
)
EVALUATION = EvaluationFacts({"improvement_ppm": 48_000})


@pytest.fixture
def folder(tmp_path: Path, base: BaseModel, trained_weights: Tensors) -> Path:
    export_adapter(tmp_path / "adapter", base, SMALL, trained_weights, TRAINING, (EVALUATION,))
    return tmp_path / "adapter"


@pytest.fixture
def on_grid(base: BaseModel, trained_weights: Tensors) -> Tensors:
    """The trained weights as the network holds them: multiples of 2**-24."""
    targets = tuple(sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained_weights}))
    config = AdapterConfig(base.base_model_id, SMALL.rank, SMALL.alpha, targets)
    return from_tensors(config, trained_weights).tensors()


def test_peft_loads_the_folder_and_computes_the_same_logits(
    folder: Path, base: BaseModel, trainer: LoraTrainer, on_grid: Tensors, node_data: NodeData
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, folder).eval()
    trainer.load(on_grid)
    ours = trainer.model.eval()
    tokens = torch.from_numpy(np.maximum(node_data.held_out[:4], 0).astype(np.int64))
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=tokens).logits, ours(input_ids=tokens).logits)
        with theirs.disable_adapter():
            assert not torch.equal(theirs(input_ids=tokens).logits, ours(input_ids=tokens).logits)


def test_what_peft_saves_itself_is_the_same_file_content(
    folder: Path, tmp_path: Path, trainer: LoraTrainer, on_grid: Tensors
) -> None:
    from safetensors.numpy import load_file

    trainer.load(on_grid)
    trainer.model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    ours = load_file(folder / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert {n: w.tobytes() for n, w in ours.items()} == {n: w.tobytes() for n, w in theirs.items()}
    config = json.loads((folder / "adapter_config.json").read_text())
    peft_config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    same = {"r", "lora_alpha", "peft_type", "task_type", "lora_dropout", "bias", "use_dora", "use_rslora"}
    assert {key: config[key] for key in same} == {key: peft_config[key] for key in same}
    assert set(config["target_modules"]) == set(peft_config["target_modules"])


def test_the_folder_comes_back_as_it_was(folder: Path, base: BaseModel, on_grid: Tensors) -> None:
    settings, weights = import_adapter(folder, base)
    assert (settings.rank, settings.alpha) == (SMALL.rank, SMALL.alpha)
    assert {n: w.tobytes() for n, w in weights.items()} == {n: w.tobytes() for n, w in on_grid.items()}
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
    ]


def test_provenance_names_base_licence_data_and_method(folder: Path, base: BaseModel) -> None:
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    found = read_provenance(folder)
    assert found is not None
    assert found == Provenance(
        base=BaseFacts("embedded", base.base_model_id.hex(), "psf-2.0"),
        weights=WeightsFacts(
            sha256=digest,
            size_bytes=(folder / "adapter_model.safetensors").stat().st_size,
            rank=2,
            alpha=4,
            targets=("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
            cid=found.weights.cid,
        ),
        training=TRAINING,
        evaluations=(EVALUATION,),
        licence="psf-2.0",
    )
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nbase_model: "embedded"\nlibrary_name: peft\nlicense: "psf-2.0"\n')
    assert "`improvement_ppm`: 48000" in card


def test_the_file_is_the_one_that_the_chain_will_name(folder: Path) -> None:
    """It is in the network's spelling, so that `citrate adapter create` takes it as it is."""
    data = (folder / "adapter_model.safetensors").read_bytes()
    assert decode_adapter(data, AdapterLimits(1 << 20)).encode() == data
    found = read_provenance(folder)
    assert found is not None
    assert found.weights.cid == content_id(data).cid


def test_the_same_adapter_gives_the_same_folder(
    folder: Path, tmp_path: Path, base: BaseModel, trained_weights: Tensors
) -> None:
    again = tmp_path / "again"
    export_adapter(again, base, SMALL, dict(reversed(trained_weights.items())), TRAINING, (EVALUATION,))
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_an_adapter_of_another_base_is_refused(folder: Path, base: BaseModel) -> None:
    path = folder / "provenance.json"
    path.write_text(path.read_text().replace(base.base_model_id.hex(), "ab" * 32))
    with pytest.raises(ConfigError, match="was made on base model abab"):
        import_adapter(folder, base)


def test_tensors_that_have_no_place_in_the_base_are_refused(folder: Path, base: BaseModel) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 2', '"r": 4'))
    with pytest.raises(ConfigError, match="does not fit base model embedded"):
        import_adapter(folder, base)


@pytest.mark.parametrize("variant", ["use_dora", "use_rslora"])
def test_a_variant_that_computes_something_else_is_refused(
    folder: Path, base: BaseModel, variant: str
) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace(f'"{variant}": false', f'"{variant}": true'))
    with pytest.raises(ConfigError, match=f"uses {variant}"):
        import_adapter(folder, base)


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path, base: BaseModel, folder: Path) -> None:
    with pytest.raises(ConfigError, match="not a PEFT adapter folder"):
        import_adapter(tmp_path, base)
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="not a PEFT adapter folder"):
        import_adapter(folder, base)


def test_weights_of_other_settings_are_not_exported(
    tmp_path: Path, base: BaseModel, trained_weights: Tensors
) -> None:
    with pytest.raises(ValueError, match="these settings want"):
        export_adapter(tmp_path, base, LoraSettings(rank=4), trained_weights, TRAINING)
