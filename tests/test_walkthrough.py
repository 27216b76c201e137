"""docs/walkthrough.md works: its commands take these options, and (slow) the whole run ends as it says."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from citrate_node.cli.main import _GROUPS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The arguments of every `citrate` in a script, shell variables and redirections left out."""
    found = []
    for line in script.splitlines():
        for piece in re.findall(r"\bcitrate ([^;|&]*)", line):
            plain = re.sub(r'"\$\([^)]*\)"|"?\$\w+"?', "0x" + "ab" * 32, piece.split("#")[0])
            found.append(shlex.split(re.sub(r"\d?>\s*\S+.*$", "", plain)))
    return found


def parse(words: list[str]) -> None:
    """Let the command read its arguments without running. Raises click's UsageError."""
    command = typer.main.get_command(importlib.import_module(_GROUPS[words[0]][0]).app)
    rest = words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], rest, resilient_parsing=False)


def test_the_commands_of_the_walkthrough_are_there_with_these_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("web", "gui", "both"):  # arguments that must exist
        (tmp_path / folder).mkdir()
    found = [words for block in BLOCKS for words in commands(block)]
    assert {(words[0], words[1]) for words in found if words[0] in ("adapter", "wallet", "devnet")} >= {
        ("wallet", "new"),
        ("adapter", "create"),
        ("adapter", "compose"),
        ("adapter", "pull"),
        ("adapter", "merge"),
        ("devnet", "up"),
    }
    for words in found:
        parse(words)


def test_an_option_that_is_none_would_be_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["train", "--data", "domain:web", "--out", "x", "--rnak", "3"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_stranger_gets_what_the_walkthrough_promises(tmp_path: Path) -> None:
    """Every block, in one shell. The composition is better than the base on both domains."""
    tools = tmp_path / "bin"
    tools.mkdir()
    citrate = tools / "citrate"
    citrate.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m citrate_node.cli.main "$@"\n')
    citrate.chmod(0o755)
    home = tmp_path / "work"
    home.mkdir()
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", "\n".join(BLOCKS)],
        cwd=home,
        env=environment,
        start_new_session=True,
    )
    try:
        assert shell.wait(timeout=1400) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):  # where it failed half-way, the devnet still runs
            os.killpg(shell.pid, signal.SIGTERM)
    report = json.loads((home / "both" / "evaluation.json").read_text())
    by_name = {row["name"]: row for row in report["rows"]}
    assert report["passed"]
    assert by_name["web"]["improvement_ppm"] > 50_000
    assert by_name["gui"]["improvement_ppm"] > 20_000
    answers = [json.loads(line) for line in (home / "answers.jsonl").read_text().splitlines()]
    assert len({answer["model"] for answer in answers}) == 3
    assert all(answer["choices"][0]["text"] for answer in answers)
    assert (home / "merged" / "model.safetensors").is_file()
