"""One LoRA adapter: its settings, its integer weights, and the one file that spells them.

Pure. The file is a safetensors file that PEFT and every safetensors reader load, with one spelling only:
sorted names, compact header, fixed padding, float32 values that lie on the 2**-24 grid. So the sha256 of
the file is the identity of the weights. Called by aggregation, composition, state_transition and training.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .tensors import (
    WEIGHT_LIMIT,
    FormatError,
    Int64Array,
    Manifest,
    TensorSpec,
    canonical_weights,
    finite_float32,
    weights_from_float32,
    weights_to_float32,
)

HEADER_ALIGNMENT = 8
"""The header is padded with spaces to a multiple of this, as safetensors' own writer does."""

_MODULE = re.compile(r"base_model\.model\.(?P<path>[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)\.lora_[AB]\.weight")
_TARGET = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What is refused before it is read. The numbers come from the preset."""

    size_bytes_max: int
    """Of the whole file."""

    tensors_max: int = 4096

    rank_max: int = 64

    header_bytes_max: int = 1 << 20
    """The JSON header is parsed only when it is not larger."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The settings that give a set of factors its meaning: update = (alpha / rank) * B * A."""

    base_model_id: bytes
    """32 bytes; an adapter made on another base version is refused everywhere."""

    rank: int
    """Rows of every lora_A and columns of every lora_B, at least 1."""

    alpha: int
    """A whole number, at least 1, so that alpha / rank is an exact fraction."""

    targets: tuple[str, ...]
    """Names of the modules that carry factors, ascending, as in PEFT's target_modules."""

    def __post_init__(self) -> None:
        if len(self.base_model_id) != 32:
            raise FormatError("base_model_id", f"{len(self.base_model_id)} bytes, must be 32")
        if not 1 <= self.rank < 1 << 16 or not 1 <= self.alpha < 1 << 31:
            raise FormatError("rank_or_alpha", f"rank {self.rank} and alpha {self.alpha} must be positive")
        if not self.targets or list(self.targets) != sorted(set(self.targets)):
            raise FormatError("targets", f"{self.targets!r} must be ascending, each once, at least one")
        for target in self.targets:
            if not _TARGET.fullmatch(target):
                raise FormatError("targets", f"{target!r} is no module name")


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """An adapter's weights as integers. Two are equal when their files are."""

    config: AdapterConfig

    manifest: Manifest
    """One lora_A (rank, in_features) and one lora_B (out_features, rank) for every module."""

    values: Int64Array
    """All tensors in manifest order, each in C order, in units of 2**-24; read-only.

    Every value is one that float32 holds exactly (tensors.canonical_weights).
    """

    def __post_init__(self) -> None:
        _check_modules(self.config, self.manifest)
        if self.values.dtype != np.int64 or self.values.shape != (self.manifest.count,):
            raise FormatError("values_shape", f"{self.values.shape} values for {self.manifest.count}")
        self.values.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdapterWeights):
            return NotImplemented
        return (
            self.config == other.config
            and self.manifest == other.manifest
            and bool(np.array_equal(self.values, other.values))
        )

    __hash__ = None  # type: ignore[assignment]  # compare by hash() of the file where a key is wanted

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """The float32 tensors by name, as PEFT saves them."""
        flat = weights_to_float32(self.values)
        slices = self.manifest.slices()
        return {spec.name: flat[slices[spec.name]].reshape(spec.shape) for spec in self.manifest.specs}

    def integers(self) -> dict[str, Int64Array]:
        """The integer tensors by name; views of `values`."""
        slices = self.manifest.slices()
        return {spec.name: self.values[slices[spec.name]].reshape(spec.shape) for spec in self.manifest.specs}

    def select(self, subset: Manifest) -> Int64Array:
        """The values of some tensors, in the order of their manifest."""
        return np.concatenate([self.values[place] for place in self.places(subset)])

    def with_values(self, subset: Manifest, values: Int64Array) -> AdapterWeights:
        """The same adapter with these tensors replaced; saturated and rounded as every weight is."""
        if values.shape != (subset.count,):
            raise FormatError("values_shape", f"{values.shape} values for {subset.count}")
        changed = self.values.copy()
        start = 0
        for place in self.places(subset):
            stop = start + place.stop - place.start
            changed[place] = canonical_weights(values[start:stop])
            start = stop
        return replace(self, values=changed)

    def encode(self) -> bytes:
        """The canonical file. Its sha256 (or, above 1 MiB, its content id) names these weights."""
        return _header(self.config, self.manifest) + weights_to_float32(self.values).astype("<f4").tobytes()

    def digest(self) -> bytes:
        """sha256 of the file."""
        return hashlib.sha256(self.encode()).digest()

    def places(self, subset: Manifest) -> list[slice]:
        """Where the tensors of a subset lie in `values`, one slice each, in the subset's order."""
        slices = self.manifest.slices()
        known = set(self.manifest.specs)
        for spec in subset.specs:
            if spec not in known:
                raise FormatError("manifest_subset", f"{spec.name!r} {spec.shape} is not in this adapter")
        return [slices[spec.name] for spec in subset.specs]


def from_tensors(config: AdapterConfig, tensors: Mapping[str, npt.NDArray[Any]]) -> AdapterWeights:
    """An adapter from float tensors by PEFT's saved names, rounded onto the grid (halves away from zero).

    Error: at most half a step, 2**-25, per value below 1; none from 1 upwards.
    Raises FormatError for NaN, infinity, |value| >= 128, or names and shapes that are not LoRA's.
    """
    manifest = Manifest.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    _check_modules(config, manifest)
    flat = [finite_float32(tensors[spec.name], WEIGHT_LIMIT, spec.name) for spec in manifest.specs]
    return AdapterWeights(config, manifest, weights_from_float32(np.concatenate(flat)))


def decode_adapter(data: bytes, limits: AdapterLimits) -> AdapterWeights:
    """Read a canonical file, and nothing else.

    Raises FormatError, by name: anything too large, cut short, with a header that is not the one
    `encode` writes, with NaN, infinity, minus zero, a value off the grid or not below 128.
    """
    if len(data) > limits.size_bytes_max:
        raise FormatError("file_too_large", f"{len(data)} bytes, limit {limits.size_bytes_max}")
    if len(data) < 8:
        raise FormatError("file_truncated", f"{len(data)} bytes hold no safetensors header")
    header_size = int.from_bytes(data[:8], "little")
    if header_size > limits.header_bytes_max:
        raise FormatError("header_too_large", f"{header_size} bytes, limit {limits.header_bytes_max}")
    if len(data) < 8 + header_size:
        raise FormatError("file_truncated", f"{len(data)} bytes, the header alone is {header_size}")
    config, manifest = _read_header(data[8 : 8 + header_size], limits)
    if _header(config, manifest) != data[: 8 + header_size]:
        raise FormatError("header_not_canonical", "the header is not the one that these tensors have")
    expected = 8 + header_size + 4 * manifest.count
    if len(data) != expected:
        raise FormatError("file_size", f"{len(data)} bytes, {expected} by the header")
    raw = np.frombuffer(data, dtype="<f4", offset=8 + header_size).astype(np.float32)
    values = weights_from_float32(finite_float32(raw, WEIGHT_LIMIT, "the file"))
    if weights_to_float32(values).astype("<f4").tobytes() != data[8 + header_size :]:
        raise FormatError("off_grid", "a value is not a multiple of 2**-24, or is minus zero")
    return AdapterWeights(config, manifest, values)


def module_path(name: str) -> str:
    """The module's path in the base model, from the saved name of one of its factors."""
    match = _MODULE.fullmatch(name)
    if match is None:
        raise FormatError("tensor_name", f"{name!r} is not base_model.model.<module>.lora_A|B.weight")
    return match["path"]


def factor_names(path: str) -> tuple[str, str]:
    """The saved names of a module's lora_A and lora_B."""
    stem = f"base_model.model.{path}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _check_modules(config: AdapterConfig, manifest: Manifest) -> None:
    """Every module has both factors, of the rank, and is one of the targets; every target is there."""
    shapes = {spec.name: spec.shape for spec in manifest.specs}
    used: set[str] = set()
    for name in shapes:
        path = module_path(name)
        name_a, name_b = factor_names(path)
        if name_a not in shapes or name_b not in shapes:
            raise FormatError("factor_missing", f"{path} has only one factor")
        shape_a, shape_b = shapes[name_a], shapes[name_b]
        if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != config.rank or shape_b[1] != config.rank:
            raise FormatError("tensor_shape", f"{path}: A {shape_a} and B {shape_b} for rank {config.rank}")
        matching = [t for t in config.targets if path == t or path.endswith("." + t)]
        if not matching:
            raise FormatError("targets", f"{path} is none of {', '.join(config.targets)}")
        used.update(matching)
    if used != set(config.targets):
        raise FormatError("targets", f"no tensor for {', '.join(sorted(set(config.targets) - used))}")


def _header(config: AdapterConfig, manifest: Manifest) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {
            "alpha": str(config.alpha),
            "base_model_id": config.base_model_id.hex(),
            "format": "pt",
            "rank": str(config.rank),
            "targets": ",".join(config.targets),
        }
    }
    start = 0
    for spec in manifest.specs:
        end = start + 4 * spec.count
        entries[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _read_header(text: bytes, limits: AdapterLimits) -> tuple[AdapterConfig, Manifest]:
    """Settings and manifest as the header claims them; the caller compares with what `_header` writes."""
    try:
        entries = json.loads(text.decode("ascii"))
        metadata = entries.pop("__metadata__")
        if len(entries) > limits.tensors_max:
            raise FormatError("too_many_tensors", f"{len(entries)} tensors, limit {limits.tensors_max}")
        config = AdapterConfig(
            base_model_id=bytes.fromhex(metadata["base_model_id"]),
            rank=_whole(metadata["rank"]),
            alpha=_whole(metadata["alpha"]),
            targets=tuple(metadata["targets"].split(",")),
        )
        specs = [TensorSpec(name, _shape(entry["shape"])) for name, entry in entries.items()]
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError("header_malformed", f"{type(error).__name__} in the safetensors header") from None
    if config.rank > limits.rank_max:
        raise FormatError("rank_too_large", f"rank {config.rank}, limit {limits.rank_max}")
    manifest = Manifest(tuple(specs))
    _check_modules(config, manifest)
    return config, manifest


def _whole(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[1-9][0-9]{0,9}", text):
        raise FormatError("header_malformed", "rank and alpha are decimal texts")
    return int(text)


def _shape(entry: Any) -> tuple[int, ...]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise FormatError("tensor_shape", "a factor has two dimensions")
    for dimension in entry:
        if type(dimension) is not int or not 1 <= dimension < 1 << 31:
            raise FormatError("tensor_shape", "a dimension is a whole number from 1 to 2**31 - 1")
    return (entry[0], entry[1])
