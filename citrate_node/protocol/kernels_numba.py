"""The compiled inner loops of the codecs: the same integers as the numpy code, several times faster.

Pure. Loaded by kernels.py only where a vector is large enough to pay for it; the tests hold every kernel to
its numpy twin. Rows have a constant length, since numba makes vector instructions only of loops whose indices
it knows not to be negative. Each kernel's docstring names its twin, which is where the meaning is written.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_ABSOLUTE = np.int32(0x7FFFFFFF)
_LIMIT = np.int32(0x42FE0000)
"""The bits of 127.0 (tensors.DELTA_LIMIT); NaN and infinity have larger ones."""

_ROWS = 32
"""Rows whose values stay in the first-level cache between the search for the maximum and the coding."""


@njit(nogil=True, error_model="numpy", inline="always")
def _grid_of_bits(bits: Any) -> Any:
    """tensors.delta_to_grid of one float32 from the bits of its absolute value."""
    exponent = bits >> 23
    fraction = np.int64(bits & 0x7FFFFF)
    if exponent == 0:
        return np.int64(0)  # below 2**-126
    full = fraction + 0x800000
    shift = exponent - 118  # the last bit of `full` is worth 2**(exponent - 150)
    if shift >= 0:
        return full << shift
    if shift < -25:
        return np.int64(0)
    return (full + (np.int64(1) << (-shift - 1))) >> -shift


@njit(nogil=True, error_model="numpy")
def int8_encode(values: Any, bits: Any, scales: Any, codes: Any) -> bool:
    """int8._encode_blocks for float32 (blocks, 256); False when a value is not below 127.

    The product with the reciprocal errs by less than 2**-44, and a quotient that is no half is at least
    2**-33 away from one, so that adding 2**-36 rounds halves up and moves nothing else.
    """
    half = 0.5 + 2.0**-36
    for start in range(0, scales.size, _ROWS):
        stop = min(start + _ROWS, scales.size)
        part_bits, part_values = bits[start:stop], values[start:stop]
        part_scales, part_codes = scales[start:stop], codes[start:stop]
        for row in range(part_scales.size):
            largest = np.int32(0)
            for i in range(256):
                largest = max(largest, part_bits[row, i] & _ABSOLUTE)
            part_scales[row] = largest
        for row in range(part_scales.size):
            largest = np.int32(part_scales[row])
            if largest >= _LIMIT:
                return False
            part_scales[row] = _grid_of_bits(largest) // 127
        for row in range(part_scales.size):
            scale = part_scales[row]
            reciprocal = 1.0 / np.float64(scale) if scale else 0.0
            for i in range(256):
                value = np.float64(part_values[row, i]) * 4294967296.0
                grid = np.float64(np.int64(abs(value) + 0.5))
                code = min(np.int32(grid * reciprocal + half), np.int32(127))
                part_codes[row, i] = -code if value < 0 else code
    return True


@njit(nogil=True, error_model="numpy")
def int8_add_pair(
    scales_a: Any, codes_a: Any, weight_a: Any, scales_b: Any, codes_b: Any, weight_b: Any, accumulator: Any
) -> bool:
    """int8._check_blocks and int8._add_blocks of two payloads; False when a block is not canonical.

    codes int8 (blocks, 256), accumulator int64 (blocks, 256). Two at once pass half as often over the latter.
    """
    for row in range(scales_a.size):
        most_a = least_a = most_b = least_b = np.int8(0)
        for i in range(256):
            most_a = max(most_a, codes_a[row, i])
            least_a = min(least_a, codes_a[row, i])
            most_b = max(most_b, codes_b[row, i])
            least_b = min(least_b, codes_b[row, i])
        largest_a = max(np.int64(most_a), -np.int64(least_a))
        largest_b = max(np.int64(most_b), -np.int64(least_b))
        if largest_a != (127 if scales_a[row] else 0) or largest_b != (127 if scales_b[row] else 0):
            return False
        factor_a = np.int64(scales_a[row]) * weight_a
        factor_b = np.int64(scales_b[row]) * weight_b
        for i in range(256):
            accumulator[row, i] += factor_a * np.int64(codes_a[row, i]) + factor_b * np.int64(codes_b[row, i])
    return True
