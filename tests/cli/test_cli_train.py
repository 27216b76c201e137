"""`citrate train` as it is typed: what it prints, how it ends, and that kill -9 costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from citrate_node.cli.train import app
from citrate_node.errors import ConfigError

QUICK = ("--data", "domain:web", "--rank", "2", "--batch", "2", "--sequence", "32")


def typed(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_json_is_one_object_per_line_and_the_last_is_the_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = typed(*QUICK, "--out", out, "--steps", 4, "--validate-every", 2, "--json")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["type"] for row in rows] == ["data", "started", "validated", "validated", "trained"]
    assert (rows[-1]["steps"], rows[-1]["for_the_network"]) == (4, True)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
    ]
    again = typed(*QUICK, "--out", out, "--steps", 4)
    assert isinstance(again.exception, ConfigError)
    assert "holds an adapter already" in str(again.exception)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--variant", "vera"), "variant is vera, it must be one of lora, rslora, dora"),
        (("--variant", "dora"), "variant dora: it divides by the norm"),
        (("--quantization", "int3"), "quantization is int3"),
        (("--targets", "wq"), "has no linear layer wq"),
        (("--base", "./no-such-base"), "no such directory"),
        (("--learning-rate", "-1"), "learning_rate is -1.0, it must be positive"),
        (("--near-duplicates", "0.2"), "must lie between 0.5 and 1"),
        (("--chat-template", "no-such-file"), "cannot read the chat template"),
        (("--continue-from", "no-such-folder"), "cannot read no-such-folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_training(
    tmp_path: Path, args: tuple[str, str], message: str
) -> None:
    result = typed(*QUICK, "--out", tmp_path / "out", *args)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_rank_above_the_networks_is_wrong_usage(tmp_path: Path) -> None:
    assert typed("--data", "domain:web", "--out", tmp_path / "out", "--rank", 65).exit_code == 2


@pytest.mark.slow
def test_a_run_killed_by_the_system_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "citrate_node.cli.main", "train", *QUICK, "--steps", "60"]
    command += ["--checkpoint-every", "5", "--validate-every", "10", "--json", "--out"]
    broken = tmp_path / "broken"
    running = subprocess.Popen([*command, str(broken)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (broken / "unfinished.safetensors").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running.pid, 9)
    running.wait()
    assert not (broken / "adapter_model.safetensors").exists()
    lines = subprocess.run([*command, str(broken)], check=True, capture_output=True, text=True).stdout
    assert json.loads(lines.splitlines()[-1])["resumed_at_step"] >= 5
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (broken / file.name).read_bytes()
