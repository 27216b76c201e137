"""`citrate replay`: compute a recorded network's checkpoints again and compare every byte; or ask what if."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    help="Compute a recorded network's checkpoints again, byte for byte.",
)


@app.command()
def replay(
    folder: Path = typer.Argument(..., help="A devnet's folder, a run's, or a recording (network.cbor)."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="NAME=VALUE", help="What if the preset had said this? May be repeated."
    ),
    chained: bool = typer.Option(
        False, "--chained", help="With --set: carry the other result on, and add the next deltas to it."
    ),
    no_loss: bool = typer.Option(False, "--no-loss", help="With --set: do not measure losses."),
    json_lines: bool = typer.Option(
        False, "--json", help="One JSON object per line on stdout, nothing else."
    ),
) -> None:
    """Recompute every checkpoint from its recorded messages and deltas.

    Ends with 0 when all records and weights come out the same, as on chain; with 1 at the first difference,
    which is named.

    **What if.** With `--set aggregation_rule=trimmed_mean` (any number that only says what is made of the
    messages; a wrong name lists them) the recorded signals go through the protocol once more under that
    number. By default every checkpoint starts from its *recorded* parent: that is exact, and says what one
    step would have been. `--chained` carries the other result on; then the recorded deltas are added to a
    parent that they were not trained from, nor evaluated on: nothing is trained anew. Weights are those
    that came before the aggregation rule.
    """
    from citrate_node.errors import ConfigError
    from citrate_node.recording import find_recording

    recording = find_recording(folder)
    if settings:
        from citrate_node.cli.replay_what_if import show_what_if

        show_what_if(folder, recording, settings, chained=chained, losses=not no_loss, json_lines=json_lines)
        return
    if chained or no_loss:
        raise ConfigError("--chained and --no-loss go with --set\n  `citrate replay FOLDER --set NAME=VALUE`")
    _replay(recording, json_lines)


def _replay(recording: object, json_lines: bool) -> None:
    from citrate_node.cli.output import print_json
    from citrate_node.recording import Recording
    from citrate_node.replay import ReplayDifference
    from citrate_node.replay import replay as replayed

    assert isinstance(recording, Recording)
    count, on_chain = 0, 0
    try:
        for checkpoint in replayed(recording):
            count += 1
            on_chain += checkpoint.on_chain
            if json_lines:
                print_json(
                    {
                        "type": "checkpoint",
                        "number": checkpoint.number,
                        "signals": checkpoint.signals,
                        "weights_hash": checkpoint.weights_hash.hex(),
                        "record_hash": checkpoint.record_hash.hex(),
                        "accuracy_ppm": checkpoint.accuracy_ppm,
                        "promoted": checkpoint.promoted,
                        "on_chain": checkpoint.on_chain,
                    }
                )
            else:
                where = "as on chain" if checkpoint.on_chain else "as recorded"
                typer.echo(
                    f"checkpoint {checkpoint.number}   signals {checkpoint.signals}   "
                    f"weights {checkpoint.weights_hash.hex()[:16]}…   same bytes, {where}"
                )
    except ReplayDifference as difference:
        if json_lines:
            print_json({"type": "difference", "text": str(difference)})
        raise
    if json_lines:
        print_json({"type": "summary", "checkpoints": count, "on_chain": on_chain, "same": True})
    else:
        typer.echo(
            f"{count} checkpoints computed again: all the same, {on_chain} of them compared with the chain"
        )
