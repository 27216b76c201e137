"""Copies count once, the preset's rule and outer step make the result, liars lose their voice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import MINIMAL, delta, evaluation, identity, inputs, measurement, network, signal

from citrate_node.errors import PresetError
from citrate_node.protocol import rules
from citrate_node.protocol.codecs import encode_delta
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.copies import copies
from citrate_node.protocol.encoding import EncodingError
from citrate_node.protocol.gram import Gram, gram_of_deltas
from citrate_node.protocol.outer_step import OuterStep
from citrate_node.protocol.preset import ONE_PPM
from citrate_node.protocol.reputation import agreements, harm_limit, target_ppm
from citrate_node.protocol.state import NetworkState, restore_state
from citrate_node.protocol.state_transition import (
    CheckpointInputs,
    Outcome,
    SignalOutcome,
    aggregate,
    process_checkpoint,
)
from citrate_node.protocol.tensors import weights_to_float32

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
MANY = replace(MINIMAL, evaluators_per_signal=5, evaluations_per_node=8)


def checkpoint(
    state: NetworkState,
    data: Mapping[int, bytes],
    reports: Mapping[tuple[int, int], int] | None = None,
    accuracy: int = 500,
    before: int = 0,
) -> Outcome:
    """One in which these nodes announce these deltas; reports: (evaluator, mentor) to ppm, 1000 elsewhere."""
    everybody = range(len(state.nodes))
    signals = {i: signal(state, i, file) for i, file in data.items()}
    made = CheckpointInputs(
        signals=tuple(signals.values()),
        evaluations=tuple(
            evaluation(state, evaluator, signals[i], (reports or {}).get((evaluator, i), 1000))
            for i in data
            for evaluator in everybody
            if identity(evaluator).node_key in state.evaluators[identity(i).node_key]
        ),
        deltas={content_id(file).digest: file for file in data.values()},
    )
    result = aggregate(state, made).content.digest
    measured = tuple(measurement(state, i, result, accuracy, before) for i in everybody)
    return process_checkpoint(state, replace(made, measurements=measured))


def outcome_of(outcome: Outcome, number: int) -> SignalOutcome:
    return next(o for o in outcome.aggregation.outcomes if o.mentor == identity(number).node_key)


def values(state: NetworkState, seed: int, scale: float = 0.01) -> np.ndarray:
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(-1000, 1000, state.moving_manifest.count)
    return (drawn / 1000 * scale).astype(np.float32)


def encoded(state: NetworkState, numbers: np.ndarray) -> bytes:
    return encode_delta(state.codec, state.moving_manifest, numbers.astype(np.float32))


# ---------------------------------------------------------------- copies


def test_the_first_of_two_alike_stays_and_the_order_says_who_is_first() -> None:
    gram = Gram(((4, 4, 0), (4, 4, 0), (0, 0, 9)))
    assert copies(gram, [0, 1, 2], ONE_PPM) == {1: 0}
    assert copies(gram, [2, 1, 0], ONE_PPM) == {0: 1}


def test_the_opposite_of_an_update_is_no_copy_and_nothing_is_a_copy_of_zero() -> None:
    assert copies(Gram(((4, -4), (-4, 4))), [0, 1], 970_000) == {}
    assert copies(Gram(((0, 0), (0, 0))), [0, 1], 970_000) == {}


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_a_copy_of_another_size_has_no_weight_and_costs_reputation(scale: float) -> None:
    state = network(4)
    rows = [replace(row, reputation_ppm=300_000) for row in state.reputations]
    place = state.position[identity(2).node_key]
    rows[place] = replace(rows[place], reputation_ppm=100_000)
    state = replace(state, reputations=tuple(rows))
    one = values(state, 7)
    noise = values(state, 8, 0.001 * scale)
    data = {1: encoded(state, one), 2: encoded(state, one * scale + noise), 3: delta(state, 3)}
    outcome = checkpoint(state, data)
    original, copy = outcome_of(outcome, 1), outcome_of(outcome, 2)
    assert (copy.copy_of, copy.weight) == (original.signal_id, 0)
    assert (original.copy_of, original.weight > 0) == (None, True)
    after = outcome.state
    assert after.reputation_of(identity(2).node_key) < 100_000
    assert after.reputation_of(identity(1).node_key) > 300_000
    alone = checkpoint(state, {1: data[1], 3: data[3]})
    assert alone.state.weights == after.weights, "the copy moved nothing"


def test_who_repeats_now_one_and_now_another_is_known_by_it_whoever_had_luck_at_first() -> None:
    state = network(5)
    copier, victims = 0, (1, 2, 3)
    lost: list[int] = []
    for number, victim in enumerate(victims):
        data = {i: encoded(state, values(state, 10 * number + i)) for i in range(1, 5)}
        data[copier] = encoded(state, values(state, 10 * number + victim) * 1.5)
        outcome = checkpoint(state, data)
        pair = [outcome_of(outcome, i) for i in (copier, victim)]
        assert sum(each.copy_of is not None for each in pair) == 1
        lost.append(next(i for i, each in zip((copier, victim), pair, strict=True) if each.copy_of))
        state = outcome.state
    assert lost[1:] == [copier, copier]
    rows = {i: state.reputations[state.position[identity(i).node_key]] for i in range(5)}
    assert [rows[i].checkpoints_alike for i in range(5)] == [3, 1, 1, 1, 0]
    assert [rows[i].checkpoints_mentored for i in range(5)] == [3] * 5
    assert rows[copier].reputation_ppm < min(rows[i].reputation_ppm for i in range(1, 5))


def test_a_new_identity_does_not_take_the_place_of_a_mentor_that_was_seldom_alike() -> None:
    state = network(4)
    place = state.position[identity(1).node_key]
    rows = list(state.reputations)
    rows[place] = replace(rows[place], reputation_ppm=50_000, checkpoints_mentored=20, checkpoints_alike=3)
    state = replace(state, reputations=tuple(rows))
    one = values(state, 7)
    outcome = checkpoint(state, {1: encoded(state, one), 2: encoded(state, one * 2), 3: delta(state, 3)})
    assert outcome_of(outcome, 1).copy_of is None, "4 of 22 against 1 of 2, though its reputation is less"
    assert outcome_of(outcome, 2).copy_of == outcome_of(outcome, 1).signal_id


def test_of_two_alike_in_the_same_part_of_their_checkpoints_the_better_known_one_stays() -> None:
    state = network(4)
    place = state.position[identity(2).node_key]
    rows = list(state.reputations)
    rows[place] = replace(rows[place], reputation_ppm=300_000)
    state = replace(state, reputations=tuple(rows))
    one = values(state, 7)
    outcome = checkpoint(state, {1: encoded(state, one), 2: encoded(state, one * 2), 3: delta(state, 3)})
    assert outcome_of(outcome, 1).copy_of == outcome_of(outcome, 2).signal_id


def test_a_checkpoint_that_helped_nobody_counts_for_no_past() -> None:
    state = network(4)
    one = values(state, 7)
    data = {1: encoded(state, one), 2: encoded(state, one * 2)}
    outcome = checkpoint(state, data, dict.fromkeys(((i, j) for i in range(4) for j in (1, 2)), -5))
    counts = {(row.checkpoints_mentored, row.checkpoints_alike) for row in outcome.state.reputations}
    assert counts == {(0, 0)}


def test_deltas_of_different_nodes_are_no_copies() -> None:
    state = network(4)
    outcome = checkpoint(state, {i: delta(state, i) for i in range(4)})
    assert [o.copy_of for o in outcome.aggregation.outcomes] == [None] * 4


def pinned_gram() -> dict[str, object]:
    """tests/vectors/gram.json: another implementation must come to these inner products."""
    state = network(4)
    files = [delta(state, 1), delta(state, 2, 0.02), encoded(state, values(state, 1) * -3)]
    gram = gram_of_deltas(state.weights, state.moving_manifest, files, state.codec)
    return {
        "parent": state.weights.encode().hex(),
        "deltas": [file.hex() for file in files],
        "products": [[str(value) for value in row] for row in gram.rows],
        "cosines_ppm": [[gram.cosine_ppm(i, j) for j in range(3)] for i in range(3)],
    }


def test_the_matrix_that_decides_about_copies_is_pinned() -> None:
    assert pinned_gram() == json.loads((VECTORS / "gram.json").read_text())


# ---------------------------------------------------------------- rules and outer step


@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_the_rule_of_the_preset_makes_the_result(name: str) -> None:
    state = network(6, replace(MANY, aggregation_rule=name, dishonest_share_ppm=200_000))
    data = {i: delta(state, i) for i in range(6)}
    outcome = checkpoint(state, data)
    entries = [(outcome_of(outcome, i).weight, data[i]) for i in range(6)]
    wanted = rules.aggregate(name, state.weights, state.moving_manifest, entries, state.codec, dishonest=1)
    assert outcome.state.weights == wanted


def test_an_outer_rate_of_a_half_goes_half_of_the_way() -> None:
    full = network(4)
    half = network(4, replace(MINIMAL, outer_rate_ppm=500_000))
    data = {0: delta(full, 0)}
    moved = [
        weights_to_float32(checkpoint(state, data).state.weights.select(state.moving_manifest))
        for state in (full, half)
    ]
    assert np.abs(moved[0] - 2 * moved[1]).max() <= 2**-23


def test_momentum_is_part_of_the_state_and_carries_a_step_on() -> None:
    """Of two equal averages the second goes further, as OuterStep says; a late node has the same bytes."""
    state = network(4, replace(MINIMAL, outer_momentum_ppm=500_000))
    outer: OuterStep = state.preset.outer_step
    first = checkpoint(state, {0: delta(state, 0)}).state
    assert len(first.momentum) == 8 * first.weights.manifest.count
    outcome = checkpoint(first, {0: delta(first, 0)})
    again = outcome.state
    steps = [
        after.weights.select(state.moving_manifest) - before.weights.select(state.moving_manifest)
        for before, after in ((state, first), (first, again))
    ]
    # m = g, step g + m/2 = 1.5 g; then m = 1.5 g, step 1.75 g
    assert np.abs(steps[0] * 7 - steps[1] * 6).max() <= 32
    assert outer.momentum_q16 == 1 << 15
    late = restore_state(
        state.preset, state.network_id, state.nodes, outcome.record, again.file, again.weights
    )
    assert late.momentum == again.momentum
    assert late.file == again.file


def test_a_result_that_is_not_promoted_leaves_no_momentum() -> None:
    state = network(4, replace(MINIMAL, outer_momentum_ppm=500_000))
    outcome = checkpoint(state, {0: delta(state, 0)}, accuracy=-ONE_PPM)
    assert not outcome.record.promoted
    assert outcome.state.momentum == b""


def test_momentum_of_another_length_is_refused() -> None:
    state = network(4)
    outcome = process_checkpoint(state, inputs(state))
    broken = replace(outcome.state, momentum=bytes(8))
    broken.__dict__.pop("file", None)
    record = replace(
        outcome.record,
        state_root=content_id(broken.file).digest,
        state_size_bytes=len(broken.file),
    )
    with pytest.raises(EncodingError, match="field momentum has 8 bytes"):
        restore_state(state.preset, state.network_id, state.nodes, record, broken.file, broken.weights)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"aggregation_rule": "best"}, "aggregation_rule is 'best', must be one of mean, "),
        ({"aggregation_rule": "median", "codec": "topk"}, "does not go with codec topk"),
        ({"dishonest_share_ppm": 500_000}, "dishonest_share_ppm must be below 500,000"),
        ({"outer_rate_ppm": 0}, "outer_rate_ppm must lie between"),
        ({"outer_momentum_ppm": ONE_PPM}, "outer_momentum_ppm must be below"),
        ({"copy_cosine_ppm": 400_000}, "copy_cosine_ppm must lie between"),
        ({"accuracy_drop_ppm_max": 2 * ONE_PPM}, "accuracy_drop_ppm_max must be at most"),
        ({"harm_deviations": 0}, "harm_deviations must lie between"),
        ({"credibility_initial_ppm": 1}, "credibility_initial_ppm must lie between"),
        ({"credibility_evaluations_min": 2}, "credibility_evaluations_min must be at least 3"),
    ],
)
def test_a_preset_that_cannot_be_is_refused_by_name(changes: dict[str, object], text: str) -> None:
    with pytest.raises(PresetError, match=text):
        replace(MINIMAL, **changes)


# ---------------------------------------------------------------- promotion


def test_a_result_far_worse_than_its_parent_is_not_promoted() -> None:
    drop = MINIMAL.accuracy_drop_ppm_max
    state = network(4)
    refused = checkpoint(state, {0: delta(state, 0)}, accuracy=100_000 - drop - 1, before=100_000)
    assert (refused.record.promoted, refused.record.accuracy_ppm) == (False, 0)
    assert refused.state.weights == state.weights
    taken = checkpoint(state, {0: delta(state, 0)}, accuracy=100_000 - drop, before=100_000)
    assert (taken.record.promoted, taken.record.accuracy_ppm) == (True, 100_000 - drop)


def test_a_committee_with_harder_data_than_the_last_one_holds_nothing_back() -> None:
    """Accuracies of two committees differ by their members' data; what counts is each member's own gain."""
    state = network(4)
    first = checkpoint(state, {0: delta(state, 0)}, accuracy=300_000)
    then = checkpoint(first.state, {0: delta(first.state, 0)}, accuracy=40_000, before=30_000)
    assert [(o.record.promoted, o.record.accuracy_ppm) for o in (first, then)] == [
        (True, 300_000),
        (True, 40_000),
    ]


def test_the_gain_is_the_median_of_what_each_member_found() -> None:
    drop = MINIMAL.accuracy_drop_ppm_max
    state = network(4)
    made = checkpoint(state, {0: delta(state, 0)})
    data = {0: delta(state, 0)}
    signals = {i: signal(state, i, file) for i, file in data.items()}
    evaluations = tuple(
        evaluation(state, i, signals[0])
        for i in range(4)
        if identity(i).node_key in state.evaluators[identity(0).node_key]
    )
    files = {content_id(file).digest: file for file in data.values()}
    given = CheckpointInputs(tuple(signals.values()), evaluations, deltas=files)
    result = made.aggregation.content.digest
    # (candidate, parent): accuracies alone would rise, from a median of 0 to one of 10,000
    found = [(10_000, 10_000 + 2 * drop), (10_000, 10_000 + 2 * drop), (50_000, 0), (0, 0)]
    measured = tuple(measurement(state, i, result, *pair) for i, pair in enumerate(found))
    assert not process_checkpoint(state, replace(given, measurements=measured)).record.promoted


# ---------------------------------------------------------------- harm and credibility


def test_only_an_outlier_below_zero_costs_reputation() -> None:
    near_optimum = [-30, -10, 0, 12, 25]
    assert harm_limit(MINIMAL, near_optimum) == -3 * 12
    one_flipper = [900, 1000, 1100, -1000]
    assert harm_limit(MINIMAL, one_flipper) == -1
    assert [target_ppm(score, 1000, -36) for score in (-36, -35, 0, 500)] == [0, None, None, 250_000]


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=9), st.data())
def test_fewer_than_half_cannot_call_all_honest_scores_harmful(honest, data) -> None:
    """Whatever a minority scores, the limit stays below the lowest honest score or below zero."""
    count = data.draw(st.integers(0, (len(honest) - 1) // 2))
    dishonest = data.draw(st.lists(st.integers(-(10**9), 10**9), min_size=count, max_size=count))
    assert harm_limit(MINIMAL, [*honest, *dishonest]) < max(0, max(honest))


def test_an_evaluation_far_from_the_score_does_not_agree() -> None:
    reports = [(b"a", 90, 100), (b"b", 100, 100), (b"c", -500, 100), (b"a", 60, 50), (b"c", 45, 50)]
    assert agreements(reports, 3) == {b"a": (2, 2), b"b": (1, 1), b"c": (1, 2)}
    assert agreements([], 3) == {}


def test_who_lies_about_everything_loses_its_voice_and_not_its_reputation() -> None:
    state = network(8, MANY)
    liar = identity(5).node_key
    before = state.voice_of(liar)
    reports = {(5, i): -1000 for i in range(8)}
    for seed in range(6):
        state = checkpoint(state, {i: delta(state, 10 * seed + i) for i in range(8)}, reports).state
    credibility = {row.node_key: row.credibility_ppm for row in state.reputations}
    assert credibility[liar] < 100_000
    assert all(ppm > 600_000 for key, ppm in credibility.items() if key != liar)
    assert state.reputation_of(liar) == state.reputation_of(identity(0).node_key)
    assert state.voice_of(liar) < before < state.voice_of(identity(0).node_key)


def test_two_evaluations_do_not_say_who_is_right() -> None:
    state = network(3, MANY)
    outcome = checkpoint(state, {0: delta(state, 0)}, {(1, 0): -ONE_PPM})
    assert {row.credibility_ppm for row in outcome.state.reputations} == {MANY.credibility_initial_ppm}


if __name__ == "__main__":
    (VECTORS / "gram.json").write_text(json.dumps(pinned_gram(), indent=1) + "\n")
