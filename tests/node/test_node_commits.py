"""What the chain has committed: finalized, fetched, asked for again; and what others catch up with."""

from __future__ import annotations

from node_world import (
    NOTHING,
    a_voter,
    fill,
    head,
    node,
    of,
    proposal,
    tell,
    trained,
    whole,
)
from small_network import (
    network,
)

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.protocol.state_transition import process_checkpoint


def test_a_commit_of_a_record_that_was_computed_here_finalizes_it() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    machine = node(a_voter(state), state)
    fill(machine, messages, deltas)
    tell(machine, proposal(state, outcome.record))
    actions = machine.handle(ev.CheckpointCommitted(1, outcome.record.hash, 111))
    (finalize,) = of(act.Finalize, actions)
    assert finalize.record == outcome.record.encode()
    assert finalize.weights == outcome.state.weights.encode()
    assert {m.id for m in finalize.inputs} == {m.id for m in messages}
    assert machine.state == outcome.state
    assert machine.core.elapsed == 0
    assert of(act.Train, actions) != [], "the next checkpoint begins at once"


def test_a_commit_of_an_unknown_record_is_fetched_and_checked() -> None:
    state = network(4)
    _, outcome, _ = whole(state)
    machine = node(state=state)
    (fetch,) = of(act.FetchState, machine.handle(ev.CheckpointCommitted(1, outcome.record.hash, 111)))
    assert (fetch.number, fetch.record_hash) == (1, outcome.record.hash)
    record, file = outcome.record.encode(), outcome.state.file
    weights = outcome.state.weights.encode()
    other = process_checkpoint(state, NOTHING)  # whole and right in itself, and not what the chain names
    for wrong in (
        ev.StateFetched(1, other.record.encode(), other.state.file, other.state.weights.encode()),
        ev.StateFetched(1, record[:-1] + b"\0", file, weights),
        ev.StateFetched(1, record, file + b"\0", weights),
        ev.StateFetched(1, record, file, state.weights.encode()),
    ):
        assert [a.what for a in of(act.Notice, machine.handle(wrong))] == ["failed"]
        assert machine.state.number == 0
    actions = machine.handle(ev.StateFetched(1, record, file, weights))
    assert of(act.Finalize, actions)[0].outcome is None
    assert machine.state == outcome.state


def test_fetching_a_missed_checkpoint_is_repeated_until_it_is_there() -> None:
    state = network(4)
    _, outcome, _ = whole(state)
    machine = node(state=state)
    machine.handle(ev.CheckpointCommitted(1, outcome.record.hash, 111))
    machine.handle(ev.StateUnavailable(1))
    assert of(act.FetchState, head(machine, 112)) != []


def test_catch_up_gives_what_the_peer_lacks_of_the_open_checkpoint_only() -> None:
    state = network(4)
    messages, _, _ = whole(state)
    machine = node(state=state)
    for message in messages:
        tell(machine, message)
    have = frozenset(m.id for m in messages[:3])
    (answer,) = machine.handle(ev.CatchUpRequested(7, 1, have))
    assert isinstance(answer, act.AnswerCatchUp)
    assert (answer.request, {m.id for m in answer.messages}) == (7, {m.id for m in messages[3:]})
    (closed,) = machine.handle(ev.CatchUpRequested(8, 2, have))
    assert closed == act.AnswerCatchUp(8, ())


def test_own_messages_are_said_again_until_the_phase_is_over() -> None:
    machine = node()
    head(machine, 101)
    (published,) = of(act.Publish, machine.handle(trained(machine)))
    again = [of(act.Publish, head(machine, block)) for block in (102, 103, 104)]
    assert [[p.message for p in each] for each in again] == [[], [], []], "the phase ended at 103"
    machine = node(state=network(4, signal_deadline_blocks=4))
    head(machine, 101)
    (published,) = of(act.Publish, machine.handle(trained(machine)))
    again = [of(act.Publish, head(machine, block)) for block in (102, 103, 104)]
    assert [[p.message for p in each] for each in again] == [[], [published.message], []]
