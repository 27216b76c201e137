"""int4: blocks of 32 values, one 16-bit scale each, two values a byte; 4.5 bits a value.

Pure. A seventh of the float32 bytes, relative error about 0.088 on Gaussian values; NF4 with blocks of 64 has
0.092 at the same 4.5 bits. As in NF4 the levels are closer where values are denser, but they are whole
numbers, so that a value is one exact product. Source: NF4, Dettmers et al. 2023, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import kernels_for
from ..tensors import DELTA_MAX, Float32Array, FormatError, Int64Array, delta_to_grid, round_half_away
from .base import Codec, Payload, check_length, checked_values, ranges
from .scales import Codes16, pack_scales, unpack_scales

BLOCK = 32
"""Values that share a scale: 2 bytes of scale cost half a bit a value."""

LEVELS = np.array([0, 13, 27, 42, 58, 76, 98, 127], dtype=np.int64)
"""Magnitudes that codes 0 to 7 stand for: those of least squared error for Gaussian blocks of 32 (Lloyd 1982,
Least squares quantization in PCM), with the block's largest value at 127."""

LEVEL_MAX = 127

THRESHOLDS = (LEVELS[:-1] + LEVELS[1:] + 1) // 2
"""The smallest rounded magnitude of codes 1 to 7: the nearest level, and the larger of two equally near."""

_LEVEL_OF_NIBBLE = np.concatenate([LEVELS, [-128], -LEVELS[:0:-1]]).astype(np.int8)
"""By two's complement; -8 is never written, and stands for a level that no block may have."""

CHUNK = 512 * BLOCK
"""Values handled at a time: the temporaries stay in the cache."""

Bytes = npt.NDArray[np.uint8]


class Int4(Codec):
    """Layout: scales uint16 little-endian (blocks,) as scales.py writes them, then codes, two in a byte.

    A value is sign * LEVELS[|code|] * scale in units of 2**-32; the earlier value is in the lower half of its
    byte, as a two's complement of 4 bits. scale = floor(absmax / 127) of the block, rounded down to a 16-bit
    scale; code is that of the level nearest to value / scale, which is first rounded half away from zero.
    Error: at most 15 scales, half of the widest step between levels (0.115 of the block's largest value).
    One spelling: a block with a scale has a code of 7 or -7, a block without has only zeros, and the half
    byte after an odd number of values is zero.
    """

    name = "int4"

    def size_bytes_max(self, count: int) -> int:
        """Exact: every payload of `count` values has this length."""
        return 2 * _blocks(count) + (count + 1) // 2

    def encode(self, values: Float32Array) -> bytes:
        """See the class; float32 (count,) in, 2 * ceil(count / 32) + ceil(count / 2) bytes out."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        kernels = kernels_for(flat.size)
        parts = None if kernels is None else _encode_with(kernels, flat)
        if parts is None:
            flat = checked_values(flat)  # also where the kernel met a value that it refuses
            parts = [_encode_blocks(flat[start:stop]) for start, stop in ranges(0, flat.size, CHUNK)]
        return b"".join([s.astype("<u2").tobytes() for s, _ in parts] + [c.tobytes() for _, c in parts])

    def check(self, data: Payload, count: int) -> None:
        """Length, and the one spelling that the class describes."""
        scales, packed = self._views(data, count)
        for start, stop in ranges(0, count, CHUNK):
            _check_blocks(scales[start // BLOCK : _blocks(stop)], _levels(packed, start, stop), start)

    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """Levels times scale, in int64."""
        scales, packed = self._views(data, count)
        parts = [
            _products(scales[low // BLOCK : _blocks(high)], _levels(packed, low, high))
            for low, high in ranges(start, stop, CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """One pass: check, decode and add."""
        scales, packed = self._views(data, count)
        kernels = kernels_for(count)
        whole = 0  # values of whole blocks that the kernel has added
        if kernels is not None:
            whole = count - count % BLOCK
            rows = packed[: whole // 2].reshape(-1, BLOCK // 2)
            factors = unpack_scales(scales[: len(rows)])
            added = accumulator[:whole].reshape(-1, BLOCK)
            if not kernels.int4_add(_LEVEL_OF_NIBBLE, factors, rows, weight, added):
                self.check(data, count)
                raise AssertionError("the kernel refused a block that numpy takes")
        for start, stop in ranges(whole, count, CHUNK):
            part, levels = scales[start // BLOCK : _blocks(stop)], _levels(packed, start, stop)
            _check_blocks(part, levels, start)
            accumulator[start:stop] += weight * _products(part, levels)

    def _views(self, data: Payload, count: int) -> tuple[Codes16, Bytes]:
        check_length(data, self.size_bytes_max(count), count)
        scales = np.frombuffer(data, dtype="<u2", count=_blocks(count)).astype(np.uint16)
        packed = np.frombuffer(data, dtype=np.uint8, offset=2 * scales.size)
        if count % 2 and packed[-1] >> 4:
            raise FormatError("padding", "the half byte after the last value is not zero")
        return scales, packed


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _rows(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(blocks, 32); the last block is filled up with zeros, which change no maximum."""
    missing = -flat.size % BLOCK
    return (np.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)


def _encode_blocks(flat: Float32Array) -> tuple[Codes16, Bytes]:
    grid = delta_to_grid(_rows(flat))
    packed_scales = pack_scales(np.abs(grid).max(axis=1) // LEVEL_MAX)
    scales = unpack_scales(packed_scales)
    # exact enough in float64, for the reason given in int8.py
    magnitudes = round_half_away(np.abs(grid) / np.maximum(scales, 1)[:, None].astype(np.float64))
    codes = np.searchsorted(THRESHOLDS, magnitudes, side="right")
    codes[scales == 0] = 0
    nibbles = (np.where(grid < 0, -codes, codes).reshape(-1)[: flat.size] & 15).astype(np.uint8)
    if flat.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return packed_scales, (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8)


def _encode_with(kernels: ModuleType, flat: Float32Array) -> list[tuple[Codes16, Bytes]] | None:
    """_encode_blocks by the kernel, the last block by numpy; None when there is a value that is refused."""
    whole = flat.size - flat.size % BLOCK
    rows = flat[:whole].reshape(-1, BLOCK)
    scales = np.empty(len(rows), dtype=np.uint16)
    packed = np.empty((len(rows), BLOCK // 2), dtype=np.uint8)
    if not kernels.int4_encode(rows, rows.view(np.int32), THRESHOLDS, scales, packed):
        return None
    parts = [(scales, packed.reshape(-1))]
    if whole < flat.size:
        parts.append(_encode_blocks(checked_values(flat[whole:])))
    return parts


def _levels(packed: Bytes, start: int, stop: int) -> npt.NDArray[np.int8]:
    """Levels of values start to stop; start is even."""
    part = packed[start // 2 : (stop + 1) // 2]
    levels = np.empty(2 * part.size, dtype=np.int8)
    levels[0::2], levels[1::2] = _LEVEL_OF_NIBBLE[part & 15], _LEVEL_OF_NIBBLE[part >> 4]
    return levels[: stop - start]


def _check_blocks(scales: Codes16, levels: npt.NDArray[np.int8], start: int) -> None:
    largest = np.abs(_rows(levels).astype(np.int16)).max(axis=1)
    too_large = unpack_scales(scales) * LEVEL_MAX > DELTA_MAX
    wrong = np.flatnonzero((largest != np.where(scales == 0, 0, LEVEL_MAX)) | too_large)
    if wrong.size:
        raise FormatError(
            "block_not_canonical",
            f"block {start // BLOCK + int(wrong[0])} has scale {int(scales[wrong[0]])} "
            f"and largest level {int(largest[wrong[0]])}",
        )


def _products(scales: Codes16, levels: npt.NDArray[np.int8]) -> Int64Array:
    products = _rows(levels) * unpack_scales(scales)[:, None]
    return products.reshape(-1)[: levels.size]
