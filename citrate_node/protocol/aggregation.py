"""The weighted average of deltas, in integers: the same bytes on every machine, in any order.

Pure. Deltas arrive as files (codecs/delta.py); weights are integers that sum to exactly 2**16; one division
at the end. Called by state_transition.process_checkpoint and by rules.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from .adapter import AdapterWeights
from .codecs import Codec, unwrap_payload
from .codecs.base import Payload, ranges
from .kernels import kernels_for
from .tensors import (
    DELTA_BITS,
    DELTA_MAX,
    WEIGHT_BITS,
    FormatError,
    Int64Array,
    Manifest,
    canonical_weights,
    divide_toward_zero,
)

WEIGHT_SUM_BITS = 16

WEIGHT_SUM = 1 << WEIGHT_SUM_BITS
"""What the weights of one average sum to."""

BATCH_BYTES_MAX = 32 << 20
"""Encoded deltas held at once, so that the accumulator need not pass through memory for each of them."""

FINISH_VALUES = 1 << 16
"""Values divided and added at a time, so that temporaries stay small."""

assert DELTA_MAX * WEIGHT_SUM < 1 << 63, "a sum of weighted deltas must fit 64 bits, however many there are"


def integer_weights(raw: Sequence[int], whole: int = WEIGHT_SUM) -> tuple[int, ...]:
    """Shares of `whole`, 2**16, in proportion to `raw`, summing to exactly that.

    raw: whole numbers from 0, not all 0. Largest remainder (Hamilton): each gets the whole part of its
    share, and those left over go one each to the largest remainders, ties to the earlier position. So
    every share is within 1 of the exact one.
    Raises ValueError when there is nothing to share by: the checkpoint then has no average.
    """
    if any(value < 0 for value in raw):
        raise ValueError("a weight is below zero")
    total = sum(raw)
    if total == 0:
        raise ValueError("all weights are zero, there is no average")
    shares = [value * whole // total for value in raw]
    by_remainder = sorted(range(len(raw)), key=lambda i: (-(raw[i] * whole % total), i))
    for position in by_remainder[: whole - sum(shares)]:
        shares[position] += 1
    return tuple(shares)


def weighted_mean(
    parent: AdapterWeights, manifest: Manifest, entries: Iterable[tuple[int, bytes]], codec: Codec
) -> AdapterWeights:
    """The parent plus the weighted average of deltas.

    manifest: the tensors that move, a subset of the parent's. entries: (weight, delta file); weights from 0,
    summing to exactly 2**16 (integer_weights). A list of them is gone through part by part of the vector, so
    that the sum itself is never held. Anything else is taken one after the other, and hardly more than
    BATCH_BYTES_MAX of it is held, so files may be read from disk as they are asked for.
    Raises FormatError when a file is not a delta of this codec and manifest, ValueError on wrong weights.
    """
    if isinstance(entries, Sequence):
        payloads = [(weight, unwrap_payload(data, codec, manifest)) for weight, data in entries]
        total = checked_total((weight for weight, _ in entries), WEIGHT_SUM)
        parts = codec.sums(payloads, manifest.count)
        values = np.empty_like(parent.values) if manifest == parent.manifest else parent.values.copy()
    else:
        weighted, total = weighted_sum(manifest, entries, codec)
        parts, values = iter([(0, manifest.count, weighted)]), _result_values(parent, manifest, weighted)
    if total != WEIGHT_SUM:
        raise ValueError(f"weights sum to {total}, must be {WEIGHT_SUM}")
    return _moved(parent, manifest, parts, WEIGHT_SUM_BITS, values)


def checked_total(weights: Iterable[int], weight_sum_max: int, total: int = 0) -> int:
    """`total` and their sum. Raises ValueError where one is below zero, or the sum above the most."""
    for weight in weights:
        if weight < 0:
            raise ValueError(f"weight {weight} is below zero")
        total += weight
        if total > weight_sum_max:
            raise ValueError(f"weights sum to more than {weight_sum_max}")
    return total


def weighted_sum(
    manifest: Manifest, entries: Iterable[tuple[int, bytes]], codec: Codec, weight_sum_max: int = WEIGHT_SUM
) -> tuple[Int64Array, int]:
    """Sum of weight * delta, deltas in units of 2**-32, int64 (manifest.count,); and the sum of the weights.

    Cannot overflow: every |delta| is below 127 and the weights sum to at most 2**24, so |sum| < 2**63.
    """
    assert weight_sum_max * DELTA_MAX < 1 << 63
    accumulator = np.empty(manifest.count, dtype=np.int64)
    fresh, total = True, 0
    for batch in _batches(entries):
        payloads: list[tuple[int, Payload]] = []
        total = checked_total((weight for weight, _ in batch), weight_sum_max, total)
        payloads.extend((weight, unwrap_payload(data, codec, manifest)) for weight, data in batch)
        codec.accumulate_all(payloads, manifest.count, accumulator, fresh=fresh)
        fresh = False
        payloads.clear()
        batch.clear()  # or these files would be held while the next ones are read
    if fresh:
        accumulator.fill(0)
    return accumulator, total


def add_average(
    parent: AdapterWeights,
    manifest: Manifest,
    weighted: Int64Array,
    weight_bits: int = WEIGHT_SUM_BITS,
) -> AdapterWeights:
    """The parent plus a weighted sum whose weights sum to 2**weight_bits: one division toward zero, then
    saturation.

    weighted: int64 (manifest.count,). It is used up, so that no third vector is needed: when every tensor
    moves, it becomes the new values.
    """
    if weighted.shape != (manifest.count,):
        raise FormatError("values_shape", f"{weighted.shape} sums for {manifest.count} values")
    parts = iter([(0, manifest.count, weighted)])
    return _moved(parent, manifest, parts, weight_bits, _result_values(parent, manifest, weighted))


def _result_values(parent: AdapterWeights, manifest: Manifest, weighted: Int64Array) -> Int64Array:
    return weighted if manifest == parent.manifest else parent.values.copy()


def _moved(
    parent: AdapterWeights,
    manifest: Manifest,
    parts: Iterator[tuple[int, int, Int64Array]],
    weight_bits: int,
    values: Int64Array,
) -> AdapterWeights:
    """parts: (start, stop, weighted sum) of the moving tensors, in order; values: where the result goes, with
    the parent's values in the tensors that stand still."""
    step_bits = weight_bits + DELTA_BITS - WEIGHT_BITS
    kernels = kernels_for(manifest.count)
    places = parent.places(manifest)
    starts = np.cumsum([0, *(place.stop - place.start for place in places)])
    for low, high, weighted in parts:
        first = int(np.searchsorted(starts, low, side="right")) - 1
        for index in range(first, len(places)):
            if starts[index] >= high:
                break
            offset = places[index].start - int(starts[index])
            begin, end = max(low, int(starts[index])), min(high, int(starts[index + 1]))
            for start, stop in ranges(begin, end, FINISH_VALUES):
                before = parent.values[start + offset : stop + offset]
                after = values[start + offset : stop + offset]
                part = weighted[start - low : stop - low]
                if kernels is not None:
                    is_canonical = kernels.add_step(before, part, step_bits, after) <= 1 << WEIGHT_BITS
                else:
                    np.add(before, divide_toward_zero(part, 1 << step_bits), out=after)
                    is_canonical = False
                if not is_canonical:
                    after[:] = canonical_weights(after)
    return replace(parent, values=values)


def _batches(entries: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry[1])
        if size >= BATCH_BYTES_MAX and len(batch) % 4 == 0:  # kernels add four at a time
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
