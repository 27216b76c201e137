"""`citrate simulate`: many runs by one command, their reports, and two results beside one another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from citrate_node.cli.simulate import app
from citrate_node.errors import CitrateError
from citrate_node.simulation import batch
from citrate_node.simulation.batch import parse_seeds, plan
from citrate_node.simulation.checkers import ProgressViolation
from citrate_node.simulation.runs import read_run

SIMULATIONS = Path(__file__).resolve().parents[2] / "simulations"
HONEST, LOSSY = SIMULATIONS / "honest.toml", SIMULATIONS / "lossy.toml"
VARIANTS = """
engine = "rounds"
question = "how often?"
nodes = 4
checkpoints = 2
[[variants]]
name = "together"
[[variants]]
name = "alone"
sharing = "alone"
"""


def cli(*arguments: object) -> tuple[int, str]:
    """Exit code and stdout, as main() gives them."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, CitrateError):
        return result.exception.exit_code, result.stdout + f"citrate: {result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_two_files_with_two_seeds_leave_four_runs_and_two_reports(tmp_path: Path) -> None:
    code, text = cli(HONEST, LOSSY, "--seeds", "1..2", "--out", tmp_path)
    assert code == 0
    folders = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("result.json"))
    assert folders == ["honest/seed-1", "honest/seed-2", "lossy/seed-1", "lossy/seed-2"]
    assert sorted(p.parent.name for p in tmp_path.rglob("report.html")) == ["honest", "lossy"]
    assert [line.split("   ")[0] for line in text.splitlines() if "history" in line] == [
        *("honest, seed 1", "honest, seed 2", "lossy, seed 1", "lossy, seed 2")
    ]
    code, text = cli("compare", tmp_path / "honest", tmp_path / "lossy")
    assert code == 0
    assert "loss_ppm" in text
    assert "differences seed by seed (1, 2)" in text
    code, text = cli("compare", tmp_path / "honest", tmp_path / "lossy", "--json")
    assert {row["type"] for row in objects(text)} == {"option", "figure", "summary"}
    assert objects(text)[-1]["seeds"] == [1, 2]


def test_json_is_one_object_per_line_that_says_whose_it_is(tmp_path: Path) -> None:
    code, text = cli(HONEST, "--seeds", "1..2", "--out", tmp_path, "--json", "--no-report")
    rows = objects(text)
    assert code == 0
    assert [(row["seed"], row["number"]) for row in rows if row["type"] == "checkpoint"] == [
        (seed, number) for seed in (1, 2) for number in range(1, 7)
    ]
    assert [row["seed"] for row in rows if row["type"] == "result"] == [1, 2]
    assert not list(tmp_path.rglob("report.html"))


def test_a_report_can_be_written_later(tmp_path: Path) -> None:
    cli(HONEST, "--seed", "1", "--out", tmp_path, "--no-report")
    code, text = cli("report", tmp_path, "--json")
    assert (code, objects(text)) == (
        0,
        [{"type": "report", "path": str(tmp_path / "report.html"), "seeds": [1]}],
    )
    assert "honest, seed 1" in (tmp_path / "report.html").read_text()


def test_variants_of_a_file_have_folders_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "often.toml"
    path.write_text(VARIANTS)
    code, text = cli(path, "--seed", "3", "--out", tmp_path / "out", "--json")
    assert code == 0
    assert [row["variant"] for row in objects(text) if row["type"] == "result"] == ["together", "alone"]
    assert read_run(tmp_path / "out" / "alone").name == "often:alone"
    assert read_run(tmp_path / "out" / "alone").command.endswith("often.toml --seed 3 --variant alone")
    code, text = cli(path, "--variant", "alone", "--json")
    assert [row["variant"] for row in objects(text) if row["type"] == "result"] == ["alone"]
    code, text = cli(path, "--variant", "together ")
    assert (code, text) == (2, "citrate: there is no variant 'together '\n  there are: together, alone")


def test_the_name_of_a_variant_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(
        VARIANTS.replace('"together"', '"../../up"').replace('"alone"\nsharing', '"a b"\nsharing')
    )
    jobs = plan([path], [1], tmp_path / "out")
    assert [str(job.folder.relative_to(tmp_path / "out")) for job in jobs if job.folder] == ["_/_/up", "a_b"]


def test_a_run_that_fails_prints_its_command_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = batch.run_scenario

    def sometimes(scenario: Any, *arguments: Any, **how: Any) -> dict[str, Any]:
        if scenario.options.seed == 2:
            raise ProgressViolation("seed 2: nothing goes on")
        return right(scenario, *arguments, **how)

    monkeypatch.setattr(batch, "run_scenario", sometimes)
    code, text = cli(HONEST, "--seeds", "1..3", "--out", tmp_path)
    assert code == 1
    assert "FAILED: seed 2: nothing goes on" in text
    assert f"1 of 3 runs failed; repeat them with\n  citrate simulate {HONEST} --seed 2" in text
    assert sorted(p.parent.name for p in tmp_path.rglob("result.json")) == ["seed-1", "seed-3"]


def test_a_run_against_its_expectations_is_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = batch.run_scenario

    def missed(*arguments: Any, **how: Any) -> dict[str, Any]:
        return {**right(*arguments, **how), "failures": ["loss is 0.09, expected below 0.05"]}

    monkeypatch.setattr(batch, "run_scenario", missed)
    code, text = cli(HONEST, "--seed", "1", "--json")
    assert code == 1
    lines = [line for line in text.splitlines() if line.startswith("{")]
    assert json.loads(lines[-1])["text"] == "loss is 0.09, expected below 0.05"


def _heeds_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_leaves_the_runs_that_are_done_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "citrate_node.cli.main", "simulate", str(HONEST), "--json"]
    command += ["--seeds", "1..500", "--out", str(tmp_path)]
    # a shell's background job ignores SIGINT, and so would its children: this one must not
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heeds_ctrl_c
    ) as process:
        assert process.stdout is not None
        done = 0
        while done < 2:
            done += '"result"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode in (1, 130)
    finished = sorted(p.parent for p in tmp_path.rglob("result.json"))
    assert 2 <= len(finished) < 500
    for folder in finished:
        assert [row.number for row in read_run(folder).history] == [1, 2, 3, 4, 5, 6]
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [7, 8, 9]), ("1..3", [1, 2, 3]), ("4..4", [4]), ("5,2,5", [2, 5])]
)
def test_seeds_are_a_range_a_list_or_a_number(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text, first=7) == seeds


@pytest.mark.parametrize("text", ["0", "3..1", "1..", "one", "-1..2", "1..20000", "1.5"])
def test_other_seeds_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(CitrateError, match="--seeds"):
        parse_seeds(text, first=0)


def test_all_files_are_read_before_the_first_run_begins(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("node = 4")
    code, text = cli(HONEST, wrong, "--out", tmp_path / "out")
    assert code == 2
    assert "unknown key 'node'" in text
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_need_two_folders(tmp_path: Path) -> None:
    other = tmp_path / "honest.toml"
    other.write_text("nodes = 4")
    code, text = cli(HONEST, other, "--out", tmp_path / "out")
    assert code == 2
    assert "two scenarios would write to" in text
