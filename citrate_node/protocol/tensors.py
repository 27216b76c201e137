"""The two grids on which weights and deltas live, and the manifest that orders tensors.

Pure. Everything after training is integer arithmetic: a weight is an integer in units of 2**-24, a delta an
integer in units of 2**-32. Called by adapter, codecs, aggregation, gram and composition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cbor2
import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

Factor = Literal["lora_A", "lora_B", "both"]
"""Which half of a LoRA update moves: lora_A (rank, in_features), lora_B (out_features, rank), or both."""

WEIGHT_BITS = 24
"""Weights are integers in units of 2**-24: below 1.0 that is all the precision a float32 has."""

WEIGHT_LIMIT = 128
"""A weight lies strictly between -128 and 128, so that its integer fits 32 bits."""

WEIGHT_MAX = (WEIGHT_LIMIT << WEIGHT_BITS) - 128
"""The largest weight on the grid that float32 can hold, 128 - 2**-17; sums saturate here."""

DELTA_BITS = 32
"""Deltas are integers in units of 2**-32: 256 steps within one step of a weight."""

DELTA_LIMIT = 127
"""A delta lies strictly between -127 and 127, so that an int8 block scale fits 32 bits."""

DELTA_MAX = (DELTA_LIMIT << DELTA_BITS) - 1
"""The largest delta on the grid; 2**16 of them still fit a 64-bit accumulator (aggregation.py)."""

assert DELTA_MAX < 1 << 39, "a delta must leave 24 bits of a 64-bit accumulator to weights"


class FormatError(ValueError):
    """Bytes or numbers from outside that cannot be what they claim to be.

    `reason` is one short word for the fault, the same on every node, so that a caller can count and
    report it; the message says which tensor or byte it was.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name and shape of one tensor."""

    name: str
    """As saved by PEFT, for example base_model.model.layers.0.q_proj.lora_A.weight."""

    shape: tuple[int, ...]
    """Every dimension is at least 1."""

    @property
    def count(self) -> int:
        """Number of values."""
        total = 1
        for dimension in self.shape:
            total *= dimension
        return total

    @property
    def factor(self) -> Factor:
        """Which LoRA factor the name says it is; FormatError for any other name."""
        if self.name.endswith(".lora_A.weight"):
            return "lora_A"
        if self.name.endswith(".lora_B.weight"):
            return "lora_B"
        raise FormatError("tensor_name", f"{self.name!r} ends in neither .lora_A.weight nor .lora_B.weight")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tensors of an adapter or of a delta, in the one order that everybody uses: by name."""

    specs: tuple[TensorSpec, ...]
    """Ascending by name, each name once."""

    count: int = field(init=False, compare=False)
    """Number of values in all tensors."""

    hash: bytes = field(init=False, compare=False, repr=False)
    """sha256 of the canonical CBOR of [[name, [dimension, ...]], ...]."""

    def __post_init__(self) -> None:
        if not self.specs:
            raise FormatError("manifest_empty", "an adapter has at least one tensor")
        for before, after in zip(self.specs, self.specs[1:], strict=False):
            if before.name >= after.name:
                raise FormatError(
                    "manifest_order", f"{after.name!r} must come before {before.name!r}, and once"
                )
        for spec in self.specs:
            if not spec.name.isascii() or not spec.shape or min(spec.shape) < 1:
                raise FormatError("tensor_shape", f"{spec.name!r} has the shape {spec.shape}")
        object.__setattr__(self, "count", sum(spec.count for spec in self.specs))
        rows = [[spec.name, list(spec.shape)] for spec in self.specs]
        object.__setattr__(self, "hash", hashlib.sha256(cbor2.dumps(rows, canonical=True)).digest())

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Iterable[int]]) -> Manifest:
        """Sort by name, as everyone else will."""
        return cls(tuple(TensorSpec(name, tuple(shapes[name])) for name in sorted(shapes)))

    def slices(self) -> dict[str, slice]:
        """Where each tensor's values lie in the flat vector of all values."""
        slices: dict[str, slice] = {}
        start = 0
        for spec in self.specs:
            slices[spec.name] = slice(start, start + spec.count)
            start += spec.count
        return slices

    def subset(self, factor: Factor) -> Manifest:
        """The tensors of one factor, or all of them for "both"."""
        if factor == "both":
            return self
        return Manifest(tuple(spec for spec in self.specs if spec.factor == factor))


def round_half_away(values: Float64Array) -> Int64Array:
    """Nearest integer, halves away from zero, as Rust's `round` does (numpy's rint goes to even).

    Exact while |value| < 2**51: adding a half is then exact in float64.
    """
    return np.trunc(values + np.copysign(0.5, values)).astype(np.int64)


def divide_toward_zero(values: Int64Array, divisor: int) -> Int64Array:
    """Truncating division, as Rust's and Solidity's `/`; numpy's // rounds down instead.

    divisor: positive. Works for every int64 except -2**63, which no accumulator here reaches.
    """
    if divisor & (divisor - 1) == 0:
        # a shift rounds down, so what is below zero is first raised by all but one; ten times faster
        raised: Int64Array = values + ((values >> 63) & (divisor - 1))
        return raised >> (divisor.bit_length() - 1)
    quotients: Int64Array = np.abs(values) // divisor
    return np.where(values < 0, -quotients, quotients)


def finite_float32(values: npt.NDArray[Any], limit: int, what: str) -> Float32Array:
    """values as a flat float32 vector; FormatError unless every |value| < limit (so NaN is refused too)."""
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    # NaN compares false with everything, so the question is put in the positive
    if flat.size and not bool(np.abs(flat).max() < limit):
        if not np.isfinite(flat).all():
            raise FormatError("non_finite", f"{what} holds NaN or infinity")
        raise FormatError("too_large", f"{what} holds {float(np.abs(flat).max()):g}, the limit is {limit}")
    return flat


def delta_to_grid(values: Float32Array) -> Int64Array:
    """Float32 values onto the delta grid, halves away from zero; exact from 2**-9 upwards."""
    return round_half_away(values.astype(np.float64) * float(1 << DELTA_BITS))


def delta_from_grid(values: Int64Array) -> Float64Array:
    """Delta integers as float64, exactly."""
    return values.astype(np.float64) / float(1 << DELTA_BITS)


def canonical_weights(values: Int64Array) -> Int64Array:
    """Saturate and round to the integers that a float32 holds exactly.

    This makes the integers and the float32 file two spellings of one thing: below 1.0 nothing changes,
    above it the lowest bits are rounded to even as float32 conversion does on every machine.
    """
    if values.size and values.max() <= 1 << WEIGHT_BITS and values.min() >= -(1 << WEIGHT_BITS):
        return values  # the usual case: nothing to do
    clipped = np.clip(values, -WEIGHT_MAX, WEIGHT_MAX)
    return weights_from_float32(weights_to_float32(clipped))


def weights_to_float32(values: Int64Array) -> Float32Array:
    """Weight integers as float32; exact for canonical ones."""
    return (values.astype(np.float64) / float(1 << WEIGHT_BITS)).astype(np.float32)


def weights_from_float32(values: Float32Array) -> Int64Array:
    """Float32 onto the weight grid, halves away from zero."""
    return round_half_away(values.astype(np.float64) * float(1 << WEIGHT_BITS))
