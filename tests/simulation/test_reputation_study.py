"""What each kind gets, by the protocol's own transition. docs/reputation.md tells why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from citrate_node.config import load_preset
from citrate_node.simulation.reputation_study import Kind, StudyOptions, StudyResult, study

PRESET = replace(load_preset("minimal"), evaluators_per_signal=5, evaluations_per_node=8)
FLOOR = PRESET.reputation_floor_ppm
HONEST: tuple[Kind, ...] = ("honest",) * 12


def ran(kind: Kind, count: int, checkpoints: int = 60, **options: object) -> StudyResult:
    given = StudyOptions(
        HONEST + (kind,) * count,
        checkpoints=checkpoints,
        spread=0.5,
        moving_target=0.3,
        preset=PRESET,
    )
    return study(replace(given, **options))  # type: ignore[arg-type]


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


def assert_honest_do_well(result: StudyResult) -> None:
    assert min(result.final("honest")) > 5 * FLOOR
    assert mean(result.final("honest")) > 300_000


def test_the_same_options_give_the_same_result() -> None:
    assert ran("noise", 2, checkpoints=8) == ran("noise", 2, checkpoints=8)


@pytest.mark.parametrize(("kind", "count"), [("free_rider", 2), ("copier", 2), ("sign_flipper", 5)])
def test_who_gives_nothing_comes_to_the_floor(kind: Kind, count: int) -> None:
    result = ran(kind, count)
    assert_honest_do_well(result)
    assert mean(result.final(kind)) < mean(result.final("honest")) / 5
    assert result.mean_share_ppm(kind, 20) < result.mean_share_ppm("honest", 20) // 10


def test_a_colluding_third_is_outvoted_because_it_loses_its_voice() -> None:
    """Even deaf the network takes no harm, since nobody promotes what members measured worse: but nothing is
    learnt from the honest any more."""
    with_credibility = ran("colluder", 6, moving_target=0.0)
    assert_honest_do_well(with_credibility)
    assert max(with_credibility.final_credibility("colluder")) < 100_000
    assert with_credibility.mean_share_ppm("colluder", 20) < with_credibility.mean_share_ppm("honest", 20)
    deaf = replace(PRESET, credibility_evaluations_min=1000)
    without = ran("colluder", 6, moving_target=0.0, preset=deaf)
    assert without.mean_share_ppm("honest", 20) < without.mean_share_ppm("colluder", 20)
    assert without.losses[-1] < 2 * with_credibility.losses[-1]


def test_a_new_identity_starts_low_and_falls_again() -> None:
    result = ran("whitewasher", 2, checkpoints=80)
    assert_honest_do_well(result)
    assert all(used > 1 for used in result.identities_used.values())
    assert result.mean_share_ppm("whitewasher") < result.mean_share_ppm("honest") // 5


def test_an_honest_newcomer_has_a_full_share_after_some_checkpoints() -> None:
    result = ran("newcomer", 2, checkpoints=70)
    assert mean(result.final("newcomer")) > 200_000
    assert result.mean_share_ppm("newcomer", 20) > result.mean_share_ppm("honest", 20) // 2


@pytest.mark.slow
@pytest.mark.parametrize("moving_target", [0.0, 0.3])
@pytest.mark.parametrize(
    "kind", ["newcomer", "odd", "free_rider", "stale", "copier", "noise", "liar", "colluder", "drifter"]
)
def test_no_kind_sinks_an_honest_node_or_the_result_in_200_checkpoints(
    kind: Kind, moving_target: float
) -> None:
    alone = ran("honest", 0, checkpoints=200, moving_target=moving_target)
    result = ran(kind, 4, checkpoints=200, moving_target=moving_target)
    assert min(result.final("honest")) > FLOOR
    assert mean(result.losses[-50:]) < 1.15 * mean(alone.losses[-50:])  # type: ignore[arg-type]
