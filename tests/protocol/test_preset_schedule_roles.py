"""Relations of a preset, phases in blocks, and roles that nobody can choose for himself."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import MINIMAL, network

from citrate_node.config import load_preset
from citrate_node.errors import PresetError
from citrate_node.protocol.checkpoint import (
    RECORD_SIZE_BYTES_MAX,
    CheckpointRecord,
    Equivocation,
    RecordedUpdate,
)
from citrate_node.protocol.composition_request import COMPOSITION_MEASUREMENTS_MAX, COMPOSITIONS_MAX
from citrate_node.protocol.preset import preset_from
from citrate_node.protocol.roles import draw_by_weight, draw_committee, draw_evaluators, draw_mentors
from citrate_node.protocol.schedule import Phase, phase, round_of, serves_deltas


def seed(number: int) -> bytes:
    return sha256(number.to_bytes(8, "big")).digest()


@pytest.mark.parametrize("name", ["devnet", "minimal"])
def test_a_shipped_preset_loads_and_names_itself(name: str) -> None:
    assert load_preset(name).name == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signal_deadline_blocks": 0}, "signal_deadline_blocks must lie between 0 and"),
        ({"evaluation_deadline_blocks": 3}, "signal_deadline_blocks must lie between 0 and"),
        ({"evaluation_deadline_blocks": 4}, "at least 2 more than signal_deadline_blocks"),
        ({"mentors_per_checkpoint": 200}, "a record could name 816 messages, room is for 750"),
        ({"name": ""}, "name must be a text, is ''"),
        ({"codec": ["int8"]}, "codec must be a text"),
        ({"measurement_deadline_blocks": 6}, "evaluation_deadline_blocks must lie before"),
        ({"proposal_rotation_blocks": 0}, "proposal_rotation_blocks must be at least 1"),
        ({"mentors_per_checkpoint": 2000}, "mentors_per_checkpoint must lie between 1 and 1024"),
        ({"evaluations_min": 4}, "evaluations_min must lie between 1 and evaluators_per_signal"),
        ({"evaluations_per_node": 0}, "evaluations_per_node must be at least 1"),
        ({"committee_size": 257}, "committee_size must lie between 1 and 256"),
        ({"rank_max": 65}, "rank_max must lie between 1 and 64"),
        ({"delta_size_bytes_max": 0}, "delta_size_bytes_max must lie between"),
        ({"checkpoint_window": 0}, "checkpoint_window must lie between"),
        ({"evaluation_scale_ppm": 0}, "evaluation_scale_ppm must lie between"),
        ({"reputation_floor_ppm": 300_000}, "reputation_floor_ppm <= reputation_initial_ppm"),
        ({"reputation_gain_ppm": 400_000}, "reputation_gain_ppm <= reputation_loss_ppm"),
        ({"share_cap_ppm": 0}, "share_cap_ppm must lie between"),
        ({"examples_full": 0}, "examples_full must be at least 1"),
        ({"omission_rounds": -1}, "omission_rounds must be a whole number"),
        ({"rank_max": 8.0}, "rank_max must be a whole number"),
        ({"method": "stack"}, "not for a network"),
        ({"method": "fedavg"}, "method is 'fedavg', must be one of"),
        ({"codec": "int7"}, "unknown codec 'int7'"),
    ],
)
def test_a_broken_relation_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(PresetError, match=message):
        preset_from({**asdict(MINIMAL), **change})


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(PresetError, match="unknown key 'signal_deadline'"):
        preset_from({**asdict(MINIMAL), "signal_deadline": 3})
    raw = asdict(MINIMAL)
    del raw["codec"]
    with pytest.raises(PresetError, match="missing codec"):
        preset_from(raw)


def test_any_other_number_is_another_network() -> None:
    assert replace(MINIMAL, examples_full=17).digest() != MINIMAL.digest()


def test_phases_follow_one_another_and_rounds_rotate() -> None:
    """minimal.toml: 3, 6, 9 blocks, a new round every 3."""
    phases = [phase(MINIMAL, elapsed) for elapsed in range(11)]
    assert (
        phases == [Phase.SIGNAL] * 3 + [Phase.EVALUATION] * 3 + [Phase.MEASUREMENT] * 3 + [Phase.FINALITY] * 2
    )
    assert [round_of(MINIMAL, elapsed) for elapsed in (0, 9, 11, 12, 15)] == [0, 0, 0, 1, 2]
    assert [serves_deltas(MINIMAL, elapsed) for elapsed in (0, 2, 3, 4, 9)] == [*([False] * 3), True, True]


@pytest.mark.parametrize(("mentors", "evaluators", "equivocators"), [(32, 5, 0), (125, 4, 0), (225, 1, 225)])
def test_the_largest_record_of_a_preset_fits_a_proposal(
    mentors: int, evaluators: int, equivocators: int
) -> None:
    """Every mentor heard (or proven to have equivocated), all measured, and all compositions that fit."""
    preset = replace(
        MINIMAL, mentors_per_checkpoint=mentors, evaluators_per_signal=evaluators, committee_size=75
    )

    def ids(count: int) -> tuple[bytes, ...]:
        return tuple(seed(number) for number in range(count))

    signals = mentors - equivocators
    most = 2**63 - 1
    update = RecordedUpdate(seed(1), seed(2), seed(3), 50, seed(4), 2**40, -most, ids(50))
    record = CheckpointRecord(
        network_id=seed(0),
        number=2**64 - 1,
        parent_record_hash=seed(0),
        adapter_id=seed(0),
        signals=ids(signals),
        withheld=(),
        equivocations=tuple(Equivocation(seed(i), seed(i + 1)) for i in range(equivocators)),
        evaluations=ids(signals * evaluators),
        measurements=ids(preset.committee_size),
        weights_hash=seed(0),
        weights_size_bytes=2**40,
        promoted=True,
        accuracy_ppm=-most,
        compositions=(update,) * COMPOSITIONS_MAX,
        reputations_root=seed(0),
        state_root=seed(0),
        state_size_bytes=2**40,
        validator_set_hash=seed(0),
        next_validator_set_hash=seed(0),
    )
    assert sum(len(u.measurements) for u in record.compositions) == COMPOSITION_MEASUREMENTS_MAX
    assert len(record.encode()) <= RECORD_SIZE_BYTES_MAX


@given(st.lists(st.integers(0, 2**70), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 1000))
def test_a_draw_takes_each_position_once_and_none_without_weight(
    weights: list[int], count: int, number: int
) -> None:
    drawn = draw_by_weight(seed(number), "role", weights, count)
    positive = [i for i, weight in enumerate(weights) if weight]
    assert len(drawn) == len(set(drawn)) == min(count, len(positive))
    assert set(drawn) <= set(positive)


def test_a_draw_is_the_one_that_the_definition_gives() -> None:
    """Against a plain reading of docs/protocol.md section 5: running sums, no tree."""
    weights = [5, 0, 1, 7, 2, 9, 3]
    for number in range(200):
        left = dict(enumerate(weights))
        wanted = []
        for i in range(4):
            block = sha256(seed(number) + b"\0role\0" + i.to_bytes(8, "big")).digest()
            target = int.from_bytes(block, "big") % sum(left.values())
            for position in sorted(left):
                if target < left[position]:
                    break
                target -= left[position]
            wanted.append(position)
            left[position] = 0
        assert draw_by_weight(seed(number), "role", weights, 4) == wanted


def test_a_hundred_times_the_stake_is_drawn_about_a_hundred_times_as_often() -> None:
    """Even above 64 bits, where hash times stake would wrap. 3,000 draws of one of 101 equal parts."""
    unit = 2**66
    weights = [100 * unit, *([unit] * 100)]
    counts = Counter(draw_by_weight(seed(i), "committee", weights, 1)[0] for i in range(3000))
    heavy, light = counts[0], sum(counts.values()) - counts[0]
    assert 0.9 < heavy / light < 1.1
    assert max(counts[i] for i in range(1, 101)) < 40


def test_a_committee_is_bounded_and_is_everybody_in_a_small_network() -> None:
    assert draw_committee(MINIMAL, seed(1), [1] * 10) == tuple(range(10))
    assert len(draw_committee(MINIMAL, seed(1), [1] * 1000)) == MINIMAL.committee_size


def test_mentors_are_bounded_and_newcomers_keep_a_share() -> None:
    """8 places, 2 of them by lot: beside 8 of full reputation some of 92 newcomers always mentors."""
    reputations = [1_000_000] * 8 + [10_000] * 92
    for number in range(50):
        mentors = draw_mentors(MINIMAL, seed(number), reputations)
        assert len(mentors) == 8
        assert any(mentor >= 8 for mentor in mentors)


def test_whoever_equivocated_never_mentors() -> None:
    assert draw_mentors(MINIMAL, seed(1), [0, 5, 5]) == frozenset({1, 2})
    assert all(0 not in draw_mentors(MINIMAL, seed(i), [0] + [5] * 40) for i in range(50))


@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 500))
def test_evaluation_work_is_bounded_and_shared(nodes: int, mentor_count: int, number: int) -> None:
    """Nobody measures himself; every signal gets equally many evaluators; nobody is asked for too much."""
    mentors = list(range(min(nodes, mentor_count)))
    drawn = draw_evaluators(MINIMAL, seed(number), mentors, nodes)
    assert all(mentor not in drawn[mentor] for mentor in mentors)
    assert len({len(places) for places in drawn.values()}) == 1
    assert all(1 <= len(places) <= MINIMAL.evaluators_per_signal for places in drawn.values())
    work = Counter(node for places in drawn.values() for node in places)
    assert max(work.values()) <= MINIMAL.evaluations_per_node + 1


def test_work_per_node_does_not_grow_with_the_network() -> None:
    for nodes in (10, 100, 1000):
        mentors = list(range(8))
        drawn = draw_evaluators(MINIMAL, seed(3), mentors, nodes)
        assert sum(len(places) for places in drawn.values()) <= 8 * MINIMAL.evaluators_per_signal


def test_in_a_network_of_four_everyone_has_every_role() -> None:
    state = network(4)
    keys = {node.node_key for node in state.nodes}
    assert state.mentors == state.committee_keys == keys
    assert all(state.evaluators[key] == keys - {key} for key in keys)


def test_proposers_rotate() -> None:
    state = network(4)
    assert len({state.proposer(number) for number in range(20)}) == 4
