"""The `citrate` command. Each group of commands is a module of its own, imported only when it is used:
`citrate --help` must not wait for torch, libp2p or web3.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors say what is wrong and what to do, without a traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_GROUPS: dict[str, tuple[str, str]] = {
    "devnet": ("citrate_node.cli.devnet", "Run a whole network on this machine: chain, nodes, training."),
    "node": ("citrate_node.cli.node", "Run one node from its node.toml."),
    "replay": ("citrate_node.cli.replay", "Compute a recorded network's checkpoints again, byte for byte."),
    "simulate": (
        "citrate_node.cli.simulate",
        "Run the same nodes under virtual time, with faults and a seed.",
    ),
    "doctor": ("citrate_node.cli.doctor", "Look at this machine's set-up and say what to do next."),
    "content": ("citrate_node.cli.content", "Files by content: add, read and verify, with IPFS CIDs."),
    "base": ("citrate_node.cli.base", "The base model that adapters are trained beside."),
    "train": ("citrate_node.cli.train", "Train an adapter on your own data."),
    "evaluate": ("citrate_node.cli.evaluate", "Measure an adapter before it is promoted."),
    "adapter": ("citrate_node.cli.adapter", "Create, compose and use adapters on chain."),
    "wallet": ("citrate_node.cli.wallet", "Keys that own adapters: encrypted keystores."),
}


def _available() -> dict[str, tuple[str, str]]:
    return {name: entry for name, entry in _GROUPS.items() if importlib.util.find_spec(entry[0]) is not None}


class LazyGroup(TyperGroup):
    """Knows the names and one-line helps of its commands; imports a command when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_available()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _available():
            return super().get_command(ctx, cmd_name)
        module, text = _GROUPS[cmd_name]
        if _is_top_help():
            return TyperCommand(cmd_name, help=text)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command


def _is_top_help() -> bool:
    """Whether only the list of commands is wanted: then their modules are not imported."""
    arguments = [a for a in sys.argv[1:] if a not in ("--help", "-h")]
    return not arguments


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from citrate_node import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and end."
    ),
) -> None:
    """Nodes that teach each other.

    Each trains a LoRA adapter on its own data and shares what it learned; at every finality checkpoint all
    agree, byte for byte, on the average, and commit its hash on chain. Start with: citrate devnet up
    """


def main() -> None:
    """Entry point: runs the command and turns errors into two lines and an exit code."""
    from citrate_node.errors import CitrateError

    try:
        app(standalone_mode=True)
    except CitrateError as error:
        print(f"citrate: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
