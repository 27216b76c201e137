"""Reputation: a minority of liars moves nothing, nobody decides alone, trust is lost faster than won."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from small_network import MINIMAL

from citrate_node.protocol.preset import ONE_PPM
from citrate_node.protocol.reputation import (
    capped_shares,
    moved,
    reference_score,
    weighted_median,
    worth_ppm,
)

PPM = st.integers(0, ONE_PPM)
SCORES = st.integers(-(2**40), 2**40)


def test_the_median_is_the_smallest_value_with_half_of_the_weight_at_or_below() -> None:
    assert weighted_median([(10, 1), (20, 1), (30, 1)]) == 20
    assert weighted_median([(10, 1), (20, 1)]) == 10
    assert weighted_median([(10, 1), (20, 3)]) == 20
    assert weighted_median([(10, 0)]) is None
    assert weighted_median([]) is None


@given(
    st.lists(st.tuples(SCORES, st.integers(1, ONE_PPM)), min_size=1, max_size=12),
    st.lists(SCORES, max_size=12),
    st.randoms(use_true_random=False),
)
def test_liars_of_less_than_half_the_weight_stay_between_honest_values(honest, lies, random) -> None:
    budget = sum(weight for _, weight in honest) - 1
    liars = [(lie, budget // len(lies)) for lie in lies if budget // len(lies) > 0]
    both = [*honest, *liars]
    random.shuffle(both)
    median = weighted_median(both)
    values = [value for value, _ in honest]
    assert median is not None
    assert min(values) <= median <= max(values)


def test_worth_is_nothing_for_harm_a_half_at_the_reference_and_never_above_one() -> None:
    assert [worth_ppm(score, 1000) for score in (-5, 0, 500, 1000, 2000, 9999)] == [
        *(0, 0, 250_000, 500_000),
        *(ONE_PPM, ONE_PPM),
    ]
    assert worth_ppm(5, 0) == 0


def test_the_reference_is_the_lower_median_of_what_helped() -> None:
    assert reference_score([-50, 0, 10, 20, 30, 40]) == 20
    assert reference_score([-1, 0]) == 0


@given(PPM, PPM)
def test_reputation_moves_towards_its_target_within_its_bounds(reputation: int, target: int) -> None:
    after = moved(MINIMAL, reputation, target)
    floor = MINIMAL.reputation_floor_ppm
    assert 0 <= after <= ONE_PPM
    if target >= reputation:
        assert reputation <= after <= target
    else:
        assert min(reputation, max(floor, target)) <= after <= max(reputation, floor)


def test_trust_is_lost_faster_than_it_is_won() -> None:
    assert moved(MINIMAL, 500_000, 600_000) - 500_000 == 20_000
    assert 500_000 - moved(MINIMAL, 500_000, 400_000) == 30_000


def test_no_registered_node_falls_below_the_floor() -> None:
    reputation = 20_000
    for _ in range(50):
        reputation = moved(MINIMAL, reputation, 0)
    assert reputation == MINIMAL.reputation_floor_ppm


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_no_share_is_above_the_cap_unless_there_are_too_few_signals(raw: list[int]) -> None:
    shares = capped_shares(MINIMAL, raw)
    total = sum(shares)
    assert [share > 0 for share in shares] <= [weight > 0 for weight in raw]
    present = sum(weight > 0 for weight in raw)
    if present >= 2:
        cap = max(MINIMAL.share_cap_ppm, -(-ONE_PPM // present))
        assert (
            max(shares) * ONE_PPM <= (cap + present) * total
        )  # each other share rounds down by less than one ppm


def test_a_giant_among_five_gets_the_cap_and_the_others_share_the_rest() -> None:
    assert capped_shares(MINIMAL, [10**9, 1, 1, 1, 1]) == [400_000, *([150_000] * 4)]


def test_shares_below_the_cap_are_left_alone() -> None:
    assert capped_shares(MINIMAL, [3, 3, 4]) == [3, 3, 4]
