"""`citrate content`: files by content, in a node's store. The CIDs are Kubo's (profile unixfs-v1-2025)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from citrate_node.content.block_store import BlockStore

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Files by content: add, read and verify, with IPFS CIDs.",
)

STORE = typer.Option(
    ...,
    "--store",
    envvar="CITRATE_STORE",
    help="A node's data folder (it holds content/), or a store itself.",
)
JSON = typer.Option(False, "--json", help="One JSON object per line on stdout, nothing else.")
MAX = typer.Option(1 << 34, "--max-bytes", min=1, help="Refuse a content above this size.")


@contextmanager
def _open(folder: Path, *, read_only: bool) -> Iterator[BlockStore]:
    from citrate_node.content.block_store import BlockStore
    from citrate_node.content.opening import daemon_of
    from citrate_node.errors import ConfigError

    path = folder / "content" if (folder / "content").is_dir() or (folder / "node.toml").exists() else folder
    if read_only and not path.is_dir():
        raise ConfigError(f"there is no content store at {path}\n  give a node's data folder with --store")
    daemon = daemon_of(path)
    if daemon is not None:
        raise ConfigError(
            f"this node's contents are kept by the Kubo daemon at {daemon[0]}\n"
            f"  `ipfs files ls /citrate/{daemon[1]}` lists them, `ipfs cat CID` reads one"
        )
    store = BlockStore(path, read_only=read_only)
    try:
        yield store
    finally:
        store.close()


def _say(json_lines: bool, text: str, **facts: object) -> None:
    from citrate_node.cli.output import print_json

    if json_lines:
        print_json(facts)
    else:
        typer.echo(text)


@app.command()
def add(
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="The file to store and pin."),
    store: Path = STORE,
    json_lines: bool = JSON,
) -> None:
    """Store a file, pin it, and print its CID. The node that owns the store must not be running."""
    with _open(store, read_only=False) as opened:
        content = opened.put(file)
    _say(json_lines, content.cid, type="added", cid=content.cid, size_bytes=content.size_bytes)


@app.command()
def cid(
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="Any file; nothing is stored."),
    json_lines: bool = JSON,
) -> None:
    """Print the CID that a file has, without storing it."""
    from citrate_node.protocol.content_id import Importer

    importer = Importer()
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            importer.update(chunk)
    content = importer.finish()
    _say(json_lines, content.cid, type="cid", cid=content.cid, size_bytes=content.size_bytes)


@app.command()
def cat(
    cid: str = typer.Argument(..., help="The CID, bafkrei… or bafybei…"),
    store: Path = STORE,
    size_bytes_max: int = MAX,
    json_lines: bool = typer.Option(False, "--json", help="The bytes in base64, one object for each block."),
) -> None:
    """Write a content to stdout. Every block is hashed before it is handed out."""
    import base64

    from citrate_node.cli.output import print_json

    offset = 0
    with _open(store, read_only=True) as opened:
        content = opened.resolve(cid, size_bytes_max)
        reader = opened.reader(content)
        while (data := reader.next_bytes()) is not None:
            if json_lines:
                text = base64.b64encode(data).decode()
                print_json({"type": "bytes", "cid": cid, "offset": offset, "base64": text})
            else:
                sys.stdout.buffer.write(data)
            offset += len(data)
    if json_lines:
        print_json({"type": "end", "cid": cid, "size_bytes": content.size_bytes})
    sys.stdout.buffer.flush()


@app.command()
def get(
    cid: str = typer.Argument(..., help="The CID, bafkrei… or bafybei…"),
    out: Path = typer.Option(..., "--out", help="File to write; it appears only when complete and verified."),
    store: Path = STORE,
    size_bytes_max: int = MAX,
    json_lines: bool = JSON,
) -> None:
    """Write a content to a file. A file that is there already is left alone."""
    from citrate_node.content.files import write_new_file

    with _open(store, read_only=True) as opened:
        content = opened.resolve(cid, size_bytes_max)
        write_new_file(out, iter(opened.reader(content).next_bytes, None))
    _say(json_lines, str(out), type="got", cid=cid, size_bytes=content.size_bytes, out=str(out))


@app.command()
def export(
    cid: str = typer.Argument(..., help="The CID, bafkrei… or bafybei…"),
    car: Path = typer.Argument(..., help="CAR file to write; it appears only when complete and verified."),
    store: Path = STORE,
    size_bytes_max: int = MAX,
    json_lines: bool = JSON,
) -> None:
    """Write a content as a CAR (version 1), which `ipfs dag import` and other IPFS tools read."""
    from citrate_node.content.car import export_car
    from citrate_node.content.files import write_new_file

    with _open(store, read_only=True) as opened:
        content = opened.resolve(cid, size_bytes_max)
        write_new_file(car, export_car(opened, content))
    _say(json_lines, str(car), type="exported", cid=cid, size_bytes=content.size_bytes, out=str(car))


@app.command(name="import")
def import_(
    car: Path = typer.Argument(
        ..., exists=True, dir_okay=False, help="A CAR with one file, as from `export`."
    ),
    store: Path = STORE,
    expected: str | None = typer.Option(None, "--cid", help="Refuse a CAR that holds anything but this CID."),
    size_bytes_max: int = MAX,
    json_lines: bool = JSON,
) -> None:
    """Store and pin the content of a CAR. Every block is hashed; a damaged or cut CAR leaves nothing."""
    from citrate_node.content.car import import_car

    with _open(store, read_only=False) as opened, car.open("rb") as stream:
        content = import_car(opened, stream, size_bytes_max=size_bytes_max, expected=expected)
    _say(json_lines, content.cid, type="imported", cid=content.cid, size_bytes=content.size_bytes)


@app.command(name="ls")
def list_contents(store: Path = STORE, json_lines: bool = JSON) -> None:
    """List what the store keeps: CID, size, pinned, and the checkpoint that a delta serves."""
    with _open(store, read_only=True) as opened:
        for entry in opened.entries():
            serves = entry.ephemeral_checkpoint
            kept = "pinned" if entry.pinned else f"until checkpoint {serves} is final"
            _say(
                json_lines,
                f"{entry.content.cid}  {entry.content.size_bytes:>12,}  {kept}",
                type="content",
                cid=entry.content.cid,
                size_bytes=entry.content.size_bytes,
                pinned=entry.pinned,
                ephemeral_checkpoint=serves,
            )


@app.command()
def pin(
    cid: str = typer.Argument(..., help="A content that the store holds."),
    store: Path = STORE,
    size_bytes_max: int = MAX,
    json_lines: bool = JSON,
) -> None:
    """Keep a content until it is unpinned."""
    with _open(store, read_only=False) as opened:
        opened.pin(opened.resolve(cid, size_bytes_max))
    _say(json_lines, f"pinned {cid}", type="pinned", cid=cid)


@app.command()
def unpin(
    cid: str = typer.Argument(..., help="A pinned content."),
    store: Path = STORE,
    size_bytes_max: int = MAX,
    json_lines: bool = JSON,
) -> None:
    """Let a content go at the next `gc`."""
    with _open(store, read_only=False) as opened:
        opened.unpin(opened.resolve(cid, size_bytes_max))
    _say(json_lines, f"unpinned {cid}", type="unpinned", cid=cid)


@app.command()
def gc(store: Path = STORE, json_lines: bool = JSON) -> None:
    """Remove what nothing keeps. Deltas of checkpoints that may still be open stay."""
    with _open(store, read_only=False) as opened:
        report = opened.collect()
    _say(
        json_lines,
        f"removed {len(report.contents_removed)} contents, {report.bytes_freed:,} bytes",
        type="collected",
        contents_removed=[content.cid for content in report.contents_removed],
        contents_kept=report.contents_kept,
        bytes_freed=report.bytes_freed,
    )


@app.command()
def verify(store: Path = STORE, json_lines: bool = JSON) -> None:
    """Read and hash everything; ends with 1 and names what is damaged."""
    from citrate_node.errors import ServiceError

    with _open(store, read_only=True) as opened:
        report = opened.verify()
    for damage in report.damaged:
        _say(
            json_lines,
            f"damaged {damage.cid}: {damage.reason}",
            type="damaged",
            cid=damage.cid,
            reason=damage.reason,
        )
    _say(
        json_lines,
        f"{report.contents} contents, {report.bytes_read:,} bytes read",
        type="verified",
        contents=report.contents,
        bytes_read=report.bytes_read,
        damaged=len(report.damaged),
    )
    if report.damaged:
        raise ServiceError(f"{len(report.damaged)} contents are damaged\n  fetch them again from peers")


GATEWAY = typer.Option("https://arweave.net", "--gateway", help="An Arweave gateway; it is never trusted.")


@app.command()
def archive(
    cid: str = typer.Argument(..., help="An adapter's weights that the store holds."),
    wallet: Path = typer.Option(
        ..., "--wallet", exists=True, dir_okay=False, help="Arweave wallet (JSON Web Key)."
    ),
    store: Path = STORE,
    gateway: str = GATEWAY,
    size_bytes_max: int = typer.Option(1 << 30, "--max-bytes", min=1, help="Refuse weights above this size."),
    json_lines: bool = JSON,
) -> None:
    """Put an adapter's weights on Arweave, where they stay for ever, paid from WALLET.

    Prints the transaction id, a hint for `citrate content restore`; the name stays the CID. Only adapters are
    taken, since deltas are meant to go. Tried against a local gateway only, never on the real network.
    """
    import asyncio

    from citrate_node.content.arweave import Arweave, ArweaveWallet
    from citrate_node.errors import ConfigError
    from citrate_node.protocol.adapter import AdapterLimits, decode_adapter
    from citrate_node.protocol.tensors import FormatError

    key = ArweaveWallet.load(wallet)
    with _open(store, read_only=True) as opened:
        data = opened.get_by_cid(cid, size_bytes_max)
    try:
        decode_adapter(data, AdapterLimits(size_bytes_max, 100_000, 4096))
    except FormatError as error:
        raise ConfigError(
            f"{cid} is no adapter: {error}\n  only adapters are archived; `get` writes any content to a file"
        ) from None

    async def send() -> str:
        async with Arweave(gateway) as archive:
            return await archive.archive(data, key)

    transaction = asyncio.run(send())
    _say(json_lines, transaction, type="archived", cid=cid, size_bytes=len(data), transaction_id=transaction)


@app.command()
def restore(
    cid: str = typer.Argument(..., help="The CID that the bytes must have."),
    transaction: str = typer.Option(
        ..., "--transaction", help="Arweave transaction id: a hint where to look."
    ),
    store: Path = STORE,
    gateway: str = GATEWAY,
    size_bytes_max: int = typer.Option(
        1 << 30, "--max-bytes", min=1, help="Refuse a content above this size."
    ),
    json_lines: bool = JSON,
) -> None:
    """Bring a content back from Arweave, store and pin it. Bytes of any other CID are refused."""
    import asyncio

    from citrate_node.content.arweave import Arweave
    from citrate_node.content.tree import asked_cid

    asked_cid(cid)

    async def fetch() -> bytes:
        async with Arweave(gateway) as archive:
            return (await archive.restore(transaction, cid, size_bytes_max))[1]

    data = asyncio.run(fetch())
    with _open(store, read_only=False) as opened:
        content = opened.put(data)
    _say(json_lines, cid, type="restored", cid=content.cid, size_bytes=content.size_bytes)
