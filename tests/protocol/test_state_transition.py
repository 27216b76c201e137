"""process_checkpoint: the same bytes in any order, each refusal, and who gets what."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import (
    GENESIS_RECORD,
    MINIMAL,
    delta,
    evaluation,
    identity,
    inputs,
    measurement,
    network,
    signal,
)

from citrate_node.protocol.checkpoint import commitment_of, decode_record
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.encoding import EncodingError
from citrate_node.protocol.rejection import Reason, Rejection
from citrate_node.protocol.state import NetworkState, restore_state
from citrate_node.protocol.state_transition import (
    CheckpointInputs,
    aggregate,
    is_valid_delta,
    process_checkpoint,
)

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "checkpoint.json"


def reputation(state: NetworkState, number: int) -> int:
    return state.reputation_of(identity(number).node_key)


@given(st.randoms(use_true_random=False))
def test_the_order_of_inputs_does_not_matter(random) -> None:
    state = network(4)
    given_inputs = inputs(state)

    def shuffled(items):
        return tuple(random.sample(items, k=len(items)))

    again = replace(
        given_inputs,
        signals=shuffled(given_inputs.signals),
        evaluations=shuffled(given_inputs.evaluations),
        measurements=shuffled(given_inputs.measurements),
        deltas=dict(shuffled(list(given_inputs.deltas.items()))),
    )
    first, second = process_checkpoint(state, given_inputs), process_checkpoint(state, again)
    assert second.record.encode() == first.record.encode()
    assert second.state.weights.encode() == first.state.weights.encode()
    assert second.state.file == first.state.file


def test_the_bytes_of_one_checkpoint_are_pinned() -> None:
    """tests/vectors/checkpoint.json: another implementation must come to these hashes."""
    state = network(4)
    outcome = process_checkpoint(state, inputs(state, {0: -500, 1: 800, 2: 1000, 3: 4000}))
    assert json.loads(VECTORS.read_text()) == pinned(state, outcome)


def pinned(state: NetworkState, outcome) -> dict[str, object]:
    return {
        "network_id": state.network_id.hex(),
        "genesis_weights": state.weights_content.digest.hex(),
        "record": outcome.record.encode().hex(),
        "record_hash": outcome.record.hash.hex(),
        "weights_hash": outcome.state.weights_content.digest.hex(),
        "state_root": sha256(outcome.state.file).hexdigest(),
        "weights": {o.mentor.hex(): o.weight for o in outcome.aggregation.outcomes},
        "reputations_ppm": {row.node_key.hex(): row.reputation_ppm for row in outcome.state.reputations},
        "accuracy_ppm": outcome.record.accuracy_ppm,
    }


def test_a_record_says_what_it_was_made_from_and_what_came_out() -> None:
    state = network(4)
    made = inputs(state)
    outcome = process_checkpoint(state, made)
    record = outcome.record
    assert (record.number, record.parent_record_hash) == (1, GENESIS_RECORD)
    assert record.signals == tuple(sorted(m.id for m in made.signals))
    assert record.weights_hash == content_id(outcome.state.weights.encode()).digest
    assert record.promoted
    assert record.accuracy_ppm == 501, "lower weighted median of 500, 501, 502, 503"
    assert decode_record(record.encode()) == record
    assert outcome.state.record_hash == record.hash == content_id(record.encode()).digest
    assert [u.weights_hash for u in commitment_of(record, 0).updates] == [record.weights_hash]


def test_a_signal_with_a_negative_score_does_not_enter_and_costs_its_mentor() -> None:
    state = network(4)
    outcome = process_checkpoint(state, inputs(state, {2: -1000}))
    by_mentor = {o.mentor: o for o in outcome.aggregation.outcomes}
    bad = by_mentor[identity(2).node_key]
    assert (bad.score_ppm, bad.weight) == (-1000, 0)
    assert sum(o.weight for o in by_mentor.values()) == 2**16
    assert reputation(outcome.state, 2) < reputation(state, 2) < reputation(outcome.state, 1)


def test_only_the_helpful_delta_moves_the_weights() -> None:
    """One positive score among four: the result is the parent plus that delta alone."""
    state = network(4)
    made = inputs(state, {0: -1, 1: -1, 2: -1, 3: 5})
    alone = inputs(state)
    kept = next(m for m in alone.signals if m.author == identity(3).node_key)
    only = CheckpointInputs(
        signals=(kept,),
        evaluations=tuple(m for m in made.evaluations if m.body.signal_id == kept.id),  # type: ignore[union-attr]
        deltas=alone.deltas,
    )
    assert aggregate(state, made).weights.encode() == aggregate(state, only).weights.encode()


def test_a_signal_that_nobody_vouches_for_has_no_weight_and_costs_nothing() -> None:
    state = network(4)
    made = inputs(state, measured=False)
    silent = next(m for m in made.signals if m.author == identity(1).node_key)
    fewer = replace(
        made,
        evaluations=tuple(m for m in made.evaluations if m.body.signal_id != silent.id),  # type: ignore[union-attr]
    )
    result = aggregate(state, fewer)
    outcome = next(o for o in result.outcomes if o.signal_id == silent.id)
    assert (outcome.score_ppm, outcome.weight) == (None, 0)
    assert result.reputations[state.position[silent.author]].reputation_ppm == reputation(state, 1)


def test_a_result_that_nobody_measured_is_not_promoted() -> None:
    state = network(4)
    outcome = process_checkpoint(state, inputs(state, measured=False))
    assert not outcome.record.promoted
    assert outcome.state.weights_content == state.weights_content
    assert commitment_of(outcome.record, 0).updates == ()
    assert outcome.state.number == 1


def test_an_empty_checkpoint_goes_on_with_the_same_weights() -> None:
    state = network(4)
    outcome = process_checkpoint(state, CheckpointInputs(signals=()))
    assert (outcome.state.number, outcome.record.promoted) == (1, False)
    assert outcome.state.weights_content == state.weights_content
    assert outcome.state.reputations == state.reputations


def test_withholding_costs_more_than_a_bad_delta() -> None:
    state = network(4)
    made = inputs(state, {0: -1000})
    bad = process_checkpoint(state, made).state
    gone = next(m for m in made.signals if m.author == identity(0).node_key)
    withheld = replace(
        made,
        signals=tuple(m for m in made.signals if m is not gone),
        withheld=(gone,),
        evaluations=tuple(m for m in made.evaluations if m.body.signal_id != gone.id),  # type: ignore[union-attr]
        measurements=(),
    )
    outcome = process_checkpoint(state, withheld)
    assert outcome.record.withheld == (gone.id,)
    assert reputation(outcome.state, 0) < reputation(bad, 0) < reputation(state, 0)


def test_equivocation_takes_all_reputation_and_the_right_to_mentor() -> None:
    state = network(4)
    first, second = (signal(state, 0, delta(state, 0), examples=n) for n in (64, 65))
    outcome = process_checkpoint(state, CheckpointInputs(signals=(), equivocations=((second, first),)))
    assert reputation(outcome.state, 0) == 0
    assert identity(0).node_key not in outcome.state.mentors
    pair = outcome.record.equivocations[0]
    assert (pair.first, pair.second) == tuple(sorted((first.id, second.id)))


def test_few_examples_lower_a_weight_and_many_never_raise_it() -> None:
    state = network(4)
    results = {}
    for examples in (4, 16, 10_000):
        made = inputs(state, measured=False)
        mine = signal(state, 0, delta(state, 0), examples=examples)
        others = [m for m in made.signals if m.author != identity(0).node_key]
        evaluations = [m for m in made.evaluations if m.body.signal_id in {o.id for o in others}]  # type: ignore[union-attr]
        evaluations += [evaluation(state, i, mine) for i in (1, 2, 3)]
        result = aggregate(state, CheckpointInputs((mine, *others), tuple(evaluations), deltas=made.deltas))
        results[examples] = next(o.weight for o in result.outcomes if o.mentor == identity(0).node_key)
    assert results[4] < results[16] == results[10_000] == 2**14


def refused(make: Callable[[NetworkState, CheckpointInputs], CheckpointInputs]) -> Reason:
    state = network(4)
    with pytest.raises(Rejection) as caught:
        process_checkpoint(state, make(state, inputs(state)))
    return caught.value.reason


def test_two_signals_of_one_mentor_are_refused() -> None:
    def make(state: NetworkState, made: CheckpointInputs) -> CheckpointInputs:
        return replace(made, signals=(*made.signals, signal(state, 0, delta(state, 0), examples=65)))

    assert refused(make) is Reason.EQUIVOCATION


def test_a_signal_without_bytes_is_refused() -> None:
    assert refused(lambda state, made: replace(made, deltas={})) is Reason.DELTA_MISMATCH


def test_two_evaluations_of_one_signal_by_one_node_are_refused() -> None:
    def make(state: NetworkState, made: CheckpointInputs) -> CheckpointInputs:
        first = made.signals[0]
        other = next(i for i in range(4) if identity(i).node_key != first.author)
        return replace(made, evaluations=(*made.evaluations, evaluation(state, other, first, 77)))

    assert refused(make) is Reason.EQUIVOCATION


def test_an_evaluation_of_ones_own_signal_is_refused() -> None:
    def make(state: NetworkState, made: CheckpointInputs) -> CheckpointInputs:
        mine = next(m for m in made.signals if m.author == identity(0).node_key)
        return replace(made, evaluations=(*made.evaluations, evaluation(state, 0, mine)))

    assert refused(make) is Reason.OWN_SIGNAL


def test_an_evaluation_of_a_signal_that_is_not_there_is_refused() -> None:
    assert refused(lambda state, made: replace(made, signals=made.signals[1:])) is Reason.BAD_RECORD


def test_a_measurement_of_other_weights_is_refused() -> None:
    def make(state: NetworkState, made: CheckpointInputs) -> CheckpointInputs:
        return replace(made, measurements=(measurement(state, 0, bytes(32)),))

    assert refused(make) is Reason.BAD_RECORD


def test_two_measurements_of_one_node_are_refused() -> None:
    def make(state: NetworkState, made: CheckpointInputs) -> CheckpointInputs:
        result = aggregate(state, made).content.digest
        more = measurement(state, 0, result, 9)
        return replace(made, measurements=(*made.measurements, more))

    assert refused(make) is Reason.EQUIVOCATION


def test_two_equal_signals_are_no_equivocation() -> None:
    def make(state: NetworkState, made: CheckpointInputs) -> CheckpointInputs:
        first = made.signals[0]
        return CheckpointInputs(signals=(), equivocations=((first, first),))

    assert refused(make) is Reason.BAD_RECORD


def test_a_message_of_a_closed_checkpoint_is_refused() -> None:
    state = network(4)
    made = inputs(state)
    after = process_checkpoint(state, made).state
    with pytest.raises(Rejection) as caught:
        process_checkpoint(after, CheckpointInputs(signals=made.signals[:1], deltas=made.deltas))
    assert caught.value.reason is Reason.CLOSED_CHECKPOINT


def test_bytes_that_are_not_the_announced_delta_are_seen() -> None:
    state = network(4)
    data = delta(state, 0)
    body = signal(state, 0, data).body
    assert is_valid_delta(state, body, data)  # type: ignore[arg-type]
    assert not is_valid_delta(state, body, data[:-1])  # type: ignore[arg-type]
    assert not is_valid_delta(state, body, delta(state, 1))  # type: ignore[arg-type]
    junk = bytes(len(data))
    announced = signal(state, 0, junk).body
    assert not is_valid_delta(state, announced, junk), "hash and size are right, the codec refuses it"  # type: ignore[arg-type]


def test_a_late_node_comes_to_the_same_state_from_the_files_alone() -> None:
    state = network(4)
    outcome = process_checkpoint(state, inputs(state, {1: -3}))
    restored = restore_state(
        MINIMAL, state.network_id, state.nodes, outcome.record, outcome.state.file, outcome.state.weights
    )
    assert restored == outcome.state


@pytest.mark.parametrize("what", ["state file", "weights", "nodes"])
def test_a_late_node_refuses_other_files(what: str) -> None:
    state = network(4)
    outcome = process_checkpoint(state, inputs(state))
    file, weights, nodes = outcome.state.file, outcome.state.weights, state.nodes
    if what == "state file":
        file = file[:-1] + bytes([file[-1] ^ 1])
    elif what == "weights":
        weights = state.weights
    else:
        nodes = network(5).nodes
    with pytest.raises((ValueError, EncodingError), match=what.split()[0]):
        restore_state(MINIMAL, state.network_id, nodes, outcome.record, file, weights)


def test_every_other_checkpoint_moves_the_other_factor_with_alternate() -> None:
    state = network(4, method="alternate")
    after = process_checkpoint(state, inputs(state)).state
    assert (state.factor, after.factor) == ("lora_B", "lora_A")
    third = process_checkpoint(after, inputs(after)).state
    changed = third.weights.values != after.weights.values
    places = after.weights.manifest.slices()
    moved = {name.split(".")[-2] for name, place in places.items() if changed[place].any()}
    assert moved == {"lora_A"}
