"""`citrate node`: one node from its node.toml, until Ctrl-C or SIGTERM."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Run one node from its node.toml.",
)


@app.callback()
def group() -> None:
    """Run one node from its node.toml."""


@app.command()
def run(
    config: Path = typer.Option(..., "--config", help="The node's node.toml; its folder is the data folder."),
    json_lines: bool = typer.Option(
        False, "--json", help="One JSON object per line on stdout, nothing else."
    ),
    with_parent: bool = typer.Option(
        False, "--with-parent", help="End when the process that started this one is gone.", hidden=True
    ),
) -> None:
    """Train, gossip, evaluate, vote and commit, until Ctrl-C.

    What the node has promised is on disk before it is said: started again, it goes on where it was.
    """
    from citrate_node.cli.output import reporter
    from citrate_node.config import load_node_config
    from citrate_node.runtime.process import run_until_signal
    from citrate_node.runtime.wiring import run_node

    settings = load_node_config(config)
    report = reporter(json_lines, settings.name)
    run_until_signal(lambda stop: run_node(settings, report, stop), with_parent=with_parent)


@app.command()
def check(config: Path = typer.Option(..., "--config", help="The node's node.toml.")) -> None:
    """Read a node.toml, its preset and its keys, and say what is wrong, without starting anything."""
    from citrate_node.config import load_node_config, load_preset
    from citrate_node.runtime.keys import read_identity

    settings = load_node_config(config)
    preset = load_preset(settings.preset)
    identity = read_identity(
        settings.node_seed_file, settings.account_key_file, settings.account_password_file
    )
    typer.echo(
        f"node key {identity.node_key.hex()}, account 0x{identity.account.hex()}, preset {preset.name}"
    )
