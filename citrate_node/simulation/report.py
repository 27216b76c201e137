"""report.html: one page that holds a run, or the seeds of one scenario; no other file, script or internet.

Plots are drawn by plots.py, figures come from summary.py, the page is report.html.j2. Called by
`citrate simulate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError
from ..protocol.preset import Preset
from ..recording import write_atomically
from .intervals import Interval, interval
from .metrics import CheckpointRow
from .runs import REPORT_FILE, Run
from .summary import by_kind, headline, outcomes_by_kind

ROWS_MAX = 120
"""Checkpoints in the table; of more, every so many-th, and the first and the last."""

FIGURES = {
    "loss": "loss at the end",
    "loss_least": "least loss",
    "bytes_sent": "bytes sent",
    "finality_ms_mean": "mean virtual ms from checkpoint to checkpoint",
    "finality_ms_max": "most virtual ms from checkpoint to checkpoint",
    "reputation_of_honest": "median reputation of honest nodes at the end",
    "reputation_of_dishonest": "median reputation of dishonest nodes at the end",
    "weight_of_dishonest": "part of all weight that dishonest nodes had",
}
"""Name of a figure of summary.headline to what it is."""


def figure_label(name: str) -> str:
    """What a figure is, in words."""
    if name in FIGURES:
        return FIGURES[name]
    return f"{name.removeprefix('loss_').replace('_', ' ')} loss at the end"


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Write report.html of these runs of one scenario into `folder`; its path.

    Raises ConfigError where matplotlib or Jinja2 is not installed, or a run left no checkpoint.
    """
    path = folder / REPORT_FILE
    write_atomically(path, report_html(runs).encode())
    return path


def report_html(runs: Sequence[Run]) -> str:
    """The page. Raises ConfigError as `write_report`."""
    empty = [run for run in runs if not run.history]
    if empty:
        raise ConfigError(f"{empty[0].folder} has no checkpoint: there is nothing to report")
    try:
        from jinja2 import Environment, StrictUndefined

        from .plots import plots

        drawn = plots(runs)
    except ImportError as error:
        raise ConfigError(
            f"a report needs matplotlib and Jinja2 ({error})\n"
            "  `pip install 'citrate-node[parquet]'`, or leave it out with --no-report"
        ) from None
    source = (resources.files("citrate_node.simulation") / "report.html.j2").read_text()
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
    return page.render(**_facts(runs), plots=drawn)


def _facts(runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0]
    preset = first.options.get("preset")
    return {
        "version": __version__,
        "name": first.name,
        "question": first.options.get("question", ""),
        "seeds": [run.seed for run in runs],
        "commands": [run.command for run in runs],
        "figures": _figures(runs),
        "kinds": [(s.kind.replace("_", " "), s.nodes, f"{s.median[-1]:.3f}") for s in by_kind(runs)],
        "outcomes": _outcomes(runs),
        "verdicts": [(run.seed, verdict) for run in runs for verdict in _verdicts(run)],
        "histories": [(run.seed, run.result.get("history_hash", "")) for run in runs],
        "options": {
            key: _plain(value)
            for key, value in first.options.items()
            if key not in ("preset", "question", "scenario", "variant", "seed", "source")
            and value not in ([], None, {})
        },
        "preset": preset if isinstance(preset, dict) else {},
        "preset_order": [f.name for f in fields(Preset)],
        "rows": _rows(first.history),
        "rows_of": f"seed {first.seed}" if len(runs) > 1 else "",
        "left_out": max(0, len(first.history) - ROWS_MAX),
    }


def _figures(runs: Sequence[Run]) -> list[tuple[str, str]]:
    each = [headline(run) for run in runs]
    names = [name for name in each[0] if all(name in figures for figures in each)]
    return [(figure_label(name), figure_text(name, interval([f[name] for f in each]))) for name in names]


def figure_text(name: str, figure: Interval) -> str:
    """With its 95 % interval, where there are several values."""
    whole = name.startswith(("bytes", "finality"))
    mean, half = (f"{x:,.0f}" if whole else f"{x:.4g}" for x in (figure.mean, figure.half_width))
    return f"{mean} ± {half}" if figure.count > 1 else mean


def _verdicts(run: Run) -> list[str]:
    """What came of the scenario's expectations; nothing where it has none."""
    failures = [f"did not pass: {failure}" for failure in run.result.get("failures", [])]
    return failures or ["passed"] * bool(run.options.get("pass"))


def _outcomes(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    counted = outcomes_by_kind(runs)
    return [(kind.replace("_", " "), sorted(of.items(), key=lambda e: -e[1])) for kind, of in counted.items()]


def _rows(history: Sequence[CheckpointRow]) -> list[CheckpointRow]:
    if len(history) <= ROWS_MAX:
        return list(history)
    step = -(-len(history) // ROWS_MAX)
    return [row for place, row in enumerate(history) if place % step == 0 or place == len(history) - 1]


def _plain(value: Any) -> str:
    if isinstance(value, list) and len(value) > 40:
        return ", ".join(str(entry) for entry in value[:40]) + f", … ({len(value)} in all)"
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return str(value)
