"""The adapter every node starts from, made from a public seed without floating point arithmetic.

numpy's and torch's normal generators promise no bytes across versions and machines; this one is
SHAKE-256 and integers, so that any second implementation makes the same weights from
this description. Called by runtime/ and simulation/ when an adapter is created, and by lora.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[np.float32]]
"""An adapter, or a part of one: PEFT's saved tensor name -> float32 array."""

_DOMAIN = b"citrate-initial-weights-v1"
_TERMS = 12  # 12 uniforms on [0, 2**16) have variance 2**32: their sum is a Gaussian of deviation 2**16
_WEIGHT_BITS = 24  # values come out as multiples of 2**-24, the grid on which adapters are agreed
_DEVIATION_BITS = 40
_VALUES_PER_BLOCK = 1 << 18


def initial_weights(shapes: Mapping[str, tuple[int, ...]], seed: bytes) -> Tensors:
    """lora_A Gaussian of variance 1 / (3 · in_features), lora_B zero, from a public seed.

    shapes: PEFT tensor name -> shape, lora_A (rank, in_features), lora_B (out_features, rank).
    Rule for a lora_A tensor of n values: the stream SHAKE-256(domain ‖ u64_le(length of seed) ‖ seed ‖
    UTF-8 name) gives 12·n unsigned little-endian 16-bit integers; value i is the sum S of the i-th twelve.
    With D = isqrt(2**80 / (3 · in_features)), the value is round((2·S - 12·65535) · D / 2**33) · 2**-24,
    halves away from zero. That is exact in float32, below 6 deviations, and of PEFT's own variance.
    Raises ValueError for a name that is neither factor.
    """
    weights: Tensors = {}
    for name in sorted(shapes):
        shape = tuple(int(n) for n in shapes[name])
        if ".lora_B." in name:
            weights[name] = np.zeros(shape, dtype=np.float32)
        elif ".lora_A." in name:
            weights[name] = _gaussian(name, shape, seed)
        else:
            raise ValueError(f"{name} is neither lora_A nor lora_B")
    return weights


def _gaussian(name: str, shape: tuple[int, ...], seed: bytes) -> npt.NDArray[np.float32]:
    count = math.prod(shape)
    deviation = math.isqrt((1 << (2 * _DEVIATION_BITS)) // (3 * shape[-1]))
    stream = hashlib.shake_256(_DOMAIN + len(seed).to_bytes(8, "little") + seed + name.encode()).digest(
        2 * _TERMS * count
    )
    draws = np.frombuffer(stream, dtype="<u2")
    values = np.empty(count, dtype=np.float32)
    shift = 17 + _DEVIATION_BITS - _WEIGHT_BITS
    for start in range(0, count, _VALUES_PER_BLOCK):  # blocks, so that the int64 copies stay small
        stop = min(count, start + _VALUES_PER_BLOCK)
        block = draws[start * _TERMS : stop * _TERMS].reshape(-1, _TERMS)
        doubled = 2 * block.sum(axis=1, dtype=np.int64) - _TERMS * 65535
        magnitude = (np.abs(doubled) * deviation + (1 << (shift - 1))) >> shift
        values[start:stop] = np.ldexp((np.sign(doubled) * magnitude).astype(np.float32), -_WEIGHT_BITS)
    return values.reshape(shape)
