"""Deltas are fetched, checked and measured, or given up."""

from __future__ import annotations

from node_world import (
    give,
    head,
    node,
    of,
    tell,
)
from small_network import (
    delta,
    identity,
    signal,
)

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.rejection import Reason, Verdict


def test_deltas_are_fetched_only_after_the_signal_phase() -> None:
    machine = node()
    state = machine.state
    data = delta(state, 1)
    assert of(act.FetchDelta, tell(machine, signal(state, 1, data))) == []
    assert of(act.FetchDelta, head(machine, 103)) == [], "not served yet"
    (fetch,) = of(act.FetchDelta, head(machine, 104))
    assert (fetch.content, fetch.mentor) == (content_id(data), identity(1).node_key)


def test_a_delta_that_is_not_what_its_signal_says_is_refused_and_its_server_not_blamed() -> None:
    """Its hash was checked on the way: who announced the hash of something else is the mentor."""
    machine = node()
    state = machine.state
    message = signal(state, 1, delta(state, 1))
    tell(machine, message)
    head(machine, 103)
    name = message.body.delta_hash  # type: ignore[union-attr]
    actions = machine.handle(ev.DeltaFetched(name, delta(state, 2), "server"))
    assert actions == [act.ReportVerdict(Verdict.REJECT, Reason.DELTA_MISMATCH)]
    assert name not in machine.core.pool.deltas


def test_evaluations_cover_the_signals_of_others_in_one_go() -> None:
    machine = node()
    state = machine.state
    data = {i: delta(state, i) for i in (1, 2)}
    signals = {i: signal(state, i, data[i]) for i in data}
    for message in signals.values():
        tell(machine, message)
    head(machine, 103)
    assert of(act.Evaluate, give(machine, data[1])) == [], "the other delta is still on its way"
    (evaluate,) = of(act.Evaluate, give(machine, data[2]))
    assert set(evaluate.deltas) == {message.id for message in signals.values()}
    assert evaluate.scale == 0.2
    results = {message.id: (1234, 50) for message in signals.values()}
    published = of(act.Publish, machine.handle(ev.EvaluationFinished(1, results)))
    assert len(published) == 2


def test_a_delta_that_never_appears_is_given_up_after_the_evaluation_phase() -> None:
    machine = node()
    state = machine.state
    message = signal(state, 1, delta(state, 1))
    tell(machine, message)
    head(machine, 103)
    for block in (104, 105):
        machine.handle(ev.DeltaUnavailable(content_id(delta(state, 1))))
        head(machine, block)
    assert machine.core.pool.withheld_signals() == []
    head(machine, 107)
    assert machine.core.pool.withheld_signals() == [message]
    assert give(machine, delta(state, 1)) != [], "it may still come"
    assert machine.core.pool.withheld_signals() == []
