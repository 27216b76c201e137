"""Many runs of one command: scenario files (with their variants) times seeds, of either engine.

All files are read and judged before the first run starts, and every run has a folder of its own, so that a
wrong key in the last file does not cost a night. Called by `citrate simulate`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import read_toml
from ..errors import ConfigError
from .checkers import ProgressViolation, SafetyViolation
from .rounds_scenario import ENGINE, RoundsScenario, load_rounds, run_rounds_scenario
from .runs import repeat_command
from .scenario import run_scenario
from .scenario_file import Scenario, load_scenarios

SEEDS_MAX = 10_000
OnCheckpoint = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """One scenario (or one of its variants) with one seed."""

    source: Path
    scenario: Scenario | RoundsScenario
    variant: str
    """Empty where the file has none."""
    seed: int
    folder: Path | None
    """Where the run leaves its files."""
    group_folder: Path | None
    """Where the report of all its seeds goes; `folder` itself where there is one seed."""
    workers: int = 1
    ray: str | None = None

    @property
    def name(self) -> str:
        return self.scenario.name

    @property
    def question(self) -> str:
        return self.scenario.question

    @property
    def checkpoints(self) -> int:
        if isinstance(self.scenario, RoundsScenario):
            return self.scenario.options.checkpoints
        return self.scenario.checkpoints

    @property
    def label(self) -> str:
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @property
    def command(self) -> str:
        """What repeats it alone."""
        return repeat_command(self.source, self.seed, self.variant)

    def run(self, on_checkpoint: OnCheckpoint) -> dict[str, Any]:
        """Its result. Raises RunFailed with the reason, ConfigError or ServiceError."""
        try:
            if isinstance(self.scenario, RoundsScenario):
                return run_rounds_scenario(
                    self.scenario, self.folder, on_checkpoint, workers=self.workers, ray=self.ray
                )
            return run_scenario(self.scenario, self.folder, on_checkpoint, workers=self.workers, ray=self.ray)
        except (SafetyViolation, ProgressViolation) as violation:
            raise RunFailed(str(violation)) from violation


class RunFailed(Exception):
    """The simulated network broke a promise, or came to a stop."""


def parse_seeds(text: str, first: int) -> list[int]:
    """The seeds that `--seeds` names: "1..10", "3,5,8", or a number of them counted from `first`.

    Raises ConfigError where it is none of these, names none, or more than 10,000.
    """
    number = r"\d{1,15}"
    if re.fullmatch(number, text):
        seeds = range(first, first + int(text))
    elif match := re.fullmatch(rf"({number})\.\.({number})", text):
        seeds = range(int(match[1]), int(match[2]) + 1)
    elif re.fullmatch(rf"{number}(,{number})*", text):
        return sorted({int(part) for part in text.split(",")})
    else:
        raise ConfigError(
            f"--seeds is {text!r}\n"
            "  write 1..10 for these ten, 3,5,8 for these three, or 10 for ten counted from --seed"
        )
    if not 1 <= len(seeds) <= SEEDS_MAX:
        raise ConfigError(f"--seeds {text} names {len(seeds):,} seeds, must be between 1 and {SEEDS_MAX:,}")
    return list(seeds)


def plan(
    paths: Sequence[Path],
    seeds: Sequence[int],
    out: Path | None,
    *,
    variants: Sequence[str] = (),
    workers: int = 1,
    ray: str | None = None,
) -> list[Job]:
    """All runs, in the order in which they are done: file by file, variant by variant, seed by seed.

    variants: only these; all where empty. Raises ConfigError as the loaders do, for a variant that no file
    has, and for two files whose runs would go to one folder.
    """
    found = [(path, variant) for path in paths for variant in _load(path, seeds[0])]
    unknown = [name for name in variants if name not in {variant for _, variant in found}]
    if unknown:
        known = ", ".join(variant for _, variant in found if variant) or "none"
        raise ConfigError(f"there is no variant {unknown[0]!r}\n  there are: {known}")
    chosen = [(path, variant) for path, variant in found if not variants or variant in variants]
    folders = dict(zip(chosen, _folders(chosen, out), strict=True))
    loaded = {(path, seed): _load(path, seed) for path in dict.fromkeys(paths) for seed in seeds}
    jobs = []
    for path, variant in chosen:
        for seed in seeds:
            group_folder = folders[path, variant]
            many = group_folder is not None and len(seeds) > 1
            own = group_folder / f"seed-{seed}" if group_folder is not None and many else group_folder
            scenario = loaded[path, seed][variant]
            jobs.append(Job(path, scenario, variant, seed, own, group_folder, workers, ray))
    return jobs


def _load(path: Path, seed: int) -> dict[str, Scenario | RoundsScenario]:
    """Name of a variant to what it asks; one without a name where the file has none."""
    if read_toml(path).get("engine") == ENGINE:
        return {scenario.variant: scenario for scenario in load_rounds(path, seed)}
    return {scenario.variant: scenario for scenario in load_scenarios(path, seed)}


def _folders(chosen: Sequence[tuple[Path, str]], out: Path | None) -> list[Path | None]:
    if out is None:
        return [None] * len(chosen)
    several_files = len({path for path, _ in chosen}) > 1
    folders = []
    for path, variant in chosen:
        parts = [path.stem] * several_files + (variant.split("/") if len(chosen) > 1 and variant else [])
        folders.append(out.joinpath(*(_file_name(part) for part in parts)))
    doubled = {folder for folder in folders if folders.count(folder) > 1}
    if doubled:
        raise ConfigError(
            f"two scenarios would write to {sorted(doubled)[0]}\n"
            "  run them by two commands, each with its own --out"
        )
    return list(folders)


def _file_name(part: str) -> str:
    """A variant's name comes from a file that may be anybody's: it must not lead out of the folder."""
    return re.sub(r"[^\w.+=-]", "_", part).lstrip(".") or "_"


def groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs of one scenario and variant together: the seeds of one report."""
    by_key: dict[tuple[Path, str], list[Job]] = {}
    for job in jobs:
        by_key.setdefault((job.source, job.variant), []).append(job)
    yield from by_key.values()
