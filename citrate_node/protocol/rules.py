"""Aggregation rules by name: what becomes of K deltas when some of them may be dishonest.

Pure, in integers wherever something is decided, so that a vote on the result can compare hashes. Called by
state_transition with the rule that the preset names, and by simulations that compare rules.

A rule works on updates, not on factors. The distance rules need only the K x K Gram matrix (gram.py) and give
K weights, so that the average itself runs through aggregation.weighted_sum, one delta at a time. The
coordinate rules see all deltas, some coordinates at a time; they act on the moving factor's coordinates,
which is sound where one factor moves and the other is common. They do not go with topk: where fewer than half
have sent a value, the median is zero.

`dishonest` is f, how many of the K may be dishonest. Weights (reputation) enter the mean, the clipped mean
and multi-Krum; elsewhere every signal counts once, since a weight is what an attacker would buy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isqrt

import numpy as np

from .adapter import AdapterWeights
from .aggregation import WEIGHT_SUM_BITS, add_average, integer_weights, weighted_sum
from .codecs import Codec, check_delta, unwrap_payload
from .codecs.base import RANGE_STEP, ranges
from .gram import Gram, gram_of_checked_deltas
from .tensors import Int64Array, Manifest, divide_toward_zero

RULE_WEIGHT_BITS = 24
"""Weights that a rule computes sum to at most 2**24: the most that a 64-bit accumulator of deltas allows."""

RULE_WEIGHT_SUM = 1 << RULE_WEIGHT_BITS

CLIP_PERCENT = 150
"""Of the median norm, to which the clipped mean shortens a delta."""

WEISZFELD_STEPS_MAX = 512
"""Each step brings the geometric median closer by a constant factor; it ends earlier when nothing changes."""

WINDOW_VALUES = 1 << 20
"""Decoded values held at once by a coordinate rule, over all deltas: 8 MiB as int64."""

NETWORK_ROWS_MAX = 64
"""Up to here a sorting network has few enough comparisons (543 for 64 rows)."""

NETWORK_COLUMNS = 4096
"""Columns sorted at a time, so that 64 rows of them stay in the cache."""

MIXED = "nearest_"
"""Prefix of a rule that follows nearest-neighbour mixing."""


@dataclass(frozen=True, slots=True)
class Deltas:
    """What a rule is given. Files are checked when this is made, and put in the order of their bytes: ties
    are broken by position, and the order in which signals came must not decide anything."""

    parent: AdapterWeights
    manifest: Manifest
    """The tensors that move."""

    codec: Codec
    files: tuple[bytes, ...]
    """K delta files."""

    weights: tuple[int, ...]
    """K whole numbers above 0, in proportion to which honest deltas should count."""

    dishonest: int
    """f, from 0; a rule that cannot stand so many takes the most that it can."""

    _gram: list[Gram] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.files or len(self.files) != len(self.weights):
            raise ValueError(f"{len(self.files)} deltas with {len(self.weights)} weights")
        if min(self.weights) < 1 or self.dishonest < 0:
            raise ValueError("a rule needs a weight above 0 for each delta, and f from 0")
        for data in self.files:
            check_delta(data, self.codec, self.manifest)
        ordered = sorted(zip(self.files, self.weights, strict=True))
        object.__setattr__(self, "files", tuple(data for data, _ in ordered))
        object.__setattr__(self, "weights", tuple(weight for _, weight in ordered))

    def gram(self) -> Gram:
        """Computed once, however many rules ask."""
        if not self._gram:
            gram = gram_of_checked_deltas(self.parent, self.manifest, self.files, self.codec)
            self._gram.append(gram)
        return self._gram[0]


WeightRule = Callable[[Gram, Sequence[int], int], list[int]]
"""(Gram matrix, weights, f) to K weights from 0 that sum to at most 2**24."""

CoordinateRule = Callable[[Int64Array, int], Int64Array]
"""(values int64 (K, n) in units of 2**-32, f) to int64 (n,) in units of 2**-48."""


def aggregate(
    name: str,
    parent: AdapterWeights,
    manifest: Manifest,
    entries: Sequence[tuple[int, bytes]],
    codec: Codec,
    dishonest: int = 0,
) -> AdapterWeights:
    """The parent moved by what the rule makes of (weight, delta file) entries.

    Raises ValueError for an unknown rule or entries that no rule takes, FormatError for a wrong file.
    """
    apply = rule(name)
    weights, files = tuple(w for w, _ in entries), tuple(data for _, data in entries)
    weighted, weight_bits = apply(Deltas(parent, manifest, codec, files, weights, dishonest))
    return add_average(parent, manifest, weighted, weight_bits)


def rule(name: str) -> Callable[[Deltas], tuple[Int64Array, int]]:
    """The rule of this name: Deltas to a weighted sum and the bits of its weights, for add_average."""
    if name not in RULES:
        raise ValueError(f"unknown aggregation rule {name!r}, choose one of {', '.join(RULES)}")
    return RULES[name]


def mean(gram: Gram | None, weights: Sequence[int], dishonest: int) -> list[int]:
    """The weighted average. Breakdown: one delta moves it anywhere. Cost: reading the deltas once.

    Source: FedAvg, McMahan et al. 2017, arXiv:1602.05629.
    """
    return list(integer_weights(weights, RULE_WEIGHT_SUM))


def clipped_mean(gram: Gram, weights: Sequence[int], dishonest: int) -> list[int]:
    """The weighted average of deltas shortened to 1.5 times the median norm.

    Breakdown: 1/2, where the median itself is dishonest; below, f of K still move it by f/K of that norm.
    Cost: the Gram matrix. Source: norm bounding, Sun et al. 2019, arXiv:1911.07963, section 4.
    """
    norms = [gram.norm(i) for i in range(len(gram))]
    limit = sorted(norms)[(len(norms) - 1) // 2] * CLIP_PERCENT
    shares = integer_weights(weights, RULE_WEIGHT_SUM)
    return [
        share if 100 * norm <= limit else share * limit // (100 * norm)
        for share, norm in zip(shares, norms, strict=True)
    ]


def krum(gram: Gram, weights: Sequence[int], dishonest: int) -> list[int]:
    """The one delta that is nearest to its K - f nearest (itself among them), by squared distances.

    Breakdown: f < K/2 - 1. Cost: the Gram matrix, then K**2 log K.
    Source: Blanchard et al. 2017, arXiv:1703.02757; the number of neighbours as in Farhadkhani et al. 2022,
    arXiv:2205.12173.
    """
    chosen = _by_krum_score(gram, dishonest)[0]
    return [RULE_WEIGHT_SUM if i == chosen else 0 for i in range(len(gram))]


def multi_krum(gram: Gram, weights: Sequence[int], dishonest: int) -> list[int]:
    """The weighted average of the K - f deltas with the least Krum scores.

    Breakdown, cost and source: those of krum.
    """
    chosen = set(_by_krum_score(gram, dishonest)[: len(gram) - _tolerated(len(gram), dishonest)])
    return list(integer_weights([w if i in chosen else 0 for i, w in enumerate(weights)], RULE_WEIGHT_SUM))


def geometric_median(gram: Gram, weights: Sequence[int], dishonest: int) -> list[int]:
    """The point whose distances to all deltas have the least sum, as weights of the deltas.

    Weiszfeld's iteration needs only distances, and those follow from the Gram matrix and the weights so far.
    Breakdown: 1/2. Cost: the Gram matrix, then K**2 per step of at most 512.
    Source: Weiszfeld 1937; Pillutla et al. 2019, arXiv:1912.13445.
    """
    count = len(gram)
    shares = list(integer_weights([1] * count, RULE_WEIGHT_SUM))
    for _ in range(WEISZFELD_STEPS_MAX):
        along = [sum(g * a for g, a in zip(row, shares, strict=True)) for row in gram.rows]
        own = sum(a * b for a, b in zip(along, shares, strict=True))
        # squared distance of delta i to the current point, in units of the Gram matrix and 2**-48
        squares = [
            (gram.rows[i][i] << (2 * RULE_WEIGHT_BITS)) - (along[i] << (RULE_WEIGHT_BITS + 1)) + own
            for i in range(count)
        ]
        distances = [isqrt(max(square, 0)) for square in squares]
        largest = max(distances)
        if largest == 0:
            break
        # at a delta itself its weight would be infinite: nearer than a millionth counts as a millionth
        nearest = max(largest >> 20, 1)
        before, shares = (
            shares,
            list(integer_weights([(largest << 32) // max(d, nearest) for d in distances], RULE_WEIGHT_SUM)),
        )
        if shares == before:
            break
    return shares


def trimmed_mean(values: Int64Array, dishonest: int) -> Int64Array:
    """Per coordinate, the average without the f smallest and the f largest.

    Breakdown: f < K/2. Cost: a sort of K per coordinate.
    Source: Yin et al. 2018, arXiv:1803.01498.
    """
    dropped = _tolerated(len(values), dishonest)
    return _mean_of_rows(sorted_rows(values)[dropped : len(values) - dropped])


def median(values: Int64Array, dishonest: int) -> Int64Array:
    """Per coordinate, the middle value, or the average of the two middle ones.

    Breakdown: 1/2. Cost: a sort of K per coordinate. Source: Yin et al. 2018, arXiv:1803.01498.
    """
    return _mean_of_rows(sorted_rows(values)[(len(values) - 1) // 2 : len(values) // 2 + 1])


def sorted_rows(values: Int64Array) -> Int64Array:
    """Each column of int64 (K, n) in ascending order.

    Up to 64 rows by a sorting network, whose comparisons run along whole rows, in vector instructions; five
    times as fast as sorting column by column.
    """
    if len(values) > NETWORK_ROWS_MAX:
        return np.sort(values, axis=0)
    ordered = np.empty_like(values)
    for start, stop in ranges(0, values.shape[1], NETWORK_COLUMNS):
        rows = list(values[:, start:stop].copy())
        spare = np.empty(stop - start, dtype=np.int64)
        for i, j in _comparisons(len(rows)):
            np.minimum(rows[i], rows[j], out=spare)
            np.maximum(rows[i], rows[j], out=rows[j])
            rows[i], spare = spare, rows[i]
        np.stack(rows, out=ordered[:, start:stop])
    return ordered


@functools.cache
def _comparisons(count: int) -> tuple[tuple[int, int], ...]:
    """Batcher's merge exchange: pairs of rows to put in order, one after the other.

    Source: Knuth, The Art of Computer Programming, volume 3, 5.2.2, algorithm M.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max((count - 1).bit_length() - 1, 0)
    step = top
    while step > 0:
        reach, offset, distance = top, 0, step
        while True:
            pairs.extend((i, i + distance) for i in range(count - distance) if i & step == offset)
            if reach == step:
                break
            distance, reach, offset = reach - step, reach // 2, step
        step //= 2
    return tuple(pairs)


def neighbours(gram: Gram, dishonest: int) -> list[list[int]]:
    """For every delta the positions of its K - f nearest, itself among them; of equally near ones the first.

    Each delta replaced by their average, any rule that follows withstands heterogeneous honest nodes.
    Source: nearest-neighbour mixing, Allouah et al. 2023, arXiv:2302.01772.
    """
    count = len(gram)
    kept = count - _tolerated(count, dishonest)
    distances = gram.squared_distances()
    return [sorted(sorted(range(count), key=lambda j: (row[j], j))[:kept]) for row in distances]


def _weight_rule(weigh: WeightRule, mixed: bool) -> Callable[[Deltas], tuple[Int64Array, int]]:
    def apply(deltas: Deltas) -> tuple[Int64Array, int]:
        if mixed:
            groups = neighbours(deltas.gram(), deltas.dishonest)
            of_mixed = weigh(_mixed_gram(deltas.gram(), groups), deltas.weights, deltas.dishonest)
            raw = [0] * len(groups)
            for share, group in zip(of_mixed, groups, strict=True):
                for j in group:
                    raw[j] += share
            # every group has the same size, so the sum is that of the rule times it
            shares = list(integer_weights(raw, sum(of_mixed)))
        else:
            shares = weigh(deltas.gram(), deltas.weights, deltas.dishonest)
        entries = ((share, data) for share, data in zip(shares, deltas.files, strict=True) if share)
        return weighted_sum(deltas.manifest, entries, deltas.codec, RULE_WEIGHT_SUM)[0], RULE_WEIGHT_BITS

    return apply


def _coordinate_rule(reduce: CoordinateRule, mixed: bool) -> Callable[[Deltas], tuple[Int64Array, int]]:
    def apply(deltas: Deltas) -> tuple[Int64Array, int]:
        payloads = [unwrap_payload(data, deltas.codec, deltas.manifest) for data in deltas.files]
        count = deltas.manifest.count
        groups = neighbours(deltas.gram(), deltas.dishonest) if mixed else []
        step = max(WINDOW_VALUES // len(payloads) // RANGE_STEP, 1) * RANGE_STEP
        result = np.empty(count, dtype=np.int64)
        for start, stop in ranges(0, count, step):
            values = np.stack([deltas.codec.decode_range(data, count, start, stop) for data in payloads])
            if mixed:
                values = divide_toward_zero(
                    np.stack([values[group].sum(axis=0) for group in groups]), len(groups[0])
                )
            result[start:stop] = reduce(values, deltas.dishonest)
        return result, WEIGHT_SUM_BITS

    return apply


def _mean(deltas: Deltas) -> tuple[Int64Array, int]:
    """Without the Gram matrix, which the mean does not need."""
    shares = integer_weights(deltas.weights)
    entries = zip(shares, deltas.files, strict=True)
    return weighted_sum(deltas.manifest, entries, deltas.codec)[0], WEIGHT_SUM_BITS


def _tolerated(count: int, dishonest: int) -> int:
    """f, or the most that leaves an honest majority."""
    return min(dishonest, (count - 1) // 2)


def _by_krum_score(gram: Gram, dishonest: int) -> list[int]:
    """Positions from the least score to the largest; of equal ones the first first."""
    count = len(gram)
    near = count - _tolerated(count, dishonest)
    scores = [sum(sorted(row)[:near]) for row in gram.squared_distances()]
    return sorted(range(count), key=lambda i: (scores[i], i))


def _mixed_gram(gram: Gram, groups: Sequence[Sequence[int]]) -> Gram:
    """Of the sums over groups, which are all of one size."""
    along = [[sum(row[j] for j in group) for row in gram.rows] for group in groups]
    return Gram(tuple(tuple(sum(part[j] for j in group) for group in groups) for part in along))


def _mean_of_rows(rows: Int64Array) -> Int64Array:
    """Their average in units of 2**-48 for rows in units of 2**-32, truncated once, without overflow."""
    total = rows.sum(axis=0)
    whole = divide_toward_zero(total, len(rows))
    rest = (total - whole * len(rows)) << WEIGHT_SUM_BITS
    return (whole << WEIGHT_SUM_BITS) + divide_toward_zero(rest, len(rows))


_WEIGHT_RULES: dict[str, WeightRule] = {
    "clipped_mean": clipped_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
}

COORDINATE_RULES: dict[str, CoordinateRule] = {"trimmed_mean": trimmed_mean, "median": median}

RULES: dict[str, Callable[[Deltas], tuple[Int64Array, int]]] = {
    "mean": _mean,
    **{name: _weight_rule(weigh, mixed=False) for name, weigh in _WEIGHT_RULES.items()},
    **{name: _coordinate_rule(reduce, mixed=False) for name, reduce in COORDINATE_RULES.items()},
    MIXED + "mean": _weight_rule(mean, mixed=True),
    **{MIXED + name: _weight_rule(weigh, mixed=True) for name, weigh in _WEIGHT_RULES.items()},
    **{MIXED + name: _coordinate_rule(reduce, mixed=True) for name, reduce in COORDINATE_RULES.items()},
}
"""Every rule that a preset may name."""
