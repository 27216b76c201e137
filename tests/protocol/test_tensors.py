"""The grids, the manifest, and the two roundings that everything else rests on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.protocol.tensors import (
    DELTA_LIMIT,
    WEIGHT_BITS,
    WEIGHT_MAX,
    FormatError,
    Manifest,
    TensorSpec,
    canonical_weights,
    delta_to_grid,
    divide_toward_zero,
    finite_float32,
    round_half_away,
    weights_from_float32,
    weights_to_float32,
)

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def test_manifest_sorts_by_name_and_counts_its_values() -> None:
    manifest = Manifest.from_shapes({B: (5, 2), A: (2, 3)})
    assert [spec.name for spec in manifest.specs] == [A, B]
    assert manifest.count == 16
    assert manifest.slices() == {A: slice(0, 6), B: slice(6, 16)}
    assert manifest.subset("lora_B") == Manifest((TensorSpec(B, (5, 2)),))
    assert manifest.subset("both") is manifest


def test_manifest_hash_is_pinned() -> None:
    """Signals carry it: another way to compute it would split the network."""
    assert (
        Manifest.from_shapes({B: (5, 2), A: (2, 3)}).hash.hex()
        == "854d2db1223adae753132405d7306d46b8af98d649b0e20f16d2334d7e86b072"
    )


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ((), "manifest_empty"),
        ((TensorSpec(B, (1, 1)), TensorSpec(A, (1, 1))), "manifest_order"),
        ((TensorSpec(A, (1, 1)), TensorSpec(A, (1, 1))), "manifest_order"),
        ((TensorSpec(A, (1, 0)),), "tensor_shape"),
        ((TensorSpec(A, ()),), "tensor_shape"),
    ],
)
def test_manifest_that_is_not_in_order_is_refused(specs: tuple[TensorSpec, ...], reason: str) -> None:
    with pytest.raises(FormatError) as refused:
        Manifest(specs)
    assert refused.value.reason == reason


@given(st.integers(-(2**50), 2**50), st.integers(1, 2**40))
def test_division_truncates_toward_zero(value: int, divisor: int) -> None:
    """As Rust's and Solidity's `/`; Python's // would give -1 for -1 / 2."""
    expected = abs(value) // divisor * (1 if value >= 0 else -1)
    assert divide_toward_zero(np.array([value]), divisor).tolist() == [expected]


@given(st.integers(-(2**40), 2**40), st.integers(0, 20))
def test_rounding_goes_to_the_nearest_and_halves_away_from_zero(numerator: int, bits: int) -> None:
    exact = Fraction(numerator, 1 << bits)
    expected = int(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)
    assert round_half_away(np.array([numerator / (1 << bits)])).tolist() == [expected]


@given(st.floats(-126, 126, width=32))
def test_delta_grid_is_the_nearest_multiple_of_two_to_the_minus_32(value: float) -> None:
    exact = Fraction(value) * 2**32
    expected = int(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)
    assert delta_to_grid(np.array([value], dtype=np.float32)).tolist() == [expected]


@given(st.integers(-(2**33), 2**33))
def test_canonical_weights_are_those_that_float32_holds(value: int) -> None:
    canonical = canonical_weights(np.array([value]))
    assert abs(canonical[0]) <= WEIGHT_MAX
    assert weights_from_float32(weights_to_float32(canonical)).tolist() == canonical.tolist()
    assert canonical_weights(canonical).tolist() == canonical.tolist()
    if abs(value) <= 1 << WEIGHT_BITS:
        assert canonical.tolist() == [value]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "non_finite"), (np.inf, "non_finite"), (-np.inf, "non_finite"), (127.0, "too_large")],
)
def test_values_that_are_not_finite_or_too_large_are_refused_by_name(value: float, reason: str) -> None:
    with pytest.raises(FormatError) as refused:
        finite_float32(np.array([0.0, value], dtype=np.float32), DELTA_LIMIT, "the delta")
    assert refused.value.reason == reason
