"""`citrate evaluate`: measure an adapter before it is promoted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from citrate_node.training.evaluation import Evaluation

app = typer.Typer(add_completion=False)


@app.command("evaluate")
def evaluate(
    folders: list[Path] = typer.Argument(..., help="Adapter folders, of one base."),
    data: list[str] = typer.Option(
        ..., "--data", help="The adapter's domain, as in `citrate train`; may be given several times."
    ),
    general: str = typer.Option(
        "general", "--general", help="General text: its held-out part. [default: of the embedded corpus]"
    ),
    bound: float = typer.Option(
        5.0, "--bound", min=0.0, help="Percent that the loss on general text may rise above the base's."
    ),
    base: str = typer.Option("embedded", "--base", help='"embedded", a folder or a hub name.'),
    quantization: str = typer.Option(
        "none", "--quantization", help="none or nf4: of the base, as it will be deployed."
    ),
    suite: Path | None = typer.Option(
        None, "--suite", help="TOML file of your own prompts; see examples/regression/suite.toml."
    ),
    all_examples: bool = typer.Option(
        False, "--all-examples", help="Measure on all of --data, for data that nothing was trained on."
    ),
    sequence: int = typer.Option(128, "--sequence", min=8, help="Tokens per sequence."),
    force: str | None = typer.Option(
        None, "--force", metavar="REASON", help="Promote what is held back all the same; the reason is kept."
    ),
    report: Path | None = typer.Option(
        None, "--report", help="Where to write the JSON. [default: evaluation.json in the folder]"
    ),
    device: str = typer.Option("auto", "--device", help="auto, cpu or cuda."),
    threads: int = typer.Option(1, "--threads", min=1, help="CPU threads."),
    json_lines: bool = typer.Option(False, "--json", help="One JSON object per adapter on stdout."),
) -> None:
    """Measure adapters on their domain and on general text, and hold back what forgets too much.

    Takes whatever `citrate train` writes: LoRA, rsLoRA, DoRA; with --quantization nf4 beside a base in 4
    bits; and heads for labels (measured on labelled texts: general text has none, so no bound applies).

    Writes the figures into evaluation.json, provenance.json and the card. Ends with 1 where the loss on
    general text is above the bound or a prompt of the suite fails, unless --force gives a reason. A signed
    provenance loses its signature: sign it again with `citrate adapter card`.

    Example: citrate evaluate web-adapter --data domain:web
    """
    from citrate_node.cli.output import print_json
    from citrate_node.errors import ConfigError
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.evaluation import EvaluationSettings, record
    from citrate_node.training.evaluation import evaluate as measure
    from citrate_node.training.run_settings import QUANTIZATIONS
    from citrate_node.training.suite import read_suite

    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization is {quantization}, it must be one of {', '.join(QUANTIZATIONS)}")
    if force is not None and not force.strip():
        raise ConfigError("force: a reason is wanted, and it is empty")
    if report is not None and len(folders) > 1:
        raise ConfigError("report: one file cannot hold several adapters; leave it out, or give one folder")
    settings = EvaluationSettings(
        tuple(data),
        general,
        bound,
        quantization,
        sequence,
        all_examples,
        read_suite(suite) if suite is not None else (),
    )
    found = measure(folders, BaseModel.load(base), settings, device=device, threads=threads)
    for evaluation in found:
        record(evaluation, force, report)
        _warn_of_other_precision(evaluation)
        if json_lines:
            print_json({"folder": str(evaluation.folder), **evaluation.as_json(force)})
    if not json_lines:
        _show(found, force)
    if force is None and any(evaluation.failures for evaluation in found):
        raise typer.Exit(1)


def _warn_of_other_precision(evaluation: Evaluation) -> None:
    """An adapter learnt to make up for what its base lost in 4 bits; beside another it is another model."""
    from citrate_node.training.provenance import read_provenance

    provenance = read_provenance(evaluation.folder)
    learnt = provenance.training.quantization if provenance and provenance.training else None
    if learnt not in (None, evaluation.quantization):
        typer.echo(
            f"citrate: {evaluation.folder.name} was trained with --quantization {learnt} and measured with "
            f"{evaluation.quantization}: that holds for deploying it so",
            err=True,
        )


def _show(found: list[Evaluation], force: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    unit = "token" if found[0].rows[0].accuracy is None else "text"
    table = Table(title=f"held-out loss, nats per {unit}; lower is better", title_justify="left")
    table.add_column("adapter")
    for row in found[0].rows:
        table.add_column(row.name, justify="right")
    table.add_row("base alone", *(f"{row.loss_base:.4f}" for row in found[0].rows))
    for evaluation in found:
        cells = (f"{row.loss:.4f} ({row.improvement_ppm / 10_000:+.1f} %)" for row in evaluation.rows)
        table.add_row(evaluation.folder.name, *cells)
        if any(row.accuracy is not None for row in evaluation.rows):
            right = (f"{100 * (row.accuracy or 0):.1f} % right" for row in evaluation.rows)
            table.add_row("", *right)
    Console().print(table)
    for evaluation in found:
        name = evaluation.folder.name
        for result in evaluation.suite:
            typer.echo(f"{name}   {'failed' if result.failures else 'holds '}   {result.name}")
        if not evaluation.failures:
            typer.echo(f"{name}   may be promoted")
            continue
        for failure in evaluation.failures:
            typer.echo(f"{name}   held back: {failure}")
        if force is not None:
            typer.echo(f"{name}   promoted all the same: {force}")
        else:
            typer.echo(f"{name}   train it for fewer steps or with a lower rate, or give --force REASON")
