"""Timing and printing for the benchmarks of exact mathematics. Called by codecs_speed, aggregation_speed,
stack_recompression and mathematics."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

VALUES = 3_145_728
"""24 layers, query and value projections of width 2048, rank 16: 12.6 MB of float32."""

ROTATION = 8
"""Buffers gone through in turn: 100 MB, more than the caches, since a real delta is in none of them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One claim, what was measured for it, and whether it held."""

    claim: str
    ours: float
    unit: str
    against: str
    theirs: float | None
    """None where the peer is not installed."""

    ratio: float | None
    target: float
    met: bool | None


def compared(claim: str, ours: float, unit: str, against: str, theirs: float | None, target: float) -> Row:
    """A row whose target is a ratio ours / theirs of rates (more is better)."""
    ratio = None if theirs is None else ours / theirs
    return Row(claim, ours, unit, against, theirs, ratio, target, None if ratio is None else ratio >= target)


def below(claim: str, ours: float, unit: str, target: float) -> Row:
    """A row whose target is an upper bound of the figure itself."""
    return Row(claim, ours, unit, "upper bound", target, ours / target, 1.0, ours <= target)


def best_seconds(run: Callable[[], object], repeats: int = 5, seconds_min: float = 1.5) -> float:
    """The least of some runs after one that is not counted: what the machine can do when left alone.

    Seconds of this process on its one core, since other work would otherwise be measured, too; short runs are
    repeated for `seconds_min`, so that it also disturbs the caches of one of them less.
    """
    run()
    gc.collect()
    best, spent, done = float("inf"), 0.0, 0
    while done < repeats or spent < seconds_min:
        start = time.process_time()
        run()
        elapsed = time.process_time() - start
        best, spent, done = min(best, elapsed), spent + elapsed, done + 1
    return best


def table(rows: Iterable[Row]) -> str:
    """For a terminal."""
    lines = [f"{'claim':<58}{'ours':>11} {'unit':<12}{'theirs':>11}{'ratio':>10}{'target':>9}  met"]
    for row in rows:
        theirs = "-" if row.theirs is None else f"{row.theirs:,.3f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:,.2f}"
        met = {True: "yes", False: "NO", None: "peer not installed"}[row.met]
        lines.append(
            f"{row.claim:<58}{row.ours:>11,.3f} {row.unit:<12}{theirs:>11}{ratio:>10}{row.target:>9g}  {met}"
        )
        lines.append(f"    against {row.against}")
    return "\n".join(lines)


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    """For benchmarks/results."""
    return [asdict(row) for row in rows]
