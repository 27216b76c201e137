"""`citrate adapter`: create, compose and publish. The commands that read are in adapter_read.py, those of an
adapter's owner in adapter_owner.py.

A write is tried first, then shown and asked about, then sent and waited for (adapter_send.py). Files and
folders are judged in runtime/adapters_files.py before the chain hears of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli import adapter_card, adapter_serve, adapter_use
from citrate_node.cli.adapter_options import Chain, Sending, Signer, Signing, bundled, rank_and_base
from citrate_node.cli.adapter_owner import add_to
from citrate_node.cli.adapter_read import app
from citrate_node.cli.adapter_send import agreed, asked, sent, transaction_line
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.chain.contract_types import Receipt
    from citrate_node.protocol.content_id import ContentId
    from citrate_node.runtime.adapters import AdapterDesk
    from citrate_node.runtime.adapters_files import AdapterFile

__all__ = ["adapter_card", "adapter_serve", "adapter_use", "app"]

add_to(app)

_SOURCE = typer.Argument(..., exists=True, help="adapter_model.safetensors, or the PEFT folder it is in.")
_CALLDATA = typer.Option(
    False, "--calldata", help="Refuse to put the weights anywhere but into the transaction."
)
_WRITE_STORE = typer.Option(
    None, "--store", help="Content store (or a stopped node's data folder) to put the weights into."
)
_WHERE_WEIGHTS_GO = """

    **Where the weights go.** Up to 96 KiB they travel in the transaction itself: nodes pick them up from
    there, so nothing else need be running (about 16 gas per byte). Larger ones go to a content store and only
    their CID on chain; the store is `--store`, else `DIR/content` of the devnet, which its nodes read. Nodes
    elsewhere find them in the stores and gateways of their node.toml (`content.read_stores`,
    `content.gateways`), or at a node that holds them.
"""


@app.command(
    help="Create an adapter from its weights; your account becomes its owner.\n\n"
    "SOURCE is a file of this network (as `adapter pull` writes) or what PEFT's `save_pretrained` wrote; the "
    "latter is converted: its values are rounded onto the grid of 2^-24, and the command says so. Base model "
    "and rank must fit." + _WHERE_WEIGHTS_GO
)
@bundled
def create(
    source: Path = _SOURCE,
    name: str = typer.Option(..., "--name", help="1 to 64 bytes; need not be unique."),
    base_model: str = typer.Option(
        "",
        "--base-model",
        help="Id (64 hex digits), `embedded`, a folder or a hub name. Default: what the file itself says.",
    ),
    rank: int = typer.Option(0, "--rank", help="Refuse the file unless it has this rank."),
    calldata: bool = _CALLDATA,
    store: Path | None = _WRITE_STORE,
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    from citrate_node.runtime.adapters_files import (
        find_base,
        local_base,
        read_adapter,
        require_fit,
        require_promoted,
        require_rank,
    )

    place = chain.place()
    base_id, base = find_base(base_model, place.base_model) if base_model else (None, None)
    file = read_adapter(source, place.limits, base_id)
    require_promoted(source)
    if rank:
        require_rank(file.weights, rank, str(source))
    config = file.weights.config
    if base is None:
        base = local_base(config.base_model_id, place.base_model)
    if base is not None:
        require_fit(file.weights, base, str(source))
    signer = signing.signer(json_lines=json_lines)
    _require_one_way(calldata=calldata, store=store)

    async def act(desk: AdapterDesk) -> dict[str, Any]:
        way = await _way(file, desk, calldata=calldata, store=store)
        run = await desk.dry_run(
            signer.account, "createAdapter", config.base_model_id, name, way.argument, config.rank
        )
        lines = _lines(file, way, f"name {name!r}")
        receipt = await agreed(desk, signer, run, lines, sending=sending, before=way.put)
        return _sent("created", receipt, receipt.adapter_id, signer) | way.facts(file) | {"name": name}

    _show(asked(place, act), json_lines)


@app.command(
    help="Add a version to your own adapter. It must be closed to mentorship: while an adapter is open, its "
    "versions come from the network.\n\nThe file must have the adapter's base model and rank."
    + _WHERE_WEIGHTS_GO
)
@bundled
def publish(
    adapter: str = typer.Argument(..., metavar="ID", help="Id of the adapter."),
    source: Path = _SOURCE,
    calldata: bool = _CALLDATA,
    store: Path | None = _WRITE_STORE,
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    from citrate_node.runtime.adapters import id_bytes
    from citrate_node.runtime.adapters_files import (
        local_base,
        read_adapter,
        require_fit,
        require_promoted,
        require_rank,
    )

    adapter_id = id_bytes(adapter, "adapter id")
    _require_one_way(calldata=calldata, store=store)
    place = chain.place()
    signer = signing.signer(json_lines=json_lines)

    async def act(desk: AdapterDesk) -> dict[str, Any]:
        row = await desk.adapter(adapter_id)
        file = read_adapter(source, place.limits, row.base_model_id)
        require_promoted(source)
        require_rank(file.weights, row.rank, str(source))
        base = local_base(row.base_model_id, place.base_model)
        if base is not None:
            require_fit(file.weights, base, str(source))
        way = await _way(file, desk, calldata=calldata, store=store)
        run = await desk.dry_run(signer.account, "publishVersion", adapter_id, way.argument)
        lines = _lines(file, way, f"version {run.answer} of {row.name!r} 0x{adapter_id.hex()}")
        receipt = await agreed(desk, signer, run, lines, sending=sending, before=way.put)
        return _sent("published", receipt, adapter_id, signer) | way.facts(file) | {"name": row.name}

    _show(asked(place, act), json_lines)


@app.command()
@bundled
def compose(
    first: str = typer.Argument(..., metavar="A", help="Id of the first adapter."),
    second: str = typer.Argument(..., metavar="B", help="Id of the second adapter."),
    weights: str = typer.Option(..., "--weights", help="Per cent of each, such as 70/30; they sum to 100."),
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    """Ask the network for the exact weighted sum of two adapters of one base model.

    Their latest versions are bound now. The composition has no version until nodes have computed it and
    certified it at a checkpoint; `citrate adapter show` tells. Ranks add up; above 64 the result is brought
    back to 64.
    """
    from citrate_node.runtime.adapters import id_bytes

    ids = id_bytes(first, "adapter id"), id_bytes(second, "adapter id")
    parts = _weights(weights)
    place = chain.place()
    signer = signing.signer(json_lines=json_lines)

    async def act(desk: AdapterDesk) -> dict[str, Any]:
        from citrate_node.protocol.composition import COMPOSED_RANK_MAX

        run = await desk.dry_run(signer.account, "composeAdapters", *ids, *parts)
        lines, ranks = [], 0
        base = b""
        for adapter_id, part in zip(ids, parts, strict=True):
            row = await desk.adapter(adapter_id)
            lines.append(f"{part:>2} % of {row.name!r} 0x{adapter_id.hex()} version {row.version_count}")
            ranks, base = ranks + row.rank, row.base_model_id
        rank = min(ranks, COMPOSED_RANK_MAX)
        lines.append(rank_and_base(rank, base) + (f" (recompressed from {ranks})" if ranks > rank else ""))
        receipt = await agreed(desk, signer, run, lines, sending=sending)
        return _sent("composed", receipt, receipt.adapter_id, signer) | {
            "parents": ["0x" + adapter_id.hex() for adapter_id in ids],
            "weights": list(parts),
            "rank": rank,
            "pending": True,
        }

    _show(asked(place, act), json_lines)


# ---------------------------------------------------------------- the common part


class _Way:
    """How weights come to the chain: in calldata, or stored and named."""

    def __init__(self, content: ContentId, data: bytes, store: Path | None, in_calldata: bool) -> None:
        from citrate_node.runtime.adapters import weights_argument

        self.content = content
        self.store = store
        """To be written to; None where nothing need be."""
        self.in_calldata = in_calldata
        self.argument = data if in_calldata else weights_argument(content)
        self._data = data

    def put(self) -> None:
        """Store and pin, before the chain names it: the other way round it could name what nobody has."""
        from citrate_node.content.block_store import BlockStore

        if self.store is None:
            return
        store = BlockStore(self.store)
        try:
            store.put(self._data)
        finally:
            store.close()

    def __str__(self) -> str:
        if self.in_calldata:
            return "in the transaction"
        return f"by CID, stored in {self.store}" if self.store else "by CID, stored already"

    def facts(self, file: AdapterFile) -> dict[str, Any]:
        return {
            "weights_hash": self.content.digest.hex(),
            "cid": self.content.cid,
            "size_bytes": self.content.size_bytes,
            "in_calldata": self.in_calldata,
            "store": str(self.store) if self.store else None,
            "converted": file.converted,
            "rank": file.weights.config.rank,
            "base_model_id": "0x" + file.weights.config.base_model_id.hex(),
        }


def _require_one_way(*, calldata: bool, store: Path | None) -> None:
    from citrate_node.errors import ConfigError

    if calldata and store is not None:
        raise ConfigError("give either --calldata or --store, not both")


async def _way(file: AdapterFile, desk: AdapterDesk, *, calldata: bool, store: Path | None) -> _Way:
    """Decide as the help says. Raises ConfigError where the wish cannot be met."""
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.adapters import CALLDATA_BYTES_MAX, CALLDATA_BYTES_MIN, store_folder
    from citrate_node.runtime.adapters_weights import held_by

    content = file.content
    fits = CALLDATA_BYTES_MIN <= content.size_bytes <= CALLDATA_BYTES_MAX
    if calldata and not fits:
        raise ConfigError(
            f"the weights have {content.size_bytes} bytes, a transaction takes {CALLDATA_BYTES_MAX}\n"
            "  leave --calldata out: they then go to a content store, and their CID on chain"
        )
    if store is not None:
        return _Way(content, file.data, store_folder(store), in_calldata=False)
    if fits:
        return _Way(content, file.data, None, in_calldata=True)
    own = await desk.own_store()
    if own is None:
        raise ConfigError(
            f"the weights have {content.size_bytes} bytes, too many for a transaction, and the network at "
            f"{desk.place.rpc_url} is not the devnet in --dir\n"
            "  name a content store for them with --store; one is made where there is none"
        )
    if held_by(desk.place.stores, content) is not None:
        return _Way(content, file.data, None, in_calldata=False)
    return _Way(content, file.data, own, in_calldata=False)


def _lines(file: AdapterFile, way: _Way, what: str) -> list[str]:
    config = file.weights.config
    return [
        f"{what}, {rank_and_base(config.rank, config.base_model_id)}",
        *(["converted from an ordinary PEFT file, rounded to multiples of 2^-24"] if file.converted else []),
        f"weights {way.content.cid}, {way.content.size_bytes:,} bytes, {way}",
    ]


def _sent(kind: str, receipt: Receipt, adapter_id: bytes, signer: Signer) -> dict[str, Any]:
    version = None if kind == "composed" else receipt.version
    named = {"type": kind, "adapter_id": "0x" + adapter_id.hex(), "version": version}
    return named | sent(kind, receipt, signer)


def _show(facts: dict[str, Any], json_lines: bool) -> None:
    from citrate_node.cli.output import print_json

    if json_lines:
        print_json(facts)
        return
    version = f"version {facts['version']}" if facts["version"] else "waits for its first checkpoint"
    typer.echo(f"{facts['type']} {facts['adapter_id']}  {version}")
    if "cid" in facts:
        typer.echo(f"  cid          {facts['cid']}")
    typer.echo(transaction_line(facts))


def _weights(text: str) -> tuple[int, int]:
    from citrate_node.errors import ConfigError

    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
        raise ConfigError(f"--weights {text!r} must be two whole numbers of per cent, such as 70/30")
    first, second = map(int, parts)
    if first < 1 or second < 1 or first + second != 100:
        raise ConfigError(f"--weights {text} must be positive and sum to 100, such as 70/30")
    return first, second
