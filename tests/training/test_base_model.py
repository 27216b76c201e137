"""A base model's id says which base it is, and its tensor shapes are PEFT's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.lora import LoraTrainer, lora_shapes_by_injection
from citrate_node.training.settings import LoraSettings


def copy_of(base: BaseModel, folder: Path) -> Path:
    shutil.copytree(base.directory, folder)
    return folder


def test_the_embedded_base_is_the_one_that_was_published(base: BaseModel) -> None:
    """Adapters on chain name it: a changed id is another base."""
    assert base.base_model_id.hex() == "15c424abe58071f8464419db9cfd05e25a0d5438692d91690c0dedd3e256f73c"
    assert base.licence == "psf-2.0"
    assert base.byte_level
    assert base.name == "embedded"


def test_weights_in_two_files_and_another_library_version_are_the_same_base(
    base: BaseModel, tmp_path: Path
) -> None:
    folder = copy_of(base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"transformers_version": "9.9", **config}))
    assert BaseModel.load(str(folder)).base_model_id == base.base_model_id


@pytest.mark.parametrize("change", ["weight", "config", "tokenizer"])
def test_another_weight_config_or_tokenizer_is_another_base(
    base: BaseModel, tmp_path: Path, change: str
) -> None:
    folder = copy_of(base, tmp_path / "base")
    if change == "weight":
        tensors = {name: np.array(t) for name, t in load_file(folder / "model.safetensors").items()}
        tensors["model.norm.weight"][0] += np.float16(0.5)
        save_file(tensors, folder / "model.safetensors")
    elif change == "config":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    else:
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert BaseModel.load(str(folder)).base_model_id != base.base_model_id


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("mlp.down_proj",)])
def test_shapes_from_the_file_header_are_the_ones_peft_injects(
    base: BaseModel, targets: str | tuple[str, ...]
) -> None:
    settings = LoraSettings(rank=4, alpha=8, targets=targets)
    assert base.tensor_shapes(settings) == lora_shapes_by_injection(base, settings)


def test_shapes_and_training_work_for_a_base_of_another_architecture(tmp_path: Path) -> None:
    """GPT-2 keeps its matrices transposed and has names that this package does not know."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(vocab_size=256, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    base = BaseModel.load(str(tmp_path))
    settings = LoraSettings(rank=2, alpha=2, targets=("c_attn",))
    prefix = "base_model.model.transformer.h.0.attn.c_attn"
    assert base.tensor_shapes(settings) == {
        f"{prefix}.lora_A.weight": (2, 16),
        f"{prefix}.lora_B.weight": (48, 2),
    }
    assert base.licence == "unknown"
    trainer = LoraTrainer(base, settings)
    rows = np.arange(64, dtype=np.int32).reshape(2, 32)
    assert trainer.loss(trainer.initial_weights(b"s"), rows) == trainer.loss(None, rows)


def test_a_module_that_the_base_has_not_is_refused_with_those_it_has(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"no module query(?s:.*)down_proj, gate_proj"):
        base.tensor_shapes(LoraSettings(targets=("query",)))


def test_a_directory_without_safetensors_is_refused(base: BaseModel, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \.safetensors file"):
        BaseModel.load(str(folder))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\xff" * 64,
        (5).to_bytes(8, "little") + b"[1,2]",
        (2).to_bytes(8, "little") + b'{"a":1}',
    ],
)
def test_a_broken_weights_file_is_refused_by_name(base: BaseModel, tmp_path: Path, content: bytes) -> None:
    folder = copy_of(base, tmp_path / "base")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        BaseModel.load(str(folder))


def test_a_weights_file_that_is_cut_off_is_refused(base: BaseModel, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path / "base")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(ConfigError, match="shorter than its header says"):
        BaseModel.load(str(folder))


def test_a_path_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        BaseModel.load("./nowhere")


def test_the_tokenizer_opens_in_transformers_and_its_ids_are_the_bytes(base: BaseModel) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    text = "héllo ✓\n\tdef f(x):  \x00\x7f  return ' '"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
