"""Inner products of updates, from factors, in integers: the one matrix that every distance rule needs.

Pure. (B R, R^-1 A) is the same adapter as (B, A) for every invertible R, so distances between factors mean
nothing; <dW_i, dW_j> = sum((B_i' B_j) * (A_i A_j')) is that of the updates themselves, and no out x in matrix
is ever formed. Called by rules.py and by whoever looks for copies.

How it is exact: where both factors move, they are rounded to 20 bits, each column or row by its own power of
two, and multiplied as whole numbers (exact_products.py). Where one moves, its values are turned by a root of
the metric that the other one is, exactly, and rounded once (metrics.py); then the inner products are those of
plain vectors of small whole numbers. Nothing else is rounded, so every machine, BLAS and number of threads
gives the same integers.
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
from .codecs.int8 import Int8
from .exact_products import FACTOR_BITS, exact_product, rounded
from .metrics import Metrics, int8_products
from .tensors import DELTA_BITS, WEIGHT_BITS, Factor, FormatError, Int64Array, Manifest

PRODUCT_BITS = 24
"""To which B'B and AA' are brought before they are multiplied and summed over at most 2**14 pairs."""

PART_BITS = 52
"""To which a module's matrix is brought, so that the sum over at most 1,024 modules fits 63 bits."""

_NOTHING = -(1 << 40)
"""The exponent of an update that is zero so far: below every other."""

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
    return gram_of_checked_deltas(parent, manifest, deltas, codec)


def gram_of_checked_deltas(
    parent: AdapterWeights, manifest: Manifest, deltas: Sequence[bytes], codec: Codec
) -> Gram:
    """gram_of_deltas for files that check_delta has taken."""
    payloads = [unwrap_payload(data, codec, manifest) for data in deltas]
    factors: set[Factor] = {spec.factor for spec in manifest.specs}
    total = _Total(len(deltas))
    if len(factors) == 1:
        side = factors.pop()
        metrics = Metrics.of(parent, manifest, side)
        if isinstance(codec, Int8) and side == "lora_B":
            compiled = int8_products(metrics, manifest, payloads, codec)
            if compiled is not None:
                total.add(*compiled)
                return total.gram()
        for index, (_, moved) in enumerate(_windows(manifest, payloads, codec)):
            # a row holds the values of one atom, one after the other: (K, features, rank)
            rows = moved if side == "lora_B" else moved.transpose(0, 2, 1)
            turned, exponents = metrics.turned(index, rows)
            total.add(exact_product(turned, turned.T, FACTOR_BITS), exponents)
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
        self.count = count
        self.parts: list[Int64Array] = []
        self.exponents: list[Int64Array] = []

    def add(self, part: Int64Array, exponents: Int64Array) -> None:
        """part int64 (K, K), i, j in units of 2**(exponents i + exponents j); or several of both."""
        self.parts.extend(part.reshape(-1, self.count, self.count))
        self.exponents.extend(exponents.reshape(-1, self.count))

    def add_products(self, pairs: Sequence[Pair]) -> None:
        """One module's K updates as factors; their ranks may differ."""
        ranks = [lora_b.shape[1] for lora_b, _ in pairs]
        columns, up = rounded(np.concatenate([b.T for b, _ in pairs]).astype(np.float64), FACTOR_BITS)
        rows, down = rounded(np.concatenate([a for _, a in pairs]).astype(np.float64), FACTOR_BITS)
        inner, inner_shifts = _normalized(exact_product(columns, columns.T, FACTOR_BITS), PRODUCT_BITS)
        outer, outer_shifts = _normalized(exact_product(rows, rows.T, FACTOR_BITS), PRODUCT_BITS)
        atoms = up + down + inner_shifts + outer_shifts
        atoms[(np.diag(inner) == 0) | (np.diag(outer) == 0)] = _NOTHING
        starts = np.concatenate([[0], np.cumsum(ranks)[:-1]])
        exponents = np.maximum.reduceat(atoms, starts)
        lowered = np.repeat(exponents, ranks) - atoms
        products = _lowered(inner * outer, lowered)
        summed = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        part, shifts = _normalized(summed, PART_BITS)
        self.add(part, exponents + shifts)

    def gram(self) -> Gram:
        """In the smallest unit of all, as Python integers: they may need more than 64 bits.

        Every part is first brought, rounding down, to the unit of the largest part of its updates; the sums
        of 2**36 values fit.
        """
        parts, exponents = np.array(self.parts), np.array(self.exponents)
        exponents = np.where(np.diagonal(parts, axis1=1, axis2=2) == 0, _NOTHING, exponents)
        common = exponents.max(axis=0)
        below = np.minimum(common - exponents, 63)
        parts >>= np.minimum(below[:, :, None] + below[:, None, :], 63)
        used = common[common != _NOTHING]
        least = int(used.min()) if used.size else 0
        shifts = [max(int(exponent) - least, 0) for exponent in common]
        return Gram(
            tuple(
                tuple(value << (shifts[i] + shifts[j]) for j, value in enumerate(row))
                for i, row in enumerate(parts.sum(axis=0).tolist())
            )
        )


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
