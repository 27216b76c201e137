"""What the adapter commands share: where the chain is, which wallet signs, and how one is asked.

Options that go together are one bundle, written once. Called by the modules of `citrate adapter` and of
`citrate base`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from citrate_node.cli.wallet import KEYSTORE, PASSWORD_FILE

if TYPE_CHECKING:
    from citrate_node.runtime.adapters import Place

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
OFFSET = typer.Option(0, "--offset", min=0, help="Rows to leave out at the beginning.")
LIMIT = typer.Option(50, "--limit", min=1, max=10_000, help="Rows to show at most.")


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the chain is. A bundle: see `bundled`."""

    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of a devnet: gives chain, chain id and stores.")
    ] = Path("devnet")
    rpc_url: Annotated[
        str, typer.Option("--rpc-url", help="The chain. Default: the one of the devnet in --dir.")
    ] = ""
    contract: Annotated[
        str,
        typer.Option("--contract", help="Address of AdapterFactory. Default: 0x…0103, the predeploy."),
    ] = ""
    chain_id: Annotated[
        int,
        typer.Option(
            "--chain-id", help="Refuse any other chain. Default: the devnet's, unless --rpc-url is given."
        ),
    ] = 0

    def place(self, stores: Sequence[Path] = (), gateways: Sequence[str] = ()) -> Place:
        """Raises ConfigError where neither a devnet nor a URL is there."""
        from citrate_node.runtime.adapters import place_of

        return place_of(
            self.folder,
            rpc_url=self.rpc_url,
            contract=self.contract,
            chain_id=self.chain_id,
            stores=stores,
            gateways=gateways,
        )


@dataclass(frozen=True, slots=True)
class Signing:
    """Which wallet signs. A bundle: see `bundled`."""

    # two defaults are typer's own, as `citrate wallet` has them: a command never sees them unparsed
    keystore: Path = KEYSTORE
    wallet: Annotated[
        str, typer.Option("--wallet", help="Name of the wallet that signs. Default: the only one there is.")
    ] = ""
    password_file: Path | None = PASSWORD_FILE
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", help="Instead of a wallet: a development key in clear, 64 hex digits, mode 0600."
        ),
    ] = None

    def signer(self, *, json_lines: bool) -> Signer:
        """Raises ConfigError where no wallet, or more than one, could be meant."""
        return signer_of(self.keystore, self.wallet, self.password_file, self.key_file, json_lines=json_lines)


@dataclass(frozen=True, slots=True)
class Sending:
    """Whether to ask first, or to send nothing at all. A bundle: see `bundled`."""

    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Do not ask before sending. --json does not ask either."),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try it and say what it would cost; send nothing, need no password."),
    ] = False


_BUNDLES = (Chain, Signing, Sending)


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """Typer sees the fields of a bundle where a command takes the bundle: `chain: Chain = Chain()`.

    Typer knows no such thing itself; what it reads is the signature, so that is what is written anew here.
    """
    signature = inspect.signature(command, eval_str=True)
    bundles = {name: p.annotation for name, p in signature.parameters.items() if p.annotation in _BUNDLES}
    parameters = []
    for parameter in signature.parameters.values():
        kind = bundles.get(parameter.name)
        fields = dataclasses.fields(kind) if kind is not None else ()
        hints = get_type_hints(kind, include_extras=True) if kind is not None else {}
        parameters += [
            inspect.Parameter(each.name, parameter.kind, default=each.default, annotation=hints[each.name])
            for each in fields
        ] or [parameter]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in bundles.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in dataclasses.fields(kind)})
        command(**given)

    cast("Any", run).__signature__ = signature.replace(parameters=parameters)
    return run


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
