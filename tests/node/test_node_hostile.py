"""What hostile nodes can send: none of it may stop a node, split the network or frame an honest one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import (
    a_voter,
    fill,
    give,
    head,
    node,
    number_of,
    of,
    proposal,
    rounds_of,
    tell,
    trained,
    verdicts,
    vote,
    whole,
)
from small_network import (
    delta,
    evaluation,
    identity,
    inputs,
    network,
    signal,
    signed,
)

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.node.state_machine import EARLY_MESSAGES_PER_NODE_MAX, Node
from citrate_node.protocol.checkpoint import CheckpointRecord, Equivocation
from citrate_node.protocol.content_id import ContentId, content_id
from citrate_node.protocol.messages import KINDS, Evaluation, Measurement, Message, Proposal, Vote
from citrate_node.protocol.rejection import Reason, Verdict
from citrate_node.protocol.state_transition import CheckpointInputs, aggregate, process_checkpoint

STATE = network(4)
MESSAGES, OUTCOME, DELTAS = whole(STATE)
RECORD = OUTCOME.record
PROPOSER = number_of(STATE.proposer(0))


def voter_in_finality() -> Node:
    machine = node(a_voter(STATE), STATE)
    fill(machine, MESSAGES, DELTAS)
    return machine


def votes_in(actions: list[act.Action]) -> list[bytes]:
    return [p.message.body.record_hash for p in of(act.Publish, actions) if isinstance(p.message.body, Vote)]


# ---------------------------------------------------------------- nothing stops a node


IDS = st.sampled_from([*(m.id for m in MESSAGES), bytes(32), b"\xff" * 32])
ID_LISTS = st.lists(IDS, max_size=6, unique=True).map(lambda ids: tuple(sorted(ids)))
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("signals", "withheld", "evaluations", "measurements"), ID_LISTS),
    "equivocations": st.lists(st.tuples(IDS, IDS), max_size=2).map(
        lambda pairs: tuple(
            Equivocation(*pair) for pair in sorted({(min(p), max(p)) for p in pairs if p[0] != p[1]})
        )
    ),
    **{
        name: st.binary(min_size=32, max_size=32)
        for name in (
            *("weights_hash", "reputations_root", "state_root"),
            *("validator_set_hash", "next_validator_set_hash", "adapter_id"),
        )
    },
    "weights_size_bytes": st.integers(0, 2**40),
    "state_size_bytes": st.integers(0, 2**40),
    "promoted": st.booleans(),
    "accuracy_ppm": st.integers(-(2**63) + 1, 2**63 - 1),
}
RECORDS = st.dictionaries(st.sampled_from(sorted(CHANGES)), st.just(None), min_size=1, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: CHANGES[name] for name in names})
)


@settings(max_examples=150)
@given(RECORDS)
def test_no_record_that_can_be_written_stops_a_node_or_gets_its_vote(changes: dict[str, Any]) -> None:
    """Proposed, voted for by its author, committed: the node goes on, and votes for the right one alone."""
    lie = replace(RECORD, **changes)
    machine = voter_in_finality()
    published = tell(machine, proposal(STATE, lie))
    forged = Vote(STATE.network_id, identity(PROPOSER).node_key, 1, 0, lie.hash, bytes(65))
    published += tell(machine, signed(PROPOSER, forged))
    published += head(machine, 110)
    if lie != RECORD:
        assert votes_in(published) == []
    assert of(act.Commit, published) == []
    machine.handle(ev.CheckpointCommitted(1, lie.hash, 111))
    assert machine.state.number == (1 if lie == RECORD else 0)


def body_of(kind: type) -> st.SearchStrategy[Any]:
    """A body of this kind by a registered node, of the right network, with whatever its fields may hold."""
    keys, hashes = st.sampled_from([identity(i).node_key for i in range(4)]), IDS | st.just(RECORD.hash)
    special: dict[str, st.SearchStrategy[Any]] = {
        "network_id": st.just(STATE.network_id),
        "author": keys,
        "adapter_id": st.sampled_from([STATE.adapter_id, bytes(32)]),
        "base_model_id": st.just(STATE.base_model_id),
        "parent_weights_hash": st.just(STATE.weights_content.digest),
        "manifest_hash": st.just(STATE.moving_manifest.hash),
        "codec": st.sampled_from(["int8", "int4"]),
        "checkpoint": st.integers(0, 5),
        "target_checkpoint": st.integers(0, 5),
        "round": st.integers(0, 3) | st.integers(0, 2**32 - 1),
        "improvement_ppm": st.integers(-(2**63) + 1, 2**63 - 1),
        "parent_improvement_ppm": st.integers(-(2**63) + 1, 2**63 - 1),
        "delta_hash": st.sampled_from(sorted(DELTAS)) | IDS,
        "delta_size_bytes": st.integers(1, 2**34),
        "record": st.just(RECORD.encode()) | st.binary(min_size=1, max_size=40),
        "account_signature": st.binary(min_size=65, max_size=65),
    }
    counts = st.integers(0, 2**40)
    fixed = {
        field.name: special.get(field.name, counts if "examples" in field.name else hashes)
        for field in fields(kind)
    }
    return st.builds(kind, **fixed)


BODIES = st.one_of(*(body_of(kind) for kind in KINDS.values()))


@settings(max_examples=80)
@given(st.lists(BODIES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_no_message_of_a_registered_node_stops_another(said: list[Any], random: Any) -> None:
    """Any bodies in any order between honest messages, while blocks pass and deltas come or do not."""
    machine = node(a_voter(STATE), STATE)
    heard = [signed(number_of(body.author), body) for body in said]
    honest = [*MESSAGES, proposal(STATE, RECORD), *(vote(STATE, i, RECORD, 0) for i in range(4))]
    todo = [*heard, *random.sample(honest, k=len(honest) // 2)]
    random.shuffle(todo)
    block = 100
    for message in todo:
        tell(machine, message)
        block += random.randrange(2)
        head(machine, block)
        give(machine, random.choice(list(DELTAS.values())))
    for after in range(106, 114):
        head(machine, max(block, after))
    machine.handle(ev.CheckpointCommitted(1, RECORD.hash, 130))
    files = (OUTCOME.state.file, OUTCOME.state.weights.encode())
    machine.handle(ev.StateFetched(1, RECORD.encode(), *files))
    assert machine.state == OUTCOME.state, "whatever was said, it follows the chain"


def test_every_field_of_a_record_is_tried() -> None:
    known = {"network_id", "number", "parent_record_hash", "compositions"}
    assert {field.name for field in fields(CheckpointRecord)} == known | CHANGES.keys()


def test_a_vote_of_the_last_possible_round_stops_nobody() -> None:
    machine = voter_in_finality()
    tell(machine, proposal(STATE, RECORD))
    far = Vote(STATE.network_id, identity(PROPOSER).node_key, 1, 2**32 - 1, RECORD.hash, bytes(65))
    assert votes_in(tell(machine, signed(PROPOSER, far))) == []
    assert votes_in(head(machine, 110)) == [], "it voted before, in this round"


def test_a_node_outside_the_committee_neither_votes_nor_dies() -> None:
    """It computes what it can and follows the chain."""
    state = network(12, committee_size=4)
    messages, outcome, deltas = whole(state)
    outsider = next(i for i in range(12) if identity(i).node_key not in state.committee_keys)
    machine = node(outsider, state)
    fill(machine, messages, deltas)
    published = tell(machine, proposal(state, outcome.record))
    for member in range(12):
        if identity(member).node_key in state.committee_keys:
            published += tell(machine, vote(state, member, outcome.record, 0))
    published += head(machine, 130)
    assert of(act.Commit, published) == []
    assert votes_in(published) == []
    assert of(act.Finalize, machine.handle(ev.CheckpointCommitted(1, outcome.record.hash, 131))) != []


# ---------------------------------------------------------------- nothing grows without bound


def test_proposals_of_rounds_that_are_not_open_are_not_kept() -> None:
    machine = voter_in_finality()
    for round_number in range(2, 400):
        record = replace(RECORD, state_size_bytes=round_number)
        assert verdicts(tell(machine, proposal(STATE, record, round_number))) == [
            (Verdict.IGNORE, Reason.TOO_EARLY)
        ]
    assert machine.core.pool.records == {}


def test_a_checkpoint_that_is_stuck_forgets_old_rounds() -> None:
    state = network(4, proposals_per_node_max=2, proposal_rotation_blocks=1)
    messages, outcome, deltas = whole(state)
    machine = node(a_voter(state), state)
    fill(machine, messages, deltas)
    for round_number in range(40):
        head(machine, 109 + round_number)
        record = replace(outcome.record, state_size_bytes=round_number)
        tell(machine, proposal(state, record, round_number))
    pool = machine.core.pool
    assert len(pool.proposals) <= 2 * 4
    assert len(pool.records) <= 2 * 4
    assert sum(isinstance(m.body, Proposal) for m in pool.by_id.values()) <= 2 * 4
    assert len(machine.committer.outcomes) <= 2 * 4 + 1


def test_messages_of_later_checkpoints_are_bounded_per_author_and_proposals_wait() -> None:
    machine = node(state=STATE)
    for examples in range(20):
        later = signal(STATE, 1, delta(STATE, 1), target_checkpoint=2, examples=examples)
        tell(machine, later)
    assert sum(len(kept) for kept in machine._early.values()) == EARLY_MESSAGES_PER_NODE_MAX
    large = Proposal(STATE.network_id, identity(2).node_key, 2, 0, bytes(50_000))
    assert verdicts(tell(machine, signed(2, large))) == [(Verdict.IGNORE, Reason.TOO_EARLY)]


def test_evaluations_of_signals_that_do_not_exist_are_bounded_and_blame_nobody_else() -> None:
    """Two honest peers may hold different ones: who hands on what we have no room for did no wrong."""
    machine = node(state=STATE)
    answers = []
    for number in range(30):
        body = Evaluation(STATE.network_id, identity(1).node_key, 1, number.to_bytes(32, "big"), 5, 5)
        answers += verdicts(tell(machine, signed(1, body)))
    kept = 2 * STATE.preset.evaluations_per_node + 1
    assert answers == [(Verdict.ACCEPT, None)] * kept + [(Verdict.IGNORE, Reason.TOO_MANY)] * (30 - kept)


# ---------------------------------------------------------------- nothing splits the committee


def variant_of(message: Message) -> Message:
    """Another thing said for the same slot by the same node."""
    author, body = number_of(message.author), message.body
    if isinstance(body, (Evaluation, Measurement)):
        return signed(author, replace(body, improvement_ppm=body.improvement_ppm + 1))
    return signed(author, replace(body, examples=body.examples + 1))  # type: ignore[call-arg, union-attr]


@pytest.mark.parametrize("kind", [Evaluation, Measurement])
def test_a_voter_that_heard_another_variant_takes_the_one_that_the_record_names(kind: type) -> None:
    """Else one dishonest evaluator, with two figures for two halves, would halt the network for ever."""
    named = next(m for m in MESSAGES if isinstance(m.body, kind) and number_of(m.author) != a_voter(STATE))
    heard = [variant_of(m) if m is named else m for m in MESSAGES]
    if kind is Evaluation:  # measurements are of the weights that the record's own evaluations give
        heard = [m for m in heard if not isinstance(m.body, Measurement)]
    machine = node(a_voter(STATE), STATE)
    fill(machine, heard, DELTAS)
    assert verdicts(tell(machine, named)) == [(Verdict.IGNORE, Reason.EQUIVOCATION)], "no record names it yet"
    (ask,) = of(act.CatchUp, tell(machine, proposal(STATE, RECORD)))
    assert named.id not in ask.have
    published = [action for m in (named, *MESSAGES) for action in tell(machine, m)] + head(machine, 110)
    assert votes_in(published) == [RECORD.hash]


def test_a_third_signal_of_an_equivocator_is_taken_where_a_proof_names_it() -> None:
    one, two, three = (signal(STATE, 0, delta(STATE, 0), examples=64 + n) for n in range(3))
    proof = CheckpointInputs(signals=(), equivocations=((one, three),))
    record = process_checkpoint(STATE, proof).record
    machine = node(a_voter(STATE), STATE)
    fill(machine, [one, two], {})
    assert verdicts(tell(machine, three)) == [(Verdict.IGNORE, Reason.EQUIVOCATION)]
    tell(machine, proposal(STATE, record))
    tell(machine, three)
    assert votes_in(head(machine, 110)) == [record.hash]


def test_an_evaluation_by_one_who_was_not_drawn_is_not_demanded_of_a_record() -> None:
    """It came before its signal, so nobody could tell; no honest record can hold it."""
    state = network(8, evaluators_per_signal=2, mentors_per_checkpoint=2)
    messages, outcome, deltas = whole(state)
    victim = next(m for m in messages if m.id in outcome.record.signals)
    drawn = state.evaluators[victim.author]
    evaluators = set().union(*state.evaluators.values())
    intruder = next(k for k in evaluators if k not in drawn and k != victim.author)
    early = evaluation(state, number_of(intruder), victim, 7)
    voter = next(i for i in range(8) if identity(i).node_key != state.proposer(0))
    machine = node(voter, state)
    tell(machine, early)
    assert early.id in machine.core.pool.by_id
    fill(machine, messages, deltas)
    assert votes_in(tell(machine, proposal(state, outcome.record))) == [outcome.record.hash]


def test_a_proposer_cannot_choose_its_measurements() -> None:
    """Fewer than came in good time: refused, whether the result is promoted by them or not at all."""
    made = inputs(STATE)
    for kept in (made.measurements[:1], ()):
        record = process_checkpoint(STATE, replace(made, measurements=kept)).record
        machine = node(a_voter(STATE), STATE)
        fill(machine, MESSAGES, DELTAS)
        actions = tell(machine, proposal(STATE, record))
        assert votes_in(actions) == []
        assert (Verdict.IGNORE, Reason.OMISSION) in verdicts(actions)


def test_a_measurement_that_came_late_may_be_left_out() -> None:
    """In the last block before proposals it may not have reached the proposer."""
    made = inputs(STATE)
    late = made.measurements[0]
    record = process_checkpoint(STATE, replace(made, measurements=made.measurements[1:])).record
    machine = node(a_voter(STATE), STATE)
    fill(machine, [m for m in MESSAGES if m.id != late.id], DELTAS, block=108)
    tell(machine, late)
    head(machine, 109)
    assert votes_in(tell(machine, proposal(STATE, record))) == [record.hash]


# ---------------------------------------------------------------- nothing frames or copies an honest mentor


def test_a_false_size_for_anothers_hash_does_not_touch_its_delta() -> None:
    """The thief announces the honest hash with one byte more, and is heard first."""
    honest = signal(STATE, 1, delta(STATE, 1))
    size = honest.body.delta_size_bytes  # type: ignore[union-attr]
    thief = signal(STATE, 2, delta(STATE, 1), delta_size_bytes=size + 1)
    machine = node(0, STATE)
    for message in (thief, honest):
        tell(machine, message)
    head(machine, 103)
    asked = {fetch.content for fetch in of(act.FetchDelta, head(machine, 104))}
    digest = content_id(delta(STATE, 1)).digest
    assert asked == {ContentId(digest, size), ContentId(digest, size + 1)}
    for block in (105, 107):
        machine.handle(ev.DeltaUnavailable(ContentId(digest, size + 1)))
        head(machine, block)
    actions = give(machine, delta(STATE, 1))
    assert [a for a in of(act.ReportVerdict, actions) if a.verdict is Verdict.REJECT] == []
    pool = machine.core.pool
    assert pool.usable_signals() == [honest]
    assert pool.withheld_signals() == [thief]
    made = pool.inputs()
    assert aggregate(STATE, made).outcomes[0].signal_id == honest.id


def test_a_signal_that_comes_when_deltas_are_served_is_evaluated_by_nobody() -> None:
    """It may be of a copy. Nobody waits for its bytes either, so it holds nothing up."""
    machine = node(0, STATE)
    tell(machine, signal(STATE, 1, delta(STATE, 1)))
    head(machine, 103)
    merged = signal(STATE, 2, delta(STATE, 2))
    tell(machine, merged)
    head(machine, 104)
    copy = signal(STATE, 3, delta(STATE, 1))
    tell(machine, copy)
    actions = [action for i in (1, 2) for action in give(machine, delta(STATE, i))]
    (evaluate,) = of(act.Evaluate, actions)
    assert copy.id not in evaluate.deltas
    assert merged.id in evaluate.deltas, "the block between is for merging what peers hold"
    assert machine.core.pool.unresolved_signals() == []


def test_a_late_signal_that_a_record_names_can_still_be_voted_on() -> None:
    """Its proposer saw it in time: nobody who was late himself stands in the way."""
    machine = node(a_voter(STATE), STATE)
    tardy = next(m for m in MESSAGES if m.id in RECORD.signals and m.author != machine.node_key)
    for message in MESSAGES:
        if message is not tardy:
            tell(machine, message)
    head(machine, 104)
    tell(machine, tardy)
    assert tardy.id in machine.core.pool.late
    for data in DELTAS.values():
        give(machine, data)
    head(machine, 109)
    assert votes_in(tell(machine, proposal(STATE, RECORD))) == [RECORD.hash]


# ---------------------------------------------------------------- lives before this one


def test_a_node_that_lost_its_journal_does_not_contradict_what_peers_heard() -> None:
    """A new disk, the old keys: peers bring its own signal, proposal and vote back."""
    me = PROPOSER
    machine = node(me, STATE)
    earlier = signal(STATE, me, delta(STATE, 99))
    tell(machine, earlier)
    head(machine, 101)
    assert of(act.Publish, machine.handle(trained(machine))) == []
    assert machine.core.pool.equivocations == {}

    machine = node(me, STATE)
    fill(machine, MESSAGES, DELTAS, block=108)
    other = process_checkpoint(STATE, CheckpointInputs(signals=())).record
    said = proposal(STATE, other)
    machine.core.head = 109
    machine.core.pool.add(said, 9)
    machine.core.pool.add(vote(STATE, me, other, 0), 9)
    published = head(machine, 110)
    assert {p.message.id for p in of(act.Publish, published)} <= {said.id, vote(STATE, me, other, 0).id}


def test_what_was_stored_before_a_restart_is_neither_late_nor_demanded() -> None:
    machine = node(a_voter(STATE), STATE)
    head(machine, 105)
    for message in MESSAGES:
        machine.handle(ev.MessageReceived(message))
    pool = machine.core.pool
    assert pool.late == set()
    assert pool.in_good_time == set()
    assert set(pool.by_id) == {m.id for m in MESSAGES}


def test_proposals_and_votes_that_were_stored_count_after_a_restart() -> None:
    """Whatever block the chain is at when they are read again."""
    state = network(4, proposal_rotation_blocks=1)
    messages, outcome, deltas = whole(state)
    round_number = rounds_of(state)[a_voter(state)][0]
    machine = node(a_voter(state), state)
    stored = [*messages, proposal(state, outcome.record, round_number)]
    stored += [vote(state, i, outcome.record, round_number) for i in range(3)]
    for message in stored:
        machine.handle(ev.MessageReceived(message))
    assert machine.core.elapsed == 0
    assert set(machine.core.pool.by_id) == {m.id for m in stored}
    for data in deltas.values():
        give(machine, data)
    assert of(act.Commit, head(machine, 109 + round_number + 9)) != []


def test_results_of_a_closed_checkpoint_do_not_disturb_what_runs_now() -> None:
    machine = voter_in_finality()
    tell(machine, proposal(STATE, RECORD))
    machine.handle(ev.CheckpointCommitted(1, RECORD.hash, 111))
    machine.core.pool.deltas.clear()
    machine.evaluator.evaluating = frozenset({b"running"})
    machine.evaluator.measuring = b"running"
    for event in (
        ev.EvaluationFinished(1, {}),
        ev.MeasurementFinished(1, bytes(32), 1, 1, 0),
        ev.TrainingFailed("evaluate", "", 1),
        ev.TrainingFailed("measure", "", 1),
    ):
        assert of(act.Publish, machine.handle(event)) == []
    assert machine.evaluator.evaluating == frozenset({b"running"})
    assert machine.evaluator.measuring == b"running"
