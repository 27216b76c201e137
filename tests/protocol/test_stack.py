"""Recompression has the error of the dense singular value decomposition, whatever the path and the gauge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter

from citrate_node.protocol.adapter import factor_names, from_tensors
from citrate_node.protocol.stack import Path, average_products, recompress
from citrate_node.protocol.tensors import FormatError

PATHS: list[Path] = ["gram", "qr", "random"]


def dense_error(product: np.ndarray, rank: int) -> float:
    return float(np.linalg.norm(np.linalg.svd(product, compute_uv=False)[rank:]))


def stacked(seed: int, out_features: int, in_features: int, width: int, decay: float) -> tuple:
    """Factors whose singular values fall by `decay` from column to column, in a random gauge."""
    random = np.random.default_rng(seed)
    gauge = random.standard_normal((width, width)) + 2 * np.eye(width)
    sizes = decay ** np.arange(width)
    lora_b = random.standard_normal((out_features, width)) * sizes @ gauge
    lora_a = np.linalg.solve(gauge, random.standard_normal((width, in_features)))
    return lora_b, lora_a


@pytest.mark.parametrize("path", [None, *PATHS])
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30)),
    decay=st.sampled_from([1.0, 0.8, 0.3]),
    rank=st.integers(1, 12),
)
def test_error_is_that_of_the_dense_decomposition(path, seed, shape, decay, rank) -> None:
    lora_b, lora_a = stacked(seed, *shape, decay)
    product = lora_b @ lora_a
    result = recompress(lora_b, lora_a, rank, path)
    norm = np.linalg.norm(product)
    actual = np.linalg.norm(product - result.lora_b @ result.lora_a)
    # the random path multiplies in float32: where the terms of B A cancel, their rounding remains
    terms = np.linalg.norm(np.abs(lora_b) @ np.abs(lora_a))
    tolerance = 2e-5 * norm + 2**-20 * terms if path == "random" else 2e-6 * norm
    assert actual <= dense_error(product, rank) + tolerance
    assert result.lora_b.shape == (shape[0], rank)
    assert result.lora_a.shape == (rank, shape[1])
    if path != "random":
        assert abs(result.error - actual) <= 2e-6 * norm
        assert abs(result.norm - norm) <= 1e-6 * norm


def test_wide_stacks_take_the_random_path_and_lose_nothing_by_it() -> None:
    random = np.random.default_rng(0)
    shared_b, shared_a = random.standard_normal((600, 16)), random.standard_normal((16, 500))
    lora_b = np.tile(shared_b, (1, 28)) + 0.3 * random.standard_normal((600, 448))
    lora_a = np.tile(shared_a, (28, 1)) + 0.3 * random.standard_normal((448, 500))
    fast = recompress(lora_b, lora_a, 16)
    exact = recompress(lora_b, lora_a, 16, "qr")
    assert (fast.path, exact.path) == ("random", "qr")
    assert fast.relative_error == pytest.approx(exact.relative_error, abs=1e-5)
    actual = np.linalg.norm(lora_b @ lora_a - fast.lora_b @ fast.lora_a) / np.linalg.norm(lora_b @ lora_a)
    assert actual == pytest.approx(exact.relative_error, abs=1e-5)


def test_a_stack_whose_condition_the_gram_matrix_cannot_hold_is_done_by_qr() -> None:
    """B's last direction is a ten-millionth of the first, but A makes it as large as any other."""
    random = np.random.default_rng(3)
    left = np.linalg.qr(random.standard_normal((60, 8)))[0]
    right = np.linalg.qr(random.standard_normal((50, 8)))[0].T
    mixing = np.linalg.qr(random.standard_normal((8, 8)))[0]
    sizes = np.logspace(0, -7, 8)
    lora_b = left * sizes @ mixing
    lora_a = mixing.T / sizes @ right
    result = recompress(lora_b, lora_a, 8)
    assert result.path == "qr"
    assert result.error < 1e-6
    assert np.allclose(result.lora_b @ result.lora_a, left @ right, atol=1e-6)


def test_columns_of_very_different_length_are_no_reason_for_qr() -> None:
    random = np.random.default_rng(4)
    lora_b, lora_a = random.standard_normal((60, 8)), random.standard_normal((8, 50))
    gauge = np.logspace(-9, 9, 8)
    result = recompress(lora_b * gauge, lora_a / gauge[:, None], 8)
    assert result.path == "gram"
    assert np.allclose(result.lora_b @ result.lora_a, lora_b @ lora_a, atol=1e-9)


def test_equal_adapters_need_no_more_rank_than_one() -> None:
    random = np.random.default_rng(5)
    lora_b, lora_a = random.standard_normal((40, 4)), random.standard_normal((4, 30))
    result = recompress(np.tile(lora_b, (1, 6)) / 6, np.tile(lora_a, (6, 1)), 4)
    assert result.path == "gram"
    assert result.relative_error < 1e-6
    assert np.allclose(result.lora_b @ result.lora_a, lora_b @ lora_a, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_a_product_of_zeros_stays_one(path: Path) -> None:
    result = recompress(np.zeros((5, 3)), np.ones((3, 4)), 2, path)
    assert not result.lora_b.any()
    assert result.relative_error == 0


def test_factors_that_do_not_fit_or_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(FormatError, match="tensor_shape"):
        recompress(np.ones((5, 3)), np.ones((2, 4)), 2)
    with pytest.raises(FormatError, match="non_finite"):
        recompress(np.full((5, 3), np.nan), np.ones((3, 4)), 2)


def test_average_of_products_is_not_the_product_of_averages_and_knows_its_error() -> None:
    adapters = [small_adapter(seed, rank=2, alpha=4, modules={"q": (9, 8)}) for seed in range(3)]
    name_a, name_b = factor_names("q")
    updates = [2.0 * a.tensors()[name_b].astype(float) @ a.tensors()[name_a] for a in adapters]
    expected = (updates[0] + 2 * updates[1] + updates[2]) / 4
    average, error = average_products(list(zip((1, 2, 1), adapters, strict=True)), rank=6)
    assert average.config.alpha == average.config.rank == 6
    found = average.tensors()[name_b].astype(float) @ average.tensors()[name_a]
    assert error < 1e-6
    assert np.allclose(found, expected, atol=1e-6)
    small, error = average_products(list(zip((1, 2, 1), adapters, strict=True)), rank=2)
    found = small.tensors()[name_b].astype(float) @ small.tensors()[name_a]
    assert error == pytest.approx(dense_error(expected, 2) / np.linalg.norm(expected), abs=1e-6)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) == pytest.approx(error, abs=1e-5)


def test_adapters_of_other_bases_or_modules_have_no_average() -> None:
    ours = small_adapter(modules={"q": (9, 8)})
    with pytest.raises(FormatError, match="targets"):
        average_products([(1, ours), (1, small_adapter(modules={"v": (9, 8)}))], 2)
    other_base = type(ours.config)(bytes(32), 2, 4, ("q",))
    with pytest.raises(FormatError, match="base_model_id"):
        average_products([(1, ours), (1, from_tensors(other_base, ours.tensors()))], 2)
