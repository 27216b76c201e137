"""Other numbers for recorded signals: what changes nothing changes nothing; a step is what a run makes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from citrate_node.cli.replay import app
from citrate_node.config import load_preset
from citrate_node.errors import CitrateError, ConfigError
from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from citrate_node.recording import Recording, find_recording
from citrate_node.replay import recorded_genesis
from citrate_node.simulation.cluster import Cluster, ClusterOptions
from citrate_node.simulation.recorded_loss import loss_of
from citrate_node.simulation.runs import read_run
from citrate_node.simulation.scenario import _network, load_scenario, run_scenario
from citrate_node.simulation.what_if import (
    SETTABLE,
    CheckpointBeside,
    changed_preset,
    update_distance,
    what_if,
)

DISHONEST = Path(__file__).resolve().parents[2] / "simulations" / "dishonest.toml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight checkpoints of twelve nodes, four of them dishonest; mentors and evaluators are drawn."""
    folder = tmp_path_factory.mktemp("run")
    run_scenario(load_scenario(DISHONEST, 1), folder, lambda row: None)
    return folder


def asked(run: Path, *settings: str, chained: bool = False) -> list[CheckpointBeside]:
    recording = find_recording(run)
    preset = changed_preset(recording.network().preset, settings, chained=chained)
    return list(what_if(recording, preset, chained=chained))


@pytest.mark.parametrize("chained", [False, True])
def test_the_recorded_numbers_give_what_was_recorded(run: Path, chained: bool) -> None:
    """Every settable number to what it is already: nothing may change, not even by rounding."""
    numbers = asdict(load_preset("minimal"))
    names = [n for n in SETTABLE if chained or n not in ("reputation_initial_ppm", "credibility_initial_ppm")]
    beside = asked(run, *(f"{name}={numbers[name]}" for name in names), chained=chained)
    assert len(beside) == 8
    for each in beside:
        assert each.same_result
        assert each.distance == 0
        assert not each.figures_taken_over
        assert all(was == other for was, other in each.nodes)
        assert each.other.record.weights_hash == each.recorded.record.weights_hash
        assert each.other.state.reputations == each.recorded.state.reputations
        assert each.other.record.promoted == each.recorded.record.promoted


@pytest.mark.parametrize(
    "changes",
    [{"aggregation_rule": "median"}, {"aggregation_rule": "trimmed_mean"}, {"outer_rate_ppm": 500_000}],
)
def test_a_step_is_the_one_that_a_run_under_these_numbers_really_makes(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Two simulations of one seed, alike up to their first average; a replay of one gives the other's.

    Four equal weights, so that no unit of 2^-16 is left over: it would go by the ids of the signals, which
    are those of two networks.
    """
    minimal = load_preset("minimal")

    def first_checkpoint(preset: Any) -> Any:
        world = Cluster(ClusterOptions(preset, nodes=4, seed=3, spread=0.3))
        world.run_until(1, within_ms=100_000)
        return world.outcomes[1], world

    (was, world), (really, _) = first_checkpoint(minimal), first_checkpoint(replace(minimal, **changes))
    recording = Recording(tmp_path)
    recording.write_network(_network(world), world.genesis.weights.encode())
    recording.write_checkpoint(1, was.record, was.inputs, was.deltas)
    settings = [f"{name}={value}" for name, value in changes.items()]
    (beside,) = what_if(recording, changed_preset(minimal, settings, chained=False), chained=False)
    assert not beside.same_result
    assert beside.distance > 0
    assert beside.other.aggregation.content == really.outcome.aggregation.content
    assert beside.recorded.aggregation.content == was.outcome.aggregation.content


def test_a_chain_is_carried_on_and_a_step_is_not(run: Path) -> None:
    """A slower gain: a step moves from the recorded reputations, a chain from its own."""
    steps = asked(run, "reputation_gain_ppm=50000")
    chain = asked(run, "reputation_gain_ppm=50000", chained=True)
    assert [row for _, row in steps[0].nodes] == [row for _, row in chain[0].nodes]
    was, step, chained = (
        sum(row.reputation_ppm for row in rows)
        for rows in (
            [was for was, _ in steps[-1].nodes],
            [other for _, other in steps[-1].nodes],
            [other for _, other in chain[-1].nodes],
        )
    )
    assert chained < step <= was
    assert chain[-1].distance > 0
    assert any(beside.figures_taken_over for beside in chain)


def test_what_acts_at_genesis_is_asked_of_a_chain(run: Path) -> None:
    with pytest.raises(ConfigError, match="acts before checkpoint 1 alone\n  ask with --chained"):
        asked(run, "reputation_initial_ppm=100000")
    chain = asked(run, "reputation_initial_ppm=100000", chained=True)
    outside = [other.reputation_ppm for _, other in chain[0].nodes if other.outcome == "not_drawn"]
    assert outside
    assert set(outside) == {100_000}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("codec=int4", "codec cannot be set in a replay: the recorded deltas are bytes of this codec"),
        ("method=alternate", "method cannot be set in a replay: the recorded deltas are of the tensors"),
        ("signal_deadline_blocks=4", "would change which messages came in time"),
        ("mentors_per_checkpoint=4", "whoever was not drawn said nothing"),
        ("committee_size=4", "committee_size cannot be set in a replay: it bounds what may be said"),
        ("evaluation_scale_ppm=1", "the recorded evaluations were measured at this scale"),
        ("trim=1", "a preset has no 'trim'\n  what can be set: aggregation_rule, "),
        ("share_cap_ppm", "write a number of the preset and its value: name=value"),
        ("share_cap_ppm=a lot", "share_cap_ppm must be a whole number, is 'a lot'"),
        ("share_cap_ppm=0", "share_cap_ppm must lie between 1 and 1,000,000"),
        ("aggregation_rule=best", "aggregation_rule is 'best', must be one of"),
    ],
)
def test_a_setting_that_cannot_be_says_why(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed_preset(load_preset("minimal"), [setting], chained=False)


def test_every_number_of_a_preset_can_be_set_or_says_why_not() -> None:
    preset = load_preset("minimal")
    for name, value in asdict(preset).items():
        setting = f"{name}={value}"
        if name in SETTABLE:
            assert changed_preset(preset, [setting], chained=True) == preset
        else:
            with pytest.raises(ConfigError, match=f"{name} cannot be set in a replay: "):
                changed_preset(preset, [setting], chained=True)
    assert changed_preset(preset, ["aggregation.rule=median"], chained=False).aggregation_rule == "median"


def adapter(seed: int) -> AdapterWeights:
    random = np.random.default_rng(seed)
    config = AdapterConfig(bytes(32), 2, 4, ("q_proj", "v_proj"))
    shapes = {"lora_A": (2, 7), "lora_B": (5, 2)}
    return from_tensors(
        config,
        {
            f"base_model.model.{module}.{factor}.weight": random.normal(size=shape).astype(np.float32)
            for module in ("q_proj", "v_proj")
            for factor, shape in shapes.items()
        },
    )


def test_the_distance_is_that_of_the_products() -> None:
    def products(weights: AdapterWeights) -> np.ndarray[Any, Any]:
        t = {name.split("model.")[-1]: array.astype(np.float64) for name, array in weights.tensors().items()}
        modules = ("q_proj", "v_proj")
        return np.stack([2 * t[f"{m}.lora_B.weight"] @ t[f"{m}.lora_A.weight"] for m in modules])

    first, second = adapter(1), adapter(2)
    expected = float(np.linalg.norm(products(first) - products(second)))
    assert update_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert update_distance(first, first) == 0
    values = first.values.copy()
    values[3] += 1 << 4  # a hair: 2^-20 of one entry
    near = replace(first, values=values)
    expected = float(np.linalg.norm(products(first) - products(near)))
    assert update_distance(first, near) == pytest.approx(expected, rel=1e-6)


def test_losses_are_measured_on_the_task_of_the_run(run: Path) -> None:
    recording = find_recording(run)
    preset, genesis = recording.network().preset, recorded_genesis(recording).weights
    loss = loss_of(run, preset, genesis)
    assert not isinstance(loss, str)
    history = read_run(run).history
    for beside in asked(run, "share_cap_ppm=400000"):
        if beside.recorded.record.promoted:
            weights = beside.recorded.aggregation.weights
            assert loss(weights)["own"] == pytest.approx(history[beside.number - 1].loss, abs=1e-6)


def test_options_of_another_task_measure_nothing(run: Path, tmp_path: Path) -> None:
    options = json.loads((run / "options.json").read_text())
    (tmp_path / "options.json").write_text(json.dumps({**options, "seed": 2}))
    recording = find_recording(run)
    preset, genesis = recording.network().preset, recorded_genesis(recording).weights
    assert "is of another task" in str(loss_of(tmp_path, preset, genesis))
    (tmp_path / "options.json").write_text("{}")
    assert "does not give the task again" in str(loss_of(tmp_path, preset, genesis))


def cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, CitrateError):
        return result.exception.exit_code, f"citrate: {result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_the_command_shows_each_checkpoint_beside_what_was(run: Path) -> None:
    code, text = cli(run, "--set", "aggregation_rule=trimmed_mean", "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [row["type"] for row in rows] == ["checkpoint"] * 8 + ["summary"]
    assert rows[-1]["mode"] == "step"
    assert rows[-1]["same_result"] == sum(row["same_result"] for row in rows[:-1])
    for row in rows[:-1]:
        assert len(row["nodes"]) == 12
        assert row["losses"]["own"]["recorded"] > 0
        assert row["same_result"] == (row["recorded"]["average_hash"] == row["other"]["average_hash"])
    code, text = cli(run, "--set", "aggregation_rule=trimmed_mean", "--chained", "--no-loss")
    assert code == 0
    assert "are not retrained" in text
    assert "loss" not in text


def test_the_command_refuses_what_cannot_be_asked(run: Path) -> None:
    code, text = cli(run, "--set", "codec=int4")
    assert code == 2
    assert "codec cannot be set in a replay" in text
    code, text = cli(run, "--chained")
    assert code == 2
    assert "go with --set" in text
