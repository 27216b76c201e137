"""topk: of every 4096 values only the largest; their places as distances in Rice codes, their sizes as one
or two levels a block.

Pure. With 8 % kept and one level an entry costs 6.1 bits, and a payload 1/66 of the float32 bytes. What is
left out stays with the mentor (delta.error_feedback), to be sent once it grew. Sources: SparseLoCo, Sarfi
et al. 2025, arXiv:2508.15706, sections 3 and 4, where a block is a 64 x 64 tile, here a run of values, and a
place takes twelve bits; Rice 1979, JPL 79-22. The parts of the codes lie apart, as in Elias 1974, JACM 21(2),
so that all entries are read at once and not one after the other.
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
"""Values from which the largest are chosen, and which share their levels."""

BLOCK_BITS = 12

CHUNK = 16 * BLOCK
"""Values encoded at a time: the temporaries stay in the cache."""

KERNEL_CHUNK = 256 * BLOCK
"""The same with kernels, whose temporaries are only the entries kept."""

COUNT_BYTES = 4
"""Of the number of entries, with which a payload begins."""

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Entries:
    """What is kept of some consecutive blocks, in the order of places."""

    levels: Codes16
    """(blocks, 1 or 2): the magnitudes, the smaller one first, as scales.py writes them."""

    places: Int64Array
    """Of each entry, from the first value of the first block; ascending."""

    negative: Bits
    """Of each entry."""

    large: Bits | None
    """Which entries are of the larger level; None where there is one level."""


class TopK(Codec):
    """Layout: number of entries uint32; levels uint16 (blocks, levels); one bit for each entry that is
    negative; with two levels one bit for each entry of the larger one; the low_bits lowest bits of each
    distance; for each distance its other bits as so many zeros and a one. A distance is how many values lie
    between an entry and the one before, or the start.

    All little-endian, lower bits first, each part filled up with zero bits to whole bytes; so the last byte
    holds a one. Kept are the `kept` largest of each block by |value|, the earlier of equal ones (of a shorter
    last block in proportion, at least one), unless they are 0 on the grid. With one level they stand for the
    mean of their magnitudes, with two for the mean of those above the mean of all and the mean of the rest,
    each mean rounded down to a 16-bit scale.
    One spelling: a block has a level if and only if it has entries; of two levels the larger is used, the
    smaller is used or zero, and is below the larger.
    """

    def __init__(self, name: str, kept: int, low_bits: int, levels: int = 1) -> None:
        """kept: of 4096. low_bits: those that are near log2(ln 2 * 4096 / kept) make the shortest files."""
        self.name = name
        self.kept = kept
        self.low_bits = low_bits
        self.levels = levels

    def size_bytes_max(self, count: int) -> int:
        """When every block keeps all it may, and as much as can be lies in the distances."""
        total = int(self._kept_of_blocks(count).sum())
        return self._fixed_bytes(count, total) + self._distance_bytes_max(count, total)

    def encode(self, values: Float32Array) -> bytes:
        """See the class; float32 (count,) in, at most size_bytes_max(count) bytes out."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        kernels = kernels_for(flat.size)
        parts = None if kernels is None else self._encode_parts(flat, kernels, KERNEL_CHUNK)
        if parts is None:
            flat = checked_values(flat)  # also where the kernel met a value that it refuses
            parts = self._encode_parts(flat, None, CHUNK)
        assert parts is not None
        return self._write(parts)

    def check(self, data: Payload, count: int) -> None:
        """Lengths, and the one spelling that the class describes."""
        self._checked(data, count)

    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """Zeros, and the entries whose places lie in the range."""
        entries = self._parse(data, count)
        inside = slice(*np.searchsorted(entries.places, [start, stop]))
        out = np.zeros(stop - start, dtype=np.int64)
        out[entries.places[inside] - start] = _values(entries, inside)
        return out

    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """Touches the accumulator only where there are entries."""
        entries = self._checked(data, count)
        accumulator[entries.places] += weight * _values(entries, slice(None))

    def _encode_parts(
        self, flat: Float32Array, kernels: ModuleType | None, chunk: int
    ) -> list[_Entries] | None:
        """The parts of consecutive chunks; None when the kernel met a value that is refused."""
        kept = self._kept_of_blocks(flat.size)
        parts = []
        for start, stop in ranges(0, flat.size, chunk):
            part = _encode_blocks(
                flat[start:stop], kept[start // BLOCK : _blocks(stop)], self.levels, kernels
            )
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

    def _fixed_bytes(self, count: int, total: int) -> int:
        """Of everything but the distances' unary parts."""
        levels = 2 * self.levels * _blocks(count)
        return COUNT_BYTES + levels + self.levels * _bytes(total) + _bytes(self.low_bits * total)

    def _distance_bytes_max(self, count: int, total: int) -> int:
        """Of the unary parts: a one each, and no more zeros than the values that are left out allow."""
        return _bytes(total + ((count - total) >> self.low_bits)) if total else 0

    def _write(self, parts: list[_Entries]) -> bytes:
        sizes = np.array([len(part.levels) * BLOCK for part in parts])
        starts = np.cumsum(sizes) - sizes
        places = np.concatenate([part.places + start for part, start in zip(parts, starts, strict=True)])
        distances = np.diff(places, prepend=-1) - 1
        low = distances[:, None] >> np.arange(self.low_bits) & 1
        ends = np.cumsum((distances >> self.low_bits) + 1)
        unary = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.bool_)
        unary[ends - 1] = True
        large = [part.large for part in parts if part.large is not None]
        return b"".join(
            (
                places.size.to_bytes(COUNT_BYTES, "little"),
                np.concatenate([part.levels for part in parts]).astype("<u2").tobytes(),
                _packed(np.concatenate([part.negative for part in parts])),
                _packed(np.concatenate(large)) if large else b"",
                _packed(low.astype(np.bool_).reshape(-1)),
                _packed(unary),
            )
        )

    def _parse(self, data: Payload, count: int) -> _Entries:
        """The parts, after a check of every length: nothing is allocated for one that is only claimed."""
        blocks, kept = _blocks(count), self._kept_of_blocks(count)
        total = int.from_bytes(data[:COUNT_BYTES], "little")
        if total > kept.sum():
            raise FormatError("too_many_entries", f"{total} entries of {count} values, limit {kept.sum()}")
        fixed = self._fixed_bytes(count, total)
        if not fixed <= len(data) <= fixed + self._distance_bytes_max(count, total):
            raise FormatError("payload_size", f"{len(data)} bytes for {total} entries of {count} values")
        levels = np.frombuffer(data, dtype="<u2", offset=COUNT_BYTES, count=self.levels * blocks)
        reader = _Reader(np.frombuffer(data, dtype=np.uint8, offset=COUNT_BYTES + levels.nbytes))
        negative = reader.take(total)
        large = reader.take(total) if self.levels == 2 else None
        low = reader.take(self.low_bits * total).reshape(total, self.low_bits)
        ends = np.flatnonzero(reader.rest())
        if ends.size != total:
            raise FormatError("entries_count", f"{ends.size} distances for {total} entries")
        distances = (np.diff(ends, prepend=-1) - 1) << self.low_bits
        for bit in range(self.low_bits):
            distances |= low[:, bit].astype(np.int64) << bit
        places = np.cumsum(distances + 1) - 1
        if total and places[-1] >= count:
            raise FormatError("places_range", f"place {int(places[-1])} of {count} values")
        return _Entries(levels.astype(np.uint16).reshape(blocks, self.levels), places, negative, large)

    def _checked(self, data: Payload, count: int) -> _Entries:
        entries = self._parse(data, count)
        blocks = entries.places >> BLOCK_BITS
        counts = np.bincount(blocks, minlength=_blocks(count))
        if (counts > self._kept_of_blocks(count)).any():
            raise FormatError("too_many_entries", f"a block keeps more than {self.kept} of {BLOCK}")
        high = entries.levels[:, -1]
        if entries.large is None:
            right = (high > 0) == (counts > 0)
        else:
            low = entries.levels[:, 0]
            large = np.bincount(blocks[entries.large], minlength=len(counts))
            empty = (counts == 0) & (low == 0) & (high == 0)
            right = empty | ((large > 0) & (low < high) & ((counts > large) == (low > 0)))
        right &= unpack_scales(high) <= DELTA_MAX
        if not right.all():
            wrong = int(np.flatnonzero(~right)[0])
            levels = entries.levels[wrong].tolist()
            raise FormatError("block_not_canonical", f"block {wrong} has the levels {levels}")
        return entries


class _Reader:
    """Bits of a payload's last parts, one part after the other."""

    def __init__(self, data: Bytes) -> None:
        self.data = data

    def take(self, count: int) -> Bits:
        """The next `count` bits; FormatError where those that fill up their last byte are not zero."""
        part, self.data = self.data[: _bytes(count)], self.data[_bytes(count) :]
        bits = np.unpackbits(part, bitorder="little").view(np.bool_)
        if bits[count:].any():
            raise FormatError("padding", "the bits that fill up a part are not zero")
        return bits[:count]

    def rest(self) -> Bits:
        """All that is left; FormatError when its last byte is zero, and might be left out."""
        if self.data.size and self.data[-1] == 0:
            raise FormatError("padding", "the last byte has no bit")
        return np.unpackbits(self.data, bitorder="little").view(np.bool_)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _packed(bits: Bits) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _encode_blocks(
    flat: Float32Array, kept: Int64Array, levels: int, kernels: ModuleType | None
) -> _Entries | None:
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
    used = magnitudes > 0
    places += np.arange(len(rows))[:, None] << BLOCK_BITS
    if levels == 1:
        means = magnitudes.sum(axis=1) // np.maximum(used.sum(axis=1), 1)
        return _Entries(pack_scales(means)[:, None], places[used], grid[used] < 0, None)
    both, large = _two_levels(magnitudes, used)
    return _Entries(both, places[used], grid[used] < 0, large[used])


def _select_largest(rows: Float32Array, kept: int, kernels: ModuleType | None) -> Int64Array | None:
    """Ascending places (n, kept) of the largest |value| in rows of float32 (n, 4096), of equals the first.

    None when the kernel met a value that is not below 127; without kernels the caller has looked.
    """
    bits = rows.view(np.int32)
    if kernels is not None:
        places = np.empty((len(rows), kept), dtype=np.int64)
        return places if kernels.topk_select(bits, places) else None
    # one key per value, all different: its magnitude, then its distance from the end of the row
    keys = (bits & 0x7FFFFFFF).astype(np.int64) << BLOCK_BITS | np.arange(BLOCK - 1, -1, -1)
    largest = np.partition(keys, BLOCK - kept, axis=1)[:, BLOCK - kept :]
    return np.sort(BLOCK - 1 - (largest & (BLOCK - 1)), axis=1)


def _two_levels(magnitudes: Int64Array, used: Bits) -> tuple[Codes16, Bits]:
    """Levels uint16 (n, 2) of magnitudes (n, kept), and which entries are of the larger level.

    used: where there is an entry. All are of the larger level where both would be the same.
    """
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


def _values(entries: _Entries, inside: slice) -> Int64Array:
    """Of some entries, in units of 2**-32."""
    levels = unpack_scales(entries.levels)
    blocks = entries.places[inside] >> BLOCK_BITS
    if entries.large is None:
        values = levels[blocks, 0]
    else:
        values = levels[blocks, entries.large[inside].astype(np.int64)]
    signed: Int64Array = np.where(entries.negative[inside], -values, values)
    return signed
