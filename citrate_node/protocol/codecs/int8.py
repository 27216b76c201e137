"""int8: blocks of 256 values, one scale each, one byte a value.

Pure. The default codec of a devnet: a quarter of the float32 bytes, relative error about 0.007 on Gaussian
values. Source: blockwise absmax quantization, Dettmers et al. 2022, arXiv:2110.02861, section 2.1, here with
a linear code and an integer scale, so that decoding is one exact product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import kernels_for
from ..tensors import Float32Array, FormatError, Int64Array, delta_to_grid, round_half_away
from .base import Codec, Payload, check_length, checked_values, ranges

BLOCK = 256
"""Values that share a scale: 4 bytes of scale cost 1.6 % of the payload."""

CODE_MAX = 127
"""-128 is never written, so that a code and its negative are equally far from zero."""

CHUNK = 64 * BLOCK
"""Values handled at a time without kernels: the temporaries stay in the cache."""

TILE = 256 * BLOCK
"""Values handled at a time with kernels: 64 KiB of codes and 512 KiB of accumulator stay in the cache."""

Scales = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.int8]


class Int8(Codec):
    """Layout: scales uint32 little-endian (blocks,), then codes int8 (count,).

    A value is code * scale in units of 2**-32. scale = floor(absmax / 127) of the block, on that grid;
    code = value / scale, rounded half away from zero, clamped to [-127, 127]. A block whose absmax is
    below 127 units is all zero.
    Error: at most half a scale, plus absmax - 127 * scale < 127 units at the block's largest entries.
    One spelling: a block with a scale has a code of 127 or -127; a block without has only zeros.
    """

    name = "int8"

    def size_bytes_max(self, count: int) -> int:
        """Exact: every payload of `count` values has this length."""
        return 4 * _blocks(count) + count

    def encode(self, values: Float32Array) -> bytes:
        """See the class; float32 (count,) in, 4 * ceil(count / 256) + count bytes out."""
        kernels = kernels_for(values.size)
        if kernels is not None:
            payload = np.empty(self.size_bytes_max(values.size), dtype=np.uint8)
            scales = np.empty(_blocks(values.size), dtype=np.uint32)
            codes = payload[4 * scales.size :].view(np.int8)
            flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
            if kernels.int8_encode(flat.view(np.int32), flat, scales, codes):
                payload[: 4 * scales.size] = scales.astype("<u4").view(np.uint8)
                return payload.tobytes()
        flat = checked_values(values)
        parts = [_encode_blocks(flat[start:stop]) for start, stop in ranges(0, flat.size, CHUNK)]
        scales = np.concatenate([scale for scale, _ in parts])
        return scales.astype("<u4").tobytes() + b"".join(codes.tobytes() for _, codes in parts)

    def check(self, data: Payload, count: int) -> None:
        """Length, and the one spelling that the class describes."""
        scales, codes = self._views(data, count)
        for start, stop in ranges(0, count, CHUNK):
            _check_blocks(scales[start // BLOCK : _blocks(stop)], codes[start:stop], start)

    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """codes * scale, in int64."""
        scales, codes = self._views(data, count)
        out = np.zeros(stop - start, dtype=np.int64)
        for low, high in ranges(start, stop, CHUNK):
            _add_blocks(
                scales[low // BLOCK : _blocks(high)], codes[low:high], 1, out[low - start : high - start]
            )
        return out

    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """One pass: check, decode and add."""
        self.accumulate_all([(weight, data)], count, accumulator)

    def accumulate_all(
        self, entries: Sequence[tuple[int, Payload]], count: int, accumulator: Int64Array
    ) -> None:
        """Tile by tile through all payloads, so that the accumulator passes through memory once."""
        kernels = kernels_for(count)
        views = [(weight, *self._views(data, count)) for weight, data in entries]
        for start, stop in ranges(0, count, CHUNK if kernels is None else TILE):
            part = accumulator[start:stop]
            for weight, scales, codes in views:
                tile_scales, tile_codes = scales[start // BLOCK : _blocks(stop)], codes[start:stop]
                if kernels is None:
                    _check_blocks(tile_scales, tile_codes, start)
                    _add_blocks(tile_scales, tile_codes, weight, part)
                elif not kernels.int8_accumulate(tile_scales, tile_codes, weight, part):
                    _check_blocks(tile_scales, tile_codes, start)
                    raise AssertionError("the kernel refused a block that numpy takes")

    def _views(self, data: Payload, count: int) -> tuple[Scales, Codes]:
        check_length(data, self.size_bytes_max(count), count)
        # the scales are copied, since they may start at any byte of the delta file
        scales = np.frombuffer(data, dtype="<u4", count=_blocks(count)).astype(np.uint32)
        return scales, np.frombuffer(data, dtype=np.int8, offset=4 * scales.size)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _rows(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(blocks, 256); the last block is filled up with zeros, which change no maximum."""
    missing = -flat.size % BLOCK
    return (np.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)


def _encode_blocks(flat: Float32Array) -> tuple[Scales, Codes]:
    grid = delta_to_grid(_rows(flat))
    scales = np.abs(grid).max(axis=1) // CODE_MAX
    # float64 is exact enough here: the quotient of two integers below 2**39 and 2**32 is never nearer
    # than 2**-33 to a half without being one, and its rounding error is below 2**-45
    quotients = grid / np.maximum(scales, 1)[:, None].astype(np.float64)
    codes = np.clip(round_half_away(quotients), -CODE_MAX, CODE_MAX)
    codes[scales == 0] = 0
    return scales.astype(np.uint32), codes.astype(np.int8).reshape(-1)[: flat.size]


def _check_blocks(scales: Scales, codes: Codes, start: int) -> None:
    largest = np.abs(_rows(codes).astype(np.int16)).max(axis=1)
    wrong = np.flatnonzero(largest != np.where(scales == 0, 0, CODE_MAX))
    if wrong.size:
        raise FormatError(
            "block_not_canonical",
            f"block {start // BLOCK + int(wrong[0])} has scale {int(scales[wrong[0]])} "
            f"and largest code {int(largest[wrong[0]])}",
        )


def _add_blocks(scales: Scales, codes: Codes, weight: int, accumulator: Int64Array) -> None:
    factors = scales.astype(np.int64) * weight
    products = _rows(codes) * factors[:, None]
    accumulator += products.reshape(-1)[: codes.size]
