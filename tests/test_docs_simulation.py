"""docs/simulation.md works: its blocks run as they stand, and it names every key and attack there is."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from citrate_node.simulation.adversaries import MESSAGE_ATTACKS
from citrate_node.simulation.attacks import ATTACKS
from citrate_node.simulation.expectations import Expectations
from citrate_node.simulation.rounds_scenario import _KEYS as ROUNDS_KEYS
from citrate_node.simulation.runs import read_runs
from citrate_node.simulation.scenario_file import _KEYS as MESSAGE_KEYS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
EXPECTATIONS = [field.name for field in dataclasses.fields(Expectations)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every block in one shell, in a folder that has the clone's simulations; what they printed."""
    home = tmp_path_factory.mktemp("docs")
    (home / "simulations").symlink_to(ROOT / "simulations")
    tools = home / "bin"
    tools.mkdir()
    for name, what in (("citrate", "-m citrate_node.cli.main"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
        (tools / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(BLOCKS)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return home, done.stdout


@pytest.mark.timeout(1000)  # a dozen seconds of computing; machines may be busy
def test_the_commands_run_as_they_stand(ran: tuple[Path, str]) -> None:
    home, text = ran
    assert [run.seed for run in read_runs(home / "runs" / "mine" / "lossy")] == [1, 2, 3]
    for folder in ("honest", "mine/quiet", "mine/lossy"):
        assert "<svg" in (home / "runs" / folder / "report.html").read_text()
    assert "differences seed by seed (1, 2, 3)" in text
    assert "6 checkpoints computed again: all the same" in text
    assert "what if aggregation_rule=trimmed_mean" in text
    assert "are not retrained" in text


@pytest.mark.parametrize(
    "name", sorted({*MESSAGE_KEYS, *ROUNDS_KEYS, *ATTACKS, *MESSAGE_ATTACKS, *EXPECTATIONS})
)
def test_every_key_attack_and_expectation_is_named(name: str) -> None:
    assert re.search(rf"`{name}`", TEXT)
