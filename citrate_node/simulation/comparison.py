"""Two runs, or two sets of seeds, beside one another: what was set otherwise, and what came of it.

The same seed gives both sides the same data, latencies and draws, so that differences are taken seed by seed:
their interval is narrower than what two means apart would say. Called by `citrate simulate compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .intervals import Interval, interval
from .report import figure_label
from .runs import Run
from .summary import headline

_NOT_COMPARED = ("seed", "source", "question", "scenario", "variant")
PAIRED_LABELS = {
    "loss_at_same_bytes": "loss when both had sent as many bytes",
    "bytes_to_same_loss": "bytes until the loss that both reached",
    "checkpoints_to_same_loss": "checkpoints until the loss that both reached",
}
"""Figures that a run has only beside another."""


@dataclass(frozen=True, slots=True)
class FigureBeside:
    """One figure of both sides."""

    name: str
    label: str
    first: Interval
    second: Interval
    difference: Interval
    """Second less first: seed by seed where `paired`, of the two means otherwise (then without a width)."""
    paired: bool


@dataclass(frozen=True)
class Comparison:
    """What `citrate simulate compare` shows."""

    first: str
    second: str
    seeds: tuple[int, ...]
    """In both; empty where no seed is, and nothing is paired."""
    options: dict[str, tuple[Any, Any]]
    """Dotted key to both values, where they differ; None where one side has no such key."""
    figures: tuple[FigureBeside, ...]


def compare(first: Sequence[Run], second: Sequence[Run]) -> Comparison:
    """Raises ConfigError where a side mixes runs of different options, or a run left no checkpoint."""
    for side in (first, second):
        _check_alike(side)
    by_seed = [{run.seed: run for run in side} for side in (first, second)]
    seeds = tuple(sorted(set(by_seed[0]) & set(by_seed[1])))
    if seeds:
        pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in seeds]
        figures = _paired(pairs)
    else:
        figures = _unpaired(first, second)
    names = [side[0].name for side in (first, second)]
    return Comparison(names[0], names[1], seeds, _different(first[0], second[0]), tuple(figures))


def _check_alike(side: Sequence[Run]) -> None:
    for run in side:
        if not run.history:
            raise ConfigError(f"{run.folder} has no checkpoint: there is nothing to compare")
        differ = _different(side[0], run)
        if differ:
            raise ConfigError(
                f"{side[0].folder} and {run.folder} are no seeds of one scenario: {next(iter(differ))} "
                "differs\n  run them again by one command, with --seeds"
            )


def _paired(pairs: Sequence[tuple[Run, Run]]) -> list[FigureBeside]:
    figures = [(headline(a), headline(b)) for a, b in pairs]
    for (a, b), (of_a, of_b) in zip(pairs, figures, strict=True):
        for name, (value_a, value_b) in _beside(a, b).items():
            of_a[name], of_b[name] = value_a, value_b
    out = []
    for name in figures[0][0]:
        if not all(name in a and name in b for a, b in figures):
            continue
        firsts, seconds = [a[name] for a, _ in figures], [b[name] for _, b in figures]
        differences = [b - a for a, b in zip(firsts, seconds, strict=True)]
        label = PAIRED_LABELS.get(name) or figure_label(name)
        out.append(
            FigureBeside(name, label, interval(firsts), interval(seconds), interval(differences), True)
        )
    return out


def _unpaired(first: Sequence[Run], second: Sequence[Run]) -> list[FigureBeside]:
    sides = [[headline(run) for run in side] for side in (first, second)]
    out = []
    for name in sides[0][0]:
        if all(name in figures for side in sides for figures in side):
            a, b = (interval([figures[name] for figures in side]) for side in sides)
            difference = Interval(b.mean - a.mean, 0.0, 1)
            out.append(FigureBeside(name, figure_label(name), a, b, difference, False))
    return out


def _beside(a: Run, b: Run) -> dict[str, tuple[float, float]]:
    """Loss for equal bytes, and bytes and checkpoints for equal loss; what there is of them."""
    out: dict[str, tuple[float, float]] = {}
    least_sent = min(a.history[-1].bytes_sent, b.history[-1].bytes_sent)
    if least_sent:
        at = [[row.loss for row in run.history if row.bytes_sent <= least_sent] for run in (a, b)]
        if all(at):
            out["loss_at_same_bytes"] = (at[0][-1], at[1][-1])
    reached = max(min(row.loss for row in run.history) for run in (a, b))
    when = [next(row for row in run.history if row.loss <= reached) for run in (a, b)]
    if least_sent:
        out["bytes_to_same_loss"] = (float(when[0].bytes_sent), float(when[1].bytes_sent))
    out["checkpoints_to_same_loss"] = (float(when[0].number), float(when[1].number))
    return out


def _different(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    first, second = _flat(a.options), _flat(b.options)
    keys = dict.fromkeys((*first, *second))
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if not prefix and key in _NOT_COMPARED:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
