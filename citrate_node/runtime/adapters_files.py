"""Adapter files as people bring them and take them: canonical file, PEFT folder, and what must fit.

A file in this network's one spelling (protocol/adapter.py) is taken as it is. Anything else that PEFT wrote
(a folder, or a file beside its adapter_config.json) is rounded onto the grid, and the caller says so. Free of
torch. Called by runtime/adapters.py and cli/adapter.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CitrateError, ConfigError
from ..protocol.adapter import (
    AdapterConfig,
    AdapterLimits,
    AdapterWeights,
    decode_adapter,
    from_tensors,
    module_path,
)
from ..protocol.content_id import ContentId, content_id
from ..protocol.tensors import FormatError
from ..recording import write_atomically
from ..training.base_model import BaseModel
from ..training.card import write_card
from ..training.provenance import Provenance, held_back, write_provenance
from ..training.settings import LoraSettings

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

CONFIG_BYTES_MAX = 1 << 20
"""An adapter_config.json has a few hundred; nothing larger is parsed."""

_VARIANTS = (
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layer_replication", "megatron_config"),
)
"""Settings of PEFT that make something else than alpha / rank * B * A of the same two tensors. Not among
them: fan_in_fan_out says how the base stores a matrix (GPT-2's Conv1D), and PEFT puts it right itself."""


class NotAnAdapter(ConfigError):
    """The file is no LoRA adapter that this network can hold."""


class BaseModelMismatch(ConfigError):
    """The adapter was made for another base model, or does not fit this one."""


class RankMismatch(ConfigError):
    """The adapter has another rank than was said, or than the chain holds."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter that was read, in the bytes whose hash goes on chain."""

    weights: AdapterWeights
    data: bytes
    converted: bool
    """Whether the bytes are ours and not those of the file: it was an ordinary PEFT file."""

    @property
    def content(self) -> ContentId:
        return content_id(self.data)


def read_adapter(path: Path, limits: AdapterLimits, base_model_id: bytes | None = None) -> AdapterFile:
    """Read a safetensors file or a PEFT folder.

    base_model_id: what the adapter must be made for. None: what a canonical file itself says; an ordinary
    PEFT file does not say it, so there it must be given.
    Raises NotAnAdapter, BaseModelMismatch, or ConfigError where nothing can be read.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    data = _read(file, limits.size_bytes_max)
    try:
        weights = decode_adapter(data, limits)
    except FormatError as canonical:
        return _read_ordinary(file, data, limits, base_model_id, canonical)
    if base_model_id is not None:
        require_base(weights, base_model_id, str(file))
    return AdapterFile(weights, data, converted=False)


def require_promoted(path: Path) -> None:
    """Raises ConfigError where `citrate evaluate` held these very weights back, with its figures."""
    file = path / WEIGHTS_FILE if path.is_dir() else path
    folder = file.parent
    reason = held_back(folder, hashlib.sha256(file.read_bytes()).hexdigest())
    if reason is not None:
        raise ConfigError(
            f"{path}: {reason}\n  train it further, or `citrate evaluate {folder} --data … --force REASON` "
            "to publish it all the same"
        )


def decoded(data: bytes, limits: AdapterLimits, what: str) -> AdapterFile:
    """Bytes that the chain names, as an adapter. Raises NotAnAdapter: the contract takes any bytes."""
    try:
        return AdapterFile(decode_adapter(data, limits), data, converted=False)
    except FormatError as error:
        raise NotAnAdapter(
            f"{what} has the hash that the chain names, but is no adapter of this network: {error}\n"
            "  `citrate content get` writes such bytes as they are"
        ) from None


def require_base(weights: AdapterWeights, base_model_id: bytes, what: str) -> None:
    """Raises BaseModelMismatch unless the weights say that they are made for this base."""
    if weights.config.base_model_id != base_model_id:
        raise BaseModelMismatch(
            f"{what} is made for base model {weights.config.base_model_id.hex()}, not {base_model_id.hex()}\n"
            "  give the base model that it was trained on; `citrate base list` lists those on chain"
        )


def require_rank(weights: AdapterWeights, rank: int, what: str) -> None:
    """Raises RankMismatch unless the weights have this rank."""
    if weights.config.rank != rank:
        raise RankMismatch(
            f"{what} has rank {weights.config.rank}, not {rank}\n"
            "  the rank of an adapter is fixed when it is created; create another for another rank"
        )


def require_fit(weights: AdapterWeights, base: BaseModel, what: str) -> None:
    """Raises BaseModelMismatch unless every tensor has a place of its shape in the base's files."""
    config = weights.config
    try:
        places = base.tensor_shapes(LoraSettings(config.rank, config.alpha, config.targets))
    except ConfigError as error:
        raise BaseModelMismatch(f"{what} does not fit base model {base.name}: {error}") from None
    for spec in weights.manifest.specs:
        if places.get(spec.name) != spec.shape:
            raise BaseModelMismatch(
                f"{what} does not fit base model {base.name}: {spec.name} is {list(spec.shape)}, "
                f"the base wants {list(places.get(spec.name, ())) or 'no such tensor'}\n"
                "  give the base model that it was trained on"
            )


def write_peft_folder(out: Path, file: AdapterFile, provenance: Provenance) -> None:
    """adapter_config.json, provenance, card and, last, the weights: a folder that has them is complete.

    The weights file is the very file that the chain names: `citrate content cid` on it gives the CID there.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = peft_config(file.weights.config, provenance.base.name)
    write_atomically(out / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    write_provenance(out, provenance)
    write_card(out, provenance)
    write_atomically(out / WEIGHTS_FILE, file.data)


def peft_config(config: AdapterConfig, base_name: str) -> dict[str, Any]:
    """adapter_config.json: what PEFT needs to know; it has its own defaults for the rest."""
    return {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": list(config.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def read_peft_config(path: Path) -> dict[str, Any]:
    """The settings in a folder's adapter_config.json. Raises NotAnAdapter for anything but plain LoRA."""
    try:
        config = json.loads(_read(path, CONFIG_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise NotAnAdapter(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise NotAnAdapter(f"{path} is not the adapter_config.json of a LoRA adapter")
    if used := [name for name in _VARIANTS if config.get(name)]:
        raise NotAnAdapter(
            f"{path} uses {', '.join(used)}, and only plain LoRA can be averaged and composed\n"
            "  train it again without, or merge it into the base model"
        )
    if config.get("bias", "none") != "none":
        raise NotAnAdapter(f"{path} trains biases, and only plain LoRA can be averaged and composed")
    return config


def _read_ordinary(
    file: Path, data: bytes, limits: AdapterLimits, base_model_id: bytes | None, canonical: FormatError
) -> AdapterFile:
    """What PEFT saved: settings from the folder's adapter_config.json, values rounded onto the grid."""
    from safetensors import SafetensorError, deserialize

    try:
        raw = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise NotAnAdapter(
            f"{file} is no safetensors file: {error}\n  give what PEFT's save_pretrained wrote"
        ) from None
    beside = file.parent / CONFIG_FILE
    if not beside.is_file():
        raise NotAnAdapter(
            f"{file} is not in the spelling of this network ({canonical}), and there is no {CONFIG_FILE} "
            "beside it to convert it with\n  give the folder that PEFT's save_pretrained wrote"
        )
    settings = read_peft_config(beside)
    if base_model_id is None:
        raise BaseModelMismatch(f"{file} does not say its base model\n  give it with --base-model")
    try:
        tensors = {name: tensor_array(name, entry) for name, entry in raw.items()}
        if len(tensors) > limits.tensors_max:
            raise FormatError("too_many_tensors", f"{len(tensors)} tensors, limit {limits.tensors_max}")
        rank = _whole(settings.get("r"), "r")
        if rank > limits.rank_max:
            raise FormatError("rank_too_large", f"rank {rank}, limit {limits.rank_max}")
        paths = sorted({module_path(name) for name in tensors})
        alpha = _whole(settings.get("lora_alpha"), "lora_alpha")
        config = AdapterConfig(base_model_id, rank, alpha, _targets(settings.get("target_modules"), paths))
        weights = from_tensors(config, tensors)
    except FormatError as error:
        raise NotAnAdapter(f"{file} cannot be an adapter of this network: {error}") from None
    encoded = weights.encode()
    return AdapterFile(weights, encoded, converted=encoded != data)


def tensor_array(name: str, entry: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """One tensor as float32. bfloat16, which numpy does not know, is the upper half of a float32."""
    kind, raw = entry["dtype"], bytes(entry["data"])
    if kind == "BF16":
        values = (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F16", "F32", "F64"):
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            values = np.frombuffer(raw, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[kind]).astype(
                np.float32
            )
    else:
        raise FormatError("tensor_type", f"{name} holds {kind}, not floating point numbers")
    return values.reshape(entry["shape"])


def _whole(value: Any, name: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FormatError("rank_or_alpha", f"{name} is {value!r} and must be a whole number")
    return value


def _targets(named: Any, paths: list[str]) -> tuple[str, ...]:
    """target_modules as PEFT matches names. A pattern or "all-linear" is spelt out, module by module."""
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return tuple(paths)
    used = {name for name in named for path in paths if path == name or path.endswith("." + name)}
    return tuple(sorted(used))


def _read(file: Path, size_bytes_max: int) -> bytes:
    try:
        size = file.stat().st_size
        if size > size_bytes_max:
            raise NotAnAdapter(f"{file} has {size} bytes, the limit is {size_bytes_max}")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}\n  give an adapter file or folder") from None


def find_base(text: str, local: str) -> tuple[bytes, BaseModel | None]:
    """The id that --base-model names, and the base's files where this machine has them.

    text: 64 hex digits, "embedded", a folder or a hub name. local: name of the base that is tried for an id.
    """
    named = text.removeprefix("0x")
    if len(named) == 64 and set(named.lower()) <= set("0123456789abcdef"):
        base_model_id = bytes.fromhex(named)
        return base_model_id, local_base(base_model_id, local)
    base = BaseModel.load(text)
    return base.base_model_id, base


def local_base(base_model_id: bytes, local: str) -> BaseModel | None:
    """The base with this id, if the one that this machine knows by name is it."""
    try:
        base = BaseModel.load(local)
    except CitrateError:
        return None  # its files were moved: what needs them is a check more, not the command itself
    return base if base.base_model_id == base_model_id else None


def file_differences(folder: Path | None, ours: AdapterFile, theirs: AdapterFile | None) -> list[str]:
    """What differs between a folder's settings and its weights, and between two weights, as sentences."""
    wrong = []
    config = ours.weights.config
    if folder is not None:
        settings = read_peft_config(folder / CONFIG_FILE)
        wanted = peft_config(config, "")
        for name in ("r", "lora_alpha"):
            if settings.get(name) != wanted[name]:
                wrong.append(f"{CONFIG_FILE} says {name} {settings.get(name)}, the weights {wanted[name]}")
        targets = settings.get("target_modules")
        if isinstance(targets, list) and sorted(map(str, targets)) != wanted["target_modules"]:
            wrong.append(f"{CONFIG_FILE} names target_modules {', '.join(sorted(map(str, targets)))}")
    if theirs is not None and theirs.weights.config != config:
        other = theirs.weights.config
        for name in ("base_model_id", "rank", "alpha", "targets"):
            if getattr(config, name) != getattr(other, name):
                wrong.append(
                    f"{name} is {_shown(getattr(config, name))}, on chain {_shown(getattr(other, name))}"
                )
    if theirs is not None:
        wrong += _tensor_differences(ours.weights, theirs.weights)
    return wrong


def _tensor_differences(ours: AdapterWeights, theirs: AdapterWeights) -> list[str]:
    mine, other = ours.integers(), theirs.integers()
    wrong = []
    for name in sorted({*mine, *other}):
        if name not in mine or name not in other:
            wrong.append(f"{name} is {'missing' if name in other else 'too many'}")
        elif mine[name].shape != other[name].shape:
            wrong.append(f"{name} is {list(mine[name].shape)}, on chain {list(other[name].shape)}")
        elif count := int(np.count_nonzero(mine[name] != other[name])):
            wrong.append(f"{name}: {count} of {mine[name].size} values differ")
    return wrong


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
