"""`citrate devnet`: a whole network on this machine, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Run a whole network on this machine: chain, nodes, training.",
)

DIR = typer.Option(Path("devnet"), "--dir", help="Folder of the devnet; started again on it, it continues.")
JSON = typer.Option(False, "--json", help="One JSON object per line on stdout, nothing else.")


@app.command()
def up(
    nodes: int = typer.Option(4, "--nodes", min=2, max=64, help="Node processes (fixed at the first start)."),
    checkpoints: int = typer.Option(
        3, "--checkpoints", min=0, help="End after so many more checkpoints; 0: go on until Ctrl-C."
    ),
    preset: str = typer.Option("devnet", "--preset", help="Network-wide numbers: a name or a .toml file."),
    folder: Path = DIR,
    seed: int = typer.Option(1, "--seed", help="Of the nodes' local data."),
    base_model: str = typer.Option(
        "embedded", "--base-model", help="Folder or hub name; `embedded` is built in."
    ),
    rpc_url: str = typer.Option(
        "", "--rpc-url", help="Another EVM with this devnet's genesis instead of anvil."
    ),
    ipfs_url: str = typer.Option(
        "", "--ipfs-url", help="RPC of a Kubo daemon (http://127.0.0.1:5001) that keeps all contents."
    ),
    page_port: int | None = typer.Option(
        None,
        "--page-port",
        min=0,
        max=65535,
        help="Of the dashboard and wallet page on 127.0.0.1; 0: no page. Default: a free one, kept.",
        show_default=False,
    ),
    json_lines: bool = JSON,
) -> None:
    """Start an embedded chain and NODES nodes that train, gossip, evaluate, finalize and commit.

    Ends after CHECKPOINTS checkpoints with what mentorship was worth against training alone. Ctrl-C stops it
    cleanly; the same command on the same folder goes on. An interrupted run first completes its own target.

    It prints the URL of a page, with the network's progress and what a browser wallet needs to create and
    compose adapters, and the RPC URL for wallets and programs: behind it stand the methods that read the
    chain or carry a signature, and no others.
    """
    from citrate_node.runtime.process import run_until_signal

    run_until_signal(
        lambda stop: _up(
            stop,
            json_lines,
            folder,
            {
                "nodes": nodes,
                "checkpoints": checkpoints,
                "preset": preset,
                "seed": seed,
                "base_model": base_model,
                "rpc_url": rpc_url,
                "page_port": page_port,
                "ipfs_url": ipfs_url,
            },
        )
    )


async def _up(stop: Any, json_lines: bool, folder: Path, wishes: dict[str, Any]) -> None:
    from rich.console import Console

    from citrate_node.cli.devnet_display import Display
    from citrate_node.cli.output import print_json
    from citrate_node.dashboard.feed import Feed
    from citrate_node.dashboard.server import PageServer
    from citrate_node.runtime.devnet import Devnet
    from citrate_node.runtime.devnet_admin import prepare

    devnet_folder, choices = prepare(folder, **wishes)
    display = Display(Console())
    show = print_json if json_lines else display.show
    feed = Feed(devnet_folder.checkpoint_rows())

    def show_both(fact: dict[str, Any]) -> None:
        show(fact)
        feed.take(fact)

    def open_page(chain_url: str) -> PageServer:
        return PageServer(feed, chain_url, port=choices.page_port, preset=choices.preset)

    devnet = Devnet(devnet_folder, choices, show_both, open_page)
    if json_lines:
        await devnet.run(stop)
        return
    with display.running():
        summary = await devnet.run(stop)
    if summary is None:
        typer.echo(f"stopped; `citrate devnet up --dir {folder}` goes on")
    else:
        display.summary(summary)


@app.command()
def status(folder: Path = DIR, json_lines: bool = JSON) -> None:
    """Say whether a devnet runs, where its chain is, and how far it has come.

    `rpc_url` is for wallets and programs, `page_url` the dashboard and wallet page. `inner_rpc_url` is the
    chain itself, for the devnet's own nodes: it obeys whoever reaches it, so give it to nobody.
    """
    import asyncio

    from citrate_node.cli.output import print_json
    from citrate_node.runtime.devnet_admin import devnet_status

    facts = asyncio.run(devnet_status(folder))
    if json_lines:
        print_json(facts)
        return
    for key, value in facts.items():
        if key != "type":
            typer.echo(f"{key:<18} {value}")


@app.command()
def stop(folder: Path = DIR) -> None:
    """Stop a devnet that runs in another terminal, as Ctrl-C there would."""
    from citrate_node.runtime.devnet_admin import stop_devnet

    process = stop_devnet(folder)
    typer.echo(f"devnet in {folder} (process {process}) has ended")


@app.command()
def genesis(
    nodes: int = typer.Option(4, "--nodes", min=2, max=64, help="Nodes to register in the contract."),
    folder: Path = DIR,
    preset: str = typer.Option("devnet", "--preset", help="Network-wide numbers: a name or a .toml file."),
) -> None:
    """Write the folder's keys and genesis.json without starting anything.

    geth, reth and Besu read the file; `citrate devnet up --rpc-url URL` then uses that chain.
    """
    from citrate_node.runtime.devnet_admin import prepare, write_genesis

    devnet_folder, choices = prepare(
        folder, nodes=nodes, checkpoints=3, preset=preset, seed=1, base_model="embedded", rpc_url=""
    )
    typer.echo(str(write_genesis(devnet_folder, choices)))
