"""A node without a part in the open checkpoint: it does nothing but follow the certificate."""

from __future__ import annotations

from node_world import head, node, of, tell
from small_network import delta, identity, network, signal

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.protocol.state import NetworkState

WIDE: NetworkState = network(40, mentors_per_checkpoint=2, committee_size=3, evaluators_per_signal=3)
"""Forty nodes, of which at most eleven have a part in checkpoint 1."""
NUMBERS = {identity(i).node_key: i for i in range(40)}
ONLY_EVALUATORS = sorted(
    NUMBERS[key] for key in frozenset().union(*WIDE.evaluators.values()) - WIDE.committee_keys - WIDE.mentors
)
SLEEPER = next(i for key, i in NUMBERS.items() if key not in WIDE.role_keys)


def test_the_roles_of_a_checkpoint_are_few_whatever_the_size() -> None:
    assert len(WIDE.role_keys) <= 2 + 3 + 2 * 3
    assert WIDE.role_keys == WIDE.mentors | WIDE.committee_keys | frozenset().union(*WIDE.evaluators.values())


def test_a_node_without_a_part_asks_for_nothing_in_any_phase() -> None:
    machine = node(SLEEPER, WIDE)
    assert machine.core.follows
    mentor = NUMBERS[min(WIDE.mentors)]
    heard = tell(machine, signal(WIDE, mentor, delta(WIDE, 1)))
    assert [type(action) for action in heard] == [act.StoreMessage, act.ReportVerdict]
    assert [action for block in range(101, 140) for action in head(machine, block)] == []


def test_a_node_with_a_part_asks_for_what_others_hold_as_before() -> None:
    machine = node(NUMBERS[min(WIDE.committee_keys)], WIDE)
    assert not machine.core.follows
    assert of(act.CatchUp, [action for block in range(101, 115) for action in head(machine, block)])


def test_who_only_evaluates_fetches_only_the_deltas_that_it_was_drawn_for() -> None:
    number = ONLY_EVALUATORS[0]
    machine = node(number, WIDE)
    drawn = {mentor for mentor, keys in WIDE.evaluators.items() if identity(number).node_key in keys}
    for place, mentor in enumerate(sorted(WIDE.mentors)):
        tell(machine, signal(WIDE, NUMBERS[mentor], delta(WIDE, place)))
    fetched = [f for block in range(101, 106) for f in of(act.FetchDelta, head(machine, block))]
    assert {f.mentor for f in fetched} == drawn
    assert drawn < WIDE.mentors


def test_a_sleeper_asks_for_a_commit_once_though_it_has_seen_no_block_since_long() -> None:
    """The commit itself says how far the chain is: the next block is no reason to ask again."""
    machine = node(SLEEPER, WIDE)
    asked = machine.handle(ev.CheckpointCommitted(1, bytes(32), 150))
    assert asked == [act.FetchState(1, bytes(32))]
    assert head(machine, 151) == []
    assert of(act.FetchState, head(machine, 154)) == [act.FetchState(1, bytes(32))]
