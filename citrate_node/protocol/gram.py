"""Inner products of updates, from factors, in integers: the one matrix that every distance rule needs.

Pure. (B R, R^-1 A) is the same adapter as (B, A) for every invertible R, so distances between factors mean
nothing; <dW_i, dW_j> = sum((B_i' B_j) * (A_i A_j')) is that of the updates themselves, and no out x in matrix
is ever formed. Called by rules.py and by whoever looks for copies.

How it is exact: factors are rounded to 20 bits, each column or row by its own power of two, and the products
of such integers are summed by float64 matrix products in runs so short that no sum passes 2**53. Nothing is
rounded there, so every machine, BLAS and number of threads gives the same integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from .adapter import AdapterWeights, factor_names, module_path
from .codecs import Codec, check_delta, unwrap_payload
from .codecs.base import RANGE_STEP
from .tensors import DELTA_BITS, WEIGHT_BITS, Factor, Float64Array, FormatError, Int64Array, Manifest

FACTOR_BITS = 20
"""To which factors are rounded, relative to the largest value of a column: an error below a millionth."""

TURNED_BITS = 24
"""To which a moving factor is rounded after it has been weighted by the one that stands still."""

PRODUCT_BITS = 24
"""To which B'B and AA' are brought before they are multiplied and summed over at most 2**14 pairs."""

PART_VALUES_MAX = 1 << 18
"""Values of one update whose products of 24 and 20 bits a 64-bit integer sums without overflow."""

PART_BITS = 52
"""To which a module's matrix is brought, so that the sum over at most 1,024 modules fits 63 bits."""

_NOTHING = -(1 << 40)
"""The exponent of an update that is zero so far: below every other."""

TILE = 32
"""Rows and columns multiplied at a time."""

MULTIPLICATIONS_MAX = 1 << 18
"""Up to here OpenBLAS stays in the calling thread. Above, it waits for all of its threads after each of these
short products: on a machine with other work that took a thousand times as long."""

WINDOW_VALUES = 1 << 22
"""Decoded values held at once, over all updates: 32 MiB as int64."""

Pair = tuple[Int64Array, Int64Array]
"""B (out_features, rank) and A (rank, in_features) of one update, integers of at most 62 bits."""


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of K updates, exact integers in one unit; symmetric."""

    rows: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def squared_distance(self, i: int, j: int) -> int:
        """Of updates i and j, not below 0 (rounding might take it there for near copies)."""
        return max(self.rows[i][i] + self.rows[j][j] - 2 * self.rows[i][j], 0)

    def squared_distances(self) -> list[list[int]]:
        """(K, K)"""
        return [[self.squared_distance(i, j) for j in range(len(self))] for i in range(len(self))]

    def norm(self, i: int) -> int:
        """Of update i, rounded down to a whole unit."""
        return isqrt(max(self.rows[i][i], 0))

    def cosine_ppm(self, i: int, j: int) -> int:
        """Of the angle between two updates, in ppm, toward zero; 0 when one of them is zero.

        A copy has 1,000,000; honest neighbours stayed below 850,000 where this was measured.
        """
        scale = isqrt(max(self.rows[i][i], 0) * max(self.rows[j][j], 0))
        if scale == 0:
            return 0
        ppm = min(abs(self.rows[i][j]) * 1_000_000 // scale, 1_000_000)
        return ppm if self.rows[i][j] >= 0 else -ppm


def gram_of_deltas(parent: AdapterWeights, manifest: Manifest, deltas: Sequence[bytes], codec: Codec) -> Gram:
    """The Gram matrix of what K deltas change in the model, apart from the common factor alpha / rank.

    manifest: what moves. When one factor moves, the update is dB A or B dA with the parent's other factor,
    and K vectors are compared, weighted by that factor: cost K**2 per value. When both move, the update is
    dB (A + dA) + B dA, of twice the rank: cost K**2 * 4 rank per value.
    Raises FormatError when a file is not a delta of this codec and manifest.
    """
    for data in deltas:
        check_delta(data, codec, manifest)
    payloads = [unwrap_payload(data, codec, manifest) for data in deltas]
    factors: set[Factor] = {spec.factor for spec in manifest.specs}
    total = _Total(len(deltas))
    if len(factors) == 1:
        side = factors.pop()
        metrics = {spec.name: _metric(parent, spec.name, side) for spec in manifest.specs}
        for name, moved in _windows(manifest, payloads, codec):
            # rows are atoms in both cases: (K, rank, features)
            total.add_one_factor(moved.transpose(0, 2, 1) if side == "lora_B" else moved, *metrics[name])
        return total.gram()
    if manifest != parent.manifest:
        raise FormatError("manifest_subset", "either one factor moves, or all tensors do")
    held: dict[str, Int64Array] = {}
    for name, moved in _windows(manifest, payloads, codec):
        name_a, name_b = factor_names(module_path(name))
        held[name] = moved
        if name_a in held and name_b in held:
            total.add_products(_updates(parent, name_a, name_b, held.pop(name_a), held.pop(name_b)))
    return total.gram()


def gram_of_products(modules: Iterable[Sequence[Pair]]) -> Gram:
    """The Gram matrix of K updates given as factors: for every module K pairs (B, A).

    Permuting the atoms of an update or scaling them by powers of two (B's up, A's down) changes nothing at
    all; any other gauge changes only what rounding to 20 bits changes.
    """
    total: _Total | None = None
    for pairs in modules:
        total = total or _Total(len(pairs))
        total.add_products(pairs)
    if total is None:
        raise ValueError("there is no module")
    return total.gram()


class _Total:
    """The sum over modules. Entry i, j is an integer in units of 2**(exponent i + exponent j), so that each
    update is as exact as its own size allows: nobody can drown the others by sending something huge."""

    def __init__(self, count: int) -> None:
        self.values = np.zeros((count, count), dtype=np.int64)
        self.exponents = np.full(count, _NOTHING)

    def add_one_factor(self, moved: Int64Array, metric: Float64Array, metric_exponent: int) -> None:
        """moved int64 (K, rank, features); metric float64 (rank, rank), integers of 20 bits."""
        if moved.shape[1] * moved.shape[2] > PART_VALUES_MAX and moved.shape[2] > 1:
            middle = moved.shape[2] // 2
            self.add_one_factor(moved[:, :, :middle], metric, metric_exponent)
            self.add_one_factor(moved[:, :, middle:], metric, metric_exponent)
            return
        vectors, exponents = _rounded(moved.reshape(len(moved), -1).astype(np.float64), FACTOR_BITS)
        turned = np.empty(moved.shape)
        step = max(MULTIPLICATIONS_MAX // metric.size, 1)
        for start in range(0, moved.shape[2], step):
            # sums of at most 2**6 products of 40 bits: exact
            part = vectors.reshape(moved.shape)[:, :, start : start + step]
            np.matmul(metric, part, out=turned[:, :, start : start + step])
        turned, common = _rounded(turned.reshape(1, -1), TURNED_BITS)
        products = _exact_product(turned.reshape(vectors.shape), vectors.T, TURNED_BITS)
        # the metric is symmetric, so these are but for the rounding of `turned`; the sum of both is exactly
        products, shift = _shortened(products, 61)
        self._add(products + products.T, exponents, metric_exponent + int(common[0]) + shift - 1)

    def add_products(self, pairs: Sequence[Pair]) -> None:
        """One module's K updates as factors; their ranks may differ."""
        ranks = [lora_b.shape[1] for lora_b, _ in pairs]
        columns, up = _rounded(np.concatenate([b.T for b, _ in pairs]).astype(np.float64), FACTOR_BITS)
        rows, down = _rounded(np.concatenate([a for _, a in pairs]).astype(np.float64), FACTOR_BITS)
        inner, inner_shifts = _normalized(_exact_product(columns, columns.T, FACTOR_BITS), PRODUCT_BITS)
        outer, outer_shifts = _normalized(_exact_product(rows, rows.T, FACTOR_BITS), PRODUCT_BITS)
        atoms = up + down + inner_shifts + outer_shifts
        atoms[(np.diag(inner) == 0) | (np.diag(outer) == 0)] = _NOTHING
        starts = np.concatenate([[0], np.cumsum(ranks)[:-1]])
        exponents = np.maximum.reduceat(atoms, starts)
        lowered = np.repeat(exponents, ranks) - atoms
        products = _lowered(inner * outer, lowered)
        summed = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        self._add(summed, exponents, 0)

    def _add(self, part: Int64Array, exponents: Int64Array, shift: int) -> None:
        """part i, j in units of 2**(exponent i + exponent j + shift)."""
        if shift % 2:
            part, shift = part >> 1, shift + 1
        part, shifts = _normalized(part, PART_BITS)
        exponents = exponents + shift // 2 + shifts
        exponents[np.diag(part) == 0] = _NOTHING
        common = np.maximum(self.exponents, exponents)
        self.values = _lowered(self.values, common - self.exponents) + _lowered(part, common - exponents)
        self.exponents = common

    def gram(self) -> Gram:
        """In the smallest unit of all, as Python integers: they may need more than 64 bits."""
        used = self.exponents[self.exponents != _NOTHING]
        least = int(used.min()) if used.size else 0
        shifts = [max(int(exponent) - least, 0) for exponent in self.exponents]
        values = self.values.tolist()
        return Gram(
            tuple(
                tuple(value << (shifts[i] + shifts[j]) for j, value in enumerate(row))
                for i, row in enumerate(values)
            )
        )


def _rounded(rows: Float64Array, bits: int) -> tuple[Float64Array, Int64Array]:
    """Each row as integers of at most `bits` bits, and the exponents of their units.

    Exact and the same everywhere: powers of two, and rint of numbers far below 2**53.
    """
    largest = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0))
    exponents = np.frexp(largest)[1].astype(np.int64) - bits
    scaled = rows * np.ldexp(1.0, -exponents.astype(np.int32))[:, None]
    return np.rint(scaled, out=scaled), exponents


def _exact_product(left: Float64Array, right: Float64Array, bits: int) -> Int64Array:
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


def _shortened(values: Int64Array, bits: int) -> tuple[Int64Array, int]:
    """values >> shift with the least shift that leaves `bits` bits; and the shift."""
    shift = max(int(np.abs(values).max(initial=0)).bit_length() - bits, 0)
    shortened: Int64Array = values >> shift
    return shortened, shift


def _normalized(values: Int64Array, bits: int) -> tuple[Int64Array, Int64Array]:
    """A Gram matrix with each row and column shifted down until its diagonal has at most `bits` bits, and
    the shifts. By Cauchy and Schwarz no entry has more then; where rounding broke that, it is cut off."""
    diagonal = np.diag(values)
    lengths = np.frexp(diagonal.clip(0).astype(np.float64))[1].astype(np.int64)
    shifts = np.maximum(-(-(lengths - bits) // 2), 0)
    limit = 1 << bits
    normalized = np.clip(_lowered(values, shifts), -limit, limit)
    nothing = np.diag(normalized) <= 0
    normalized[nothing, :] = 0
    normalized[:, nothing] = 0
    return normalized, shifts


def _lowered(values: Int64Array, shifts: Int64Array) -> Int64Array:
    """Entry i, j shifted down by shifts i + shifts j."""
    lowered: Int64Array = values >> np.minimum(shifts[:, None] + shifts[None, :], 63)
    return lowered


def _metric(parent: AdapterWeights, name: str, side: Factor) -> tuple[Float64Array, int]:
    """A A' or B' B of the factor that stands still, (rank, rank) integers of 20 bits, and their exponent."""
    name_a, name_b = factor_names(module_path(name))
    still = parent.integers()[name_a] if side == "lora_B" else parent.integers()[name_b].T
    flat, exponents = _rounded(still.reshape(1, -1).astype(np.float64), FACTOR_BITS)
    atoms = flat.reshape(still.shape)
    exact = _exact_product(atoms, atoms.T, FACTOR_BITS)
    product, more = _rounded(exact.reshape(1, -1).astype(np.float64), FACTOR_BITS)
    return product.reshape(len(atoms), len(atoms)), int(2 * exponents[0] + more[0])


def _windows(
    manifest: Manifest, payloads: Sequence[memoryview], codec: Codec
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Each tensor's values of all K updates, int64 (K, *shape), decoding no more than a window at a time."""
    slices = manifest.slices()
    width = max(WINDOW_VALUES // max(len(payloads), 1), RANGE_STEP)
    window, start, stop = np.zeros((len(payloads), 0), dtype=np.int64), 0, 0
    for spec in manifest.specs:
        place = slices[spec.name]
        if place.stop > stop:
            start = place.start // RANGE_STEP * RANGE_STEP
            stop = min(max(start + width, place.stop), manifest.count)
            decoded = [codec.decode_range(data, manifest.count, start, stop) for data in payloads]
            window = np.stack(decoded) if decoded else window
        values = window[:, place.start - start : place.stop - start]
        yield spec.name, values.reshape(len(payloads), *spec.shape)


def _updates(
    parent: AdapterWeights, name_a: str, name_b: str, moved_a: Int64Array, moved_b: Int64Array
) -> list[Pair]:
    """(B + dB)(A + dA) - B A as [dB | B] times [A + dA ; dA], all on the delta grid."""
    tensors = parent.integers()
    still_a, still_b = (tensors[name] << (DELTA_BITS - WEIGHT_BITS) for name in (name_a, name_b))
    return [
        (np.concatenate([db, still_b], axis=1), np.concatenate([still_a + da, da], axis=0))
        for da, db in zip(moved_a, moved_b, strict=True)
    ]
