"""What the adapter commands share: where the chain is, which wallet signs, and how one is asked.

Called by the modules of `citrate adapter` and by cli/base_chain.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

DIR = typer.Option(Path("devnet"), "--dir", help="Folder of a devnet: gives chain, chain id and stores.")
RPC_URL = typer.Option("", "--rpc-url", help="The chain. Default: the one of the devnet in --dir.")
CONTRACT = typer.Option("", "--contract", help="Address of AdapterFactory. Default: 0x…0103, the predeploy.")
CHAIN_ID = typer.Option(
    0, "--chain-id", help="Refuse any other chain. Default: the devnet's, unless --rpc-url is given."
)
WALLET = typer.Option("", "--wallet", help="Name of the wallet that signs. Default: the only one there is.")
KEY_FILE = typer.Option(
    None, "--key-file", help="Instead of a wallet: a development key in clear, 64 hex digits, mode 0600."
)
YES = typer.Option(False, "--yes", "-y", help="Do not ask before sending. --json does not ask either.")
STORES = typer.Option(
    [],
    "--store",
    help="Content store to read, or the data folder of a node (repeated: asked in this order). "
    "Default: those of the devnet in --dir.",
)
GATEWAYS = typer.Option(
    [],
    "--gateway",
    help="URL of a trustless IPFS gateway, asked after the stores (repeated). Every block is verified.",
)
DRY_RUN = typer.Option(
    False, "--dry-run", help="Try it and say what it would cost; send nothing, need no password."
)
OFFSET = typer.Option(0, "--offset", min=0, help="Rows to leave out at the beginning.")
LIMIT = typer.Option(50, "--limit", min=1, max=10_000, help="Rows to show at most.")


@dataclass(frozen=True, slots=True)
class Signer:
    """Who will sign. The key is read only after the question was answered."""

    account: bytes
    keystore: Path
    wallet: str
    password_file: Path | None
    key_file: Path | None
    json_lines: bool

    def key(self) -> bytes:
        """The private key; asks for the password where no file gives it."""
        from citrate_node.chain.wallet import WalletFolder
        from citrate_node.cli.wallet import read_password
        from citrate_node.runtime.keys import read_secret

        if self.key_file is not None:
            return read_secret(self.key_file, "key")
        password = read_password(self.wallet, self.password_file, json_lines=self.json_lines)
        return WalletFolder(self.keystore).load(self.wallet, password)


def signer_of(
    keystore: Path, wallet: str, password_file: Path | None, key_file: Path | None, *, json_lines: bool
) -> Signer:
    """Raises ConfigError where no wallet, or more than one, could be meant."""
    from citrate_node.chain.wallet import WalletFolder
    from citrate_node.errors import ConfigError
    from citrate_node.protocol.certificate import account_of
    from citrate_node.runtime.keys import read_secret

    folder = keystore.expanduser()
    if key_file is not None:
        if wallet:
            raise ConfigError("give either --wallet or --key-file, not both")
        try:
            account = account_of(read_secret(key_file, "key"))
        except ValueError:
            raise ConfigError(f"{key_file} holds no private key: it lies outside the curve's range") from None
        return Signer(account, folder, "", None, key_file, json_lines)
    if wallet:
        return Signer(
            WalletFolder(folder).entry(wallet).account, folder, wallet, password_file, None, json_lines
        )
    entries = WalletFolder(folder).list()
    if len(entries) != 1:
        names = ", ".join(entry.name for entry in entries)
        raise ConfigError(
            f"there are {len(entries)} wallets in {folder}: {names}\n  choose one with --wallet"
            if entries
            else f"there is no wallet in {folder}\n  make one with `citrate wallet new NAME`, then fund it"
        )
    return Signer(entries[0].account, folder, entries[0].name, password_file, None, json_lines)


def rank_and_base(rank: int, base_model_id: bytes) -> str:
    return f"rank {rank}, base model 0x{base_model_id.hex()}"
