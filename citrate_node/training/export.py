"""An adapter as a PEFT folder: what any other tool loads, and what says where it came from.

    adapter_config.json         PEFT's own, as its LoraConfig writes it
    adapter_model.safetensors   the weights dictionary, float32
    provenance.json             base, licence, data digest, method, settings, seed, steps, evaluation
    README.md                   an adapter card with Hugging Face front matter

peft.PeftModel.from_pretrained(base, folder) gives the logits the network measured. Called by cli/.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.initial import Tensors
from citrate_node.training.settings import LoraSettings

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """Where an adapter came from. What is not known stays None and is written so."""

    method: str
    """How its factors were trained and joined: "freeze_a", "alternate", "factor_mean", "stack" or "local"."""

    data_digests: tuple[str, ...] = ()
    """Hex digests of the data it learnt from, one per node that said so."""

    seed: str | None = None
    """Hex of the public seed of the initial weights."""

    checkpoints: int | None = None

    steps: int | None = None
    """Training steps per node and checkpoint."""

    instruction_set: str | None = None

    evaluation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Figure by name, such as "improvement_ppm" or "loss_general"; losses in nats per token."""

    parents: tuple[str, ...] = ()
    """Content ids of the versions it was made from."""


def export_adapter(
    directory: Path,
    base: BaseModel,
    settings: LoraSettings,
    weights: Mapping[str, npt.NDArray[np.float32]],
    provenance: Provenance,
) -> Path:
    """Write the folder. Raises ValueError for weights that are not the tensors of these settings.

    The weights file appears last and whole: a folder that has it is complete.
    """
    from safetensors.numpy import save

    expected = base.tensor_shapes(settings)
    found = {name: array.shape for name, array in weights.items()}
    if found != expected:
        odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(
            f"{odd[0]} has shape {found.get(odd[0])}, these settings want {expected.get(odd[0])}"
        )
    tensors = {name: np.ascontiguousarray(weights[name], dtype=np.float32) for name in sorted(weights)}
    content = save(tensors, metadata={"format": "pt"})

    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(_config_text(base, settings, tensors), encoding="utf-8")
    facts = _facts(base, settings, provenance, content)
    (directory / PROVENANCE_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (directory / CARD_FILE).write_text(_card(facts), encoding="utf-8")
    whole = directory / (WEIGHTS_FILE + ".part")
    whole.write_bytes(content)
    os.replace(whole, directory / WEIGHTS_FILE)
    return directory


def import_adapter(directory: Path, base: BaseModel) -> tuple[LoraSettings, Tensors]:
    """Settings and float32 weights of a PEFT LoRA folder, ours or another tool's.

    Raises ConfigError where the folder is no plain LoRA adapter, names another base, or holds tensors
    that this base has no place for.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{directory} is not a PEFT adapter folder: {error}") from error
    _require_plain_lora(directory, config)
    _require_same_base(directory, base)
    targets = config["target_modules"]
    settings = LoraSettings(
        rank=int(config["r"]),
        alpha=int(config["lora_alpha"]),
        targets=targets if isinstance(targets, str) else tuple(sorted(targets)),
    )
    expected = base.tensor_shapes(settings)
    found = {name: array.shape for name, array in weights.items()}
    if found != expected:
        odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ConfigError(
            f"adapter in {directory} does not fit base model {base.name}: "
            f"{odd[0]} is {found.get(odd[0], 'absent')}, the base wants {expected.get(odd[0], 'none')}"
        )
    return settings, {name: weights[name].astype(np.float32) for name in sorted(weights)}


def _config_text(base: BaseModel, settings: LoraSettings, weights: Tensors) -> str:
    """adapter_config.json as PEFT writes it, with the module names spelt out and everything sorted."""
    from citrate_node.training.lora import peft_config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft_config(base, settings).to_dict()
    config["base_model_name_or_path"] = base.name
    config["inference_mode"] = True  # a finished adapter: PEFT loads it frozen unless told otherwise
    config["target_modules"] = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in weights})
    return json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n"


def _facts(base: BaseModel, settings: LoraSettings, provenance: Provenance, content: bytes) -> dict[str, Any]:
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    return {
        "base_model": base.name,
        "base_model_id": base.base_model_id.hex(),
        "base_licence": base.licence,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "targets": targets,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        **dataclasses.asdict(provenance),
    }


def _card(facts: Mapping[str, Any]) -> str:
    rows = [
        "---",
        f"base_model: {json.dumps(facts['base_model'])}",
        "library_name: peft",
        f"license: {facts['base_licence']}",
        "tags: [lora, citrate]",
        "---",
        "# LoRA adapter",
        "",
        f"Rank {facts['rank']}, alpha {facts['alpha']}, targets {facts['targets']}, "
        f"for base model `{facts['base_model_id']}`.",
        f"Method: {facts['method']}. The licence is the base model's; the data may ask for more.",
        "",
    ]
    rows += [f"- {name}: {value}" for name, value in facts["evaluation"].items()]
    return "\n".join(
        [*rows, "", f"Weights sha256 `{facts['weights_sha256']}`; all facts in {PROVENANCE_FILE}.", ""]
    )


def _require_plain_lora(directory: Path, config: Any) -> None:
    """Variants compute something else from the same two tensors, so they are refused by name."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConfigError(f"adapter in {directory} is not a LoRA adapter")
    variants = (
        "use_dora",
        "use_rslora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
    )
    if used := [name for name in variants if config.get(name)]:
        raise ConfigError(f"adapter in {directory} uses {', '.join(used)}: only plain LoRA can be averaged")


def _require_same_base(directory: Path, base: BaseModel) -> None:
    path = directory / PROVENANCE_FILE
    if not path.is_file():
        return  # another tool's adapter: its tensors alone can say whether it fits
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_id")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if named != base.base_model_id.hex():
        raise ConfigError(
            f"adapter in {directory} was made on base model {named}, this one is {base.base_model_id.hex()}\n"
            "  load the base that the adapter names"
        )
