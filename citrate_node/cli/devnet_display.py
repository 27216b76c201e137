"""What a person sees of a devnet: one changing line per node, and a line for good per checkpoint.

On a terminal the node lines change in place (rich); elsewhere only what stays is printed. For cli/devnet.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

_WORDS = {
    "listening": "connecting to its peers",
    "starting": "loading the base model",
    "ready": "ready",
    "opened": "training",
    "announced": "announced its delta",
    "evaluated": "evaluated its peers' deltas",
    "measured": "measured the average",
    "proposed": "proposed the checkpoint",
    "voted": "voted",
    "certified": "has a quorum's votes",
    "committed": "committed on chain",
    "finalized": "finalized",
    "caught_up": "caught up",
    "withheld": "gave up on a delta",
    "late": "trained too long, asks for the next checkpoint",
    "dropped": "dropped its training",
    "failed": "failed at something",
    "rejected": "refused a message",
    "chain": "waits for the chain",
    "stopped": "stopped",
    "commit_refused": "was not the first to commit",
}


class Display:
    """Takes the devnet's facts one by one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: dict[int, str] = {}
        self._live: Live | None = None
        self._began = time.monotonic()
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=self._table, refresh_per_second=4, transient=True
            )

    def running(self) -> AbstractContextManager[Any]:
        return self._live if self._live is not None else nullcontext()

    def show(self, fact: dict[str, Any]) -> None:
        """One fact; see runtime/devnet.py for the types."""
        match fact["type"]:
            case "starting":
                self._print(f"starting {fact['what']} …")
            case "devnet":
                self._devnet(fact)
            case "node":
                self._node(fact)
            case "checkpoint":
                self._checkpoint(fact)
            case "step":
                self._print(fact["text"])

    def _print(self, text: str) -> None:
        self._console.print(
            f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  {text}", highlight=False, soft_wrap=True
        )

    def _devnet(self, fact: dict[str, Any]) -> None:
        self._print(f"chain {fact['chain_id']} at {fact['rpc_url']}   AdapterFactory {fact['contract']}")
        if fact["page_url"]:
            self._print(f"dashboard and wallet page {fact['page_url']}")
        self._print(f"adapter {fact['adapter_id']}")
        self._print(
            f"wallet {fact['founder']} (development key, funded: {fact['founder_key_file']})   "
            f"ABI {fact['abi_file']}"
        )

    def _node(self, fact: dict[str, Any]) -> None:
        what, number = fact["what"], fact["node"]
        text = _WORDS.get(what, what)
        if what == "announced":
            share = fact["delta_bytes"] / fact["float32_bytes"]
            size = f"{fact['delta_bytes']:,} bytes, {share:.0%} of float32"
            text = f"announced its delta: {size}, training loss {fact['loss']}"
        elif what == "evaluated":
            text = f"evaluated {fact['signals']} deltas: {_percents(fact['improvement_ppm'])}"
        elif what == "measured":
            text = f"measured the average: {fact['accuracy_ppm'] / 10_000:+.2f} % against the base model"
        elif what == "died":
            text = f"ended with {fact['code']}" + (
                ", is started again" if fact["restart"] else ", is given up"
            )
            self._print(f"[red]node {number} {text}[/red]   {fact['reason']}   log {fact['log']}")
        elif what in ("failed", "rejected", "withheld", "late", "dropped", "caught_up", "chain"):
            extra = "  ".join(
                str(fact[key]) for key in ("state", "reason", "detail", "mentor", "target") if fact.get(key)
            )
            self._print(f"node {number} {text}   {extra}".rstrip())
        checkpoint = f"checkpoint {fact['checkpoint']}  " if "checkpoint" in fact else ""
        self._lines[number] = f"{checkpoint}{text}"

    def _checkpoint(self, fact: dict[str, Any]) -> None:
        reputations = "  ".join(
            f"{key} {ppm / 10_000:.0f} %" for key, ppm in sorted(fact["reputations"].items())
        )
        self._print(
            f"[bold]checkpoint {fact['number']}[/bold]   signals {fact['signals']}   "
            f"accuracy {_accuracy(fact['accuracy_ppm'])}   weights {fact['weights_hash'][:12]}…   "
            f"committed {fact['tx'][:12]}…   gas {fact['gas_used']:,}   "
            f"{fact['seconds_to_commit']:.0f} s after the signal phase"
        )
        self._print(f"    held-out improvement of each delta {_percents(fact['scores_ppm'])}")
        self._print(f"    reputation {reputations}")

    def summary(self, fact: dict[str, Any]) -> None:
        """The last words: what mentorship was worth."""
        table = Table(title="held-out loss (nats per byte; lower is better)")
        for name in ("", "own mixture", "all domains", "worst domain", "general text"):
            table.add_column(name, justify="left" if not name else "right")
        names = {"base": "base model", "isolated": "training alone", "mentored": "mentorship"}
        for key, name in names.items():
            row = fact["loss"][key]
            table.add_row(name, *(f"{row[column]:.3f}" for column in ("own", "all", "worst", "general")))
        self._console.print(table)
        megabytes = ", ".join(f"{b / 2**20:.0f}" for b in fact["peak_memory_bytes"].values())
        self._print(
            f"{len(fact['checkpoints'])} checkpoints in {fact['seconds']} s   peak MB per node {megabytes}"
        )
        self._print(f"replay it: citrate replay {fact['dir']}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for number in sorted(self._lines):
            table.add_row(f"node {number}", self._lines[number])
        return table


def _accuracy(value_ppm: int | None) -> str:
    return "not measured" if value_ppm is None else f"{value_ppm / 10_000:+.2f} %"


def _percents(values_ppm: list[int]) -> str:
    return " ".join(f"{ppm / 10_000:+.2f} %" for ppm in values_ppm) or "none"
