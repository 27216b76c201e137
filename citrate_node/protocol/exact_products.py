"""Matrix products of whole numbers that float64 holds exactly: the same integers on every machine.

Pure. Called by gram.py and metrics.py. Sums are cut into runs so short that none passes 2**53; nothing is
rounded there, whatever the BLAS, its number of threads and its order of summation.
"""

from __future__ import annotations

import numpy as np

from .tensors import Float64Array, Int64Array

FACTOR_BITS = 20
"""To which factors are rounded, relative to the largest value of a column: an error below a millionth."""

TILE = 32
"""Rows and columns multiplied at a time."""

MULTIPLICATIONS_MAX = 1 << 18
"""Up to here OpenBLAS stays in the calling thread. Above, it waits for all of its threads after each of these
short products: on a machine with other work that took a thousand times as long."""


def rounded(rows: Float64Array, bits: int) -> tuple[Float64Array, Int64Array]:
    """Each row as integers of at most `bits` bits, and the exponents of their units.

    Exact and the same everywhere: powers of two, and rint of numbers far below 2**53.
    """
    largest = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0))
    exponents = np.frexp(largest)[1].astype(np.int64) - bits
    scaled = rows * np.ldexp(1.0, -exponents.astype(np.int32))[:, None]
    return np.rint(scaled, out=scaled), exponents


def exact_product(left: Float64Array, right: Float64Array, bits: int) -> Int64Array:
    """left @ right of integers of at most `bits` and 20 bits, in runs whose sums float64 holds."""
    height, length = left.shape
    width = right.shape[1]
    total = np.zeros((height, width), dtype=np.int64)
    for top in range(0, height, TILE):
        for edge in range(0, width, TILE):
            tile = total[top : top + TILE, edge : edge + TILE]
            run = min(1 << (53 - bits - FACTOR_BITS), MULTIPLICATIONS_MAX // tile.size)
            for start in range(0, length, run):
                rows = left[top : top + TILE, start : start + run]
                tile += (rows @ right[start : start + run, edge : edge + TILE]).astype(np.int64)
    return total
