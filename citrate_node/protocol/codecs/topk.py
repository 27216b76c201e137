"""topk: of every 4096 values only the largest, two bits each and twelve for the place.

Pure. With 64 of 4096 kept an entry costs 14 bits and a block 6 bytes: 1/138 of the float32 bytes. What is
left out stays with the mentor (delta.error_feedback) and is sent once it has grown. Source: SparseLoCo,
Sarfi et al. 2025, arXiv:2508.15706, sections 3 and 4; there a block is a 64 x 64 tile, here a run of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt

from ..kernels import kernels_for
from ..tensors import DELTA_MAX, Float32Array, FormatError, Int64Array, delta_to_grid
from .base import Codec, Payload, checked_values, ranges
from .scales import Codes16, pack_scales, unpack_scales

BLOCK = 4096
"""Values from which the largest are chosen; a place within it takes 12 bits."""

CHUNK = 16 * BLOCK
"""Values encoded at a time: the temporaries stay in the cache."""

KERNEL_CHUNK = 256 * BLOCK
"""The same with kernels, whose temporaries are only the entries kept."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Entries:
    """A payload's parts: per block, and per entry from the first block's to the last's."""

    counts: Int64Array
    """Entries of each block."""

    levels: Codes16
    """(blocks, 2): the smaller and the larger magnitude, as scales.py writes them."""

    places: Int64Array
    """Of each entry within its block."""

    codes: Bytes
    """Of each entry: 1 for the larger magnitude, plus 2 when it is negative."""


class TopK(Codec):
    """Layout: counts uint16 (blocks,), levels uint16 (blocks, 2), places 12 bits each, codes 2 bits each.

    All little-endian, lower bits first, each of the last two parts filled up with zero bits to whole bytes.
    Kept are the `kept` largest of each block by |value|, the earlier of equal ones (of a shorter last block
    in proportion, at least one), unless they are 0 on the grid. They stand for two magnitudes: the mean of
    those above the mean of all, and the mean of the rest, each rounded down to a 16-bit scale.
    One spelling: places ascend within a block; the larger level is used; the smaller is used or zero, and is
    below the larger; a block without entries has no levels.
    """

    def __init__(self, name: str, kept: int) -> None:
        self.name = name
        self.kept = kept

    def size_bytes_max(self, count: int) -> int:
        """When every block keeps all it may."""
        total = int(self._kept_of_blocks(count).sum())
        return _size(_blocks(count), total)

    def encode(self, values: Float32Array) -> bytes:
        """See the class; float32 (count,) in, at most size_bytes_max(count) bytes out."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        kernels = kernels_for(flat.size)
        parts = None if kernels is None else self._encode_parts(flat, kernels, KERNEL_CHUNK)
        if parts is None:
            flat = checked_values(flat)  # also where the kernel met a value that it refuses
            parts = self._encode_parts(flat, None, CHUNK)
        assert parts is not None
        return _write(parts)

    def check(self, data: Payload, count: int) -> None:
        """Lengths, and the one spelling that the class describes."""
        self._checked(data, count)

    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """Zeros, and the entries whose places lie in the range."""
        positions, values = _positions(self._parse(data, count))
        inside = slice(*np.searchsorted(positions, [start, stop]))
        out = np.zeros(stop - start, dtype=np.int64)
        out[positions[inside] - start] = values[inside]
        return out

    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """Touches the accumulator only where there are entries."""
        positions, values = _positions(self._checked(data, count))
        accumulator[positions] += weight * values

    def _encode_parts(
        self, flat: Float32Array, kernels: ModuleType | None, chunk: int
    ) -> list[_Entries] | None:
        """The parts of consecutive chunks; None when the kernel met a value that is refused."""
        kept = self._kept_of_blocks(flat.size)
        parts = []
        for start, stop in ranges(0, flat.size, chunk):
            part = _encode_blocks(flat[start:stop], kept[start // BLOCK : _blocks(stop)], kernels)
            if part is None:
                return None
            parts.append(part)
        return parts

    def _kept_of_blocks(self, count: int) -> Int64Array:
        """How many entries each block may have."""
        kept = np.full(_blocks(count), self.kept, dtype=np.int64)
        if count % BLOCK:
            kept[-1] = max(1, self.kept * (count % BLOCK) // BLOCK)
        return kept

    def _parse(self, data: Payload, count: int) -> _Entries:
        """The parts, after a check of every length: nothing is allocated for one that is only claimed."""
        blocks = _blocks(count)
        if len(data) < 6 * blocks:
            raise FormatError("payload_size", f"{len(data)} bytes for {count} values, at least {6 * blocks}")
        counts = np.frombuffer(data, dtype="<u2", count=blocks).astype(np.int64)
        if (counts > self._kept_of_blocks(count)).any():
            raise FormatError("too_many_entries", f"a block keeps more than {self.kept} of {BLOCK}")
        total = int(counts.sum())
        if len(data) != _size(blocks, total):
            raise FormatError("payload_size", f"{len(data)} bytes for {total} entries in {blocks} blocks")
        levels = np.frombuffer(data, dtype="<u2", offset=2 * blocks, count=2 * blocks).astype(np.uint16)
        packed = np.frombuffer(data, dtype=np.uint8, offset=6 * blocks)
        split = _bytes_of_places(total)
        places, codes = _unpack_places(packed[:split], total), _unpack_codes(packed[split:], total)
        return _Entries(counts, levels.reshape(-1, 2), places, codes)

    def _checked(self, data: Payload, count: int) -> _Entries:
        entries = self._parse(data, count)
        blocks = np.repeat(np.arange(len(entries.counts)), entries.counts)
        positions = blocks * BLOCK + entries.places
        if positions.size and (np.diff(positions) <= 0).any():
            raise FormatError("places_order", "places do not ascend within a block")
        if positions.size and positions[-1] >= count:
            raise FormatError("places_range", f"place {int(positions[-1])} of {count} values")
        low, high = entries.levels[:, 0], entries.levels[:, 1]
        large = np.bincount(blocks, weights=entries.codes & 1, minlength=len(entries.counts)).astype(np.int64)
        small = entries.counts - large
        empty = entries.counts == 0
        right = np.where(
            empty,
            (low == 0) & (high == 0),
            (large > 0) & (low < high) & ((small > 0) == (low > 0)),
        )
        right &= unpack_scales(high) <= DELTA_MAX
        if not right.all():
            wrong = int(np.flatnonzero(~right)[0])
            levels = entries.levels[wrong].tolist()
            raise FormatError("block_not_canonical", f"block {wrong} has the levels {levels}")
        return entries


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _size(blocks: int, total: int) -> int:
    return 6 * blocks + _bytes_of_places(total) + -(-total // 4)


def _bytes_of_places(total: int) -> int:
    return -(-12 * total // 8)


def _encode_blocks(flat: Float32Array, kept: Int64Array, kernels: ModuleType | None) -> _Entries | None:
    missing = -flat.size % BLOCK
    rows = (np.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)
    places = _select_largest(rows, int(kept[0]), kernels)
    last = _select_largest(rows[-1:], int(kept[-1]), kernels)
    if places is None or last is None:
        return None
    # a shorter last block keeps fewer; the rest of its row is no entry
    places[-1, : kept[-1]], places[-1, kept[-1] :] = last[0], -1
    grid = delta_to_grid(np.take_along_axis(rows, np.maximum(places, 0), axis=1))
    magnitudes = np.where(places < 0, 0, np.abs(grid))
    levels, large = _two_levels(magnitudes)
    used = magnitudes > 0
    codes = (large | (grid < 0) << 1).astype(np.uint8)
    return _Entries(used.sum(axis=1), levels, places[used], codes[used])


def _select_largest(rows: Float32Array, kept: int, kernels: ModuleType | None) -> Int64Array | None:
    """Ascending places (n, kept) of the largest |value| in rows of float32 (n, 4096), of equals the first.

    None when the kernel met a value that is not below 127; without kernels the caller has looked.
    """
    bits = rows.view(np.int32)
    if kernels is not None:
        places = np.empty((len(rows), kept), dtype=np.int64)
        return places if kernels.topk_select(bits, places) else None
    # one key per value, all different: its magnitude, then its distance from the end of the row
    keys = (bits & 0x7FFFFFFF).astype(np.int64) << 12 | np.arange(BLOCK - 1, -1, -1)
    largest = np.partition(keys, BLOCK - kept, axis=1)[:, BLOCK - kept :]
    return np.sort(BLOCK - 1 - (largest & (BLOCK - 1)), axis=1)


def _two_levels(magnitudes: Int64Array) -> tuple[Codes16, npt.NDArray[np.bool_]]:
    """Levels uint16 (n, 2) of magnitudes (n, kept), and which entries are of the larger level.

    Zero magnitudes are no entries. All are of the larger level where both would be the same.
    """
    used = magnitudes > 0
    counts = used.sum(axis=1)
    totals = magnitudes.sum(axis=1)
    large = magnitudes > (totals // np.maximum(counts, 1))[:, None]
    large_counts = large.sum(axis=1)
    large_totals = np.where(large, magnitudes, 0).sum(axis=1)
    small_counts = counts - large_counts
    high = pack_scales(
        np.where(large_counts > 0, large_totals, totals)
        // np.maximum(np.where(large_counts > 0, large_counts, counts), 1)
    )
    low = pack_scales(np.where(large_counts > 0, totals - large_totals, 0) // np.maximum(small_counts, 1))
    same = (low == high) | (large_counts == 0)
    low[same] = 0
    return np.stack([low, high], axis=1), large | same[:, None]


def _positions(entries: _Entries) -> tuple[Int64Array, Int64Array]:
    """Places in the whole vector, ascending, and the values there in units of 2**-32."""
    blocks = np.repeat(np.arange(len(entries.counts)), entries.counts)
    values = unpack_scales(entries.levels)[blocks, entries.codes & 1]
    return blocks * BLOCK + entries.places, np.where(entries.codes & 2, -values, values)


def _write(parts: list[_Entries]) -> bytes:
    return b"".join(
        (
            np.concatenate([part.counts for part in parts]).astype("<u2").tobytes(),
            np.concatenate([part.levels for part in parts]).astype("<u2").tobytes(),
            _pack_places(np.concatenate([part.places for part in parts])),
            _pack_codes(np.concatenate([part.codes for part in parts])),
        )
    )


def _pack_places(places: Int64Array) -> bytes:
    """Two places in three bytes."""
    even = np.append(places, 0) if places.size % 2 else places
    first, second = even[0::2], even[1::2]
    triples = np.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], axis=1).astype(np.uint8)
    return triples.tobytes()[: _bytes_of_places(places.size)]


def _unpack_places(packed: Bytes, total: int) -> Int64Array:
    triples = np.pad(packed, (0, -packed.size % 3)).reshape(-1, 3).astype(np.int64)
    places = np.empty(2 * len(triples), dtype=np.int64)
    places[0::2] = triples[:, 0] | (triples[:, 1] & 15) << 8
    places[1::2] = triples[:, 1] >> 4 | triples[:, 2] << 4
    if places[total:].any():
        raise FormatError("padding", "the bits after the last place are not zero")
    return places[:total]


def _pack_codes(codes: Bytes) -> bytes:
    """Four codes in a byte."""
    fours = np.pad(codes, (0, -codes.size % 4)).reshape(-1, 4)
    packed = fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6
    return packed.astype(np.uint8).tobytes()


def _unpack_codes(packed: Bytes, total: int) -> Bytes:
    codes: Bytes = (
        (packed[:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3).astype(np.uint8).reshape(-1)
    )
    if codes[total:].any():
        raise FormatError("padding", "the bits after the last code are not zero")
    return codes[:total]
