"""How a write goes: tried on the chain, shown, asked about, unlocked, sent, and its receipt shown.

Called by cli/adapter.py, cli/adapter_owner.py and cli/base_chain.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from citrate_node.cli.adapter_options import Sending, Signer

if TYPE_CHECKING:
    from citrate_node.chain.contract_types import Receipt
    from citrate_node.runtime.adapters import AdapterDesk, DryRun, Place

T = TypeVar("T")


def asked(place: Place, act: Callable[[AdapterDesk], Awaitable[T]]) -> T:
    """Run one command's dealings with the chain on one connection."""
    from citrate_node.runtime.adapters import connected

    async def run() -> T:
        async with connected(place) as desk:
            return await act(desk)

    return asyncio.run(run())


def confirm(run: DryRun, place: Place, chain_id: int, lines: list[str], *, ask: bool) -> None:
    """Say what is about to happen, and ask. A no ends the command with 1; nothing was sent."""
    from citrate_node.runtime.adapters import coins

    typer.echo(f"{run.function} on chain {chain_id} at {place.rpc_url}, contract 0x{place.contract.hex()}")
    for line in lines:
        typer.echo(f"  {line}")
    typer.echo(
        f"  from 0x{run.account.hex()}, about {run.gas:,} gas, "
        f"at most {coins(run.cost_wei_max, at_most=True)} of {coins(run.balance_wei)}"
    )
    if ask and not typer.confirm("send it?"):
        typer.echo("nothing was sent")
        raise typer.Exit(1)


async def agreed(
    desk: AdapterDesk,
    signer: Signer,
    run: DryRun,
    lines: list[str],
    *,
    sending: Sending,
    before: Callable[[], None] | None = None,
) -> Receipt:
    """Show, ask, unlock, do what must come `before` (such as storing), send. A dry run ends here, with 0."""
    if sending.dry_run:
        _show_dry_run(run, desk, lines, signer.json_lines)
        raise typer.Exit(0)
    if not signer.json_lines:
        confirm(run, desk.place, desk.factory.chain_id, lines, ask=not sending.yes)
    key = await asyncio.to_thread(signer.key)
    if before is not None:
        await asyncio.to_thread(before)
    return await desk.send(key, run)


def _show_dry_run(run: DryRun, desk: AdapterDesk, lines: list[str], json_lines: bool) -> None:
    from citrate_node.cli.output import print_json

    if not json_lines:
        confirm(run, desk.place, desk.factory.chain_id, lines, ask=False)
        typer.echo("the contract would take it; nothing was sent")
        return
    answer = run.answer
    facts: dict[str, Any] = {
        "type": "dry_run",
        "function": run.function,
        "account": "0x" + run.account.hex(),
        "chain_id": desk.factory.chain_id,
        "gas": run.gas,
        "cost_wei_max": str(run.cost_wei_max),
        "balance_wei": str(run.balance_wei),
    }
    if isinstance(answer, bytes):
        facts["adapter_id"] = "0x" + answer.hex()
    elif isinstance(answer, int):
        facts["version"] = answer
    print_json(facts)


def sent(kind: str, receipt: Receipt, signer: Signer) -> dict[str, Any]:
    """What every write says at its end."""
    return {
        "type": kind,
        "account": "0x" + signer.account.hex(),
        "tx": receipt.tx_hash,
        "block": receipt.block_number,
        "gas_used": receipt.gas_used,
    }


def transaction_line(facts: dict[str, Any]) -> str:
    return f"  transaction  {facts['tx']} in block {facts['block']}, {facts['gas_used']:,} gas"
