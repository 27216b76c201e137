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


@njit(nogil=True, error_model="numpy", inline="always")
def _is_canonical(scale: Any, most: Any, least: Any) -> Any:
    """int8._check_blocks of a block with this largest and smallest code."""
    largest = max(np.int64(most), -np.int64(least))
    return largest == 127 if scale else largest == 0


@njit(nogil=True, error_model="numpy")
def int8_check(scales: Any, codes: Any) -> bool:
    """int8._check_blocks for int8 (blocks, 256); False when a block is not canonical."""
    for row in range(codes.shape[0]):
        most = least = np.int8(0)
        for i in range(256):
            most = max(most, codes[row, i])
            least = min(least, codes[row, i])
        if not _is_canonical(scales[row], most, least):
            return False
    return True


@njit(nogil=True, error_model="numpy")
def int8_add_pair(
    scales_a: Any,
    codes_a: Any,
    weight_a: Any,
    scales_b: Any,
    codes_b: Any,
    weight_b: Any,
    accumulator: Any,
    fresh: Any,
) -> bool:
    """int8._check_blocks and int8._add_blocks of two payloads; False when a block is not canonical.

    codes int8 (blocks, 256), accumulator int64 (blocks, 256), taken as zero when `fresh`. Two payloads at
    once pass half as often over the accumulator.
    """
    keep = np.int64(0) if fresh else np.int64(-1)
    for row in range(scales_a.size):
        most_a = least_a = most_b = least_b = np.int8(0)
        for i in range(256):
            most_a = max(most_a, codes_a[row, i])
            least_a = min(least_a, codes_a[row, i])
            most_b = max(most_b, codes_b[row, i])
            least_b = min(least_b, codes_b[row, i])
        if not _is_canonical(scales_a[row], most_a, least_a):
            return False
        if not _is_canonical(scales_b[row], most_b, least_b):
            return False
        factor_a = np.int64(scales_a[row]) * weight_a
        factor_b = np.int64(scales_b[row]) * weight_b
        for i in range(256):
            both = factor_a * np.int64(codes_a[row, i]) + factor_b * np.int64(codes_b[row, i])
            accumulator[row, i] = (accumulator[row, i] & keep) + both
    return True


@njit(nogil=True, error_model="numpy")
def int8_add_four(
    scales_a: Any,
    codes_a: Any,
    weight_a: Any,
    scales_b: Any,
    codes_b: Any,
    weight_b: Any,
    scales_c: Any,
    codes_c: Any,
    weight_c: Any,
    scales_d: Any,
    codes_d: Any,
    weight_d: Any,
    accumulator: Any,
    fresh: Any,
) -> bool:
    """int8_add_pair for four payloads."""
    keep = np.int64(0) if fresh else np.int64(-1)
    for row in range(scales_a.size):
        most_a = least_a = most_b = least_b = np.int8(0)
        most_c = least_c = most_d = least_d = np.int8(0)
        for i in range(256):
            most_a = max(most_a, codes_a[row, i])
            least_a = min(least_a, codes_a[row, i])
            most_b = max(most_b, codes_b[row, i])
            least_b = min(least_b, codes_b[row, i])
        for i in range(256):
            most_c = max(most_c, codes_c[row, i])
            least_c = min(least_c, codes_c[row, i])
            most_d = max(most_d, codes_d[row, i])
            least_d = min(least_d, codes_d[row, i])
        if not _is_canonical(scales_a[row], most_a, least_a):
            return False
        if not _is_canonical(scales_b[row], most_b, least_b):
            return False
        if not _is_canonical(scales_c[row], most_c, least_c):
            return False
        if not _is_canonical(scales_d[row], most_d, least_d):
            return False
        factor_a = np.int64(scales_a[row]) * weight_a
        factor_b = np.int64(scales_b[row]) * weight_b
        factor_c = np.int64(scales_c[row]) * weight_c
        factor_d = np.int64(scales_d[row]) * weight_d
        for i in range(256):
            first = factor_a * np.int64(codes_a[row, i]) + factor_b * np.int64(codes_b[row, i])
            second = factor_c * np.int64(codes_c[row, i]) + factor_d * np.int64(codes_d[row, i])
            accumulator[row, i] = (accumulator[row, i] & keep) + (first + second)
    return True


@njit(nogil=True, error_model="numpy")
def add_step(before: Any, weighted: Any, bits: Any, after: Any) -> Any:
    """after = before + tensors.divide_toward_zero(weighted, 2**bits); the largest |after|.

    One pass; `after` may be `weighted`.
    """
    below = (np.int64(1) << bits) - 1
    largest = np.int64(0)
    for i in range(before.size):
        value = before[i] + ((weighted[i] + ((weighted[i] >> 63) & below)) >> bits)
        largest = max(largest, abs(value))
        after[i] = value
    return largest


@njit(nogil=True, error_model="numpy")
def int4_encode(values: Any, bits: Any, thresholds: Any, scales: Any, packed: Any) -> bool:
    """int4._encode_blocks for float32 (blocks, 32); False when a value is not below 127.

    thresholds: int4.THRESHOLDS, seven of them. The rounding is that of int8_encode.
    """
    half = 0.5 + 2.0**-36
    codes = np.empty(32, dtype=np.uint8)
    first, second, third, fourth = thresholds[0], thresholds[1], thresholds[2], thresholds[3]
    fifth, sixth, seventh = thresholds[4], thresholds[5], thresholds[6]
    for row in range(scales.size):
        largest = np.int32(0)
        for i in range(32):
            largest = max(largest, bits[row, i] & _ABSOLUTE)
        if largest >= _LIMIT:
            return False
        scale = _grid_of_bits(largest) // 127
        octave = 0  # scales.pack_scales
        while scale >> octave >= 4096:
            octave += 1
        scales[row] = (scale >> octave) + (octave << 11)
        scale = (scale >> octave) << octave
        reciprocal = 1.0 / np.float64(scale) if scale else 0.0
        for i in range(32):
            value = np.float64(values[row, i]) * 4294967296.0
            grid = np.float64(np.int64(abs(value) + 0.5))
            near = np.int32(grid * reciprocal + half)
            code = np.int32(near >= first) + np.int32(near >= second) + np.int32(near >= third)
            code += np.int32(near >= fourth) + np.int32(near >= fifth)
            code += np.int32(near >= sixth) + np.int32(near >= seventh)
            codes[i] = (-code if value < 0 else code) & 15
        for i in range(16):
            packed[row, i] = codes[2 * i] | codes[2 * i + 1] << 4
    return True


@njit(nogil=True, error_model="numpy")
def int4_add(levels: Any, factors: Any, packed: Any, weight: Any, accumulator: Any) -> bool:
    """int4._check_blocks and the weighted sum of int4._products; False when a block is not canonical.

    levels int64 (16,): those that a half byte stands for. factors int64 (blocks,): the scales themselves.
    packed uint8 (blocks, 16), accumulator int64 (blocks, 32).
    """
    products = np.empty(16, dtype=np.int64)
    for row in range(factors.size):
        scale = factors[row]
        for i in range(16):
            products[i] = levels[i] * scale * weight
        present = 0  # one bit for every half byte that occurs
        for i in range(16):
            low, high = packed[row, i] & 15, packed[row, i] >> 4
            present |= (1 << low) | (1 << high)
            accumulator[row, 2 * i] += products[low]
            accumulator[row, 2 * i + 1] += products[high]
        largest = (present >> 7 & 1) | (present >> 9 & 1)
        if present >> 8 & 1 or (scale and not largest) or (not scale and present != 1):
            return False
        if scale * 127 >= 127 << 32:
            return False
    return True


@njit(nogil=True, error_model="numpy")
def topk_select(bits: Any, places: Any) -> bool:
    """topk._select_largest for the bits of float32 (n, 4096): ascending places int64 (n, kept).

    False when a value is not below 127. The bits of magnitudes are in the order of the magnitudes, so the
    smallest one kept is found by counting, with vector instructions, how many are at least some middle: first
    in growing steps from where the row before ended, then by halving.
    """
    kept = places.shape[1]
    magnitudes = np.empty(4096, dtype=np.int32)
    marks = np.empty(4096, dtype=np.uint8)
    groups = marks.view(np.uint64)
    chosen = np.empty(4096, dtype=np.int64)
    guess = np.int32(0)
    for row in range(bits.shape[0]):
        largest = np.int32(0)
        for i in range(4096):
            magnitudes[i] = bits[row, i] & _ABSOLUTE
            largest = max(largest, magnitudes[i])
        if largest >= _LIMIT:
            return False
        # at least `kept` values are not below `least`, fewer not below `above`
        least, above, count = np.int32(0), largest + np.int32(1), np.int32(4096)
        middle, step = min(max(guess, np.int32(1)), largest), np.int32(1 << 17)
        while count != kept and above - least > 1:
            counted = np.int32(0)
            for i in range(4096):
                counted += np.int32(1) if magnitudes[i] >= middle else np.int32(0)
            if counted >= kept:
                least, count = middle, counted
            else:
                above = middle
            half = np.int32(least + (above - least) // 2)
            if counted >= kept:
                middle = min(half, np.int32(least + step))
            else:
                middle = max(half, np.int32(above - step))
            step = min(np.int32(step * 4), np.int32(1 << 28))
        guess = least
        for i in range(4096):
            marks[i] = np.uint8(1) if magnitudes[i] >= least else np.uint8(0)
        found = 0
        for group in range(512):  # most groups of eight have none
            if groups[group]:
                for i in range(8 * group, 8 * group + 8):
                    if marks[i]:
                        chosen[found] = i
                        found += 1
        surplus = count - kept  # of those equal to the smallest, the last ones are not kept
        for position in range(found - 1, -1, -1):
            if not surplus:
                break
            if magnitudes[chosen[position]] == least:
                chosen[position] = -1
                surplus -= 1
        written = 0
        for position in range(found):
            if chosen[position] >= 0:
                places[row, written] = chosen[position]
                written += 1
    return True
