"""The plots of a report, as SVG text that may stand in an HTML page. Called by report.py.

Text and axes are `currentColor`, so that one picture serves a light and a dark page; the colours of series
are Okabe and Ito's, which people of any colour sight tell apart. Several runs are seeds of one scenario: a
line is then their mean and the band its 95 % interval, over the checkpoints that all of them reached.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .intervals import Interval, interval
from .metrics import HONEST, CheckpointRow
from .runs import Run
from .summary import KindSeries, by_kind, finality_ms

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D", "#7F7F7F")
_TEXT = "#010203"
"""A colour that no series has; it becomes currentColor."""
_SIZE_INCHES = (6.4, 3.2)
_LABELS_MAX = 8
"""Kinds that a legend names; a study of more is better read from its rows."""

Draw = Callable[[Any], str]
"""Draws on axes; returns in a sentence what there is to see."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture and what it says, for whoever does not see it."""

    name: str
    title: str
    description: str
    svg: str


def plots(runs: Sequence[Run]) -> list[Plot]:
    """Those for which the runs have figures. Raises ImportError where matplotlib is not installed."""
    series = by_kind(runs)
    drawn = [_plot("loss", "Loss over checkpoints", lambda axes: _loss(axes, runs, by_bytes=False))]
    if any(row.bytes_sent for run in runs for row in run.history):
        drawn.append(_plot("bytes", "Loss over bytes sent", lambda axes: _loss(axes, runs, by_bytes=True)))
    if series:
        drawn.append(
            _plot("reputation", "Reputation by kind of node", lambda axes: _reputation(axes, series))
        )
        drawn.append(_plot("weight", "Share of the average's weight", lambda axes: _shares(axes, series)))
    if all(finality_ms(run.history) for run in runs):
        drawn.append(_plot("finality", "Time from checkpoint to checkpoint", lambda axes: _times(axes, runs)))
    return drawn


def _loss(axes: Any, runs: Sequence[Run], *, by_bytes: bool) -> str:
    length = min(len(run.history) for run in runs)
    names = ["", *sorted({name for run in runs for row in run.history for name in row.figures})]
    told = []
    for place, name in enumerate(names):
        points = [interval([_figure(run.history[i], name) for run in runs]) for i in range(length)]
        if by_bytes:
            across = [interval([run.history[i].bytes_sent / 1e6 for run in runs]).mean for i in range(length)]
        else:
            across = [float(runs[0].history[i].number) for i in range(length)]
        label = name.replace("_", " ") if name else "own held-out data"
        _line(axes, across, points, COLOURS[place % len(COLOURS)], label)
        told.append(f"{label}: from {points[0].mean:.4g} to {points[-1].mean:.4g}")
    if len(names) > 1:
        _legend(axes)
    axes.set_xlabel("megabytes sent" if by_bytes else "checkpoint")
    axes.set_ylabel("loss")
    until = f" after {across[-1]:.4g} MB" if by_bytes else f" after {length} checkpoints"
    return "; ".join(told) + until + _seeds_told(runs)


def _figure(row: CheckpointRow, name: str) -> float:
    return row.figures.get(name, float("nan")) if name else row.loss


def _seeds_told(runs: Sequence[Run]) -> str:
    return f"; mean of {len(runs)} seeds, band: its 95 % interval" if len(runs) > 1 else ""


def _line(axes: Any, across: list[float], points: list[Interval], colour: str, label: str) -> None:
    marker = "o" if len(points) <= 30 else ""
    axes.plot(across, [p.mean for p in points], color=colour, marker=marker, markersize=3, label=label)
    if points[0].count > 1:
        axes.fill_between(
            across, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.25, linewidth=0
        )


def _reputation(axes: Any, series: Sequence[KindSeries]) -> str:
    told = []
    for place, each in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        label = _labelled(each) if place < _LABELS_MAX else None
        axes.plot(each.checkpoints, each.median, color=colour, label=label)
        axes.fill_between(each.checkpoints, each.low, each.high, color=colour, alpha=0.2, linewidth=0)
        told.append(f"{each.kind} {each.median[-1]:.2f} ({each.low[-1]:.2f} to {each.high[-1]:.2f})")
    axes.set_ylim(0, 1)
    axes.set_xlabel("checkpoint")
    axes.set_ylabel("reputation: median, least to most")
    _legend(axes)
    return "Median (least to most) after the last checkpoint: " + ", ".join(told)


def _legend(axes: Any) -> None:
    """Beside the axes: inside, it would lie on somebody's line."""
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _labelled(each: KindSeries) -> str:
    return f"{each.kind.replace('_', ' ')} ({each.nodes})"


def _shares(axes: Any, series: Sequence[KindSeries]) -> str:
    """Lines and not a stack: the shares that are asked about are the small ones."""
    told = []
    for place, each in enumerate(series):
        label = _labelled(each) if place < _LABELS_MAX else None
        marker = "o" if len(each.checkpoints) <= 30 else ""
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(each.checkpoints, 100 * each.share, color=colour, label=label, marker=marker, markersize=3)
        known = each.share[each.share == each.share]
        told.append(f"{each.kind} {100 * known.mean():.1f} %" if len(known) else f"{each.kind} none")
    dishonest = sum(each.nodes for each in series if each.kind != HONEST)
    everybody = sum(each.nodes for each in series)
    if dishonest:
        part = 100 * dishonest / everybody
        axes.axhline(
            part, color=_TEXT, linestyle=":", linewidth=1, label=f"dishonest nodes:\n{part:.0f} % of all"
        )
    axes.set_ylim(-3, 103)
    axes.set_xlabel("checkpoint")
    axes.set_ylabel("% of the weight")
    _legend(axes)
    return "Mean over the checkpoints: " + ", ".join(told)


def _times(axes: Any, runs: Sequence[Run]) -> str:
    length = min(len(run.history) for run in runs)
    times = [finality_ms(run.history) for run in runs]
    points = [interval([each[i] / 1000 for each in times]) for i in range(length)]
    numbers = [float(row.number) for row in runs[0].history[:length]]
    _line(axes, numbers, points, COLOURS[0], "")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("checkpoint")
    axes.set_ylabel("virtual seconds")
    longest = max(p.mean for p in points)
    mean = sum(p.mean for p in points) / length
    told = f"Until all running nodes have it: {mean:.1f} s in the mean, {longest:.1f} s at most"
    return told + _seeds_told(runs)


def _plot(name: str, title: str, draw: Draw) -> Plot:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {
        "svg.fonttype": "none",  # text stays text: read aloud, searched, small
        "svg.hashsalt": "citrate",  # the same file for the same run
        "font.family": "sans-serif",
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT
        ),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        description = draw(axes)
        if name != "bytes":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Plot(name, title, description, _embedded(file.getvalue(), name, title, description))


def _embedded(svg: str, name: str, title: str, description: str) -> str:
    """The svg element alone, as wide as the page allows, with a name and a description."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', body, count=1)
    body = body.replace(_TEXT, "currentColor")
    for mark in (' id="', 'href="#', "url(#"):  # matplotlib counts its ids anew in each picture
        body = body.replace(mark, f"{mark}{name}-")
    opened = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
        f' style="stroke-linejoin:round;stroke-linecap:butt"'
    )
    told = (
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )
    first_end = body.index(">") + 1
    return opened + body[len("<svg") : first_end] + told + body[first_end:]
