"""`citrate doctor`: is everything here that a node needs, and what is to be done where it is not?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from citrate_node.runtime.checkup import Check

app = typer.Typer(help="Look at this machine's set-up and say what to do next.")

PREDEPLOY = "0x0000000000000000000000000000000000000103"


@app.command()
def doctor(
    folder: Path = typer.Option(
        Path("devnet"), "--dir", help="Folder of a devnet: its configuration, ports and chain are looked at."
    ),
    rpc_url: str = typer.Option("", "--rpc-url", help="A chain to ask. Default: that of a running devnet."),
    contract: str = typer.Option(PREDEPLOY, "--contract", help="Address of AdapterFactory on that chain."),
    base: str = typer.Option(
        "embedded", "--base", help='The base model whose hash is computed; "" for none.'
    ),
    json_lines: bool = typer.Option(
        False, "--json", help="One JSON object per check, then one that sums up."
    ),
) -> None:
    """Look at this machine's set-up and say what to do next.

    Looks at Python and its packages, the chain's programs, disk, ports, open files and the base model; in a
    devnet's folder also at its configuration and chain. Changes nothing. *missing*: a node cannot run like
    this. *note*: only some commands need it. Exit code 1 where something is missing.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.checkup import State

    counts = dict.fromkeys(State, 0)
    for check in _checks(folder, rpc_url, contract, base):
        counts[check.state] += 1
        if json_lines:
            print_json(
                {
                    "type": "check",
                    "name": check.name,
                    "state": check.state.value,
                    "found": check.found,
                    "advice": check.advice,
                }
            )
        else:
            _show(check)
    missing = counts[State.MISSING]
    if json_lines:
        print_json({"type": "doctor", **{state.value: count for state, count in counts.items()}})
    elif missing:
        typer.echo(f"\n{missing} missing: do what stands below each, then run `citrate doctor` again")
    else:
        typer.echo("\nall that is needed is here; next: citrate devnet up")
    raise typer.Exit(1 if missing else 0)


def _checks(folder: Path, rpc_url: str, contract: str, base: str) -> Iterator[Check]:
    from citrate_node.runtime import checkup

    yield checkup.check_python()
    yield checkup.check_packages()
    yield checkup.check_packages("training")
    yield checkup.check_torch()
    yield checkup.check_gpu()
    found, choices, running = checkup.check_devnet(folder)
    yield from checkup.check_chain_programs(own_chain=not rpc_url and not (choices and choices.rpc_url))
    yield checkup.check_chromium()
    yield checkup.check_disk(folder)
    yield checkup.check_open_files()
    yield from found
    yield checkup.check_ports(choices, running)
    if base:
        yield checkup.check_base(base)
    url, chain_id = rpc_url, 0
    if not url and choices is not None:
        url = choices.rpc_url or (f"http://127.0.0.1:{choices.rpc_port}" if running else "")
        chain_id = choices.chain_id
    if url:
        yield asyncio.run(checkup.check_rpc(url, contract, chain_id))


def _show(check: Check) -> None:
    typer.echo(f"{check.state.value:<8} {check.name:<20} {check.found}")
    if check.advice:
        typer.echo(f"{'':<29} → {check.advice}")
