"""How `citrate simulate compare` shows a comparison: tables for people, one object per line for scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from citrate_node.cli.output import print_json

if TYPE_CHECKING:
    from citrate_node.simulation.comparison import Comparison, FigureBeside


def show_comparison(comparison: Comparison, json_lines: bool) -> None:
    """Options that differ first, then the figures."""
    if json_lines:
        _print_lines(comparison)
    else:
        _print_tables(comparison)


def _print_lines(comparison: Comparison) -> None:
    for key, (first, second) in comparison.options.items():
        print_json({"type": "option", "key": key, "first": first, "second": second})
    for figure in comparison.figures:
        print_json({"type": "figure", **asdict(figure), "beyond_chance": figure.difference.excludes_zero})
    print_json(
        {
            "type": "summary",
            "first": comparison.first,
            "second": comparison.second,
            "seeds": comparison.seeds,
            "options_that_differ": len(comparison.options),
        }
    )


def _print_tables(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    names = (comparison.first, comparison.second)
    if comparison.first == comparison.second:
        names = (f"first: {comparison.first}", f"second: {comparison.second}")
    if comparison.options:
        options = Table("option", *names, box=None, pad_edge=False)
        for key, values in comparison.options.items():
            options.add_row(key, *(_plain(value) for value in values))
        console.print(options, highlight=False)
    else:
        console.print("no option differs but the seeds")
    console.print()
    figures = Table(box=None, pad_edge=False)
    figures.add_column("figure")
    for name in (*names, "second less first", ""):
        figures.add_column(name, justify="right", no_wrap=True)
    for figure in comparison.figures:
        figures.add_row(figure.label, *_cells(figure))
    console.print(figures, highlight=False)
    console.print()
    console.print(_told(comparison), highlight=False)


def _cells(figure: FigureBeside) -> tuple[str, str, str, str]:
    from citrate_node.simulation.report import figure_text

    first, second = (figure_text(figure.name, side) for side in (figure.first, figure.second))
    difference = figure_text(figure.name, figure.difference)
    if not difference.startswith("-") and figure.difference.mean:
        difference = f"+{difference}"
    mark = " *" if figure.difference.excludes_zero else "  "
    part = figure.difference.mean / abs(figure.first.mean) if figure.first.mean else None
    return first, second, difference + mark, "" if part is None else f"{100 * part:+.1f} %"


def _told(comparison: Comparison) -> str:
    if not comparison.seeds:
        return "no seed in common: differences are of means, and without an interval"
    if len(comparison.seeds) == 1:
        return f"one seed ({comparison.seeds[0]}): a difference may be chance; run both with --seeds 1..10"
    seeds = ", ".join(map(str, comparison.seeds))
    return f"± 95 % interval; differences seed by seed ({seeds}); * leaves out zero"


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)
