"""What a run leaves in numbers: node rows in Parquet or JSON lines, checkpoints as JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_network import MINIMAL

from citrate_node.errors import ConfigError
from citrate_node.simulation.cluster import ClusterOptions
from citrate_node.simulation.metrics import (
    CheckpointRow,
    MetricsWriter,
    NodeRow,
    kinds,
    read_history,
    read_nodes,
)
from citrate_node.simulation.scenario import load_scenario, run_scenario

DISHONEST = Path(__file__).resolve().parents[2] / "simulations" / "dishonest.toml"
ROWS = [
    NodeRow(1, 0, "honest", 210_000, 500_000, 12_000, 1_000_000, "averaged", 96),
    NodeRow(1, 1, "withholding", 110_000, 500_000, None, 0, "withheld", 96),
]
CHECKPOINT = CheckpointRow(1, 12_000, "ab" * 32, 0.25, 5_000, 2, 3, 40_000, 1, 0, True, {"worst": 0.5})


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.add(CHECKPOINT, ROWS)
    assert read_nodes(tmp_path) == ROWS
    assert read_history(tmp_path) == [CHECKPOINT]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "metrics.parquet"]


def test_many_rows_go_to_the_file_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citrate_node.simulation.metrics.ROWS_IN_GROUP", 3)
    with MetricsWriter(tmp_path) as metrics:
        for _ in range(5):
            metrics.add(CHECKPOINT, ROWS)
    assert read_nodes(tmp_path) == ROWS * 5


def test_without_pyarrow_the_same_rows_are_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with MetricsWriter(tmp_path) as metrics:
        metrics.add(CHECKPOINT, ROWS)
    assert "pip install 'citrate-node[parquet]'" in metrics.notice
    assert read_nodes(tmp_path) == ROWS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "metrics.jsonl"]


def test_an_error_in_a_run_leaves_whole_files_of_what_was_final(tmp_path: Path) -> None:
    def interrupted() -> None:
        with MetricsWriter(tmp_path) as metrics:
            metrics.add(CHECKPOINT, ROWS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_nodes(tmp_path) == ROWS
    assert read_history(tmp_path) == [CHECKPOINT]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder of a run"):
        read_history(tmp_path)
    (tmp_path / "history.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"history\.jsonl:1 is damaged"):
        read_history(tmp_path)
    (tmp_path / "metrics.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"node rows of .* are damaged"):
        read_nodes(tmp_path)


def test_a_node_that_does_two_things_is_of_both_kinds() -> None:
    options = ClusterOptions(MINIMAL, nodes=3, liars=frozenset({1}), copiers=frozenset({1, 2}))
    assert kinds(options) == ("honest", "copying+lying", "copying")


def test_the_rows_of_a_run_say_what_became_of_each_kind(tmp_path: Path) -> None:
    result = run_scenario(load_scenario(DISHONEST, 1), tmp_path, lambda row: None)
    rows = read_nodes(tmp_path)
    history = read_history(tmp_path)
    nodes, last = 12, history[-1].number
    assert [(r.checkpoint, r.node) for r in rows] == [
        (c, n) for c in range(1, last + 1) for n in range(nodes)
    ]
    assert {r.node: r.reputation_ppm for r in rows if r.checkpoint == last} == result["reputations"]
    assert {r.outcome for r in rows if r.kind == "equivocation"} <= {"equivocation", "absent", "not_drawn"}
    assert {r.outcome for r in rows if r.kind == "withholding"} <= {"withheld", "not_drawn"}
    assert any(r.outcome == "averaged" and r.signal_bytes for r in rows if r.kind == "honest")
    for row in history:
        of_row = [r for r in rows if r.checkpoint == row.number]
        assert sum(r.outcome in ("averaged", "negative", "copy", "unmeasured") for r in of_row) == row.signals
        assert sum(r.outcome == "withheld" for r in of_row) == row.withheld
        whole = sum(r.weight_ppm for r in of_row)
        assert 1_000_000 - nodes <= whole <= 1_000_000 or (whole == 0 and not row.promoted)
    assert [row.bytes_sent for row in history] == sorted({row.bytes_sent for row in history})
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert {"type", "number", "virtual_ms", "record_hash", "loss", "signals", "withheld", "equivocations",
            "evaluations", "accuracy_ppm"} <= set(lines[0])  # fmt: skip
