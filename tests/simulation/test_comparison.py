"""Two results beside one another: by hand, on rows that a test can add up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from citrate_node.errors import ConfigError
from citrate_node.simulation.comparison import FigureBeside, compare
from citrate_node.simulation.intervals import Interval, interval
from citrate_node.simulation.metrics import CheckpointRow, MetricsWriter
from citrate_node.simulation.runs import Run, read_runs


def runs(folder: Path, losses: dict[int, Sequence[float]], bytes_each: int, **options: object) -> list[Run]:
    """One run per seed, with these losses by checkpoint."""
    for seed, of_seed in losses.items():
        own = folder / f"seed-{seed}"
        with MetricsWriter(own) as metrics:
            for number, loss in enumerate(of_seed, 1):
                metrics.add(CheckpointRow(number, 1000 * number, "", loss, bytes_each * number))
        raw = {"scenario": folder.name, "seed": seed, **options}
        (own / "options.json").write_text(json.dumps(raw))
        (own / "result.json").write_text("{}")
    return read_runs(folder)


def figures(beside: Sequence[FigureBeside]) -> dict[str, FigureBeside]:
    return {each.name: each for each in beside}


def test_differences_are_taken_seed_by_seed(tmp_path: Path) -> None:
    """Losses differ much between seeds and little within one: only the paired difference sees it."""
    a = runs(tmp_path / "a", {1: [3.0, 2.0], 2: [9.0, 8.0], 3: [6.0, 5.0]}, 100, preset={"codec": "int8"})
    b = runs(tmp_path / "b", {1: [3.0, 1.9], 2: [9.0, 7.88], 3: [6.0, 4.9]}, 50, preset={"codec": "int4"})
    both = compare(a, b)
    assert (both.first, both.second, both.seeds) == ("a", "b", (1, 2, 3))
    assert both.options == {"preset.codec": ("int8", "int4")}
    loss = figures(both.figures)["loss"]
    assert loss.first == interval([2.0, 8.0, 5.0])
    assert loss.difference == interval([1.9 - 2.0, 7.88 - 8.0, 4.9 - 5.0])
    assert loss.difference.excludes_zero
    assert loss.paired
    assert figures(both.figures)["bytes_sent"].difference == Interval(-100.0, 0.0, 3)


def test_loss_is_compared_at_equal_bytes_and_bytes_at_equal_loss(tmp_path: Path) -> None:
    """A sends 100 a checkpoint, B 40: at 160 bytes A had 3.0; both reached 2.0, A with 300, B with 80."""
    a = runs(tmp_path / "a", {1: [4.0, 3.0, 2.0]}, 100)
    b = runs(tmp_path / "b", {1: [3.5, 2.0, 1.5, 1.0]}, 40)
    beside = figures(compare(a, b).figures)
    assert (beside["loss_at_same_bytes"].first.mean, beside["loss_at_same_bytes"].second.mean) == (4.0, 1.0)
    assert (beside["bytes_to_same_loss"].first.mean, beside["bytes_to_same_loss"].second.mean) == (300, 80)
    assert beside["checkpoints_to_same_loss"].difference.mean == -1


def test_without_a_common_seed_nothing_is_paired(tmp_path: Path) -> None:
    a = runs(tmp_path / "a", {1: [2.0], 2: [4.0]}, 1)
    b = runs(tmp_path / "b", {3: [1.0]}, 1)
    both = compare(a, b)
    assert both.seeds == ()
    loss = figures(both.figures)["loss"]
    assert (loss.paired, loss.difference) == (False, Interval(-2.0, 0.0, 1))
    assert not loss.difference.excludes_zero


def test_runs_that_are_no_seeds_of_one_scenario_are_refused(tmp_path: Path) -> None:
    a = runs(tmp_path / "a", {1: [2.0]}, 1, nodes=4)
    mixed = [*a, *runs(tmp_path / "b", {2: [2.0]}, 1, nodes=5)]
    with pytest.raises(ConfigError, match="are no seeds of one scenario: nodes differs"):
        compare(mixed, a)


def test_a_run_without_a_checkpoint_cannot_be_compared(tmp_path: Path) -> None:
    a = runs(tmp_path / "a", {1: [2.0]}, 1)
    with pytest.raises(ConfigError, match="has no checkpoint"):
        compare(a, runs(tmp_path / "b", {1: []}, 1))
