"""A block's scale in 16 bits: an unsigned minifloat with 11 fraction bits, always rounded down.

Pure. Called by int4 and topk, whose blocks are too small to pay 32 bits for a scale.

The value of a code c is c below 2048, and (2048 + c % 2048) * 2**(c // 2048 - 1) from there on: every code
has another value, in the same order, up to 2**42, with a relative step of at most 2**-11.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..tensors import Int64Array

FRACTION_BITS = 11

Codes16 = npt.NDArray[np.uint16]


def pack_scales(values: Int64Array) -> Codes16:
    """The largest code whose value is not above; values from 0 to below 2**42."""
    bit_lengths = np.frexp(values.astype(np.float64))[1].astype(np.int64)  # exact below 2**53
    exponents = np.maximum(bit_lengths - FRACTION_BITS, 1)
    # in the first two octaves the value is its own code; beyond, the exponent counts octaves
    codes = (values >> (exponents - 1)) + ((exponents - 1) << FRACTION_BITS)
    packed: Codes16 = codes.astype(np.uint16)
    return packed


def unpack_scales(codes: npt.NDArray[Any]) -> Int64Array:
    """The values of codes, int64."""
    wide = codes.astype(np.int64)
    octave = wide >> FRACTION_BITS
    fraction = wide & ((1 << FRACTION_BITS) - 1)
    values = np.where(octave == 0, fraction, ((1 << FRACTION_BITS) + fraction) << np.maximum(octave - 1, 0))
    return values.astype(np.int64)
