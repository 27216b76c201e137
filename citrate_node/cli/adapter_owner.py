"""`citrate adapter` for an adapter's owner: open and close it to mentorship, hand it over in two steps.

cli/adapter.py adds these commands to its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli.adapter_options import Chain, Sending, Signer, Signing, bundled
from citrate_node.cli.adapter_read import adapter_facts
from citrate_node.cli.adapter_send import agreed, asked, sent, transaction_line
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.runtime.adapters import AdapterDesk

_ID = typer.Argument(..., metavar="ID", help="Id of the adapter: 0x and 64 hex digits.")


def add_to(app: typer.Typer) -> None:
    """Makes these commands part of `citrate adapter`."""
    for command in (open_, close, transfer, accept):
        app.command(name=command.__name__.rstrip("_"))(command)


@bundled
def open_(
    adapter: str = _ID,
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    """Open your adapter to mentorship: from the next checkpoint on the network may add certified versions.

    While it is open you cannot publish, so that the two never race for one version number.
    """
    signer = signing.signer(json_lines=json_lines)
    _write("opened", "openToMentorship", adapter, (), chain, signer, sending=sending)


@bundled
def close(
    adapter: str = _ID,
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    """Close your adapter to mentorship. The checkpoint that is under way may still add a version.

    Closing one that is not open changes nothing.
    """
    signer = signing.signer(json_lines=json_lines)
    _write("closed", "closeMentorship", adapter, (), chain, signer, sending=sending)


@bundled
def transfer(
    adapter: str = _ID,
    new_owner: str = typer.Argument(
        ..., metavar="OWNER", help="Address of the new owner; 0x and 40 zeros takes an offer back."
    ),
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    """Offer your adapter to another account. It stays yours until that account accepts it.

    A new offer replaces the one before.
    """
    from citrate_node.runtime.adapters import account_bytes

    account = account_bytes(new_owner)
    signer = signing.signer(json_lines=json_lines)
    _write(
        *("offered", "transferOwnership", adapter, (account,), chain, signer),
        sending=sending,
    )


@bundled
def accept(
    adapter: str = _ID,
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    """Accept an adapter that its owner offered to your account with `citrate adapter transfer`."""
    signer = signing.signer(json_lines=json_lines)
    _write("accepted", "acceptOwnership", adapter, (), chain, signer, sending=sending)


def _write(
    kind: str,
    function: str,
    adapter: str,
    more: tuple[bytes, ...],
    chain: Chain,
    signer: Signer,
    *,
    sending: Sending,
) -> None:
    """Try, show, ask, send; then show the adapter as it stands afterwards."""
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import id_bytes

    adapter_id = id_bytes(adapter, "adapter id")
    place = chain.place()

    async def act(desk: AdapterDesk) -> dict[str, Any]:
        run = await desk.dry_run(signer.account, function, adapter_id, *more)
        before = await desk.adapter(adapter_id)
        lines = [f"{before.name!r} 0x{adapter_id.hex()}", *(f"to 0x{account.hex()}" for account in more)]
        receipt = await agreed(desk, signer, run, lines, sending=sending)
        return adapter_facts(await desk.adapter(adapter_id)) | sent(kind, receipt, signer)

    facts = asked(place, act)
    if signer.json_lines:
        print_json(facts)
        return
    typer.echo(f"{kind} {facts['adapter_id']}  {facts['name']}")
    typer.echo(f"  mentorship   {facts['mentorship']}")
    typer.echo(f"  owner        {facts['owner']}")
    if facts["pending_owner"] is not None:
        typer.echo(f"  offered to   {facts['pending_owner']}")
    typer.echo(transaction_line(facts))
