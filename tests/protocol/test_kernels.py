"""The compiled kernels give the bytes that numpy gives: one network may hold nodes with and without numba."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter

from citrate_node.protocol import kernels, metrics
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.protocol.aggregation import weighted_mean
from citrate_node.protocol.codecs import CODECS, codec, encode_delta
from citrate_node.protocol.gram import gram_of_deltas
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


def int8_deltas(seed: int, rank: int, count: int, features: int) -> tuple[AdapterWeights, list[bytes]]:
    """Deltas of two modules whose metrics and sizes differ by far; one of the deltas is zero, one is huge."""
    parent = small_adapter(seed, rank=rank, modules={"a": (features, 24), "b": (2 * features, 9)}, scale=0.3)
    moving = parent.manifest.subset("lora_B")
    random = np.random.default_rng(seed)
    values = [random.standard_normal(moving.count) * 10.0 ** random.uniform(-9, 1) for _ in range(count)]
    values[0][: moving.count // 3] *= 1e-3
    values[-1] *= 0
    return parent, [encode_delta(codec("int8"), moving, v.clip(-126, 126).astype(np.float32)) for v in values]


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    rank=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    count=st.integers(1, 9),
)
def test_kernels_come_to_the_same_inner_products(seed: int, rank: int, count: int) -> None:
    parent, deltas = int8_deltas(seed, rank, count, 512)
    moving = parent.manifest.subset("lora_B")
    fast, slow = both_ways(lambda: gram_of_deltas(parent, moving, deltas, codec("int8")))
    assert fast == slow


def test_kernels_sum_the_largest_products_without_overflow() -> None:
    """Every value of an update the largest there is, in a module as long as many windows."""
    parent = small_adapter(rank=1, modules={"a": (1 << 16, 3)})
    moving = parent.manifest.subset("lora_B")
    ones = np.full(moving.count, 126.0, np.float32)
    deltas = [encode_delta(codec("int8"), moving, each) for each in (ones, -ones, ones / 3)]

    def windows() -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "WINDOW_BYTES", 1 << 15)
            return gram_of_deltas(parent, moving, deltas, codec("int8"))

    fast, slow = both_ways(windows)
    assert fast == slow
    assert fast.cosine_ppm(0, 1) == -1_000_000


def test_kernels_leave_what_does_not_fit_their_vectors_to_numpy() -> None:
    """Ranks that divide no block, and modules that begin within one."""
    for rank, features in ((3, 512), (8, 100)):
        parent, deltas = int8_deltas(1, rank, 4, features)
        moving = parent.manifest.subset("lora_B")

        def inner(parent: Any = parent, moving: Any = moving, deltas: Any = deltas) -> Any:
            return gram_of_deltas(parent, moving, deltas, codec("int8"))

        fast, slow = both_ways(inner)
        assert fast == slow


def test_processors_without_the_paired_instruction_come_to_the_same_inner_products() -> None:
    """The same kernels, compiled for a processor that has no vectors of 512 bits."""
    spec = importlib.util.find_spec("citrate_node.protocol.kernels_gram")
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    plain._HAS_PAIRS = False
    parent, deltas = int8_deltas(5, 16, 5, 512)
    moving = parent.manifest.subset("lora_B")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "gram_kernels_for", lambda count: plain)
        found = gram_of_deltas(parent, moving, deltas, codec("int8"))
        patch.setattr(metrics, "gram_kernels_for", lambda count: None)
        assert found == gram_of_deltas(parent, moving, deltas, codec("int8"))


def test_small_vectors_never_wait_for_a_compiler() -> None:
    assert kernels.kernels_for(kernels.KERNEL_VALUES_MIN - 1) is None
    assert kernels.kernels_for(kernels.KERNEL_VALUES_MIN) is not None
