"""The outer step against its formula in fractions, and its limits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.protocol.outer_step import MOMENTUM_MAX, OuterStep
from citrate_node.protocol.tensors import DELTA_MAX

sums = st.lists(st.integers(-DELTA_MAX * 2**16, DELTA_MAX * 2**16), min_size=1, max_size=6)


@given(sums)
def test_a_rate_of_one_without_momentum_changes_nothing(values: list[int]) -> None:
    weighted = np.array(values)
    step, _ = OuterStep().apply(weighted, np.zeros(len(values), dtype=np.int64))
    assert np.array_equal(step, weighted)


@given(
    st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=8),
    st.integers(1, 2 << 16),
    st.integers(0, (1 << 16) - 1),
)
def test_steps_are_nesterovs_up_to_a_unit_each(averages: list[int], rate: int, momentum: int) -> None:
    outer = OuterStep(rate, momentum)
    eta, mu = Fraction(rate, 2**16), Fraction(momentum, 2**16)
    exact_momentum, found_momentum = Fraction(0), np.zeros(1, dtype=np.int64)
    for step_number, weighted in enumerate(averages, start=1):
        step, found_momentum = outer.apply(np.array([weighted]), found_momentum)
        average = Fraction(weighted, 2**16)
        exact_momentum = mu * exact_momentum + average
        exact = eta * (average + mu * exact_momentum)
        assert abs(int(found_momentum[0]) - exact_momentum) <= 2 * step_number
        assert abs(Fraction(int(step[0]), 2**16) - exact) <= 4 * step_number + 4


def test_momentum_saturates_instead_of_wrapping() -> None:
    outer = OuterStep(2 << 16, (1 << 16) - 1)
    momentum = np.zeros(1, dtype=np.int64)
    largest = np.array([DELTA_MAX << 16])
    for _ in range(200):
        step, momentum = outer.apply(largest, momentum)
    assert momentum.tolist() == [MOMENTUM_MAX]
    assert 0 < step[0] <= MOMENTUM_MAX << 17


def test_settings_out_of_range_are_refused() -> None:
    for rate, momentum in ((0, 0), ((2 << 16) + 1, 0), (1, -1), (1, 1 << 16)):
        with pytest.raises(ValueError, match="out of range"):
            OuterStep(rate, momentum)
