"""One node: events in, actions out. Whole lists of actions are compared where they are short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from node_world import (
    NOTHING,
    a_voter,
    fill,
    finish,
    give,
    head,
    node,
    number_of,
    of,
    proposal,
    tell,
    trained,
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
from citrate_node.node import events as ev
from citrate_node.protocol.checkpoint import commitment_of
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.gossip_validation import open_message
from citrate_node.protocol.messages import MentorshipSignal, Proposal, Vote
from citrate_node.protocol.rejection import Reason, Rejection, Verdict
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import CheckpointInputs, process_checkpoint


def test_training_begins_with_the_checkpoint_and_once() -> None:
    machine = node()
    state = machine.state
    (action,) = of(act.Train, head(machine, 101))
    assert (action.target_checkpoint, action.weights_hash) == (1, state.weights_content.digest)
    assert action.manifest == state.moving_manifest
    assert of(act.Train, head(machine, 102)) == []


def test_a_signal_is_stored_then_journaled_then_published() -> None:
    """The bytes and the journal entry are on disk before the world hears of them."""
    machine = node()
    head(machine, 101)
    actions = machine.handle(trained(machine))
    kinds = [type(action) for action in actions]
    assert kinds == [
        *(act.StoreDelta, act.StoreResidual, act.Journal, act.StoreMessage),
        *(act.Publish, act.Notice),
    ]
    (published,) = of(act.Publish, actions)
    body = published.message.body
    assert isinstance(body, MentorshipSignal)
    assert content_id(actions[0].data).digest == body.delta_hash  # type: ignore[union-attr]


def test_what_quantization_dropped_is_sent_with_the_next_delta() -> None:
    """Error feedback: the residual is intended minus decoded, and is added to the next intention."""
    machine = node()
    head(machine, 101)
    event = trained(machine, 0.001)
    wobble = np.linspace(0, 1e-3, event.values.size, dtype=np.float32)
    actions = machine.handle(
        ev.TrainingFinished(1, event.parent_weights_hash, event.parent_values, event.values + wobble, 64, 1.0)
    )
    (store,) = of(act.StoreDelta, actions)
    (residual,) = of(act.StoreResidual, actions)
    decoded = machine.state.decode_delta(store.data).astype(np.float64) / 2**32
    intended = (event.values + wobble - event.parent_values).astype(np.float64)
    assert np.abs(residual.values).max() > 0
    assert np.allclose(decoded + residual.values, intended, atol=1e-9)


def test_own_deltas_are_withheld_until_the_signal_phase_has_closed() -> None:
    machine = node()
    head(machine, 101)
    (published,) = of(act.Publish, machine.handle(trained(machine)))
    assert machine.withheld() == {published.message.body.delta_hash}  # type: ignore[union-attr]
    head(machine, 103)
    assert machine.withheld() != frozenset(), "one block in which nodes merge what they hold"
    head(machine, 104)
    assert machine.withheld() == frozenset()


def test_who_trained_too_long_asks_to_join_the_next_checkpoint() -> None:
    machine = node()
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    assert of(act.Publish, machine.handle(late)) == []
    actions = finish(machine)
    (published,) = of(act.Publish, actions)
    body = published.message.body
    assert isinstance(body, MentorshipSignal)
    assert (body.target_checkpoint, body.parent_weights_hash) == (2, late.parent_weights_hash)
    (train,) = of(act.Train, actions)
    assert train.target_checkpoint == 3, "so that a slow machine has a signal in every checkpoint"


def test_a_machine_that_is_fast_again_trains_from_the_latest_weights() -> None:
    machine = node()
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    machine.handle(late)
    (ahead,) = of(act.Train, finish(machine))
    done = replace(late, target_checkpoint=ahead.target_checkpoint)
    assert machine.handle(done) == [], "done within the signal phase of checkpoint 2"
    assert machine.mentor.held is None


def test_a_delta_of_the_factor_that_does_not_move_now_is_dropped() -> None:
    machine = node(state=network(4, method="alternate"))
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    machine.handle(late)
    actions = finish(machine)
    assert of(act.Publish, actions) == []
    assert "dropped" in [a.what for a in of(act.Notice, actions)]


def test_what_was_trained_for_one_factor_is_not_announced_as_the_other() -> None:
    """A and B of a square module have equally many values; a late delta of B is no delta of A."""
    machine = node(state=network(4, method="alternate"))
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    machine.handle(late)
    actions = finish(machine)
    assert machine.state.factor == "lora_A"
    assert late.values.size == machine.state.moving_manifest.count
    assert of(act.Publish, actions) == []
    assert "dropped" in {notice.what for notice in of(act.Notice, actions)}


def test_numbers_that_cannot_be_sent_are_dropped_and_said() -> None:
    machine = node()
    head(machine, 101)
    event = trained(machine)
    broken = event.values.copy()
    broken[0] = np.nan
    actions = machine.handle(
        ev.TrainingFinished(1, event.parent_weights_hash, event.parent_values, broken, 64, 1.0)
    )
    assert [a.what for a in of(act.Notice, actions)] == ["dropped"]
    assert of(act.Publish, actions) == []


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


# ---------------------------------------------------------------- finality


def test_a_voter_recomputes_and_votes_for_the_same_bytes_only() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    machine = node(a_voter(state), state)
    fill(machine, messages, deltas)
    actions = tell(machine, proposal(state, outcome.record))
    kinds = [type(action) for action in actions if not isinstance(action, act.ReportVerdict)]
    assert kinds.index(act.Journal) < kinds.index(act.Publish)
    (published,) = of(act.Publish, actions)
    body = published.message.body
    assert isinstance(body, Vote)
    assert body.record_hash == outcome.record.hash


def test_a_record_that_differs_in_one_field_gets_no_vote() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    machine = node(a_voter(state), state)
    fill(machine, messages, deltas)
    forged = replace(outcome.record, accuracy_ppm=outcome.record.accuracy_ppm + 1)
    actions = tell(machine, proposal(state, forged))
    assert of(act.Publish, actions) == []
    verdicts = [(v.verdict, v.reason) for v in of(act.ReportVerdict, actions)]
    assert (Verdict.REJECT, Reason.BAD_RECORD) in verdicts


def test_a_proposal_that_leaves_out_a_signal_received_in_good_time_is_refused() -> None:
    """... until several proposers have come to the very same record."""
    state = network(4, proposal_rotation_blocks=1)
    messages, _, deltas = whole(state)
    left_out = messages[0]
    kept = [m for m in messages[1:] if getattr(m.body, "signal_id", b"") != left_out.id]
    kept = [m for m in kept if not hasattr(m.body, "weights_hash")]
    short = CheckpointInputs(
        signals=tuple(m for m in kept if isinstance(m.body, MentorshipSignal)),
        evaluations=tuple(m for m in kept if not isinstance(m.body, MentorshipSignal)),
        deltas=deltas,
    )
    record = process_checkpoint(state, short).record
    machine = node(a_voter(state), state)
    fill(machine, messages, deltas)
    actions = tell(machine, proposal(state, record))
    assert of(act.Publish, actions) == []
    assert (Verdict.IGNORE, Reason.OMISSION) in [
        (v.verdict, v.reason) for v in of(act.ReportVerdict, actions)
    ]
    rounds = {}
    for number in range(1, 60):
        rounds.setdefault(state.proposer(number), number)
    published: list[act.Publish] = []
    for number in sorted(rounds.values()):
        published += of(act.Publish, head(machine, 109 + number))
        published += of(act.Publish, tell(machine, proposal(state, record, number)))
    votes = [p.message.body for p in published if isinstance(p.message.body, Vote)]
    assert record.hash in {body.record_hash for body in votes}


def test_a_proposal_that_calls_a_delta_withheld_that_is_here_is_refused() -> None:
    state = network(4)
    messages, _, deltas = whole(state)
    gone, *signals = [m for m in messages if isinstance(m.body, MentorshipSignal)]
    lie = CheckpointInputs(signals=tuple(signals), withheld=(gone,), deltas=deltas)
    record = process_checkpoint(state, lie).record
    machine = node(a_voter(state), state)
    fill(machine, [*signals, gone], deltas)
    assert of(act.Publish, tell(machine, proposal(state, record))) == []


def test_missing_messages_are_asked_for_before_anything_is_judged() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    machine = node(a_voter(state), state)
    fill(machine, messages[:-1], deltas)
    actions = tell(machine, proposal(state, outcome.record))
    (ask,) = of(act.CatchUp, actions)
    assert messages[-1].id not in ask.have
    later = tell(machine, messages[-1])
    later += head(machine, 110)
    assert [type(p.message.body) for p in of(act.Publish, later)].count(Vote) == 1


def test_more_than_two_thirds_make_a_certificate_and_the_proposer_sends_it_first() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    proposer = number_of(state.proposer(0))
    machine = node(proposer, state)
    fill(machine, messages, deltas, block=108)
    proposed = head(machine, 109)
    assert [type(p.message.body) for p in of(act.Publish, proposed)] == [Proposal, Vote]
    others = [i for i in range(4) if i != proposer]
    assert of(act.Commit, tell(machine, vote(state, others[0], outcome.record, 0))) == []
    (commit,) = of(act.Commit, tell(machine, vote(state, others[1], outcome.record, 0)))
    assert commit.certificate.commitment == commitment_of(outcome.record, 0)
    assert len(commit.certificate.signatures) == 3


def test_others_send_the_certificate_when_the_proposer_does_not() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    voter = a_voter(state)
    machine = node(voter, state)
    fill(machine, messages, deltas)
    tell(machine, proposal(state, outcome.record))
    actions = []
    for i in range(4):
        if i != voter:
            actions += tell(machine, vote(state, i, outcome.record, 0))
    assert of(act.Commit, actions) == []
    sent = [block for block in range(110, 120) if of(act.Commit, head(machine, block))]
    assert sent
    assert sent[0] <= 115


def test_a_vote_with_the_signature_of_another_account_does_not_count() -> None:
    state = network(4)
    messages, outcome, deltas = whole(state)
    proposer = number_of(state.proposer(0))
    machine = node(proposer, state)
    fill(machine, messages, deltas)
    others = [i for i in range(4) if i != proposer]
    good = vote(state, others[1], outcome.record, 0).body
    assert isinstance(good, Vote)
    stolen = Vote(
        good.network_id, identity(others[0]).node_key, 1, 0, good.record_hash, good.account_signature
    )
    tell(machine, signed(others[0], stolen))
    assert of(act.Commit, tell(machine, vote(state, others[2], outcome.record, 0))) == []
    assert of(act.Commit, tell(machine, signed(others[1], good))) != []


def test_a_restarted_node_never_signs_two_things_for_one_slot() -> None:
    """The journal alone decides: with it, neither another signal nor another vote is signed."""
    state = network(4)
    messages, outcome, deltas = whole(state)
    voter = a_voter(state)
    machine = node(voter, state, journal={"vote/1/0": bytes(32), "signal/1": bytes(32)})
    assert of(act.Train, head(machine, 101)) == []
    fill(machine, messages, deltas)
    published = of(act.Publish, tell(machine, proposal(state, outcome.record)))
    assert [p for p in published if isinstance(p.message.body, (Vote, MentorshipSignal))] == []


def test_the_journal_refuses_another_thing_for_a_slot_and_lets_the_same_be_said_again() -> None:
    """Killed between the journal and the message: the very same vote is signed again, no other one."""
    state = network(4)
    messages, outcome, deltas = whole(state)
    voter = a_voter(state)
    same = vote(state, voter, outcome.record, 0)
    for written, wanted in ((same.id, [same]), (bytes(32), [])):
        machine = node(voter, state, journal={"vote/1/0": written})
        fill(machine, messages, deltas)
        published = of(act.Publish, tell(machine, proposal(state, outcome.record)))
        assert [p.message for p in published] == wanted


def test_a_figure_that_was_signed_before_a_restart_is_not_signed_in_another_way() -> None:
    state = network(4)
    announced = signal(state, 1, delta(state, 1))
    slots = {f"evaluation/1/{announced.id.hex()}": bytes(32), f"measurement/1/{'07' * 32}": bytes(32)}
    machine = node(0, state, journal=slots)
    tell(machine, announced)
    head(machine, 104)
    actions = machine.handle(ev.EvaluationFinished(1, {announced.id: (5, 5)}))
    actions += machine.handle(ev.MeasurementFinished(1, bytes([7]) * 32, 5, 5, 0))
    assert of(act.Publish, actions) == []
    assert of(act.Journal, actions) == []


def test_votes_are_said_again_in_their_round_and_the_next_one() -> None:
    """Rounds of three blocks from 109: later ones have votes of their own."""
    state = network(4)
    messages, outcome, deltas = whole(state)
    voter = a_voter(state)
    machine = node(voter, state)
    fill(machine, messages, deltas)
    mine = vote(state, voter, outcome.record, 0)
    tell(machine, proposal(state, outcome.record))
    said = {
        block: mine in [p.message for p in of(act.Publish, head(machine, block))] for block in range(110, 121)
    }
    assert [block for block, again in said.items() if again] == [111, 113]


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
