"""Citrate's published formats: the digests that its own code keeps frozen, and the refusals.

tests/vectors/compat.json holds cases for other implementations; write it anew with
`PYTHONPATH=. python tests/protocol/test_compat.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.protocol.compat import (
    COORDINATE_MAX,
    bucket_of,
    compress_int8,
    decompress_int8,
    lora_commitment,
    round_digest,
    to_q16,
    trimmed_mean,
)
from citrate_node.protocol.tensors import FormatError

VECTORS = Path(__file__).parents[1] / "vectors" / "compat.json"

LORA_A = np.array([[0.3, -0.2, 0.1], [-0.3, 0.2, 0.5]], np.float32)
LORA_B = np.array([[1.0, 0.0], [-0.5, 0.5], [0.25, -0.5], [0.0, 1.0]], np.float32)

ROUND = {
    "alpha": to_q16([1.0, -2.0, 3.5]).tolist(),
    "beta": to_q16([2.0, -1.0, 3.0]).tolist(),
    "gamma": to_q16([1.5, -1.5, 3.25]).tolist(),
    "delta": to_q16([1.75, -1.25, 3.1]).tolist(),
}
SEED = b"frozen-seed-v1"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(FormatError) as refused:
        call()
    return refused.value.reason


def test_commitment_is_the_one_that_citrate_keeps_frozen() -> None:
    assert (
        lora_commitment(3, 1.0, LORA_A, LORA_B)
        == "9bda1b5bccb365446d998a71f48c6852a85d1a94657022cd02bc9a3742a6716d"
    )


def test_commitment_does_not_depend_on_the_order_of_atoms_and_notices_every_change() -> None:
    expected = lora_commitment(3, 1.0, LORA_A, LORA_B)
    assert lora_commitment(3, 1.0, LORA_A[::-1], LORA_B[:, ::-1]) == expected
    changed = LORA_A.copy()
    changed[0, 0] += 0.01
    others = {
        lora_commitment(3, 1.0, changed, LORA_B),
        lora_commitment(3, 1.0, LORA_A[::-1], LORA_B),
        lora_commitment(3, 2.0, LORA_A, LORA_B),
        lora_commitment(4, 1.0, LORA_A, LORA_B),
    }
    assert len(others | {expected}) == 5


def test_adapters_that_cannot_be_committed_are_refused_by_name() -> None:
    def with_value(value: float) -> Callable[[], object]:
        poisoned = LORA_A.copy()
        poisoned[0, 0] = value
        return lambda: lora_commitment(3, 1.0, poisoned, LORA_B)

    assert refusal(with_value(np.nan)) == "non_finite"
    assert refusal(with_value(np.inf)) == "non_finite"
    assert refusal(with_value(2e14)) == "too_large"
    assert refusal(lambda: lora_commitment(3, -np.inf, LORA_A, LORA_B)) == "non_finite"
    assert refusal(lambda: lora_commitment(256, 1.0, LORA_A, LORA_B)) == "zone_tag"
    assert refusal(lambda: lora_commitment(3, 1.0, LORA_A[:1], LORA_B)) == "tensor_shape"
    assert refusal(lambda: lora_commitment(3, 1.0, LORA_A[0], LORA_B)) == "tensor_shape"


@given(st.floats(-(2.0**46), 2.0**46, width=32))
def test_q16_is_the_nearest_multiple_and_halves_go_away_from_zero(value: float) -> None:
    exact = Fraction(value) * 65536
    expected = int(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)
    assert to_q16([value]).tolist() == [expected]


def test_round_digest_is_the_one_that_citrate_keeps_frozen() -> None:
    aggregate = trimmed_mean(ROUND, trim=1, bucket_count=64, seed=SEED)
    assert (
        round_digest(aggregate, 1, 64, SEED)
        == "9c8597653a4762ecb709c74956abbd40d132997d9579ee742edb9f8cb80a28b7"
    )


@given(st.randoms(use_true_random=False))
def test_trimmed_mean_does_not_depend_on_the_order_of_workers(random) -> None:
    shuffled = dict(random.sample(list(ROUND.items()), k=4))
    assert trimmed_mean(shuffled, 1, 64, SEED) == trimmed_mean(ROUND, 1, 64, SEED)


def test_trimmed_mean_keeps_within_what_honest_workers_say() -> None:
    deltas = {f"honest{i}": to_q16([10.0]).tolist() for i in range(5)}
    deltas |= {"low": to_q16([-9000.0]).tolist(), "high": to_q16([9000.0]).tolist()}
    assert len({bucket_of(b"seed-test", worker, 1 << 20) for worker in deltas}) == 7
    assert trimmed_mean(deltas, 2, 1 << 20, b"seed-test") == to_q16([10.0]).tolist()


def test_means_truncate_toward_zero_within_a_bucket_and_between_buckets() -> None:
    """Rounding down, as Python's // does, would give another digest for every negative mean."""
    one_bucket = {worker: [value] for worker, value in (("a", -1), ("b", -1), ("c", -2))}
    others = {"low": [-(2**40)], "high": [2**40]}
    spread = {"x": [-5], "y": [-5], "z": [-6]} | others
    seed, count = b"spread", 1 << 20
    assert len({bucket_of(seed, worker, count) for worker in spread}) == 5
    assert trimmed_mean(spread, 1, count, seed) == [-5]
    first = next(
        s
        for s in (str(i).encode() for i in range(10_000))
        if len({bucket_of(s, w, 4) for w in one_bucket}) == 1
        and len({bucket_of(s, w, 4) for w in one_bucket | others}) == 3
    )
    assert trimmed_mean(one_bucket | others, 1, 4, first) == [-1]


def test_rounds_that_have_no_robust_mean_are_refused_by_name() -> None:
    assert refusal(lambda: trimmed_mean({}, 1, 64, SEED)) == "dimension"
    assert refusal(lambda: trimmed_mean({"a": [1], "b": [1, 2]}, 1, 64, SEED)) == "dimension"
    assert refusal(lambda: trimmed_mean(ROUND, 0, 64, SEED)) == "trim"
    assert refusal(lambda: trimmed_mean(ROUND, 2, 64, SEED)) == "trim"
    assert refusal(lambda: trimmed_mean(ROUND, 2**70, 64, SEED)) == "trim"
    assert refusal(lambda: trimmed_mean(ROUND, 1, 0, SEED)) == "bucket_count"
    assert refusal(lambda: trimmed_mean(ROUND, 1, (1 << 20) + 1, SEED)) == "bucket_count"
    atlimit = {w: [COORDINATE_MAX] for w in "abcdefgh"}
    assert trimmed_mean(atlimit, 1, 1 << 20, SEED) == [COORDINATE_MAX]
    assert refusal(lambda: trimmed_mean(atlimit | {"z": [-COORDINATE_MAX - 1]}, 1, 64, SEED)) == "too_large"


@given(st.lists(st.integers(-(2**62), 2**62), max_size=20))
def test_compression_is_within_half_a_scale_and_of_the_least_scale_that_fits(raw: list[int]) -> None:
    scale, values = compress_int8(raw)
    largest = max(map(abs, raw), default=0)
    assert scale == max(1, -(-largest // 127))
    assert all(-127 <= value <= 127 for value in values)
    restored = decompress_int8(scale, values)
    assert all(2 * abs(a - b) <= scale for a, b in zip(raw, restored, strict=True))
    for value, code in zip(raw, values, strict=True):
        expected = int(Fraction(abs(value), scale) + Fraction(1, 2)) * (1 if value >= 0 else -1)
        assert code == expected


def test_average_of_compressed_deltas_is_the_one_that_citrate_keeps_frozen() -> None:
    """That digest is older than the domain and the parameters in round_digest: the bare integers."""
    restored = {worker: decompress_int8(*compress_int8(delta)) for worker, delta in ROUND.items()}
    aggregate = np.array(trimmed_mean(restored, 1, 64, SEED), "<i8")
    assert (
        hashlib.sha256(aggregate.tobytes()).hexdigest()
        == "014ee81a5ef2a076780689dd60b743c218f5e74788fa58678f3f51b2837c4f9c"
    )


def cases() -> dict[str, object]:
    """What is pinned: the inputs of the tests above, with every intermediate number."""
    compressed = {worker: compress_int8(delta) for worker, delta in ROUND.items()}
    restored = {worker: decompress_int8(*pair) for worker, pair in compressed.items()}
    aggregate = trimmed_mean(ROUND, 1, 64, SEED)
    of_compressed = trimmed_mean(restored, 1, 64, SEED)
    return {
        "lora_commitment": {
            "zone_tag": 3,
            "alpha": 1.0,
            "lora_a": LORA_A.tolist(),
            "lora_b": LORA_B.tolist(),
            "sha256": lora_commitment(3, 1.0, LORA_A, LORA_B),
        },
        "trimmed_mean": {
            "deltas": ROUND,
            "trim": 1,
            "bucket_count": 64,
            "seed": SEED.hex(),
            "buckets": {worker: bucket_of(SEED, worker, 64) for worker in ROUND},
            "aggregate": aggregate,
            "round_digest": round_digest(aggregate, 1, 64, SEED),
        },
        "int8": {
            "compressed": {worker: [scale, values] for worker, (scale, values) in compressed.items()},
            "restored": restored,
            "aggregate": of_compressed,
            "round_digest": round_digest(of_compressed, 1, 64, SEED),
        },
    }


def test_formats_are_those_pinned_for_other_implementations() -> None:
    assert cases() == json.loads(VECTORS.read_text())


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(cases(), indent=1) + "\n")
