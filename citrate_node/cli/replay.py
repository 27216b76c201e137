"""`citrate replay`: compute a recorded network's checkpoints again and compare every byte."""

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
    folder: Path = typer.Argument(..., help="A devnet's folder, or a recording (it holds network.cbor)."),
    json_lines: bool = typer.Option(
        False, "--json", help="One JSON object per line on stdout, nothing else."
    ),
) -> None:
    """Recompute every checkpoint from its recorded messages and deltas.

    Ends with 0 when all records and weights come out the same, as on chain; with 1 at the first difference,
    which is named.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.recording import find_recording
    from citrate_node.replay import ReplayDifference
    from citrate_node.replay import replay as replayed

    recording = find_recording(folder)
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
