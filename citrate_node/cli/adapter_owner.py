"""`citrate adapter` for an adapter's owner: open and close it to mentorship, hand it over in two steps.

cli/adapter.py adds these commands to its group.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli.adapter_options import (
    CHAIN_ID,
    CONTRACT,
    DIR,
    DRY_RUN,
    KEY_FILE,
    RPC_URL,
    WALLET,
    YES,
    Signer,
    signer_of,
)
from citrate_node.cli.adapter_read import adapter_facts
from citrate_node.cli.adapter_send import agreed, asked, sent, transaction_line
from citrate_node.cli.wallet import JSON, KEYSTORE, PASSWORD_FILE

if TYPE_CHECKING:
    from citrate_node.runtime.adapters import AdapterDesk

_ID = typer.Argument(..., metavar="ID", help="Id of the adapter: 0x and 64 hex digits.")


def add_to(app: typer.Typer) -> None:
    """Makes these commands part of `citrate adapter`."""
    for command in (open_, close, transfer, accept):
        app.command(name=command.__name__.rstrip("_"))(command)


def open_(
    adapter: str = _ID,
    folder: Path = DIR,
    rpc_url: str = RPC_URL,
    contract: str = CONTRACT,
    chain_id: int = CHAIN_ID,
    keystore: Path = KEYSTORE,
    wallet: str = WALLET,
    password_file: Path | None = PASSWORD_FILE,
    key_file: Path | None = KEY_FILE,
    yes: bool = YES,
    dry_run: bool = DRY_RUN,
    json_lines: bool = JSON,
) -> None:
    """Open your adapter to mentorship: from the next checkpoint on the network may add certified versions.

    While it is open you cannot publish, so that the two never race for one version number.
    """
    signer = signer_of(keystore, wallet, password_file, key_file, json_lines=json_lines)
    chain = {"rpc_url": rpc_url, "contract": contract, "chain_id": chain_id}
    _write("opened", "openToMentorship", adapter, (), folder, chain, signer, yes=yes, dry_run=dry_run)


def close(
    adapter: str = _ID,
    folder: Path = DIR,
    rpc_url: str = RPC_URL,
    contract: str = CONTRACT,
    chain_id: int = CHAIN_ID,
    keystore: Path = KEYSTORE,
    wallet: str = WALLET,
    password_file: Path | None = PASSWORD_FILE,
    key_file: Path | None = KEY_FILE,
    yes: bool = YES,
    dry_run: bool = DRY_RUN,
    json_lines: bool = JSON,
) -> None:
    """Close your adapter to mentorship. The checkpoint that is under way may still add a version.

    Closing one that is not open changes nothing.
    """
    signer = signer_of(keystore, wallet, password_file, key_file, json_lines=json_lines)
    chain = {"rpc_url": rpc_url, "contract": contract, "chain_id": chain_id}
    _write("closed", "closeMentorship", adapter, (), folder, chain, signer, yes=yes, dry_run=dry_run)


def transfer(
    adapter: str = _ID,
    new_owner: str = typer.Argument(
        ..., metavar="OWNER", help="Address of the new owner; 0x and 40 zeros takes an offer back."
    ),
    folder: Path = DIR,
    rpc_url: str = RPC_URL,
    contract: str = CONTRACT,
    chain_id: int = CHAIN_ID,
    keystore: Path = KEYSTORE,
    wallet: str = WALLET,
    password_file: Path | None = PASSWORD_FILE,
    key_file: Path | None = KEY_FILE,
    yes: bool = YES,
    dry_run: bool = DRY_RUN,
    json_lines: bool = JSON,
) -> None:
    """Offer your adapter to another account. It stays yours until that account accepts it.

    A new offer replaces the one before.
    """
    from citrate_node.runtime.adapters import account_bytes

    account = account_bytes(new_owner)
    signer = signer_of(keystore, wallet, password_file, key_file, json_lines=json_lines)
    chain = {"rpc_url": rpc_url, "contract": contract, "chain_id": chain_id}
    _write(
        *("offered", "transferOwnership", adapter, (account,), folder, chain, signer),
        yes=yes,
        dry_run=dry_run,
    )


def accept(
    adapter: str = _ID,
    folder: Path = DIR,
    rpc_url: str = RPC_URL,
    contract: str = CONTRACT,
    chain_id: int = CHAIN_ID,
    keystore: Path = KEYSTORE,
    wallet: str = WALLET,
    password_file: Path | None = PASSWORD_FILE,
    key_file: Path | None = KEY_FILE,
    yes: bool = YES,
    dry_run: bool = DRY_RUN,
    json_lines: bool = JSON,
) -> None:
    """Accept an adapter that its owner offered to your account with `citrate adapter transfer`."""
    signer = signer_of(keystore, wallet, password_file, key_file, json_lines=json_lines)
    chain = {"rpc_url": rpc_url, "contract": contract, "chain_id": chain_id}
    _write("accepted", "acceptOwnership", adapter, (), folder, chain, signer, yes=yes, dry_run=dry_run)


def _write(
    kind: str,
    function: str,
    adapter: str,
    more: tuple[bytes, ...],
    folder: Path,
    chain: dict[str, Any],
    signer: Signer,
    *,
    yes: bool,
    dry_run: bool,
) -> None:
    """Try, show, ask, send; then show the adapter as it stands afterwards."""
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import id_bytes, place_of

    adapter_id = id_bytes(adapter, "adapter id")
    place = place_of(folder, **chain)

    async def act(desk: AdapterDesk) -> dict[str, Any]:
        run = await desk.dry_run(signer.account, function, adapter_id, *more)
        before = await desk.adapter(adapter_id)
        lines = [f"{before.name!r} 0x{adapter_id.hex()}", *(f"to 0x{account.hex()}" for account in more)]
        receipt = await agreed(desk, signer, run, lines, yes=yes, dry_run=dry_run)
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
