"""int8: blocks of 256 values, one scale each, one byte a value.

Pure. The default codec of a devnet: a quarter of the float32 bytes, relative error about 0.007 on Gaussian
values. Source: blockwise absmax quantization, Dettmers et al. 2022, arXiv:2110.02861, section 2.1, here with
a linear code and an integer scale, so that decoding is one exact product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
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

TILE = 1024 * BLOCK
"""Values handled at a time with kernels: 2 MiB of accumulator stay in the cache between payloads."""

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
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        kernels = kernels_for(flat.size)
        parts = None if kernels is None else _encode_with(kernels, flat)
        if parts is None:
            flat = checked_values(flat)  # also where the kernel met a value that it refuses
            parts = [_encode_blocks(flat[start:stop]) for start, stop in ranges(0, flat.size, CHUNK)]
        scales = np.concatenate([scales for scales, _ in parts])
        return b"".join([scales.astype("<u4").tobytes(), *(codes.data for _, codes in parts)])

    def check(self, data: Payload, count: int) -> None:
        """Length, and the one spelling that the class describes."""
        scales, codes = self.views(data, count)
        kernels = kernels_for(count)
        whole = 0  # values of whole blocks that the kernel has looked at
        if kernels is not None:
            whole = count - count % BLOCK
            if not kernels.int8_check(scales, codes[:whole].reshape(-1, BLOCK)):
                whole = 0  # numpy says where
        for start, stop in ranges(whole, count, CHUNK):
            _check_blocks(scales[start // BLOCK : _blocks(stop)], codes[start:stop], start)

    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """codes * scale, in int64."""
        scales, codes = self.views(data, count)
        out = np.empty(stop - start, dtype=np.int64)
        kernels = kernels_for(count)
        whole = start
        if kernels is not None and stop - start >= BLOCK:
            whole = stop - (stop - start) % BLOCK
            view = (scales[start // BLOCK :], codes[start:])
            _add_with(kernels, [(1, *view)], 0, whole - start, out[: whole - start], fresh=True)
        for low, high in ranges(whole, stop, CHUNK):
            part = out[low - start : high - start]
            part.fill(0)
            _add_blocks(scales[low // BLOCK : _blocks(high)], codes[low:high], 1, part)
        return out

    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """One pass: check, decode and add."""
        self.accumulate_all([(weight, data)], count, accumulator)

    def accumulate_all(
        self,
        entries: Sequence[tuple[int, Payload]],
        count: int,
        accumulator: Int64Array,
        fresh: bool = False,
    ) -> None:
        """Tile by tile through all payloads, so that the accumulator passes through memory once."""
        kernels = kernels_for(count)
        views = [(weight, *self.views(data, count)) for weight, data in entries]
        whole = 0  # values of whole blocks that the kernels have added
        if kernels is not None:
            whole = count - count % BLOCK
            for start, stop in ranges(0, whole, TILE):
                _add_with(kernels, views, start, stop, accumulator[start:stop], fresh)
        for start, stop in ranges(whole, count, CHUNK):
            tile = accumulator[start:stop]
            if fresh:
                tile.fill(0)
            for weight, scales, codes in views:
                part = slice(start // BLOCK, _blocks(stop))
                _check_blocks(scales[part], codes[start:stop], start)
                _add_blocks(scales[part], codes[start:stop], weight, tile)

    def sums(
        self, entries: Sequence[tuple[int, Payload]], count: int
    ) -> Iterator[tuple[int, int, Int64Array]]:
        """Tile by tile, so that the sum need not pass through memory at all."""
        kernels = kernels_for(count)
        if kernels is None or not entries:
            yield from super().sums(entries, count)
            return
        views = [(weight, *self.views(data, count)) for weight, data in entries]
        whole = count - count % BLOCK
        buffer = np.empty(min(TILE, whole), dtype=np.int64)
        for start, stop in ranges(0, whole, TILE):
            _add_with(kernels, views, start, stop, buffer[: stop - start], fresh=True)
            yield start, stop, buffer[: stop - start]
        if whole < count:
            rest = np.zeros(count - whole, dtype=np.int64)
            for weight, scales, codes in views:
                _check_blocks(scales[whole // BLOCK :], codes[whole:], whole)
                _add_blocks(scales[whole // BLOCK :], codes[whole:], weight, rest)
            yield whole, count, rest

    def views(self, data: Payload, count: int) -> tuple[Scales, Codes]:
        """Scales and codes of a payload, not copied; only its length is checked."""
        check_length(data, self.size_bytes_max(count), count)
        # the scales are copied, since they may start at any byte of the delta file
        scales = np.frombuffer(data, dtype="<u4", count=_blocks(count)).astype(np.uint32)
        return scales, np.frombuffer(data, dtype=np.int8, offset=4 * scales.size)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _rows(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(blocks, 256); the last of several is filled up with zeros, which change no maximum."""
    if flat.size < BLOCK:
        return flat.reshape(1, -1)  # thousands of small adapters in a simulation: filling up costs most
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


def _encode_with(kernels: ModuleType, flat: Float32Array) -> list[tuple[Scales, Codes]] | None:
    """_encode_blocks by the kernel, the last block by numpy; None when there is a value that is refused."""
    whole = flat.size - flat.size % BLOCK
    rows = flat[:whole].reshape(-1, BLOCK)
    scales = np.empty(len(rows), dtype=np.uint32)
    codes = np.empty(rows.shape, dtype=np.int8)
    if not kernels.int8_encode(rows, rows.view(np.int32), scales, codes):
        return None
    parts = [(scales, codes.reshape(-1))]
    if whole < flat.size:
        parts.append(_encode_blocks(checked_values(flat[whole:])))
    return parts


def _add_with(
    kernels: ModuleType,
    views: list[tuple[int, Scales, Codes]],
    start: int,
    stop: int,
    accumulator: Int64Array,
    fresh: bool,
) -> None:
    """Whole blocks from start to stop of all payloads, four or two at a time; the last may stand for none."""
    if not views and fresh:
        accumulator.fill(0)
    part = slice(start // BLOCK, stop // BLOCK)
    rows = accumulator.reshape(-1, BLOCK)
    for first in range(0, len(views), 4):
        group = views[first : first + 4]
        while len(group) % 2 or len(group) == 3:
            group.append((0, *group[0][1:]))
        add = kernels.int8_add_four if len(group) == 4 else kernels.int8_add_pair
        arguments = [
            argument
            for weight, scales, codes in group
            for argument in (scales[part], codes[start:stop].reshape(-1, BLOCK), weight)
        ]
        if not add(*arguments, rows, fresh and first == 0):
            for _, scales, codes in group:
                _check_blocks(scales[part], codes[start:stop], start)
            raise AssertionError("the kernel refused a block that numpy takes")
