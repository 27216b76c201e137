"""report.html holds what the run's files hold, in one file that needs no other."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from citrate_node.errors import ConfigError
from citrate_node.recording import write_atomically
from citrate_node.simulation.intervals import Interval, interval, student_975
from citrate_node.simulation.metrics import CheckpointRow, MetricsWriter, NodeRow
from citrate_node.simulation.plots import plots
from citrate_node.simulation.report import report_html, write_report
from citrate_node.simulation.runs import Run, read_runs
from citrate_node.simulation.scenario import load_scenario, run_scenario
from citrate_node.simulation.summary import by_kind, finality_ms, headline

DISHONEST = Path(__file__).resolve().parents[2] / "simulations" / "dishonest.toml"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for seed in (1, 2, 3):
        run_scenario(load_scenario(DISHONEST, seed), folder / f"seed-{seed}", lambda row: None)
    return folder


class Page(HTMLParser):
    """The text of a page, its elements, and what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_one_whole_page_that_fetches_nothing(seeds: Path) -> None:
    html = report_html(read_runs(seeds))
    page = Page(html)
    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.elements
    assert "url(http" not in html
    assert page.elements.count("svg") == 5
    assert len(page.ids) == len(set(page.ids))
    assert "citrate simulate" in page.text
    assert "what do dishonest nodes get?" in page.text


def test_every_plot_says_in_words_what_it_shows(seeds: Path) -> None:
    run = read_runs(seeds)[0]
    drawn = {plot.name: plot for plot in plots([run])}
    assert list(drawn) == ["loss", "bytes", "reputation", "weight", "finality"]
    first, last = run.history[0].loss, run.history[-1].loss
    assert drawn["loss"].description == (
        f"own held-out data: from {first:.4g} to {last:.4g} after 8 checkpoints"
    )
    for plot in drawn.values():
        assert f'aria-labelledby="{plot.name}-title {plot.name}-desc"' in plot.svg
        assert "currentColor" in plot.svg
        assert "#010203" not in plot.svg


def test_the_same_runs_give_the_same_page(seeds: Path) -> None:
    assert report_html(read_runs(seeds)) == report_html(read_runs(seeds))


def test_figures_of_several_seeds_are_means_with_their_interval(seeds: Path) -> None:
    runs = read_runs(seeds)
    loss = interval([run.result["loss"] for run in runs])
    text = Page(report_html(runs)).text
    assert f"{loss.mean:.4g} ± {loss.half_width:.4g}" in text
    for run in runs:
        assert run.result["history_hash"] in text
        assert f"--seed {run.seed}" in text


def test_a_text_of_the_scenario_cannot_become_markup(seeds: Path) -> None:
    run = read_runs(seeds)[0]
    options = {**run.options, "question": "<script>alert(1)</script>", "source": "a'><img src=x>"}
    page = Page(report_html([Run(run.folder, options, run.result)]))
    assert not {"script", "img"} & set(page.elements)
    assert "<script>alert(1)</script>" in page.text


def test_a_run_that_was_no_pass_says_why(seeds: Path) -> None:
    run = read_runs(seeds)[0]
    failed = {**run.result, "failures": ["loss is 0.09, a pass is below 0.05"]}
    asked = {**run.options, "pass": {"loss_below": 0.05}}
    assert "did not pass: loss is 0.09" in Page(report_html([Run(run.folder, asked, failed)])).text
    passed = Page(report_html([Run(run.folder, asked, {**run.result, "failures": []})])).text
    assert "did not pass" not in passed
    assert "passed" in passed


def small_run(folder: Path, rows: list[CheckpointRow], nodes: list[NodeRow]) -> Run:
    with MetricsWriter(folder) as metrics:
        for row in rows:
            metrics.add(row, [n for n in nodes if n.checkpoint == row.number])
    return Run(folder, {"scenario": "small", "seed": 1}, {})


def test_kinds_are_summed_up_by_checkpoint(tmp_path: Path) -> None:
    def node(checkpoint: int, index: int, kind: str, reputation: int, weight: int) -> NodeRow:
        return NodeRow(checkpoint, index, kind, reputation, 0, None, weight, "averaged", 0)

    nodes = [
        *(node(1, 0, "honest", 100_000, 250_000), node(1, 1, "honest", 300_000, 250_000)),
        *(node(1, 2, "lying", 200_000, 500_000), node(2, 0, "honest", 500_000, 0)),
        *(node(2, 1, "honest", 600_000, 0), node(2, 2, "lying", 0, 0)),
    ]
    rows = [CheckpointRow(n, 10_000 * n + 5, "", 1.0 / n, 1000 * n) for n in (1, 2)]
    run = small_run(tmp_path, rows, nodes)
    honest, lying = by_kind([run])
    assert (honest.kind, honest.nodes, list(honest.checkpoints)) == ("honest", 2, [1, 2])
    assert [list(honest.low), list(honest.median), list(honest.high)] == [[0.1, 0.5], [0.2, 0.55], [0.3, 0.6]]
    assert (honest.share[0], lying.share[0]) == (0.5, 0.5)
    assert math.isnan(honest.share[1])  # nothing entered that average
    assert finality_ms(run.history) == [10_005, 10_000]
    assert headline(run) == {
        "loss": 0.5,
        "loss_least": 0.5,
        "bytes_sent": 2000.0,
        "finality_ms_mean": 10_002.5,
        "finality_ms_max": 10_005.0,
        "reputation_of_honest": 0.55,
        "reputation_of_dishonest": 0.0,
        "weight_of_dishonest": 0.5,
    }


def test_an_engine_without_time_bytes_or_nodes_still_has_a_report(tmp_path: Path) -> None:
    rows = [CheckpointRow(n, None, "", 1.0 / n, 0, figures={"worst": 2.0 / n}) for n in range(1, 400)]
    run = small_run(tmp_path, rows, [])
    assert [plot.name for plot in plots([run])] == ["loss"]
    page = Page(report_html([run]))
    assert "This run left no rows of its nodes" in page.text
    assert "all are in history.jsonl" in page.text
    assert page.elements.count("tr") < 200
    assert re.search(r"worst: from 2 to 0\.005013", page.text)


def test_a_run_without_a_checkpoint_has_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint"):
        report_html([small_run(tmp_path, [], [])])


def test_without_matplotlib_a_report_says_what_to_install(
    seeds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install 'citrate-node\\[parquet\\]'"):
        write_report(read_runs(seeds), seeds)
    assert not (seeds / "report.html").exists()


def test_the_interval_is_students() -> None:
    """By hand: mean 2, deviation 1, three values; 4.3027 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == Interval(2.0, pytest.approx(2.48414, abs=1e-4), 3)
    assert interval([5.0]) == Interval(5.0, 0.0, 1)
    assert not interval([5.0]).excludes_zero
    assert interval([5.0, 5.1, 5.2]).excludes_zero


@pytest.mark.parametrize(("degrees", "expected"), [(20, 2.0860), (21, 2.0796), (30, 2.0423), (120, 1.9799)])
def test_students_quantile_goes_on_where_the_table_ends(degrees: int, expected: float) -> None:
    assert student_975(degrees) == pytest.approx(expected, abs=1e-4)


def test_a_damaged_run_is_a_named_error(tmp_path: Path) -> None:
    write_atomically(tmp_path / "history.jsonl", b"[1]\n")
    with pytest.raises(ConfigError, match=r"history\.jsonl:1 is damaged"):
        report_html([Run(tmp_path, {}, {})])
