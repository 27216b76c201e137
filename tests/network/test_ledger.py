"""Rates, points and blocks, with a clock that the test turns."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.network.ledger import PEERS_REMEMBERED_MAX, Bucket, Ledger
from citrate_node.network.settings import NetworkConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def ledger(**settings: float) -> tuple[Ledger, Clock, list[str]]:
    """(ledger, its clock, the peers it has blocked so far)."""
    clock, blocked = Clock(), list[str]()
    config = NetworkConfig(identity_seed=bytes(32), **settings)  # type: ignore[arg-type]
    return Ledger(config, clock, blocked.append), clock, blocked


def test_a_peer_within_its_burst_never_waits_and_beyond_it_waits_for_the_debt() -> None:
    book, clock, _ = ledger(messages_per_second=10, messages_burst=5)
    assert [book.admit("peer", 1, 1) for _ in range(7)] == [0, 0, 0, 0, 0, 0.1, 0.2]
    clock.now += 0.2
    assert book.admit("peer", 0, 0) == 0
    assert book.admit("other", 5, 1) == 0


def test_bytes_are_limited_as_messages_are() -> None:
    book, _, _ = ledger(bytes_per_second=1_000, bytes_burst=2_000)
    assert [book.admit("peer", 1, 1_500), book.admit("peer", 1, 1_500)] == [0, 1.0]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), min_size=1, max_size=60),
    st.integers(1, 100),
    st.integers(1, 200),
)
def test_no_sequence_gets_more_through_a_bucket_than_burst_and_rate_allow(
    steps: list[tuple[float, int]], rate: int, burst: int
) -> None:
    """Taking and waiting as told, the sum never passes burst + rate * time by more than the last taking."""
    now, taken, bucket = 0.0, 0, Bucket(rate, burst, 0.0)
    for pause, amount in steps:
        now += pause
        assert taken <= burst + rate * now + 1e-6
        now += bucket.take(amount, now)
        taken += amount


def test_points_fade_and_enough_of_them_block_for_a_time() -> None:
    book, clock, blocked = ledger(score_max=100, score_decay_per_second=1, block_ms=60_000)
    book.penalise("peer", 60, "first")
    clock.now += 30
    assert book.score("peer") == 30
    book.penalise("peer", 69, "second")
    assert (book.is_blocked("peer"), blocked) == (False, [])
    book.penalise("peer", 1, "third")
    assert (book.is_blocked("peer"), blocked) == (True, ["peer"])
    clock.now += 60
    assert (book.is_blocked("peer"), book.score("peer")) == (False, 0)


def test_a_block_by_hand_lasts_until_it_is_taken_back() -> None:
    book, clock, blocked = ledger()
    book.block("peer")
    clock.now += 1e9
    assert (book.is_blocked("peer"), blocked) == (True, ["peer"])
    book.unblock("peer")
    assert not book.is_blocked("peer")


def test_a_flood_is_blocked_after_half_a_minute_and_a_burst_never() -> None:
    """The reader waits as it is told, and adds points for the time: as gossip does."""

    def read(book: Ledger, clock: Clock, messages: int) -> None:
        for _ in range(messages):
            wait = book.admit("peer", 1, 100)
            if wait:
                book.held_back("peer", wait)
                clock.now += wait

    book, clock, blocked = ledger()
    read(book, clock, 2_500)  # 1500 above the burst: seven and a half seconds of holding back
    assert blocked == []
    clock.now += 60
    begun = clock.now
    read(book, clock, 10_000)
    assert blocked == ["peer"]
    assert clock.now - begun < 60


def test_an_origin_above_its_rate_is_not_passed_on_while_others_are() -> None:
    book, clock, _ = ledger(origin_messages_per_second=2, origin_messages_burst=3)
    assert [book.admit_origin("loud") for _ in range(5)] == [True, True, True, False, False]
    assert book.admit_origin("quiet")
    clock.now += 1
    assert [book.admit_origin("loud") for _ in range(3)] == [True, True, False]


def test_a_peer_connects_as_often_as_a_restart_needs_and_not_without_end() -> None:
    book, clock, _ = ledger()
    admitted = sum(book.admit_connection("peer") for _ in range(200))
    clock.now += 1
    assert (admitted, book.admit_connection("peer"), book.admit_connection("other")) == (30, True, True)


def test_slots_are_limited_per_peer_and_in_all_and_come_back() -> None:
    book, _, _ = ledger()
    assert [book.begin("blob", peer, 2, 3) for peer in "aaabb"] == [True, True, False, True, False]
    book.end("blob", "a")
    assert [book.begin("blob", "b", 2, 3), book.begin("blob", "c", 2, 3)] == [True, False]
    assert book.begin("request", "c", 2, 3)


def test_what_is_remembered_is_bounded_and_running_transfers_are_not_forgotten() -> None:
    book, _, _ = ledger()
    assert book.begin("blob", "busy", 1, 1)
    for number in range(PEERS_REMEMBERED_MAX + 50):
        book.admit(f"peer {number}", 1, 1)
        book.admit_origin(f"peer {number}")
        book.block(f"peer {number}")
    assert len(book._accounts) == len(book._origins) == len(book._blocked) == PEERS_REMEMBERED_MAX
    book.end("blob", "busy")
    assert book.begin("blob", "busy", 1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_score_is_never_negative_whatever_happens(seed: int) -> None:
    book, clock, _ = ledger()
    dice = random.Random(seed)
    for _ in range(200):
        clock.now += dice.random() * 20
        if dice.random() < 0.5:
            book.penalise("peer", dice.random() * 10, "any")
        assert 0 <= book.score("peer") < 100
