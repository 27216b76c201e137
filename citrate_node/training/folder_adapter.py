"""An adapter's folder as it was trained, in memory beside its base: LoRA, rsLoRA, DoRA, or a head for labels.

export.import_adapter takes what the network can average; this takes everything that `citrate train` writes,
so that all of it can be measured. Called by evaluation.py and benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from citrate_node.errors import ConfigError
from citrate_node.training.adapter_model import AdapterModel
from citrate_node.training.architecture import Objective
from citrate_node.training.base_model import BaseModel
from citrate_node.training.export import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    require_one_scale,
    require_same_base,
)
from citrate_node.training.export_run import LABELS_FILE
from citrate_node.training.initial import Tensors
from citrate_node.training.run_settings import Quantization, RunSettings, Variant
from citrate_node.training.settings import LoraSettings

LABELS_MAX = 10_000
_HEADS = frozenset({"classifier", "score"})
"""Layers that PEFT trains whole beside LoRA factors, for labels."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """What a folder holds, before a base is loaded."""

    path: Path
    lora: LoraSettings
    variant: Variant
    labels: tuple[str, ...]
    """Of its head; empty: it has none."""
    weights: Tensors
    """By PEFT's saved names."""


def read_folder(path: Path, base: BaseModel) -> AdapterFolder:
    """Read a PEFT folder that is an adapter of this base.

    Raises ConfigError, naming what is not supported and what to do, for another base, for settings that give
    modules scales or ranks of their own, and for parts that are trained whole and are no head for labels.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_file(path / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a PEFT adapter folder: {error}") from error
    require_one_scale(path, config)
    require_same_base(path, base)
    labels = _labels(path)
    _require_known_parts(path, config, labels)
    if config.get("use_dora") and config.get("use_rslora"):
        raise ConfigError(
            f"adapter in {path} uses use_dora and use_rslora together, which `citrate train` never makes\n"
            "  merge it with PEFT and measure the merged model as a base"
        )
    variant: Variant = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    targets = config["target_modules"]
    lora = LoraSettings(
        rank=int(config["r"]),
        alpha=int(config["lora_alpha"]),
        targets=targets if isinstance(targets, str) else tuple(sorted(targets)),
    )
    return AdapterFolder(path, lora, variant, labels, {n: w.astype(np.float32) for n, w in weights.items()})


def load_folder(
    path: Path,
    base: BaseModel,
    objective: Objective,
    *,
    quantization: Quantization = "none",
    device: str = "cpu",
    threads: int = 1,
) -> AdapterModel:
    """The base with the folder's adapter on it. Raises ConfigError as `read_folder`, or for tensors that have
    no place in the base.
    """
    folder = read_folder(path, base)
    settings = RunSettings(lora=folder.lora, variant=folder.variant, quantization=quantization)
    model = AdapterModel(base, settings, objective, labels=folder.labels, device=device, threads=threads)
    model.load(_by_parameter(folder.weights, model.parameters))
    return model


def _by_parameter(saved: Tensors, parameters: Mapping[str, Any]) -> Tensors:
    """PEFT saves DoRA's magnitudes without their `.weight`, and a head under the base's own name for it."""
    names = {name.replace(".modules_to_save.", "."): name for name in parameters}
    found = {}
    for name, array in saved.items():
        own = name + ".weight" if name.endswith("lora_magnitude_vector") else name
        found[names.get(own, own)] = array
    return found


def _labels(path: Path) -> tuple[str, ...]:
    try:
        found = json.loads((path / LABELS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path / LABELS_FILE}: {error}") from error
    texts = isinstance(found, list) and all(isinstance(label, str) for label in found)
    if not texts or not 2 <= len(found) <= LABELS_MAX or len(set(found)) != len(found):
        raise ConfigError(f"{path / LABELS_FILE} must be a list of 2 to {LABELS_MAX} different texts")
    return tuple(found)


def _require_known_parts(path: Path, config: Mapping[str, Any], labels: tuple[str, ...]) -> None:
    whole = config.get("modules_to_save") or []
    if labels and set(whole) <= _HEADS:
        return
    if whole:
        raise ConfigError(
            f"adapter in {path} uses modules_to_save: {', '.join(map(str, whole))} are trained whole\n"
            f"  only a head for labels is known here, with its {LABELS_FILE} beside it; merge it with PEFT "
            "and measure the merged model as a base"
        )
