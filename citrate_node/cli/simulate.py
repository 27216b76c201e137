"""`citrate simulate`: the same nodes under virtual time, with faults and a seed; and what such runs leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from citrate_node.simulation.batch import Job

JSON = typer.Option(False, "--json", help="One JSON object per line on stdout, nothing else.")


class _RunsByDefault(TyperGroup):
    """`citrate simulate x.toml` is `citrate simulate run x.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Run the same nodes under virtual time, with faults and a seed.

    `citrate simulate SCENARIO.toml …` runs scenarios (the word `run` may be left out; its options:
    `citrate simulate run --help`). How to write one, and what a run leaves: docs/simulation.md
    """,
)


@app.command()
def run(
    scenarios: list[Path] = typer.Argument(..., metavar="SCENARIO.toml…", help="simulations/*.toml"),
    seed: int = typer.Option(0, "--seed", min=0, help="Determines everything that is left to chance."),
    seeds: str = typer.Option(
        "1", "--seeds", help="`1..10`: these ten; `3,5,8`: these three; `10`: ten, counted from --seed."
    ),
    variants: list[str] = typer.Option([], "--variant", help="Only this variant of a file; may be repeated."),
    out: Path | None = typer.Option(
        None, "--out", help="Write options, history, metrics, recording, result and report.html here."
    ),
    no_report: bool = typer.Option(False, "--no-report", help="Leave out report.html."),
    workers: int = typer.Option(
        1, "--workers", min=1, max=256, help="Processes that train and evaluate; the history is the same."
    ),
    ray: str | None = typer.Option(
        None, "--ray", help="Train and evaluate on Ray at this address; `local` starts one on this machine."
    ),
    json_lines: bool = JSON,
) -> None:
    """Run scenarios to their last checkpoint, each with each seed.

    The nodes, messages and checkpoints are the real ones; pretended are the chain, the network and the
    training (a synthetic task with a known optimum, or real LoRA with `workload = "training"`). A run that
    fails - two nodes disagree, nothing goes on, the scenario's own expectations do not hold - prints the
    command that repeats it; the others go on, and the exit code is 1. Ctrl-C leaves finished runs whole.

    With --out, one run writes to OUT; many seeds to OUT/seed-N; many files or variants to a folder each in
    OUT. `citrate replay` computes a run's checkpoints again, `citrate simulate compare` sets two beside one
    another.
    """
    from citrate_node.cli.simulate_show import Show
    from citrate_node.errors import ServiceError
    from citrate_node.simulation.batch import groups, parse_seeds, plan

    jobs = plan(scenarios, parse_seeds(seeds, seed), out, variants=variants, workers=workers, ray=ray)
    failed: list[Job] = []
    with Show(jobs, json_lines) as show:
        for group in groups(jobs):
            finished = [job for job in group if _finishes(job, show)]
            failed += [job for job in group if job not in finished]
            if finished and not no_report:
                _write_report(finished, show)
    if failed:
        commands = "\n".join(f"  {job.command}" for job in failed)
        raise ServiceError(f"{len(failed)} of {len(jobs)} runs failed; repeat them with\n{commands}")


def _finishes(job: Job, show: Any) -> bool:
    """Whether the run came to its end and did what its scenario expects."""
    from citrate_node.simulation.batch import RunFailed

    show.begins(job)
    try:
        result = job.run(lambda row: show.checkpoint(job, row))
    except RunFailed as failure:
        show.failed(job, str(failure))
        return False
    show.ends(job, result)
    failures = result.get("failures", [])
    if failures:
        show.failed(job, "; ".join(failures))
    return not failures


def _write_report(finished: list[Job], show: Any) -> None:
    from citrate_node.errors import ConfigError
    from citrate_node.simulation.report import write_report
    from citrate_node.simulation.runs import read_run

    folder = finished[0].group_folder
    if folder is None:
        return
    try:
        show.report(write_report([read_run(job.folder) for job in finished if job.folder], folder))
    except (
        ConfigError
    ) as error:  # the runs are done; what is missing for their picture is no failure of theirs
        show.note(str(error))


@app.command()
def report(
    folder: Path = typer.Argument(..., help="A run, or the seeds of one scenario: what --out was."),
    json_lines: bool = JSON,
) -> None:
    """Write report.html of finished runs anew: one page with plots that needs no other file."""
    from citrate_node.cli.output import print_json
    from citrate_node.simulation.report import write_report
    from citrate_node.simulation.runs import read_runs

    runs = read_runs(folder)
    path = write_report(runs, folder)
    if json_lines:
        print_json({"type": "report", "path": str(path), "seeds": [run.seed for run in runs]})
    else:
        typer.echo(f"{path}   of {len(runs)} run{'s' if len(runs) > 1 else ''}")


@app.command()
def compare(
    first: Path = typer.Argument(..., help="A run, or the seeds of one scenario: what --out was."),
    second: Path = typer.Argument(..., help="Another; best with the same seeds."),
    json_lines: bool = JSON,
) -> None:
    """Set two results beside one another: which options differ, and what came of it.

    Differences are second less first, taken seed by seed where both have a seed, with the 95 % interval of
    their mean; * marks those whose interval leaves out zero.
    """
    from citrate_node.cli.simulate_compare import show_comparison
    from citrate_node.simulation.comparison import compare as compared
    from citrate_node.simulation.runs import read_runs

    show_comparison(compared(read_runs(first), read_runs(second)), json_lines)
