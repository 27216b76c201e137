"""Proposals, votes and certificates; nothing is signed in two ways, not even after a restart."""

from __future__ import annotations

from dataclasses import replace

from node_world import (
    a_voter,
    fill,
    head,
    node,
    number_of,
    of,
    proposal,
    tell,
    vote,
    whole,
)
from small_network import (
    delta,
    identity,
    network,
    signal,
    signed,
)

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.protocol.checkpoint import commitment_of
from citrate_node.protocol.messages import MentorshipSignal, Proposal, Vote
from citrate_node.protocol.rejection import Reason, Verdict
from citrate_node.protocol.state_transition import CheckpointInputs, process_checkpoint


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
