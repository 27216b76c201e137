"""A peer whose messages are useless is cut off however slow it is; an honest one never, even if it lags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gossip_world import NODES, PEERS, World, say, wrapped  # pytest puts this folder on the path
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.network.ledger import Ledger
from citrate_node.network.settings import NetworkConfig
from citrate_node.network.waste import (
    ORIGINS_REMEMBERED_MAX,
    SEEN_MESSAGES_MAX,
    SEEN_SECONDS,
    SeenMessages,
    SequenceMarks,
)

USELESS_MAX = NetworkConfig(identity_seed=bytes(32)).useless_messages_max
REPLAYER = 7
IN_FLIGHT = 4
"""Messages on their way when the peer is cut off: two a second, and two seconds of delay."""
STRANGER = 30
"""A number of no registered node."""


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def ledger() -> tuple[Ledger, Clock, list[str]]:
    clock, blocked = Clock(), list[str]()
    return Ledger(NetworkConfig(identity_seed=bytes(32)), clock, blocked.append), clock, blocked


# the measures


def test_useless_messages_never_fade_and_useful_ones_make_up_for_them() -> None:
    book, clock, blocked = ledger()
    for _ in range(USELESS_MAX - 1):
        book.note_useless("slow", 1, "any")
        book.note_useless("fair", 1, "any")
        book.note_useful("fair")
        clock.now += 3_600
    assert blocked == []
    book.note_useless("slow", 1, "any")
    book.note_useless("fair", 1, "any")
    assert blocked == ["slow"]


def test_usefulness_is_not_saved_up_for_later() -> None:
    book, _, blocked = ledger()
    for _ in range(10_000):
        book.note_useful("peer")
    for _ in range(USELESS_MAX):
        book.note_useless("peer", 1, "any")
    assert blocked == ["peer"]


def test_a_peer_that_comes_back_from_a_block_goes_sooner_the_second_time() -> None:
    book, clock, blocked = ledger()
    for _ in range(USELESS_MAX):
        book.note_useless("peer", 1, "any")
    clock.now += 600
    assert not book.is_blocked("peer")
    for _ in range(USELESS_MAX // 2):
        book.note_useless("peer", 1, "any")
    assert blocked == ["peer", "peer"]


def test_what_is_wrong_is_remembered_after_its_points_have_faded_and_haste_is_not() -> None:
    book, clock, blocked = ledger()
    for _ in range(60):
        book.penalise("wrong", 10, "any")
        book.penalise("hasty", 10, "any", in_haste=True)
        clock.now += 3_600
    assert blocked == ["wrong"]


def test_a_peer_brings_as_many_copies_as_a_mesh_makes_and_not_ever_more() -> None:
    book, _, blocked = ledger()
    book.note_seen()
    for _ in range(10_000):
        book.note_seen()
        for copies, peer in ((1, "mesh"), (2, "asked")):
            for _ in range(copies):
                book.note_repeated(peer)
    assert blocked == []
    for _ in range(USELESS_MAX):
        book.note_repeated("again and again")
    assert "again and again" in blocked


def test_a_peer_that_was_away_while_much_was_seen_has_no_credit_from_that() -> None:
    book, _, blocked = ledger()
    for _ in range(10_000):
        book.note_seen()
    for _ in range(USELESS_MAX):
        book.note_repeated("new")
    assert blocked == ["new"]


def test_seen_messages_are_forgotten_by_age_and_by_number() -> None:
    clock = Clock()
    seen = SeenMessages(clock)
    first, again, known = seen.add(b"a"), seen.add(b"a"), seen.has(b"a")
    clock.now += SEEN_SECONDS + 1
    forgotten = not seen.has(b"a")
    for number in range(SEEN_MESSAGES_MAX + 10):
        seen.add(b"%d" % number)
    assert (first, again, known, forgotten, len(seen._expiry)) == (True, False, True, True, SEEN_MESSAGES_MAX)


@given(st.lists(st.tuples(st.floats(0, 900), st.integers(0, 30)), max_size=60))
def test_whatever_is_below_a_mark_was_reached_before_the_seen_ids_began(
    steps: list[tuple[float, int]],
) -> None:
    clock = Clock()
    marks, history = SequenceMarks(clock), list[tuple[float, int]]()
    for pause, number in steps:
        clock.now += pause
        below = marks.is_below("origin", number)
        reached = [n for moment, n in history if clock.now - moment >= SEEN_SECONDS]
        long_ago = [n for moment, n in history if clock.now - moment >= 3 * SEEN_SECONDS]
        assert not below or max(reached, default=-1) >= number
        # and not much later than that
        assert below or max(long_ago, default=-1) < number or not _was_heard_since(history, clock.now)
        history.append((clock.now, number))


def _was_heard_since(history: list[tuple[float, int]], now: float) -> bool:
    """Whether the origin was heard often enough for its mark to turn."""
    old = [moment for moment, _ in history if now - moment >= 3 * SEEN_SECONDS]
    middle = [moment for moment, _ in history if SEEN_SECONDS <= now - moment < 2 * SEEN_SECONDS]
    return bool(old and middle)


def test_marks_are_bounded_in_number() -> None:
    marks = SequenceMarks(Clock())
    for number in range(ORIGINS_REMEMBERED_MAX + 10):
        marks.is_below(f"origin {number}", 1)
    assert len(marks._marks) == ORIGINS_REMEMBERED_MAX


# a network over many checkpoints


def test_in_a_busy_network_over_many_checkpoints_nobody_is_useless() -> None:
    """Every message comes three times from three neighbours, and their clocks are seconds apart."""
    world = World(seed=1)
    world.run(range(1, 17), repeats=1)
    assert world.blocked() == set()
    worst = max(desk.useless(n) for desk in world.desks.values() for n in NODES)
    assert worst <= 1
    received = [desk._ledger.counters["messages_received"] for desk in world.desks.values()]
    assert min(received) == 16 * 7 * 4 * 2


def test_a_node_that_lags_for_ever_is_not_cut_off() -> None:
    """Three checkpoints behind, it publishes for closed ones and passes on what others do not."""
    world = World(seed=2, lag=lambda number, checkpoint: 3 if number in (5, 6) else 0)
    world.run(range(1, 31), things=3)
    assert world.blocked() == set()
    assert world.desks[4]._ledger.counters["messages_late"] > 500


def test_a_node_that_was_away_and_has_caught_up_is_not_cut_off() -> None:
    world = World(seed=3, lag=lambda number, checkpoint: 0 if number != 5 or checkpoint > 14 else checkpoint)
    world.run(range(1, 18), repeats=1)
    assert world.blocked() == set()


def old(world: World) -> Iterator[Any]:
    """What was said in past checkpoints, byte for byte."""
    past = [m for m in world.said[:60] if m.from_id != wrapped(REPLAYER, 0, say(REPLAYER, 1, 0)).from_id]
    while True:
        yield from past


def old_as_its_own(world: World) -> Iterator[Any]:
    """The same things under the replayer's own name."""
    for sequence, message in enumerate(old(world), start=10**9):
        yield rewrapped(REPLAYER, sequence, message)


def fresh_as_its_own(world: World) -> Iterator[Any]:
    """What others say now, under the replayer's own name."""
    sequence = 10**9
    while True:
        sequence += 1
        yield rewrapped(REPLAYER, sequence, world.said[-10])


def fresh_under_ever_other_names(world: World) -> Iterator[Any]:
    number = 0
    while True:
        number += 1
        message = rewrapped(REPLAYER, 1, world.said[-10])
        message.from_id = b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big")
        yield message


def of_strangers(world: World) -> Iterator[Any]:
    """By authors that are not registered, as they themselves would publish it."""
    number = 0
    while True:
        number += 1
        yield wrapped(STRANGER, number, say(STRANGER, 30, number))


def the_same_again(world: World) -> Iterator[Any]:
    """One message of the moment, without end."""
    latest = world.said[-1]
    while True:
        yield latest


def rewrapped(origin: int, sequence: int, message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    copy.from_id, copy.seqno = wrapped(origin, sequence, say(0, 1, 0)).from_id, sequence.to_bytes(8, "big")
    return copy


COPIES_MAX: dict[Callable[[World], Iterator[Any]], int] = {
    old: 100,
    old_as_its_own: 0,
    fresh_as_its_own: 140,
    fresh_under_ever_other_names: 140,
    of_strangers: 0,
    the_same_again: 280,
}
"""What each kind may send beyond the limit: of each message of the network, one copy under another name is
excused, and two under the own one."""


@pytest.mark.parametrize("kind", COPIES_MAX, ids=lambda kind: kind.__name__)
def test_a_peer_that_slowly_sends_useless_messages_is_cut_off_and_nobody_else(kind: Any) -> None:
    """Two a second, to each neighbour, in a network that goes on: a hundredth of what the rate allows."""
    world = World(seed=4, silent=(REPLAYER,))
    world.run(range(1, 7), things=1, repeats=1)
    world.now += 2 * SEEN_SECONDS  # what was said is out of every cache
    world.run(range(7, 9), things=1, repeats=1)
    sent = dict.fromkeys(world.neighbours[REPLAYER], 0)
    sources = {neighbour: kind(world) for neighbour in sent}

    def send() -> None:
        for neighbour, source in sources.items():
            if PEERS[REPLAYER] not in world.desks[neighbour].blocked:
                sent[neighbour] += 1
                world.hand_over(REPLAYER, neighbour, next(source))
        world.after(0.5, send)

    send()
    world.run(range(9, 16), things=1, repeats=1)
    assert world.blocked() == {(neighbour, REPLAYER) for neighbour in sent}
    assert max(sent.values()) <= USELESS_MAX + COPIES_MAX[kind] + IN_FLIGHT


async def test_a_peer_that_relays_more_than_it_repeats_is_kept() -> None:
    """Each of these had to be carried; who carries them first is worth a repetition now and then."""
    world = World(seed=5)
    world.run(range(1, 7), things=1, repeats=1)
    world.now += 2 * SEEN_SECONDS
    world.run(range(7, 9), things=1, repeats=1)
    (neighbour, *_), source = world.neighbours[REPLAYER], old(world)

    def send() -> None:
        world.hand_over(REPLAYER, neighbour, next(source))
        world.after(30, send)

    send()
    world.run(range(9, 16), things=1, repeats=1)
    assert world.blocked() == set()
    assert world.desks[neighbour].useless(REPLAYER) < 14
