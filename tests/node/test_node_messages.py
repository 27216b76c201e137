"""What a node takes of what it hears: which messages are kept, which ignored, which refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from node_world import (
    NOTHING,
    finish,
    node,
    tell,
    vote,
    whole,
)
from small_network import (
    delta,
    evaluation,
    identity,
    inputs,
    measurement,
    network,
    signal,
    signal_body,
    signed,
)

from citrate_node.node import actions as act
from citrate_node.protocol.gossip_validation import open_message
from citrate_node.protocol.rejection import Reason, Rejection, Verdict
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import process_checkpoint


def test_a_signal_for_a_closed_checkpoint_is_ignored() -> None:
    """A late signal is dropped without blaming the peer."""
    state = network(4)
    machine = node(state=state)
    after = process_checkpoint(state, inputs(state)).state
    later = node(state=after)
    old = signal(state, 1, delta(state, 1))
    assert tell(machine, old) != []
    (verdict,) = tell(later, old)
    assert isinstance(verdict, act.ReportVerdict)
    assert (verdict.verdict, verdict.reason, verdict.peer) == (
        Verdict.IGNORE,
        Reason.CLOSED_CHECKPOINT,
        "peer",
    )


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"adapter_id": bytes(32)}, Verdict.REJECT, Reason.WRONG_ADAPTER),
        ({"base_model_id": bytes(32)}, Verdict.REJECT, Reason.WRONG_BASE_MODEL),
        ({"parent_weights_hash": bytes(32)}, Verdict.IGNORE, Reason.WRONG_PARENT),
        ({"codec": "int4"}, Verdict.REJECT, Reason.WRONG_CODEC),
        ({"manifest_hash": bytes(32)}, Verdict.REJECT, Reason.WRONG_MANIFEST),
        ({"delta_size_bytes": 2_000_000}, Verdict.REJECT, Reason.DELTA_TOO_LARGE),
        ({"target_checkpoint": 9}, Verdict.IGNORE, Reason.TOO_EARLY),
        ({"target_checkpoint": 0}, Verdict.IGNORE, Reason.CLOSED_CHECKPOINT),
    ],
)
def test_a_signal_that_cannot_be_used_is_refused_by_name(
    changes: dict[str, object], verdict: Verdict, reason: Reason
) -> None:
    machine = node()
    (action,) = tell(machine, signal(machine.state, 1, delta(machine.state, 1), **changes))
    assert isinstance(action, act.ReportVerdict)
    assert (action.verdict, action.reason) == (verdict, reason)


def test_a_stranger_is_refused() -> None:
    machine = node()
    state = machine.state
    for message in (signal(state, 9, delta(state, 9)), vote(state, 9, whole(state)[1].record, 0)):
        (action,) = tell(machine, message)
        assert isinstance(action, act.ReportVerdict)
        assert (action.verdict, action.reason) == (Verdict.REJECT, Reason.UNKNOWN_AUTHOR)


def test_a_second_copy_is_ignored() -> None:
    machine = node()
    message = signal(machine.state, 1, delta(machine.state, 1))
    tell(machine, message)
    (action,) = tell(machine, message)
    assert isinstance(action, act.ReportVerdict)
    assert (action.verdict, action.reason) == (Verdict.IGNORE, Reason.DUPLICATE)


def test_two_different_signals_of_one_mentor_become_the_evidence() -> None:
    machine = node()
    state = machine.state
    tell(machine, signal(state, 1, delta(state, 1)))
    tell(machine, signal(state, 1, delta(state, 2)))
    pool = machine.core.pool
    assert list(pool.equivocations) == [identity(1).node_key]
    assert pool.signals == {}


def test_messages_for_the_next_checkpoint_wait_for_it() -> None:
    state = network(4)
    machine = node(state=state)
    after = process_checkpoint(state, NOTHING).state
    early = signal(after, 2, delta(after, 2))
    assert [type(a) for a in tell(machine, early)] == [act.StoreMessage]
    finish(machine)
    assert early.id in machine.core.pool.by_id


def test_an_evaluator_that_was_not_drawn_is_refused() -> None:
    state = network(20, evaluators_per_signal=2)
    machine = node(state=state)
    mentor = number_of_many(state, next(iter(state.mentors)))
    message = signal(state, mentor, delta(state, mentor))
    tell(machine, message)
    drawn = state.evaluators[identity(mentor).node_key]
    stranger = next(i for i in range(20) if identity(i).node_key not in drawn and i != mentor)
    (action,) = tell(machine, evaluation(state, stranger, message))
    assert isinstance(action, act.ReportVerdict)
    assert action.reason is Reason.NOT_DRAWN


def number_of_many(state: NetworkState, node_key: bytes) -> int:
    return next(i for i in range(len(state.nodes)) if identity(i).node_key == node_key)


def test_a_measurement_of_another_adapter_is_refused() -> None:
    machine = node()
    state = machine.state
    body = replace(measurement(state, 1, bytes(32)).body, adapter_id=bytes(32))
    (action,) = tell(machine, signed(1, body))
    assert isinstance(action, act.ReportVerdict)
    assert action.reason is Reason.WRONG_ADAPTER


def test_a_signal_signed_by_another_node_never_reaches_the_machine() -> None:
    """open_message is the door: an author that is not the signer is refused there."""
    state = network(4)
    body = signal_body(state, 1, delta(state, 1))
    with pytest.raises(Rejection, match="bad signature"):
        open_message(signed(2, body).envelope, state.network_id)


def test_only_the_committee_measures_results() -> None:
    """So the measurements of a checkpoint are bounded, however large the network is."""
    state = network(12, committee_size=4)
    machine = node(state=state)
    outsider = next(i for i in range(1, 12) if identity(i).node_key not in state.committee_keys)
    (action,) = tell(machine, measurement(state, outsider, bytes(32)))
    assert isinstance(action, act.ReportVerdict)
    assert action.reason is Reason.NOT_DRAWN
