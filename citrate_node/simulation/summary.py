"""Runs by kind of node, and each run in a few figures. Called by plots.py, report.py and comparison.py.

Node rows are taken as columns: a study of thousands of checkpoints has millions of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import HONEST, CheckpointRow, NodeColumns
from .runs import Run

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KindSeries:
    """What one kind of node came to, per checkpoint; over all nodes of the kind in all runs given."""

    kind: str
    nodes: int
    """Of this kind in one run."""
    checkpoints: npt.NDArray[np.int64]
    median: Floats
    """Reputation, parts of 1."""
    low: Floats
    high: Floats
    share: Floats
    """Part of the weight of the average, parts of 1; NaN where nothing entered the average."""


def by_kind(runs: Sequence[Run]) -> list[KindSeries]:
    """Honest nodes first, then by name; empty where the runs left no node rows."""
    columns = [run.columns for run in runs if len(run.columns.node)]
    if not columns:
        return []
    kinds = sorted({str(kind) for c in columns for kind in c.kinds}, key=lambda kind: (kind != HONEST, kind))
    return [_series(kind, columns) for kind in kinds]


def _series(kind: str, columns: Sequence[NodeColumns]) -> KindSeries:
    numbers, reputations, nodes = [], [], 0
    shares: dict[int, list[float | None]] = {}
    for each in columns:
        chosen = each.of_kind(kind)
        numbers.append(each.checkpoint[chosen])
        reputations.append(each.reputation_ppm[chosen] / 1e6)
        nodes = max(nodes, len(np.unique(each.node[chosen])))
        whole = np.bincount(each.checkpoint, weights=each.weight_ppm)
        part = np.bincount(numbers[-1], weights=each.weight_ppm[chosen], minlength=len(whole))
        for number in np.unique(numbers[-1]):
            shares.setdefault(int(number), []).append(part[number] / whole[number] if whole[number] else None)
    number, reputation = np.concatenate(numbers), np.concatenate(reputations)
    order = np.argsort(number, kind="stable")
    checkpoints, starts = np.unique(number[order], return_index=True)
    groups = np.split(reputation[order], starts[1:])
    return KindSeries(
        kind,
        nodes,
        checkpoints.astype(np.int64),
        np.array([np.median(g) for g in groups]),
        np.array([np.min(g) for g in groups]),
        np.array([np.max(g) for g in groups]),
        np.array([_mean_of_known(shares[int(n)]) for n in checkpoints]),
    )


def _mean_of_known(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def finality_ms(history: Sequence[CheckpointRow]) -> list[int]:
    """Virtual ms from one checkpoint to the next, the first from the start; empty without virtual time."""
    times = [row.virtual_ms for row in history]
    if any(time is None for time in times):
        return []
    known = [0, *(time for time in times if time is not None)]
    return [after - before for before, after in pairwise(known)]


def headline(run: Run) -> dict[str, float]:
    """A run in a few figures by name; those that it has not are left out."""
    history = run.history
    figures: dict[str, float] = {}
    if history:
        figures["loss"] = history[-1].loss
        figures["loss_least"] = min(row.loss for row in history)
        figures |= {f"loss_{name}": value for name, value in history[-1].figures.items()}
        figures["bytes_sent"] = float(history[-1].bytes_sent)
        times = finality_ms(history)
        if times:
            figures["finality_ms_mean"] = float(np.mean(times))
            figures["finality_ms_max"] = float(max(times))
    figures |= _of_nodes(run.columns)
    return figures


def _of_nodes(columns: NodeColumns) -> dict[str, float]:
    if not len(columns.node):
        return {}
    honest = columns.of_kind(HONEST)
    last = columns.checkpoint == columns.checkpoint.max()
    figures = {}
    for name, chosen in (("honest", honest & last), ("dishonest", ~honest & last)):
        if chosen.any():
            figures[f"reputation_of_{name}"] = float(np.median(columns.reputation_ppm[chosen])) / 1e6
    whole = float(columns.weight_ppm.sum())
    if whole and not honest.all():
        figures["weight_of_dishonest"] = float(columns.weight_ppm[~honest].sum()) / whole
    return figures


def outcomes_by_kind(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    """Kind to outcome to how often, over all checkpoints of all runs."""
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        columns: Any = run.columns
        pairs, numbers = np.unique(
            np.stack([columns.kind_code, columns.outcome_code]), axis=1, return_counts=True
        )
        for (kind, outcome), number in zip(pairs.T, numbers, strict=True):
            of_kind = counts.setdefault(str(columns.kinds[kind]), {})
            name = str(columns.outcomes[outcome])
            of_kind[name] = of_kind.get(name, 0) + int(number)
    return counts
