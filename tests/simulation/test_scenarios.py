"""The scenario files: each runs, repeats itself, and passes what it says that a pass is."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from citrate_node.errors import ConfigError
from citrate_node.node.actions import Train
from citrate_node.node.events import TrainingFinished
from citrate_node.protocol.messages import MentorshipSignal
from citrate_node.protocol.tensors import weights_to_float32
from citrate_node.simulation.cluster import Cluster, synthetic_task
from citrate_node.simulation.metrics import HONEST, kinds
from citrate_node.simulation.scenario import run_scenario, start_churn
from citrate_node.simulation.scenario_file import Scenario, load_scenario, load_scenarios
from citrate_node.simulation.work import Work
from citrate_node.simulation.workload import Values

FOLDER = Path(__file__).resolve().parents[2] / "simulations"
FAMILIES = {path: load_scenarios(path, 1) for path in sorted(FOLDER.glob("*.toml"))}
FIRST = [family[0] for family in FAMILIES.values()]
"""Of each file the first run: those with a grid begin with the mildest."""
REST = [scenario for family in FAMILIES.values() for scenario in family[1:]]
WEIGHT, REPUTATION = "weight of the dishonest against their share is", "median reputation of the dishonest is"
SLOW = "longest checkpoint in ms is"
DO_NOT_PASS = {
    "attacks:noise/200000": (WEIGHT,),
    "attacks:noise/300000": (WEIGHT,),
    "attacks:alie/100000": (WEIGHT,),
    "attacks:alie/200000": (WEIGHT,),
    "attacks:drift/100000": (WEIGHT, REPUTATION),
    "attacks:drift/200000": (WEIGHT,),
    "attacks:drift/300000": (WEIGHT,),
    "attacks:drift/400000": (WEIGHT,),
    "attacks:free_rider/200000": (WEIGHT,),
    "attacks:free_rider/300000": (WEIGHT,),
    "attacks:withholding/400000": (SLOW,),
    "attacks:sign_flip_and_collusion/200000": (WEIGHT,),
    "attacks:sign_flip_and_collusion/400000": (WEIGHT, REPUTATION),
    "lying_proposers:boasting": (SLOW,),
}
"""Run to a part of what it says: findings, explained in benchmarks/results/scenarios.md."""


def label(scenario: Scenario) -> str:
    return f"{scenario.name}:{scenario.variant}".rstrip(":")


def result_of(scenario: Scenario) -> dict[str, object]:
    if scenario.training is not None:
        pytest.importorskip("torch")
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
    """What a run misses: in words that are written down, each once; anything else as it is."""
    failures = result_of(scenario)["failures"]
    assert isinstance(failures, list)
    known = DO_NOT_PASS.get(label(scenario), ())
    return [next((words for words in known if words in text), text) for text in failures]


def expected(scenario: Scenario) -> list[str]:
    return list(DO_NOT_PASS.get(label(scenario), ()))


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


def test_attacks_are_joined_and_strike_the_same_nodes(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('nodes = 10\nattack = "sign_flip+collusion"\nattack_share_ppm = 200_000\nliars = [0]')
    options = load_scenario(path, 0).options
    assert options.delta_attackers == ((4, "sign_flip"), (9, "sign_flip"))
    assert options.colluders == {4, 9}
    assert options.dishonest == {0, 4, 9}
    assert [kinds(options)[i] for i in (0, 1, 4)] == ["lying", HONEST, "collusion+sign_flip"]


def test_a_run_that_is_no_pass_says_why(tmp_path: Path) -> None:
    """One sentence for each figure that is not what the file asks for, and none for the others."""
    path = tmp_path / "x.toml"
    path.write_text(
        "checkpoints = 1\n[pass]\nloss_below = 0.0\nloss_ratio_max = 0.01\nwithheld_min = 2\n"
        "checkpoint_ms_min = 99_000\ncheckpoint_ms_max = 99_000\nhonest_floor = true\n"
    )
    result = result_of(load_scenario(path, 1))
    failures = result["failures"]
    assert isinstance(failures, list)
    assert [text.split(" is ")[0].split(":")[0] for text in failures] == [
        "loss",
        "loss as a part of the first",
        "longest checkpoint in ms",
        "signals withheld",
    ]
    assert f"loss is {result['loss']}, a pass is below 0" in failures


def test_a_node_that_trains_longer_than_a_checkpoint_joins_a_later_one() -> None:
    """With weights a checkpoint older as the parent, which the window allows."""
    path = FOLDER / "slow_nodes.toml"
    scenario = load_scenario(path, 1)
    world = Cluster(scenario.options)
    slow = {world.nodes[i].identity.node_key for i in scenario.options.slow_nodes}
    world.run_until(5, within_ms=200_000)
    older = 0
    for number, finalize in world.outcomes.items():
        before = world.outcomes.get(number - 1)
        for message in finalize.inputs:
            body = message.body
            if isinstance(body, MentorshipSignal) and before is not None and before.outcome is not None:
                is_older = body.parent_weights_hash != before.outcome.state.weights_content.digest
                assert not is_older or body.author in slow
                older += is_older
    assert older > 0


def test_a_late_node_is_not_there_before_its_time_and_at_the_others_state_after_it() -> None:
    scenario = load_scenario(FOLDER / "late_joiner.toml", 1)
    assert scenario.crashes == ((6, 0, 38_000), (7, 0, 38_000))


def test_churn_takes_nodes_away_and_brings_them_back(tmp_path: Path) -> None:
    """Drawn from a chance of its own, and over when the faults are."""
    path = tmp_path / "x.toml"
    path.write_text(
        "nodes = 6\nfaults_end_ms = 20_000\n"
        "churn_share_ppm = 500_000\nchurn_period_ms = 4_000\nchurn_down_ms = 2_000\n"
    )
    scenario = load_scenario(path, 2)
    assert scenario.churn is not None
    world = Cluster(scenario.options)
    start_churn(world, scenario.churn, random.Random(1))
    away = []
    for _ in range(24):
        world.run_for(1_000)
        away.append(sum(s.node is None for s in world.nodes))
    assert set(away) == {0, 3}
    assert away[-6:] == [0] * 6


@pytest.mark.parametrize(("attack", "sign"), [("ipm", -1.0), ("sign_flip", -1.0), ("stale", 1.0)])
def test_an_attacker_sends_what_its_attack_says(attack: str, sign: float, tmp_path: Path) -> None:
    """ipm: the opposite of the honest mean; sign_flip: of its own; stale: what it learned first, again."""
    path = tmp_path / "x.toml"
    path.write_text(f'nodes = 5\nattack = "{attack}"\nattack_share_ppm = 200_000')
    options = load_scenario(path, 3).options
    task = synthetic_task(options)
    work = Work(options, lambda: task)
    weights = task.initial_weights()
    manifest = weights.manifest.subset(task.factor)
    start = weights_to_float32(weights.select(manifest))

    def sent(node: int, target: int) -> Values:
        event = work.train(
            node, Train(target, weights, bytes(32), manifest, start + np.float32(target) / 8)
        )()
        assert isinstance(event, TrainingFinished)
        return event.values - event.parent_values

    honest = np.stack([sent(node, 1) for node in range(4)])
    own = task.train_node(4, start + np.float32(1 / 8), manifest) - start - np.float32(1 / 8)
    expected = honest.mean(axis=0) if attack == "ipm" else own
    np.testing.assert_allclose(sent(4, 1), sign * expected, atol=1e-6)
    if attack == "stale":
        np.testing.assert_allclose(sent(4, 2), own, atol=1e-6)
