"""A wallet user's way to the contract: tried before it is sent, refusals explained, weights checked.

`AdapterDesk` holds one connection. What is asked of a person, and what is printed, is the command line's;
what a file may be is adapters_files.py's. Called by cli/adapter*.py, cli/base_chain.py and cli/wallet.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..chain.adapter_factory import AdapterFactory, cid_argument
from ..chain.contract_abi import factory_abi
from ..chain.contract_types import AdapterRow, BaseModelRow, LineageRow, Receipt, VersionRow
from ..chain.rpc import ContractRefusal, Rpc, hexed
from ..config import load_preset
from ..content.sources import ContentSource, FolderSource, GatewaySource, gateway_url
from ..errors import ConfigError
from ..protocol.adapter import AdapterLimits
from ..protocol.content_id import ContentId
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS
from .adapters_weights import find_weights
from .devnet_folder import DevnetFolder

T = TypeVar("T")

CALLDATA_BYTES_MAX = 96 * 1024
"""Weights above this go by CID: nodes refuse larger transactions, and so does the contract."""

CALLDATA_BYTES_MIN = 64
"""Fewer bytes could be mistaken for a CID; the contract refuses them."""

LINEAGE_NODES_MAX = 256
"""Of a tree that is shown: at depth 16 it could have 131,071."""

PAGE_ROWS = 100
"""Rows asked of the contract at once."""

ROWS_AT_ONCE = 8
"""Adapters read at the same time: a chain in Python answers one after the other, anvil several."""

SCAN_ROWS_MAX = 1_000
"""Places that one page of a filtered list looks at."""


class WrongChain(ConfigError):
    """The chain that answers is not the one that was meant."""


class UnfundedWallet(ConfigError):
    """The account cannot pay for the transaction."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the chain is, and where weights may lie."""

    rpc_url: str
    contract: bytes
    chain_id: int | None
    """The chain that is meant. None: whichever answers."""
    stores: tuple[Path, ...]
    """Folders of content stores that are read, in this order."""
    gateways: tuple[str, ...]
    """URLs of trustless gateways that are asked after the stores."""
    own_store: Path | None
    """The store of the devnet in the folder: its nodes read it. None without a devnet."""
    genesis_record_hash: bytes
    """Of that devnet, which no other network has; empty without a devnet."""
    base_model: str
    """Name of the base that this machine has: "embedded", or what the devnet was started with."""
    limits: AdapterLimits


def place_of(
    folder: Path,
    *,
    rpc_url: str = "",
    contract: str = "",
    chain_id: int = 0,
    stores: Sequence[Path] = (),
    gateways: Sequence[str] = (),
) -> Place:
    """Flags over the devnet in `folder`. A chain that is named by its URL needs no devnet.

    Raises ConfigError where neither is there.
    """
    devnet = DevnetFolder(folder.resolve())
    choices = devnet.load() if devnet.exists or not rpc_url else None
    found: tuple[Path, ...] = ()
    own = None
    if choices is not None:
        own = devnet.folder / "content"
        nodes = [devnet.node_folder(number) / "content" for number in range(1, choices.nodes + 1)]
        found = tuple(path for path in (own, *nodes) if path.is_dir())
    preset = load_preset(choices.preset if choices else "devnet")
    if not rpc_url and choices is not None:
        rpc_url = choices.rpc_url or f"http://127.0.0.1:{choices.rpc_port}"
        chain_id = chain_id or choices.chain_id
    return Place(
        rpc_url=rpc_url,
        contract=account_bytes(contract) if contract else ADAPTER_FACTORY_ADDRESS,
        chain_id=chain_id or None,
        stores=tuple(store_folder(path) for path in stores) or found,
        gateways=tuple(gateway_url(url) for url in gateways),
        own_store=own,
        genesis_record_hash=bytes.fromhex(choices.genesis_record_hash) if choices else b"",
        base_model=choices.base_model if choices else "embedded",
        limits=AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max),
    )


def default_limits() -> AdapterLimits:
    """Limits where no network is named: those of the default preset."""
    preset = load_preset("devnet")
    return AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max)


def store_folder(path: Path) -> Path:
    """A node's data folder holds its store as content/; a store itself is named as it is."""
    return path / "content" if (path / "content").is_dir() or (path / "node.toml").exists() else path


def account_bytes(text: str) -> bytes:
    """An address as typed. Raises ConfigError for anything but 0x and 40 hex digits."""
    try:
        account = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        account = b""
    if len(account) != 20:
        raise ConfigError(f"{text!r} is no address: it must be 0x and 40 hex digits")
    return account


def id_bytes(text: str, what: str) -> bytes:
    """An id as typed. Raises ConfigError for anything but 64 hex digits."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ConfigError(f"{text!r} is no {what}: it must be 0x and 64 hex digits")
    return value


def adapter_reference(text: str) -> tuple[bytes, int | None]:
    """ID or ID@VERSION. None: the latest version."""
    name, mark, number = text.partition("@")
    if mark and (not number.isascii() or not number.isdigit() or not 0 < int(number) < 2**32):
        raise ConfigError(f"{text!r}: after @ comes the number of a version, from 1")
    return id_bytes(name, "adapter id"), int(number) if mark else None


@dataclass(frozen=True, slots=True)
class DryRun:
    """A call that the contract would take now, with what it would answer and cost."""

    function: str
    arguments: tuple[Any, ...]
    account: bytes
    answer: Any
    """What the call returned: the id of the adapter, the number of the version; empty where it is neither."""
    gas: int
    """As the chain estimates it."""
    cost_wei_max: int
    """At the price that is offered: gas and a quarter, at twice the base fee and a tip."""
    balance_wei: int


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One adapter in a lineage tree, and the version that its child was made from."""

    adapter: AdapterRow
    version: int | None
    """None at the root, where it is the latest; elsewhere the one that the composition bound."""
    weight_percent: int | None
    parents: tuple[Ancestor, ...]
    truncated: bool = False
    """Whether it has parents that are not shown: shown elsewhere in the tree, or too many."""


class AdapterDesk:
    """One connection to one contract. Made by `connected`."""

    def __init__(self, place: Place, factory: AdapterFactory, rpc: Rpc) -> None:
        self.place = place
        self.factory = factory
        self._rpc = rpc

    async def own_store(self) -> Path | None:
        """Where weights go that are too large for a transaction: the store that the nodes of this network
        read. None where the devnet in the folder is not the network behind this contract."""
        if self.place.own_store is None:
            return None
        same = await self.factory.genesis_record_hash() == self.place.genesis_record_hash
        return self.place.own_store if same else None

    # ---------------------------------------------------------------- writes

    async def dry_run(self, account: bytes, function: str, *arguments: Any) -> DryRun:
        """Try a write without sending it. Raises ContractRefusal, with what to do, or UnfundedWallet."""
        call = {
            "from": hexed(account),
            "to": hexed(self.factory.contract),
            "data": hexed(factory_abi().call_data(function, *arguments)),
        }
        with _explaining():
            answer = await self._rpc.request("eth_call", call, "latest")
            gas = int(await self._rpc.request("eth_estimateGas", call), 16)
        block = await self._rpc.request("eth_getBlockByNumber", "latest", False)
        cost = (gas * 5 // 4) * (2 * int(block["baseFeePerGas"], 16) + 10**9)
        balance = await self.factory.balance(account)
        if balance < cost:
            raise UnfundedWallet(
                f"account {hexed(account)} has {coins(balance)}, gas may cost {coins(cost, at_most=True)}\n"
                f"  fund it: `citrate wallet fund {hexed(account)} 10` on a devnet, else send it coins"
            )
        result = factory_abi().result(function, bytes.fromhex(answer.removeprefix("0x")))
        return DryRun(function, arguments, account, result, gas, cost, balance)

    async def send(self, key: bytes, run: DryRun) -> Receipt:
        """Send what was tried, and wait for its receipt. The contract may have changed its mind meanwhile."""
        with _explaining():
            return await self.factory.send(key, run.function, *run.arguments)

    # ---------------------------------------------------------------- reads

    async def adapter(self, adapter_id: bytes) -> AdapterRow:
        with _explaining():
            return await self.factory.adapter(adapter_id)

    async def version(self, adapter_id: bytes, number: int | None) -> VersionRow:
        """A version, or the latest. Raises UnknownAdapter, UnknownVersion or NotYetCertified (refusals)."""
        with _explaining():
            if number is None:
                return await self.factory.latest(adapter_id)
            row = await self.factory.adapter(adapter_id)
            if row.version_count == 0:  # the contract says UnknownVersion; what it waits for says more
                return await self.factory.latest(adapter_id)
            return await self.factory.version(adapter_id, number)

    async def history(self, adapter_id: bytes, offset: int, limit: int) -> list[VersionRow]:
        rows: list[VersionRow] = []
        with _explaining():
            while len(rows) < limit:
                wanted = min(PAGE_ROWS, limit - len(rows))
                page = await self.factory.history(adapter_id, offset + len(rows), wanted)
                rows += page
                if len(page) < wanted:
                    break
        return rows

    async def adapters(
        self, offset: int, limit: int, base_model_id: bytes | None = None
    ) -> tuple[list[AdapterRow], int | None]:
        """Up to `limit` adapters from place `offset` on, and the place to go on from (None at the end).

        With a base model at most SCAN_ROWS_MAX places are looked at: of one that is rare, a page may be
        empty and still not the last.
        """
        rows: list[AdapterRow] = []
        total = await self.factory.adapter_count()
        place = offset
        end = min(total, offset + (limit if base_model_id is None else SCAN_ROWS_MAX))
        while place < end and len(rows) < limit:
            ids = await self.factory.adapters(place, min(PAGE_ROWS, end - place))
            wanted = list(enumerate(ids, place))
            if base_model_id is not None:
                bases = await _at_once(self.factory.base_model_id_of, ids)
                wanted = [pair for pair, base in zip(wanted, bases, strict=True) if base == base_model_id]
            room = limit - len(rows)
            rows += await _at_once(self.factory.adapter, [adapter_id for _, adapter_id in wanted[:room]])
            place = wanted[room - 1][0] + 1 if len(wanted) >= room else place + len(ids)
        return rows, place if place < total else None

    async def base_model(self, base_model_id: bytes) -> BaseModelRow:
        with _explaining():
            return await self.factory.base_model(base_model_id)

    async def base_models(self, offset: int, limit: int) -> tuple[list[BaseModelRow], int | None]:
        """Up to `limit` registered base models from place `offset` on, and the place to go on from."""
        rows: list[BaseModelRow] = []
        while len(rows) <= limit:  # one more than is shown: it tells whether there are more
            wanted = min(PAGE_ROWS, limit + 1 - len(rows))
            page = await self.factory.base_models(offset + len(rows), wanted)
            rows += page
            if len(page) < wanted:
                break
        return rows[:limit], offset + limit if len(rows) > limit else None

    async def lineage(self, adapter_id: bytes) -> Ancestor:
        """The tree of compositions above an adapter; one that stands in it twice is opened once."""
        return await self._ancestor(adapter_id, None, None, set())

    async def _ancestor(
        self, adapter_id: bytes, version: int | None, weight: int | None, shown: set[bytes]
    ) -> Ancestor:
        row = await self.adapter(adapter_id)
        made_from: LineageRow | None = await self.factory.lineage(adapter_id)
        if made_from is None:
            return Ancestor(row, version, weight, ())
        if adapter_id in shown or len(shown) >= LINEAGE_NODES_MAX:
            return Ancestor(row, version, weight, (), truncated=True)
        shown.add(adapter_id)
        parents = (
            await self._ancestor(made_from.parent_a, made_from.version_a, made_from.weight_a, shown),
            await self._ancestor(made_from.parent_b, made_from.version_b, made_from.weight_b, shown),
        )
        return Ancestor(row, version, weight, parents)

    # ---------------------------------------------------------------- weights

    async def weights(self, adapter_id: bytes, row: VersionRow) -> tuple[bytes, str]:
        """The bytes of a version, checked against the chain, and where they came from.

        Asks the stores, then the gateways, then the calldata of the transaction that recorded it. Raises
        WeightsMissing or WeightsMismatch.
        """
        sources: list[ContentSource] = [FolderSource(path) for path in self.place.stores]
        sources += [GatewaySource(url) for url in self.place.gateways]
        return await find_weights(self.factory, sources, self.place.limits.size_bytes_max, adapter_id, row)


async def _at_once(read: Callable[[bytes], Awaitable[T]], ids: Sequence[bytes]) -> list[T]:
    """What `read` gives for each id, in their order; a few are asked for at the same time."""
    slots = asyncio.Semaphore(ROWS_AT_ONCE)

    async def one(adapter_id: bytes) -> T:
        async with slots:
            return await read(adapter_id)

    return list(await asyncio.gather(*map(one, ids)))


@asynccontextmanager
async def connected(place: Place) -> AsyncIterator[AdapterDesk]:
    """Raises ServiceError (no chain, no contract) or WrongChain."""
    factory = await AdapterFactory.connect(place.rpc_url, place.contract)
    rpc = None
    try:
        if place.chain_id is not None and factory.chain_id != place.chain_id:
            raise WrongChain(
                f"the chain at {place.rpc_url} has chain id {factory.chain_id}, not {place.chain_id}\n"
                "  give the right --rpc-url, or --chain-id for the chain you mean"
            )
        rpc = Rpc(place.rpc_url)
        yield AdapterDesk(place, factory, rpc)
    finally:
        if rpc is not None:
            await rpc.close()
        await factory.close()


def weights_argument(content: ContentId) -> bytes:
    """What names stored weights in a transaction: CID and size."""
    return cid_argument(content.digest, content.codec, content.size_bytes)


def coins(wei: int, *, at_most: bool = False) -> str:
    """An amount for people, to a millionth: the coin has 18 decimals. Rounded down, or up for a bound."""
    millionths = -(-wei // 10**12) if at_most else wei // 10**12
    whole, rest = divmod(millionths, 10**6)
    return f"{whole}.{f'{rest:06d}'.rstrip('0') or '0'} coins"


_ADVICE = {
    "UnknownAdapter": "`citrate adapter list` shows the adapters of this contract",
    "UnknownVersion": "`citrate adapter history` shows the versions of an adapter",
    "UnknownBaseModel": "`citrate base list` shows the base models that are registered",
    "BaseModelExists": "it needs no second registration: `citrate base show` it",
    "ZeroBaseModelId": "give the id of a base model: `citrate base id` computes it",
    "ZeroSize": "give the size of the base model's files in bytes, above 0",
    "NotPendingOwner": (
        "the owner must offer it to this account first, with `citrate adapter transfer`; pendingOwner 0x00… "
        "means that nobody was offered it"
    ),
    "NotWeightsNorCid": "weights have at least 64 bytes; a CID is 36 bytes, or 44 with the size",
    "UnsupportedCodec": "name weights by a CIDv1 of codec raw (0x55) or dag-pb (0x70), hash sha2-256",
    "NotYetCertified": (
        "a composition that waits for its first checkpoint: nodes compute it once they have the weights "
        "of both parents; look again with `citrate adapter show`"
    ),
    "AdapterExists": "this account made the same call before: `citrate adapter show` it, or change the name",
    "SelfComposition": "compose two different adapters",
    "WeightsMustSumTo100": "give --weights such as 70/30",
    "BaseModelsDiffer": "only adapters of one base model can be composed",
    "DepthLimit": "compose adapters that are themselves compositions of fewer others",
    "NotOwner": "use the wallet of the owner, or have the adapter transferred to yours",
    "OpenToMentorship": (
        "while it is open its versions come from the network; the owner closes it with `citrate adapter "
        "close`, and publishes once the checkpoint that is under way is final"
    ),
    "RankOutOfRange": "the contract takes ranks from 1 to 64",
    "TextLength": "the limits are in bytes of UTF-8; an empty name or licence is refused too",
    "WeightsTooLarge": "leave --calldata out: the weights then go to a content store, and their CID on chain",
}


def explained(refusal: ContractRefusal) -> ContractRefusal:
    """The same refusal with a line that says what to do."""
    advice = _ADVICE.get(refusal.name)
    if advice is None or "\n" in str(refusal):
        return refusal
    return ContractRefusal(refusal.name, refusal.args_by_name, f"{refusal}\n  {advice}")


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except ContractRefusal as refusal:
        raise explained(refusal) from refusal
