"""The average is exact, order-free, and the same bytes as those pinned in tests/vectors/aggregation.json.

After a wanted change of the format, write that file anew with
`PYTHONPATH=. python tests/protocol/test_aggregation.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter, small_delta

from citrate_node.protocol import aggregation
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.protocol.aggregation import WEIGHT_SUM, integer_weights, weighted_mean
from citrate_node.protocol.codecs import CODECS, codec, decode_delta, encode_delta
from citrate_node.protocol.codecs.delta import DeltaLimits
from citrate_node.protocol.methods import moving_factor
from citrate_node.protocol.tensors import WEIGHT_MAX, FormatError

VECTORS = Path(__file__).parents[1] / "vectors" / "aggregation.json"
LIMITS = DeltaLimits(1 << 20)
INT8 = codec("int8")


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=40).filter(any))
def test_integer_weights_sum_to_two_to_the_16_and_are_within_one_of_the_exact_share(raw: list[int]) -> None:
    weights = integer_weights(raw)
    assert sum(weights) == WEIGHT_SUM
    for weight, value in zip(weights, raw, strict=True):
        assert abs(weight - Fraction(value * WEIGHT_SUM, sum(raw))) < 1


def test_ties_of_the_largest_remainder_go_to_the_earlier_position() -> None:
    assert integer_weights([1, 1, 1]) == (21846, 21845, 21845)
    assert integer_weights([0, 5, 0]) == (0, 65536, 0)
    assert integer_weights([2**70, 2**70]) == (32768, 32768)


def test_weights_that_give_no_average_are_refused() -> None:
    for raw in ([], [0, 0], [3, -1]):
        with pytest.raises(ValueError, match=r"weight"):
            integer_weights(raw)


entries_of = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(0, 2**32 - 1), st.sampled_from([1e-9, 0.003, 0.5, 100.0])),
    min_size=1,
    max_size=6,
)


def files(raw: list[tuple[int, int, float]], parent: AdapterWeights, name: str) -> list[tuple[int, bytes]]:
    weights = integer_weights([weight for weight, _, _ in raw])
    values = [
        np.clip(small_delta(seed, parent.manifest.count, scale), -126, 126).astype(np.float32)
        for _, seed, scale in raw
    ]
    return [(w, encode_delta(codec(name), parent.manifest, v)) for w, v in zip(weights, values, strict=True)]


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=30)
@given(raw=entries_of, random=st.randoms(use_true_random=False))
def test_average_does_not_depend_on_the_order_of_signals(name: str, raw, random) -> None:
    parent = small_adapter()
    entries = files(raw, parent, name)
    shuffled = random.sample(entries, k=len(entries))
    expected = weighted_mean(parent, parent.manifest, entries, codec(name))
    assert weighted_mean(parent, parent.manifest, shuffled, codec(name)).encode() == expected.encode()


@given(entries_of)
def test_average_is_the_exact_one_truncated_toward_zero(raw) -> None:
    parent = small_adapter(scale=40)
    entries = files(raw, parent, "int8")
    result = weighted_mean(parent, parent.manifest, iter(entries), INT8)
    decoded = [
        (weight, decode_delta(data, INT8, parent.manifest, LIMITS).tolist()) for weight, data in entries
    ]
    for i in range(parent.manifest.count):
        exact = Fraction(sum(weight * values[i] for weight, values in decoded), 1 << 24)
        total = int(parent.values[i]) + int(exact)  # int() of a fraction truncates toward zero
        total = max(-WEIGHT_MAX, min(WEIGHT_MAX, total))
        assert result.values[i] == int(float(np.float32(total / (1 << 24))) * (1 << 24))


def test_only_the_moving_factor_moves() -> None:
    parent = small_adapter()
    only_b = parent.manifest.subset("lora_B")
    delta = encode_delta(INT8, only_b, small_delta(1, only_b.count))
    result = weighted_mean(parent, only_b, [(WEIGHT_SUM, delta)], INT8)
    only_a = parent.manifest.subset("lora_A")
    assert np.array_equal(result.select(only_a), parent.select(only_a))
    moved = np.abs(result.select(only_b) - parent.select(only_b))
    expected = np.abs(decode_delta(delta, INT8, only_b, LIMITS)) // 256
    assert np.array_equal(moved, expected)


def test_files_are_let_go_of_once_they_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand signals must not need the memory of a thousand."""
    monkeypatch.setattr(aggregation, "BATCH_BYTES_MAX", 40_000)
    parent = small_adapter(modules={"q": (1000, 10)})
    manifest = parent.manifest.subset("lora_B")
    data = encode_delta(INT8, manifest, small_delta(1, manifest.count))
    most = 0

    def entries() -> Iterator[tuple[int, bytes]]:
        nonlocal most
        for weight in integer_weights([1] * 200):
            yield weight, CountedBytes(data)
            most = max(most, CountedBytes.alive)

    weighted_mean(parent, manifest, entries(), INT8)
    assert CountedBytes.alive == 0
    assert len(data) * most <= 40_000 + 4 * len(data)


class CountedBytes(bytes):
    """A file that is known to be held or not."""

    alive = 0

    def __new__(cls, data: bytes) -> CountedBytes:
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        CountedBytes.alive -= 1


def test_weights_that_do_not_sum_to_the_whole_are_refused() -> None:
    parent = small_adapter()
    data = encode_delta(INT8, parent.manifest, small_delta(1, parent.manifest.count))
    for weights in ((WEIGHT_SUM, 1), (WEIGHT_SUM - 1,), (-1, WEIGHT_SUM + 1), ()):
        with pytest.raises(ValueError, match="weight"):
            weighted_mean(parent, parent.manifest, [(weight, data) for weight in weights], INT8)


def test_a_delta_for_other_tensors_is_refused_by_name() -> None:
    parent = small_adapter()
    only_b = parent.manifest.subset("lora_B")
    data = encode_delta(INT8, parent.manifest, small_delta(1, parent.manifest.count))
    with pytest.raises(FormatError, match="other_manifest"):
        weighted_mean(parent, only_b, [(WEIGHT_SUM, data)], INT8)


def test_alternate_moves_b_first_and_then_each_in_turn() -> None:
    assert [moving_factor("alternate", n) for n in range(1, 5)] == ["lora_B", "lora_A", "lora_B", "lora_A"]
    assert [moving_factor("freeze_a", n) for n in (1, 2)] == ["lora_B", "lora_B"]
    assert moving_factor("factor_mean", 2) == moving_factor("stack", 1) == "both"
    with pytest.raises(ValueError, match="unknown aggregation method 'mean'"):
        moving_factor("mean", 1)
    with pytest.raises(ValueError, match="counted from 1"):
        moving_factor("alternate", 0)


def averages() -> list[dict[str, object]]:
    """The cases that are pinned: three checkpoints of two deltas for every codec."""
    cases: list[dict[str, object]] = []
    for name in CODECS:
        adapter = small_adapter(11)
        for checkpoint in (1, 2, 3):
            subset = adapter.manifest.subset(moving_factor("alternate", checkpoint))
            weights = integer_weights([3, checkpoint])
            deltas = [
                encode_delta(codec(name), subset, small_delta(10 * checkpoint + i, subset.count, 0.02))
                for i in (0, 1)
            ]
            parent = adapter
            adapter = weighted_mean(parent, subset, zip(weights, deltas, strict=True), codec(name))
            cases.append(
                {
                    "codec": name,
                    "parent": parent.encode().hex(),
                    "entries": [
                        {"weight": w, "delta": d.hex()} for w, d in zip(weights, deltas, strict=True)
                    ],
                    "moving_factor": moving_factor("alternate", checkpoint),
                    "result": adapter.encode().hex(),
                    "result_sha256": hashlib.sha256(adapter.encode()).hexdigest(),
                }
            )
    return cases


def test_averages_are_those_pinned_for_other_implementations() -> None:
    assert averages() == json.loads(VECTORS.read_text())


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(averages(), indent=1) + "\n")
