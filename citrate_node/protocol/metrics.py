"""Updates of one moving factor as plain vectors of small whole numbers, whose inner products are those of the
updates. Pure; called by gram.py.

The inner product of dB_i A and dB_j A is that of dB_i L and dB_j L for every L with L L' = A A'. L is a
Cholesky factor, as large as the rank; turning by it costs rank multiplications a value. That and the one
rounding after it are whole numbers, in numpy and, for int8 on large adapters, in compiled kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .adapter import AdapterWeights, factor_names, module_path
from .codecs.base import Payload, ranges
from .codecs.int8 import BLOCK, CODE_MAX, Int8
from .exact_products import FACTOR_BITS, MULTIPLICATIONS_MAX, exact_product, rounded
from .kernels import gram_kernels_for
from .tensors import Factor, Float64Array, Int64Array, Manifest

ROOT_BITS = 15
"""To which the root of a metric is rounded, relative to its largest entry."""

PIVOT_BITS = 40
"""A pivot that is smaller than its diagonal entry by more is noise: the metric has no such direction."""

TURNED_BITS = 13
"""To which an update is rounded once it has been turned, relative to what its largest value could become: an
error below 2**-12 of a typical value, and sums of 32 products that 32 bits hold."""

TURNED_MAX = (1 << TURNED_BITS) - 1

LOW_BITS = 20
"""A value and the root of a metric are multiplied in two parts, each exact in float64."""

WINDOW_BYTES = 4 << 20
"""Turned values of all updates that the kernels hold at once: no more than a last-level cache."""

RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Whose rows fill vectors and blocks without a rest."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """By what an update's moving factor is turned, so that its inner products become those of the update:
    module by module a matrix L with L L' = A A' (or B'B) of the factor that stands still."""

    roots: Int64Array
    """(modules, rank, rank), at most 2**15 - 1, in units of 2**exponent; zeros above the diagonal."""

    exponents: Int64Array
    """(modules,)"""

    reach: Int64Array
    """(modules,): the largest sum of |entries| of a column, by which a value grows at most."""

    @classmethod
    def of(cls, parent: AdapterWeights, manifest: Manifest, side: Factor) -> Metrics:
        """Of the modules whose tensors move, in the order of the manifest."""
        tensors = parent.integers()
        products, exponents = [], []
        for spec in manifest.specs:
            name_a, name_b = factor_names(module_path(spec.name))
            still = tensors[name_a] if side == "lora_B" else tensors[name_b].T
            flat, unit = rounded(still.reshape(1, -1).astype(np.float64), FACTOR_BITS)
            atoms = flat.reshape(still.shape)
            products.append(exact_product(atoms, atoms.T, FACTOR_BITS))
            exponents.append(int(unit[0]))
        roots = _cholesky(np.array(products).astype(np.float64))
        flat, units = rounded(roots.reshape(len(roots), -1), ROOT_BITS)
        integers = np.minimum(flat, (1 << ROOT_BITS) - 1).astype(np.int64).reshape(roots.shape)
        return cls(integers, np.array(exponents) + units, np.abs(integers).sum(axis=1).max(axis=1))

    def shifts(self, index: int, largest: Int64Array) -> Int64Array:
        """By how many bits turned values of a module are shortened, for each of K largest |value|."""
        bounds = largest * self.reach[index]  # below 2**39 times 2**21
        lengths = np.frexp(bounds.astype(np.float64))[1].astype(np.int64)
        # a number just below a power of two may have become that power in float64
        lengths -= bounds < (np.int64(1) << np.maximum(lengths - 1, 0))
        shifts: Int64Array = np.maximum(lengths - TURNED_BITS, 0)
        return shifts

    def turned(self, index: int, values: Int64Array) -> tuple[Float64Array, Int64Array]:
        """Values int64 (K, features, rank) of one module as float64 (K, features * rank), whole numbers of
        at most 13 bits, and the exponents (K,) of their units."""
        count, features, rank = values.shape
        largest = np.maximum(values.max(axis=(1, 2)), -values.min(axis=(1, 2)))
        shifts = self.shifts(index, largest)
        half = (np.int64(1) << shifts >> 1)[:, None, None]
        root = self.roots[index].astype(np.float64)
        is_short = int(largest.max()) * int(self.reach[index]) < 1 << 53
        turned = np.empty((count, features, rank))
        for start, stop in ranges(0, features, max(MULTIPLICATIONS_MAX // root.size, 1)):
            whole = _product(values[:, start:stop], root, is_short)
            shortened = (whole + half) >> shifts[:, None, None]
            turned[:, start:stop] = shortened.clip(-TURNED_MAX, TURNED_MAX)
        return turned.reshape(count, -1), self.exponents[index] + shifts


def _product(values: Int64Array, root: Float64Array, is_short: bool) -> Int64Array:
    """values @ root, exact: at once where float64 holds every sum, else in two parts of the values."""
    if is_short:
        return (values.astype(np.float64) @ root).astype(np.int64)
    high = ((values >> LOW_BITS).astype(np.float64) @ root).astype(np.int64)
    low = ((values & ((1 << LOW_BITS) - 1)).astype(np.float64) @ root).astype(np.int64)
    whole: Int64Array = (high << LOW_BITS) + low
    return whole


def int8_products(
    metrics: Metrics, manifest: Manifest, payloads: Sequence[Payload], codec: Int8
) -> tuple[Int64Array, Int64Array] | None:
    """Inner products (modules, K, K) of K checked int8 deltas of lora_B, and exponents (modules, K).

    What Metrics.turned and exact_product make of each module. None where there are no kernels for it: small
    vectors, other ranks, modules that do not begin with a block.
    """
    kernels = gram_kernels_for(manifest.count)
    rank = metrics.roots.shape[1]
    if kernels is None or rank not in RANKS or any(spec.count % kernels.RUN for spec in manifest.specs):
        return None
    views = [codec.views(data, manifest.count) for data in payloads]
    blocks = np.cumsum([0] + [spec.count // BLOCK for spec in manifest.specs])
    largest = np.array([np.maximum.reduceat(scales, blocks[:-1]) for scales, _ in views]).astype(np.int64)
    shifts = np.array([metrics.shifts(i, CODE_MAX * each) for i, each in enumerate(largest.T)])
    tables = _tables(metrics.roots)
    runs = manifest.count // kernels.RUN
    modules = np.repeat(np.arange(len(manifest.specs)), np.diff(blocks) * BLOCK // kernels.RUN)
    count = -(-len(views) // 4) * 4  # kernels take four at a time; the rows beyond K are zero
    window = max(WINDOW_BYTES // (2 * kernels.RUN * count), 1)
    turned = np.zeros((min(window, runs), count, kernels.RUN), dtype=np.int16)
    products = np.zeros((len(manifest.specs), count, count), dtype=np.int64)
    for start, stop in ranges(0, runs, window):
        for update, (scales, codes) in enumerate(views):
            kernels.turn_int8(
                scales.reshape(runs, -1)[start:stop],
                codes.reshape(runs, -1)[start:stop],
                modules[start:stop],
                tables,
                np.ascontiguousarray(shifts[:, update]),
                turned[: stop - start],
                update,
            )
        kernels.add_gram(turned[: stop - start], modules[start:stop], products)
    upper = np.triu(products)[:, : len(views), : len(views)]
    whole = upper + np.triu(upper, 1).transpose(0, 2, 1)
    return whole, metrics.exponents[:, None] + shifts


def _tables(roots: Int64Array) -> npt.NDArray[np.int16]:
    """For turn_int8: (modules, width / 16, width / 2, 16, 2), of small ranks several rows in one."""
    count, rank, _ = roots.shape
    width = max(rank, 16)
    wide = np.zeros((count, width, width), dtype=np.int16)
    for start in range(0, width, rank):
        wide[:, start : start + rank, start : start + rank] = roots
    parts = wide.reshape(count, width // 2, 2, width // 16, 16).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(parts)


def _cholesky(products: Float64Array) -> Float64Array:
    """Lower triangular roots of symmetric matrices (n, rank, rank) without negative eigenvalues.

    Column by column, in single float64 operations, which IEEE 754 rounds in one way, so that the bits are the
    same everywhere; a library's would not be. Directions that the matrix has not are left out.
    """
    rest, roots = products.copy(), np.zeros_like(products)
    for k in range(products.shape[1]):
        pivots = rest[:, k, k]
        is_used = pivots > products[:, k, k] * 2.0**-PIVOT_BITS
        lengths = np.sqrt(np.where(is_used, pivots, 1.0))
        column = np.where(is_used[:, None], rest[:, k:, k] / lengths[:, None], 0.0)
        roots[:, k:, k] = column
        rest[:, k:, k:] -= column[:, :, None] * column[:, None, :]
    return roots
