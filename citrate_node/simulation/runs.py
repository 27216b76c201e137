"""The folder that a run leaves, and folders of many runs: found, read, emptied before it is written again.

    OUT/options.json history.jsonl metrics.parquet result.json report.html recording/   one run
    OUT/seed-3/…, OUT/seed-4/…                                       many seeds
    OUT/lossy/seed-3/…                                               many scenarios

result.json is written last: a folder without it holds a run that failed or was stopped. Called by
scenario.py, report.py, comparison.py and `citrate simulate`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .metrics import (
    HISTORY_FILE,
    JSON_LINES_FILE,
    PARQUET_FILE,
    CheckpointRow,
    NodeColumns,
    read_columns,
    read_history,
)

OPTIONS_FILE = "options.json"
RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
RECORDING_FOLDER = "recording"
SEED_FOLDER = re.compile(r"seed-\d+")


@dataclass(frozen=True)
class Run:
    """A finished run, by its folder. Its files are read when they are asked for, once."""

    folder: Path
    options: dict[str, Any]
    result: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the scenario, and of its variant after a colon."""
        name, variant = self.options.get("scenario", self.folder.name), self.options.get("variant", "")
        return f"{name}:{variant}" if variant else str(name)

    @property
    def seed(self) -> int:
        return int(self.options.get("seed", 0))

    @cached_property
    def history(self) -> list[CheckpointRow]:
        return read_history(self.folder)

    @cached_property
    def columns(self) -> NodeColumns:
        """The node rows; of length 0 where the run left none."""
        return read_columns(self.folder)

    @property
    def command(self) -> str:
        """What repeats it."""
        source = self.options.get("source") or f"simulations/{self.options.get('scenario')}.toml"
        return repeat_command(source, self.seed, self.options.get("variant", ""))


def repeat_command(source: str | Path, seed: int, variant: str = "") -> str:
    """The command that runs one scenario file (and one of its variants) with one seed again."""
    chosen = ["--variant", variant] if variant else []
    return shlex.join(["citrate", "simulate", str(source), "--seed", str(seed), *chosen])


def read_run(folder: Path) -> Run:
    """Raises ConfigError where the folder holds no finished run."""
    if not (folder / RESULT_FILE).is_file():
        what = "a run that did not finish" if (folder / OPTIONS_FILE).is_file() else "no run"
        raise ConfigError(
            f"{folder} holds {what}\n  give a folder written by `citrate simulate SCENARIO.toml --out FOLDER`"
        )
    return Run(folder, _read_json(folder / OPTIONS_FILE), _read_json(folder / RESULT_FILE))


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or one per seed of a folder of many seeds, ascending by seed; of one scenario.

    Raises ConfigError where there is neither, or where runs of several scenarios lie beside one another.
    """
    seeds = [path for path in folder.iterdir() if _is_seed(path)] if folder.is_dir() else []
    if not seeds:
        return [read_run(folder)]
    runs = sorted((read_run(path) for path in seeds if (path / RESULT_FILE).is_file()), key=lambda r: r.seed)
    if not runs:
        raise ConfigError(f"none of the {len(seeds)} runs in {folder} has finished")
    names = sorted({run.name for run in runs})
    if len(names) > 1:
        raise ConfigError(f"{folder} holds runs of several scenarios ({', '.join(names)})")
    return runs


def _is_seed(path: Path) -> bool:
    return path.is_dir() and SEED_FOLDER.fullmatch(path.name) is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is damaged: it must hold an object")
    return raw


def forget_run(folder: Path) -> None:
    """Remove the files of the run that a folder holds, so that the next one does not mix with it.

    Raises ConfigError where the folder holds a recording that no simulation wrote, such as a devnet's.
    """
    recording = folder / RECORDING_FOLDER
    if (recording / "network.cbor").exists() and not (folder / OPTIONS_FILE).exists():
        raise ConfigError(
            f"{folder} holds a recording that is not of a simulation\n  give another folder with --out"
        )
    if not (folder / OPTIONS_FILE).exists():
        return
    # the result first, the options last: whoever is stopped in between leaves no folder that looks finished
    for name in (RESULT_FILE, REPORT_FILE, HISTORY_FILE, PARQUET_FILE, JSON_LINES_FILE):
        (folder / name).unlink(missing_ok=True)
    for left in folder.glob(".metrics.*"):  # of a run that was killed while it wrote
        left.unlink()
    if recording.is_dir():
        shutil.rmtree(recording)
    (folder / OPTIONS_FILE).unlink()
