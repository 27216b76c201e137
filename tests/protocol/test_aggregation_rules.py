"""The rules agree with byzfl, do not depend on gauge or order, and stand what they say they stand.

tests/vectors/aggregation_rules.json holds vectors and what byzfl 0.0.11 makes of them; where byzfl is
installed, the slow test asks it again, and `PYTHONPATH=. python tests/protocol/test_aggregation_rules.py`
writes the file anew.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import BASE_MODEL_ID, small_adapter, small_delta

from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, factor_names, from_tensors
from citrate_node.protocol.aggregation import WEIGHT_SUM, integer_weights, weighted_mean
from citrate_node.protocol.codecs import codec, encode_delta
from citrate_node.protocol.gram import gram_of_products
from citrate_node.protocol.rules import (
    RULE_WEIGHT_SUM,
    RULES,
    Deltas,
    aggregate,
    geometric_median,
    krum,
    rule,
    sorted_rows,
)
from citrate_node.protocol.tensors import FormatError

VECTORS = Path(__file__).parents[1] / "vectors" / "aggregation_rules.json"
CASES = json.loads(VECTORS.read_text())
PLAIN = codec("float32")
ROBUST = [name for name in RULES if not name.endswith("mean") or "trimmed" in name]


def flat_parent(dimension: int) -> AdapterWeights:
    """A is the number 1, so an update is the vector that moves as B, and products are those of vectors."""
    name_a, name_b = factor_names("q")
    tensors = {name_a: np.ones((1, 1), np.float32), name_b: np.zeros((dimension, 1), np.float32)}
    return from_tensors(AdapterConfig(BASE_MODEL_ID, 1, 1, ("q",)), tensors)


def deltas_of(vectors: np.ndarray, dishonest: int, weights: tuple[int, ...] | None = None) -> Deltas:
    parent = flat_parent(vectors.shape[1])
    manifest = parent.manifest.subset("lora_B")
    files = tuple(encode_delta(PLAIN, manifest, row.astype(np.float32)) for row in vectors)
    return Deltas(parent, manifest, PLAIN, files, weights or (1,) * len(files), dishonest)


def result_of(name: str, deltas: Deltas) -> np.ndarray:
    weighted, bits = rule(name)(deltas)
    return weighted / 2.0 ** (32 + bits)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{len(case['vectors'])}_of_them_{case['dishonest']}"
)
@pytest.mark.parametrize("name", CASES[0]["byzfl"])
def test_rules_give_what_byzfl_gives(name: str, case: dict[str, Any]) -> None:
    vectors = np.array(case["vectors"])
    found = result_of(name, deltas_of(vectors, case["dishonest"]))
    # a mean's weights are whole parts of 2**16, so each is within 2**-16 of the equal share
    tolerance = len(vectors) * 2.0**-16 * np.abs(vectors).max() if name == "mean" else 1e-6
    assert np.abs(found - np.array(case["byzfl"][name])).max() <= tolerance


def byzfl_modules() -> tuple[Any, Any]:
    """byzfl's aggregators without its package's front, which needs data sets' libraries."""
    spec = importlib.machinery.PathFinder.find_spec("byzfl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("byzfl is not installed (pip install --no-deps byzfl scipy)")
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    aggregators = importlib.import_module("byzfl.aggregators.aggregators")
    return aggregators, importlib.import_module("byzfl.aggregators.preaggregators")


def byzfl_results(vectors: np.ndarray, dishonest: int) -> dict[str, list[float]]:
    """What byzfl makes of the vectors, with and without its nearest-neighbour mixing, under our names."""
    aggregators, mixing = byzfl_modules()
    apply = {
        "mean": aggregators.Average(),
        "median": aggregators.Median(),
        "trimmed_mean": aggregators.TrMean(dishonest),
        "krum": aggregators.Krum(dishonest),
        "multi_krum": aggregators.MultiKrum(dishonest),
        "geometric_median": aggregators.GeometricMedian(nu=1e-9, T=5000),
    }
    mixed = mixing.NNM(dishonest)(vectors)
    results = {name: each(vectors).tolist() for name, each in apply.items()}
    return results | {"nearest_" + name: each(mixed).tolist() for name, each in apply.items()}


@pytest.mark.slow
def test_rules_give_what_an_installed_byzfl_gives_for_new_vectors() -> None:
    for seed in range(40):
        random = np.random.default_rng(seed)
        count = int(random.integers(4, 14))  # of three, two are each other's nearest: a tie
        dishonest = int(random.integers(0, (count + 1) // 2))
        vectors = random.integers(-4000, 4000, (count, 6)) / 4096
        deltas = deltas_of(vectors, dishonest)
        for name, theirs in byzfl_results(vectors, dishonest).items():
            if name != "mean":  # held to its own tolerance above
                assert np.abs(result_of(name, deltas) - np.array(theirs)).max() < 2e-6, (seed, name)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 7), dishonest=st.integers(0, 4))
def test_rules_do_not_depend_on_the_order_of_deltas(name, seed, count, dishonest) -> None:
    parent = small_adapter(rank=2)
    manifest = parent.manifest.subset("lora_B")
    random = np.random.default_rng(seed)
    files = [encode_delta(PLAIN, manifest, small_delta(seed + i, manifest.count)) for i in range(count)]
    entries = [(int(random.integers(1, 2**30)), data) for data in files]
    expected = aggregate(name, parent, manifest, entries, PLAIN, dishonest)
    shuffled = [entries[i] for i in random.permutation(count)]
    assert aggregate(name, parent, manifest, shuffled, PLAIN, dishonest).encode() == expected.encode()


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_a_minority_far_away_moves_robust_rules_little(name: str, size: float) -> None:
    random = np.random.default_rng(1)
    honest = 0.1 + random.integers(-100, 100, (7, 20)) / 4096
    attack = np.tile(np.where(np.arange(20) % 2, size, -size), (3, 1))
    found = result_of(name, deltas_of(np.concatenate([attack, honest]), dishonest=3))
    middle = honest.mean(axis=0)
    assert np.linalg.norm(found - middle) <= 2 * np.linalg.norm(honest - middle, axis=1).max()


def test_the_mean_has_no_such_protection_and_clipping_bounds_the_damage() -> None:
    honest = np.full((7, 20), 0.1)
    vectors = np.concatenate([np.full((3, 20), -100.0), honest])
    plain = result_of("mean", deltas_of(vectors, 3))
    clipped = result_of("clipped_mean", deltas_of(vectors, 3))
    assert np.all(plain < -20)
    # three of ten at 1.5 times the honest norm, the other way
    assert np.allclose(clipped, 0.7 * 0.1 - 0.3 * 0.15, atol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_equal_deltas_are_their_own_result_even_when_zero(name: str) -> None:
    for value in (0.25, 0.0):
        found = result_of(name, deltas_of(np.full((5, 3), value), 1))
        assert np.allclose(found, value, atol=2.0**-20)
        alone = result_of(name, deltas_of(np.full((1, 3), value), 0))
        assert np.array_equal(alone, np.full(3, value))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_re_gauging_changes_no_decision(seed: int) -> None:
    """The same adapters in random gauges: Krum picks the same one, the geometric median the same weights."""
    random = np.random.default_rng(seed)
    pairs, regauged = [], []
    for _ in range(6):
        lora_b, lora_a = random.standard_normal((9, 3)), random.standard_normal((3, 8))
        left, right = (np.linalg.qr(random.standard_normal((3, 3)))[0] for _ in range(2))
        gauge = left * random.uniform(0.5, 2, 3) @ right
        pairs.append((lora_b, lora_a))
        regauged.append((lora_b @ gauge, np.linalg.solve(gauge, lora_a)))

    def gram(factors: list[tuple[np.ndarray, np.ndarray]]) -> Any:
        return gram_of_products([[tuple(np.rint(x * 2.0**30).astype(np.int64) for x in p) for p in factors]])

    first, second = gram(pairs), gram(regauged)
    assert krum(first, [1] * 6, 1) == krum(second, [1] * 6, 1)
    shares, again = geometric_median(first, [1] * 6, 1), geometric_median(second, [1] * 6, 1)
    assert np.abs(np.array(shares) - np.array(again)).max() <= RULE_WEIGHT_SUM // 1000


def test_mean_with_shares_of_the_whole_is_the_weighted_mean() -> None:
    """The streaming path and the rule give the same bytes, so a preset may name the rule."""
    parent = small_adapter()
    manifest = parent.manifest.subset("lora_A")
    weights = integer_weights([5, 3, 9])
    files = [encode_delta(PLAIN, manifest, small_delta(i, manifest.count)) for i in range(3)]
    entries = list(zip(weights, files, strict=True))
    assert sum(weights) == WEIGHT_SUM
    assert aggregate("mean", parent, manifest, entries, PLAIN) == weighted_mean(
        parent, manifest, entries, PLAIN
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 32, 64, 65])
def test_networks_sort_every_column(count: int) -> None:
    values = np.random.default_rng(count).integers(-5, 5, (count, 5000))
    assert np.array_equal(sorted_rows(values), np.sort(values, axis=0))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("codec_name", ["int8", "int4", "topk"])
def test_every_rule_takes_every_codec_and_factor(name: str, codec_name: str) -> None:
    if codec_name == "topk" and name.endswith(("median", "trimmed_mean")) and "geometric" not in name:
        pytest.skip("where fewer than half have sent a value, a coordinate rule gives zero")
    parent = small_adapter(rank=3)
    for factor in ("lora_A", "lora_B", "both"):
        manifest = parent.manifest.subset(factor)
        values = [small_delta(i, manifest.count) for i in range(4)]
        entries = [(1 + i, encode_delta(codec(codec_name), manifest, v)) for i, v in enumerate(values)]
        result = aggregate(name, parent, manifest, entries, codec(codec_name), dishonest=1)
        moved = result.select(manifest) - parent.select(manifest)
        assert 0 < np.abs(moved).max() < 0.1 * 2**24


def test_what_no_rule_can_take_is_refused() -> None:
    vectors = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"unknown aggregation rule 'vote', choose one of mean, clip"):
        rule("vote")
    with pytest.raises(ValueError, match="2 deltas with 1 weights"):
        deltas_of(vectors, 0, (1,))
    with pytest.raises(ValueError, match="weight above 0"):
        deltas_of(vectors, 0, (1, 0))
    with pytest.raises(ValueError, match="0 deltas"):
        deltas_of(np.ones((0, 3)), 0, ())
    good = deltas_of(vectors, 0)
    with pytest.raises(FormatError, match="other_codec"):
        Deltas(good.parent, good.manifest, codec("int8"), good.files, good.weights, 0)


def cases() -> list[dict[str, Any]]:
    """Vectors around a common one, the first of them far away on the other side."""
    made = []
    sizes = ((10, 2, 6), (8, 3, 5), (11, 3, 7), (5, 0, 4), (4, 1, 3), (7, 2, 1))
    for seed, (count, dishonest, size) in enumerate(sizes):
        random = np.random.default_rng(seed)
        common = random.integers(-1000, 1000, size)
        vectors = common + random.integers(-300, 300, (count, size))
        vectors[:dishonest] = -4 * common + random.integers(-50, 50, (dishonest, size))
        vectors = vectors / 2**12
        results = byzfl_results(vectors, dishonest)
        made.append({"vectors": vectors.tolist(), "dishonest": dishonest, "byzfl": results})
    return made


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(cases(), indent=1) + "\n")
