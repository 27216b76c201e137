"""`citrate wallet`: the keys that own adapters and pay for gas, in encrypted keystores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from citrate_node.runtime.adapters_funding import Transfer

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Keys that own adapters: encrypted keystores.",
)

KEYSTORE = typer.Option(
    Path("~/.citrate/wallets"),
    "--keystore",
    envvar="CITRATE_KEYSTORE",
    help="Folder of keystores: NAME.json each, as geth and MetaMask read them.",
)
PASSWORD_FILE = typer.Option(
    None,
    "--password-file",
    envvar="CITRATE_PASSWORD_FILE",
    help="File with the wallet's password in its first line; else it is asked for.",
)
JSON = typer.Option(False, "--json", help="One JSON object per line on stdout, nothing else.")


def read_password(name: str, file: Path | None, *, json_lines: bool, confirm: bool = False) -> str:
    """From the file, else from the terminal. A script that asks for JSON cannot be asked back."""
    from citrate_node.errors import ConfigError

    if file is not None:
        try:
            return file.expanduser().read_text().split("\n", 1)[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the password in {file}: {error}") from None
    if json_lines:
        raise ConfigError(
            f"wallet {name} needs its password\n  give --password-file, or set CITRATE_PASSWORD_FILE"
        )
    answer: str = typer.prompt(
        f"password of wallet {name}", hide_input=True, confirmation_prompt=confirm, err=True
    )
    return answer


@app.command()
def new(
    name: str = typer.Argument(..., help="Name of the wallet: a-z, 0-9, - and _."),
    keystore: Path = KEYSTORE,
    password_file: Path | None = PASSWORD_FILE,
    json_lines: bool = JSON,
) -> None:
    """Make a fresh key and write it, encrypted, into the keystore folder.

    The key leaves this program only encrypted. A lost password cannot be recovered. The wallet is empty: on a
    devnet, `citrate wallet fund NAME 10` gives it coins.
    """
    from citrate_node.chain.wallet import WalletFolder
    from citrate_node.cli.output import print_json

    password = read_password(name, password_file, json_lines=json_lines, confirm=True)
    entry = WalletFolder(keystore.expanduser()).new(name, password)
    if json_lines:
        print_json(
            {"type": "wallet", "name": name, "address": "0x" + entry.account.hex(), "file": str(entry.path)}
        )
    else:
        typer.echo(f"0x{entry.account.hex()}  {entry.path}")


@app.command(name="list")
def list_wallets(keystore: Path = KEYSTORE, json_lines: bool = JSON) -> None:
    """List the wallets in the keystore folder: names and addresses, nothing secret."""
    from citrate_node.chain.wallet import WalletFolder
    from citrate_node.cli.output import print_json

    folder = keystore.expanduser()
    entries = WalletFolder(folder).list()
    for entry in entries:
        address = "0x" + entry.account.hex()
        if json_lines:
            print_json(
                {
                    "type": "wallet",
                    "name": entry.name,
                    "address": address,
                    "file": str(entry.path),
                    "development": entry.is_development,
                }
            )
        else:
            mark = "  development key" if entry.is_development else ""
            typer.echo(f"{address}  {entry.name}{mark}")
    if not entries and not json_lines:
        typer.echo(f"no wallets in {folder}; `citrate wallet new NAME` makes one")


@app.command()
def fund(
    receiver: str = typer.Argument(..., help="Address (0x…), or name of a wallet in the keystore folder."),
    amount: str = typer.Argument("10", help="In coins, such as 2.5."),
    folder: Path = typer.Option(Path("devnet"), "--dir", help="Folder of the devnet, which must be running."),
    rpc_url: str = typer.Option("", "--rpc-url", help="Another way to the devnet's chain."),
    keystore: Path = KEYSTORE,
    json_lines: bool = JSON,
) -> None:
    """Send coins from a devnet's founder to a wallet, so that it can pay for gas.

    The founder's key is a **development key**: it lies in clear in the devnet's folder, and its coins are
    worth nothing. On any other chain, send coins to the address yourself.
    """
    import asyncio

    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import coins
    from citrate_node.runtime.adapters_funding import wei_of

    wei = wei_of(amount)
    sent = asyncio.run(_fund(receiver, wei, folder, rpc_url, keystore.expanduser()))
    if json_lines:
        print_json(
            {
                "type": "funded",
                "sender": "0x" + sent.sender.hex(),
                "sender_is_development_key": True,
                "receiver": "0x" + sent.receiver.hex(),
                "amount_wei": str(sent.wei),
                "balance_wei": str(sent.balance_wei),
                "tx": sent.tx_hash,
            }
        )
        return
    typer.echo(f"sent {coins(sent.wei)} from the devnet's founder (a development key)")
    typer.echo(f"0x{sent.receiver.hex()} has {coins(sent.balance_wei)}   transaction {sent.tx_hash}")


async def _fund(receiver: str, wei: int, folder: Path, rpc_url: str, keystore: Path) -> Transfer:
    from citrate_node.chain.wallet import WalletFolder
    from citrate_node.runtime.adapters import account_bytes, connected, place_of
    from citrate_node.runtime.adapters_funding import transfer
    from citrate_node.runtime.devnet_folder import DevnetFolder

    devnet = DevnetFolder(folder.resolve())
    choices = devnet.load()
    is_address = receiver.startswith("0x")
    account = account_bytes(receiver) if is_address else WalletFolder(keystore).entry(receiver).account
    # the founder's key must not sign for a chain that merely answers at this URL
    place = place_of(folder, rpc_url=rpc_url, chain_id=choices.chain_id)
    async with connected(place) as desk:
        return await transfer(desk, devnet.founder_key(), account, wei)
