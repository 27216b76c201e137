"""An adapter as a PEFT folder: what any other tool loads, and what says where it came from.

    adapter_config.json         PEFT's own, as its LoraConfig writes it
    adapter_model.safetensors   the weights, float32, in the network's spelling
    provenance.json             where it came from, for machines (provenance.py)
    README.md                   the adapter card, with Hugging Face front matter (card.py)

peft.PeftModel.from_pretrained(base, folder) gives the logits the network measured. Called by cli/.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterConfig, from_tensors
from citrate_node.protocol.content_id import content_id
from citrate_node.training.architecture import linear_modules, module_paths, target_names
from citrate_node.training.base_model import BaseModel
from citrate_node.training.card import write_card
from citrate_node.training.initial import Tensors
from citrate_node.training.provenance import (
    BaseFacts,
    EvaluationFacts,
    Provenance,
    TrainingFacts,
    WeightsFacts,
    read_provenance,
    write_provenance,
    write_whole,
)
from citrate_node.training.settings import LoraSettings

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def export_adapter(
    directory: Path,
    base: BaseModel,
    settings: LoraSettings,
    weights: Mapping[str, npt.NDArray[np.float32]],
    training: TrainingFacts,
    evaluations: tuple[EvaluationFacts, ...] = (),
    licence: str | None = None,
) -> Provenance:
    """Write the folder, and return what its provenance.json says.

    licence: of the adapter; None: the base's. The weights are rounded onto the network's grid of 2**-24 and
    written in its one spelling, so that the file is the one whose hash goes on chain: error at most 2**-25
    per value below 1, none above. Raises ValueError for weights that are not the tensors of these settings,
    FormatError for NaN, infinity or a value of 128 and more. The weights file appears last and whole: a
    folder that has it is complete.
    """
    expected = base.tensor_shapes(settings)
    found = {name: array.shape for name, array in weights.items()}
    if found != expected:
        odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(
            f"{odd[0]} has shape {found.get(odd[0])}, these settings want {expected.get(odd[0])}"
        )
    targets = target_names(module_paths(weights), linear_modules(base))
    config = AdapterConfig(base.base_model_id, settings.rank, settings.alpha, targets)
    content = from_tensors(config, weights).encode()
    provenance = Provenance(
        base=BaseFacts(public_name(base), base.base_model_id.hex(), base.licence),
        weights=weights_facts(config, content),
        training=training,
        evaluations=evaluations,
        licence=licence or base.licence,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / CONFIG_FILE, _config_text(base, settings, targets).encode())
    write_provenance(directory, provenance)
    write_card(directory, provenance)
    write_whole(directory / WEIGHTS_FILE, content)
    return provenance


def weights_facts(config: AdapterConfig, content: bytes) -> WeightsFacts:
    """What provenance says of a weights file in the network's spelling."""
    return WeightsFacts(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        cid=content_id(content).cid,
    )


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
    require_same_base(directory, base)
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


def _config_text(base: BaseModel, settings: LoraSettings, targets: tuple[str, ...]) -> str:
    """adapter_config.json as PEFT writes it, with the module names spelt out and everything sorted."""
    from citrate_node.training.lora import peft_config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft_config(base, settings).to_dict()
    config["base_model_name_or_path"] = base.name
    config["inference_mode"] = True  # a finished adapter: PEFT loads it frozen unless told otherwise
    config["target_modules"] = list(targets)
    return json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n"


def public_name(base: BaseModel) -> str:
    """A folder's path says nothing to others, and may say too much: its last part does."""
    name = base.name
    return Path(name).name if name.startswith((".", "/", "~")) or name.count("/") > 1 else name


def _require_plain_lora(directory: Path, config: Any) -> None:
    """Variants compute something else from the same two tensors, so they are refused by name."""
    require_one_scale(directory, config)
    variants = ("use_dora", "use_rslora", "modules_to_save")
    if used := [name for name in variants if config.get(name)]:
        raise ConfigError(f"adapter in {directory} uses {', '.join(used)}: only plain LoRA can be averaged")


def require_one_scale(directory: Path, config: Any) -> None:
    """Raises ConfigError for what is no LoRA, or LoRA of which rank, alpha and two factors do not say all."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConfigError(f"adapter in {directory} is not a LoRA adapter")
    # fan_in_fan_out says how the base stores a matrix (GPT-2's Conv1D), and PEFT puts it right itself
    used = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise ConfigError(
            f"adapter in {directory} uses {', '.join(used)}: only plain LoRA can be averaged, "
            "and nothing else than LoRA, rsLoRA and DoRA of one rank and alpha measured\n"
            "  merge it with PEFT and use the merged model as a base"
        )


def require_same_base(directory: Path, base: BaseModel) -> None:
    provenance = read_provenance(directory)
    if provenance is None:
        return  # another tool's adapter: its tensors alone can say whether it fits
    if provenance.base.base_model_id != base.base_model_id.hex():
        raise ConfigError(
            f"adapter in {directory} was made on base model {provenance.base.base_model_id}, "
            f"this one is {base.base_model_id.hex()}\n  load the base that the adapter names"
        )
