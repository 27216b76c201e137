"""Folders of runs: read when finished, named when not, and never mixed with the run before."""

from __future__ import annotations

from pathlib import Path

import pytest

from citrate_node.errors import ConfigError
from citrate_node.recording import find_recording
from citrate_node.replay import replay
from citrate_node.simulation.runs import forget_run, read_run, read_runs
from citrate_node.simulation.scenario import load_scenario, run_scenario

HONEST = Path(__file__).resolve().parents[2] / "simulations" / "honest.toml"


def ran(folder: Path, seed: int) -> Path:
    run_scenario(load_scenario(HONEST, seed), folder, lambda row: None)
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for seed in (11, 2):
        ran(folder / f"seed-{seed}", seed)
    return folder


def test_a_folder_of_seeds_is_read_in_the_order_of_its_seeds(seeds: Path) -> None:
    assert [(run.name, run.seed) for run in read_runs(seeds)] == [("honest", 2), ("honest", 11)]
    run = read_run(seeds / "seed-2")
    assert [row.number for row in run.history] == list(range(1, 7))
    assert len(run.columns.node) == 6 * 6
    assert run.command == f"citrate simulate {HONEST} --seed 2"
    assert run.options["question"] == "do honest nodes agree, and does the loss fall?"


def test_a_second_run_in_a_folder_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    """A recording names its files by number: what another seed left would be taken for this one's."""
    ran(tmp_path, 1)
    (tmp_path / ".metrics.parquet.killed").write_bytes(b"half")
    ran(tmp_path, 2)
    assert not list(tmp_path.glob(".metrics.*"))
    history = [row.record_hash for row in read_run(tmp_path).history]
    assert [r.record_hash.hex() for r in replay(find_recording(tmp_path))] == history


def test_a_run_that_did_not_finish_is_said_to_be_one(tmp_path: Path, seeds: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / "options.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run that did not finish"):
        read_run(tmp_path)
    (tmp_path / "result.json").write_text("[")
    with pytest.raises(ConfigError, match=r"cannot read .*result\.json"):
        read_run(tmp_path)


def test_the_recording_of_a_devnet_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "recording").mkdir()
    (tmp_path / "recording" / "network.cbor").write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="recording that is not of a simulation"):
        forget_run(tmp_path)
    assert (tmp_path / "recording" / "network.cbor").read_bytes() == b"theirs"
