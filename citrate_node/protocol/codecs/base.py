"""What every codec does: float32 values to few bytes, and those bytes to integers on the delta grid.

Pure. A codec's `encode` may lose precision (the mentor keeps the rest, see delta.error_feedback); its
`decode` is exact integer arithmetic, the same on every machine, and takes exactly one byte string for each
vector of integers. Called by aggregation and delta; the codecs stand in the files beside this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..tensors import DELTA_LIMIT, Float32Array, FormatError, Int64Array, finite_float32

RANGE_STEP = 4096
"""decode_range starts at multiples of this: every codec's blocks divide it."""

Payload = bytes | memoryview
"""Encoded values, without the header that delta.py puts before them."""


class Codec(ABC):
    """One way to write a flat vector of values. Stateless; get one from codecs.codec(name)."""

    name: str
    """As it stands in presets, signals and delta files."""

    @abstractmethod
    def size_bytes_max(self, count: int) -> int:
        """The longest payload of `count` values: what a limit must allow, and a fetch may cost."""

    @abstractmethod
    def encode(self, values: Float32Array) -> bytes:
        """The payload of float32 (count,) values.

        Raises FormatError for NaN, infinity or |value| >= 127: a broken trainer must not reach the network.
        """

    @abstractmethod
    def check(self, data: Payload, count: int) -> None:
        """FormatError unless `data` is the one payload of some `count` values."""

    @abstractmethod
    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """Values start to stop of a checked payload, in units of 2**-32. start: a multiple of RANGE_STEP."""

    @abstractmethod
    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """Check the payload and add weight times each of its values to `accumulator` (count,).

        On FormatError the accumulator's content is of no more use.
        """

    def decode(self, data: Payload, count: int) -> Int64Array:
        """All values of a payload, checked, in units of 2**-32."""
        self.check(data, count)
        return self.decode_range(data, count, 0, count)

    def accumulate_all(
        self,
        entries: Sequence[tuple[int, Payload]],
        count: int,
        accumulator: Int64Array,
        fresh: bool = False,
    ) -> None:
        """accumulate for several (weight, payload) at once; a codec may go through them tile by tile.

        fresh: the accumulator holds nothing yet, whatever its memory says.
        """
        if fresh:
            accumulator.fill(0)
        for weight, data in entries:
            self.accumulate(data, count, weight, accumulator)

    def sums(
        self, entries: Sequence[tuple[int, Payload]], count: int
    ) -> Iterator[tuple[int, int, Int64Array]]:
        """The checked weighted sum of (weight, payload), as (start, stop, values) from the first value to the
        last. The values may be written over by the next part: use them before asking for it."""
        accumulator = np.empty(count, dtype=np.int64)
        self.accumulate_all(entries, count, accumulator, fresh=True)
        yield 0, count, accumulator


def checked_values(values: Float32Array) -> Float32Array:
    """The input of every `encode`: flat float32, finite, below the limit of a delta."""
    return finite_float32(values, DELTA_LIMIT, "the delta")


def check_length(data: Payload, expected: int, count: int) -> None:
    """FormatError unless the payload has exactly this length."""
    if len(data) != expected:
        raise FormatError("payload_size", f"{len(data)} bytes for {count} values, must be {expected}")


def ranges(start: int, stop: int, step: int) -> Iterable[tuple[int, int]]:
    """Consecutive (start, stop) pairs of at most `step`, so that temporaries stay in the cache."""
    for at in range(start, stop, step):
        yield at, min(at + step, stop)
