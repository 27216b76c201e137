"""The scenario files: each runs, repeats itself, and passes what it says that a pass is."""

from __future__ import annotations

from pathlib import Path

import pytest

from citrate_node.errors import ConfigError
from citrate_node.simulation.scenario import run_scenario
from citrate_node.simulation.scenario_file import Scenario, load_scenario, load_scenarios

FOLDER = Path(__file__).resolve().parents[2] / "simulations"
FAMILIES = {path: load_scenarios(path, 1) for path in sorted(FOLDER.glob("*.toml"))}
FIRST = [family[0] for family in FAMILIES.values()]
REST = [scenario for family in FAMILIES.values() for scenario in family[1:]]
DO_NOT_PASS: dict[str, str] = {}
"""Run to a part of what it says: findings, explained in benchmarks/results/scenarios.md."""


def label(scenario: Scenario) -> str:
    return f"{scenario.name}:{scenario.variant}".rstrip(":")


def result_of(scenario: Scenario) -> dict[str, object]:
    return run_scenario(scenario, None, lambda row: None)


@pytest.mark.parametrize("scenario", FIRST, ids=label)
def test_every_file_runs_and_passes(scenario: Scenario) -> None:
    assert found(scenario) == expected(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", REST, ids=label)
def test_every_variant_passes_or_is_a_finding_that_is_written_down(scenario: Scenario) -> None:
    assert found(scenario) == expected(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", FIRST, ids=label)
def test_every_file_repeats_itself(scenario: Scenario) -> None:
    first, again = result_of(scenario), result_of(scenario)
    assert first == again
    assert first["checkpoints"] == scenario.checkpoints


def found(scenario: Scenario) -> list[str]:
    failures = result_of(scenario)["failures"]
    assert isinstance(failures, list)
    return [text for text in failures if DO_NOT_PASS.get(label(scenario), "-") not in text] or (
        [DO_NOT_PASS[label(scenario)]] if failures else []
    )


def expected(scenario: Scenario) -> list[str]:
    return [DO_NOT_PASS[label(scenario)]] if label(scenario) in DO_NOT_PASS else []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node = 4", "unknown key 'node'"),
        ("nodes = 1", "nodes is 1, must lie between"),
        ("nodes = '4'", "nodes must be a int"),
        ("liars = [9]", "liars must be node numbers from 0 to 3"),
        ("liars = [true]", "liars must be node numbers"),
        ("checkpoints = 0", "checkpoints must lie between 1"),
        ("loss_ppm = 1_000_000", "loss_ppm must lie between 0 and 999,999"),
        ("spread = nan", "spread must lie between"),
        ("latency_ms = [5]", "latency_ms must be two whole numbers"),
        ("latency_ms = [9, 5]", "latency_ms must be two whole numbers"),
        ("crashes = [{ node = 1, at_ms = 5 }]", "each of crashes must have node, at_ms, until_ms"),
        ("crashes = [{ node = 4, at_ms = 5, until_ms = 6 }]", "crashes must be node numbers from 0 to 3"),
        ("crashes = [7]", "each of crashes must have"),
        ("partitions = [{ nodes = 1, at_ms = 1, until_ms = 2 }]", "partitions must be node numbers"),
        ("partitions = [{ nodes = [1], at_ms = 3, until_ms = 2 }]", "at_ms must lie before until_ms"),
        ("preset = 'tiny'", "there is no preset 'tiny'"),
        ("attack = 'bribe'", "there is no attack 'bribe'"),
        ("attack = 'ipm+alie'\nattack_share_ppm = 250_000", "a mentor sends one delta, so only one of"),
        ("attack_share_ppm = 1_000_000", "attack_share_ppm must lie between 0 and 999,999"),
        ("late_nodes = [1]", "late_ms must be above 0"),
        ("slow_nodes = [4]", "slow_nodes must be node numbers from 0 to 3"),
        ("slow_training_ms = [1]", "slow_training_ms must be two whole numbers"),
        ("churn_down_ms = 20_000", "churn_down_ms must lie between 1 and churn_period_ms"),
        ("set.codec = 'zip'", "codec"),
        ("pass.loss = 1", "pass: unknown key 'loss'"),
        ("pass.loss_below = 'low'", "pass: loss_below must be a float, is 'low'"),
        ("pass.honest_floor = false", "honest_floor can be true or be left out"),
        ("variants = 3", "variants must be tables"),
        ("[[variants]]\nnode = 1", "every variant needs a name of its own"),
        ("[[variants]]\nname = 'a'\nnode = 1", "x.toml: a: unknown key 'node'"),
        ("[grid]\nnodes = []", "each key of grid must be a list of values"),
        ("[grid]\nnodes = [4, 5]", "has 2 variants\n  name one of them"),
    ],
)
def test_a_scenario_that_cannot_be_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_scenario(path, 0)
