"""The compiled kernels give the bytes that numpy gives: one network may hold nodes with and without numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter

from citrate_node.protocol import kernels
from citrate_node.protocol.aggregation import weighted_mean
from citrate_node.protocol.codecs import CODECS, codec, encode_delta
from citrate_node.protocol.tensors import FormatError

pytest.importorskip("numba", reason="without numba there is only numpy")

SCALES = [0.0, 1e-12, 3e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, 25.0]


def both_ways(compute: Callable[[], Any]) -> tuple[Any, Any]:
    """The result with kernels for every size, and without any."""
    results = []
    for values_min in (1, 1 << 62):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "KERNEL_VALUES_MIN", values_min)
            results.append(compute())
    return results[0], results[1]


def sample(seed: int, count: int) -> np.ndarray:
    """Values of every size that occurs, with whole blocks of zeros, exact halves and equal magnitudes."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(count) * np.repeat(random.choice(SCALES, count // 100 + 1), 100)[:count]
    grid = np.rint(values * 2**32) * random.choice([1, 0.5], count) / 2**32
    coarse = np.round(values, 2)
    chosen = np.choose(random.integers(0, 3, count), [values, grid, coarse])
    return np.clip(chosen, -126.9, 126.9).astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9000))
def test_kernels_encode_to_the_same_bytes(name: str, seed: int, count: int) -> None:
    values = sample(seed, count)
    fast, slow = both_ways(lambda: codec(name).encode(values))
    assert fast == slow


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9000), payloads=st.integers(1, 5))
def test_kernels_accumulate_to_the_same_sums(name: str, seed: int, count: int, payloads: int) -> None:
    entries = [(100 * i + 1, codec(name).encode(sample(seed + i, count))) for i in range(payloads)]

    def total() -> list[int]:
        accumulator = np.arange(count, dtype=np.int64)
        codec(name).accumulate_all(entries, count, accumulator)
        return accumulator.tolist()

    fast, slow = both_ways(total)
    assert fast == slow


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60)
@given(data=st.data())
def test_kernels_refuse_the_same_payloads(name: str, data: st.DataObject) -> None:
    payload = bytearray(codec(name).encode(sample(7, 5000)))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))

    def outcome() -> str | list[int]:
        accumulator = np.zeros(5000, dtype=np.int64)
        try:
            codec(name).accumulate(bytes(payload), 5000, 3, accumulator)
        except FormatError as error:
            return str(error)
        return accumulator.tolist()

    fast, slow = both_ways(outcome)
    assert fast == slow


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 127.0, -127.0])
@pytest.mark.parametrize("position", [0, 300, 511, 4999])
def test_kernels_refuse_the_same_values(name: str, value: float, position: int) -> None:
    values = sample(3, 5000)
    values[position] = value

    def outcome() -> str:
        with pytest.raises(FormatError) as refused:
            codec(name).encode(values)
        return refused.value.reason

    fast, slow = both_ways(outcome)
    assert fast == slow


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.01, 0.4, 40.0]))
def test_kernels_finish_an_average_to_the_same_bytes(seed: int, scale: float) -> None:
    """Below 1, around it where float32 begins to round, and where sums saturate."""
    parent = small_adapter(seed, scale=scale)
    entries = [
        (weight, encode_delta(codec("int8"), parent.manifest, sample(seed + weight, parent.manifest.count)))
        for weight in (40_000, 25_536)
    ]
    fast, slow = both_ways(lambda: weighted_mean(parent, parent.manifest, entries, codec("int8")).encode())
    assert fast == slow


def test_small_vectors_never_wait_for_a_compiler() -> None:
    assert kernels.kernels_for(kernels.KERNEL_VALUES_MIN - 1) is None
    assert kernels.kernels_for(kernels.KERNEL_VALUES_MIN) is not None
