"""What `citrate simulate` says while it runs: a line per checkpoint or per run, and how far it has come."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from citrate_node.cli.output import print_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from citrate_node.simulation.batch import Job

LINES_MAX = 200
"""Checkpoints that get a line each; a longer run gets one now and then."""


class Show:
    """Prints, and moves a bar on a terminal's stderr where there are several runs or many checkpoints."""

    def __init__(self, jobs: list[Job], json_lines: bool) -> None:
        self._json = json_lines
        self._one = len(jobs) == 1
        self._count = len(jobs)
        self._begun = 0
        self._total = sum(job.checkpoints for job in jobs)
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> Show:
        if not self._json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._bar = self._progress.add_task("", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if kind is KeyboardInterrupt and self._begun > 1 and not self._json:
            print(f"stopped; {self._begun - 1} of {self._count} runs are done and whole", file=sys.stderr)

    def begins(self, job: Job) -> None:
        self._begun += 1
        if not self._json and self._one:
            self._say(f"{job.label}, seed {job.seed}: {job.question}".rstrip(": "))

    def checkpoint(self, job: Job, row: dict[str, Any]) -> None:
        if self._progress is not None and self._bar is not None:
            where = (
                f"run {self._begun}/{self._count}   {job.label}, seed {job.seed}   checkpoint {row['number']}"
            )
            self._progress.update(self._bar, advance=1, description=where)
        if self._json:
            print_json(row if self._one else {**row, **_which(job)})
        elif self._one and row["number"] % max(1, job.checkpoints // LINES_MAX) == 0:
            at = f"   at {row['virtual_ms']} ms" if "virtual_ms" in row else ""
            self._say(
                f"checkpoint {row['number']}   signals {row.get('signals', '-')}   loss {row['loss']:.4f}   "
                f"{row['record_hash'][:16]}…{at}"
            )

    def ends(self, job: Job, result: dict[str, Any]) -> None:
        if self._json:
            print_json(result)
        else:
            which = "" if self._one else f"{job.label}, seed {job.seed}   "
            self._say(f"{which}history {result['history_hash'][:16]}…   loss {result['loss']:.4f}")

    def failed(self, job: Job, why: str) -> None:
        if self._json:
            print_json({"type": "failed", **_which(job), "text": why, "repeat": job.command})
        else:
            self._say(f"{job.label}, seed {job.seed}   FAILED: {why}\n  repeat it with `{job.command}`")

    def report(self, path: Path) -> None:
        if self._json:
            print_json({"type": "report", "path": str(path)})
        else:
            self._say(f"report {path}")

    def note(self, text: str) -> None:
        """Something that is missing and does no harm."""
        print(f"citrate: {text}", file=sys.stderr)

    def _say(self, text: str) -> None:
        if self._progress is not None and sys.stdout.isatty():
            self._progress.console.file.flush()
            self._progress.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)


def _which(job: Job) -> dict[str, Any]:
    return {"scenario": job.name, "variant": job.variant, "seed": job.seed}
