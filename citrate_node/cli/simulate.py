"""`citrate simulate`: the same nodes under virtual time, with faults and a seed."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    help="Run the same nodes under virtual time, with faults and a seed.",
)


@app.command()
def simulate(
    scenario: Path = typer.Argument(..., help="A scenario: simulations/*.toml."),
    seed: int = typer.Option(0, "--seed", help="Determines everything that is left to chance."),
    seeds: int = typer.Option(1, "--seeds", min=1, help="Run this many seeds, counted from --seed."),
    out: Path | None = typer.Option(None, "--out", help="Write options, history, recording and result here."),
    workers: int = typer.Option(
        1, "--workers", min=1, max=256, help="Processes that train and evaluate; the history is the same."
    ),
    ray: str | None = typer.Option(
        None, "--ray", help="Train and evaluate on Ray at this address; `local` starts one on this machine."
    ),
    json_lines: bool = typer.Option(
        False, "--json", help="One JSON object per line on stdout, nothing else."
    ),
) -> None:
    """Run a scenario to its last checkpoint.

    The nodes, messages and checkpoints are the real ones; pretended are the chain, the network and the
    training (a synthetic task with a known optimum). Ends with 1, and the command that repeats it, where two
    nodes disagree or nothing goes on. `citrate replay OUT` computes the run's checkpoints again.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.errors import ServiceError
    from citrate_node.simulation.checkers import ProgressViolation, SafetyViolation
    from citrate_node.simulation.scenario import load_scenario, run_scenario

    def show(row: dict[str, object]) -> None:
        if json_lines:
            print_json(row)
            return
        typer.echo(
            f"checkpoint {row['number']}   signals {row.get('signals', '-')}   loss {row['loss']:.4f}   "
            f"{str(row['record_hash'])[:16]}…   at {row['virtual_ms']} ms"
        )

    for number in range(seed, seed + seeds):
        loaded = load_scenario(scenario, number)
        folder = None if out is None else out if seeds == 1 else out / f"seed-{number}"
        if not json_lines:
            typer.echo(f"{loaded.name}, seed {number}: {loaded.question}".rstrip(": "))
        try:
            result = run_scenario(loaded, folder, show, workers=workers, ray=ray)
        except (SafetyViolation, ProgressViolation) as violation:
            raise ServiceError(
                f"{violation}\n  repeat it with `citrate simulate {scenario} --seed {number}`"
            ) from None
        if json_lines:
            print_json(result)
        else:
            typer.echo(f"history {result['history_hash'][:16]}…   loss {result['loss']:.4f}")
