"""Scenario files of the rounds engine: read, refused by name, run, recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citrate_node.errors import ConfigError
from citrate_node.recording import Recording
from citrate_node.replay import replay
from citrate_node.simulation.batch import plan
from citrate_node.simulation.metrics import read_history, read_nodes
from citrate_node.simulation.rounds_scenario import load_rounds, run_rounds_scenario

SCENARIOS = Path(__file__).parents[2] / "simulations" / "findings"

TEXT = """
engine = "rounds"
question = "?"
nodes = 6
checkpoints = 3

[set]
mentors_per_checkpoint = 6

[[variants]]
name = "network"

[[variants]]
name = "averaging"
sharing = "equal"
set.codec = "int4"

[grid]
attack = ["noise", "ipm"]
"set.aggregation_rule" = ["mean", "trimmed_mean"]
attack_share_ppm = [340_000]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "asked.toml"
    file.write_text(TEXT)
    return file


def test_variants_and_grid_multiply(path: Path) -> None:
    loaded = load_rounds(path, seed=5)
    assert [each.variant for each in loaded][:3] == [
        "network/noise/mean/340000",
        "network/noise/trimmed_mean/340000",
        "network/ipm/mean/340000",
    ]
    assert len(loaded) == 8
    last = loaded[-1].options
    assert (last.sharing, last.attack, last.seed) == ("equal", "ipm", 5)
    assert (last.preset.codec, last.preset.aggregation_rule) == ("int4", "trimmed_mean")
    assert last.preset.mentors_per_checkpoint == 6


def test_a_run_leaves_its_files_and_a_recording_that_replays(path: Path, tmp_path: Path) -> None:
    scenario = load_rounds(path, seed=1)[0]
    rows: list[dict[str, object]] = []
    result = run_rounds_scenario(scenario, tmp_path / "out", rows.append)
    assert [row["number"] for row in rows] == [1, 2, 3]
    history = read_history(tmp_path / "out")
    assert [row.loss for row in history] == [row["loss"] for row in rows]
    nodes = read_nodes(tmp_path / "out")
    assert len(nodes) == 18
    assert {row.kind for row in nodes} == {"honest", "noise"}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert json.loads((tmp_path / "out" / "options.json").read_text())["attack"] == "noise"
    replayed = list(replay(Recording(tmp_path / "out" / "recording")))
    assert [each.record_hash.hex() for each in replayed] == [row["record_hash"] for row in rows]


def test_every_question_can_be_asked() -> None:
    found = {path.stem: len(plan([path], [1], None)) for path in sorted(SCENARIOS.glob("*.toml"))}
    assert found["mentorship"] == 4
    assert found["attacks"] == 7 * 4 * 6


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nods = 3", "unknown key 'nods'"),
        ("nodes = 'six'", "nodes must be a int"),
        ("training = {steps = 2}", 'needs workload = "training"'),
        ("workload = 'dreams'", "must be synthetic or training"),
        ("checkpoints = 0", "checkpoints must lie between"),
        ("grid = {attack = 'noise'}", "each key of grid must be a list"),
        ("variants = [{sharing = 'equal'}]", "every variant needs a name"),
        ("variants = 3", "variants must be tables"),
        ("set = {codec = 'zip'}", "codec"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_name(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(f'engine = "rounds"\n{line}\n')
    with pytest.raises(Exception, match=says) as caught:
        load_rounds(file, 1)
    assert isinstance(caught.value, ConfigError) or "preset" in str(caught.value)
