"""float32: the values themselves, on the delta grid. The control against which the other codecs are measured.

Pure. Four bytes a value; used in simulations and tests, and by a network that would rather pay bytes.
"""

from __future__ import annotations

import numpy as np

from ..tensors import (
    DELTA_BITS,
    DELTA_LIMIT,
    Float32Array,
    FormatError,
    Int64Array,
    delta_from_grid,
    delta_to_grid,
    finite_float32,
)
from .base import Codec, Payload, check_length, checked_values, ranges

CHUNK = 1 << 16
"""Values handled at a time, so that temporaries stay small."""


class Plain(Codec):
    """Layout: float32 little-endian (count,), each a multiple of 2**-32.

    Error: at most half a unit, 2**-33; none from 2**-8 upwards, where float32 has no finer steps.
    One spelling: a value off the grid and minus zero are refused.
    """

    name = "float32"

    def size_bytes_max(self, count: int) -> int:
        """Exact."""
        return 4 * count

    def encode(self, values: Float32Array) -> bytes:
        """Rounded to the grid, halves away from zero."""
        return delta_from_grid(delta_to_grid(checked_values(values))).astype("<f4").tobytes()

    def check(self, data: Payload, count: int) -> None:
        """Length, finite, below the limit, on the grid."""
        check_length(data, 4 * count, count)
        for start, stop in ranges(0, count, CHUNK):
            self._read(data, start, stop)

    def decode_range(self, data: Payload, count: int, start: int, stop: int) -> Int64Array:
        """The multiples of 2**-32."""
        return self._read(data, start, stop)

    def accumulate(self, data: Payload, count: int, weight: int, accumulator: Int64Array) -> None:
        """Checked and added piece by piece."""
        check_length(data, 4 * count, count)
        for start, stop in ranges(0, count, CHUNK):
            accumulator[start:stop] += weight * self._read(data, start, stop)

    def _read(self, data: Payload, start: int, stop: int) -> Int64Array:
        raw = np.frombuffer(data, dtype="<f4", count=stop - start, offset=4 * start).astype(np.float32)
        grid = delta_to_grid(finite_float32(raw, DELTA_LIMIT, "the delta"))
        again = (grid.astype(np.float64) / float(1 << DELTA_BITS)).astype(np.float32)
        if not np.array_equal(again.view(np.uint32), raw.view(np.uint32)):
            raise FormatError("off_grid", "a value is not a multiple of 2**-32, or is minus zero")
        return grid
