"""The `citrate adapter` commands that read: show, list, history, pull and verify.

Nothing here signs or sends. cli/adapter.py adds the commands that do to the same group.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli.adapter_options import GATEWAYS, LIMIT, OFFSET, STORES, Chain, bundled
from citrate_node.cli.adapter_send import asked
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.chain.contract_types import AdapterRow, VersionRow
    from citrate_node.runtime.adapters import AdapterDesk, Ancestor, Place
    from citrate_node.runtime.adapters_card import CardReport
    from citrate_node.runtime.adapters_files import AdapterFile

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Create, compose and use adapters on chain.",
)

_ID = typer.Argument(..., metavar="ID", help="Id of the adapter: 0x and 64 hex digits.")
_REFERENCE = typer.Argument(..., metavar="ID[@VERSION]", help="An adapter, and a version; else the latest.")

SHOWN_VERSIONS = 20
"""Of `show`: the latest ones; `history` pages through all."""

SHOWN_DIFFERENCES = 10
"""Of `verify`, to a person: two trainings of one adapter differ in every tensor."""


@app.command()
@bundled
def show(
    adapter: str = _ID,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Show an adapter, its latest versions, and the tree of adapters that it was composed from."""
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import id_bytes

    adapter_id = id_bytes(adapter, "adapter id")

    async def read(desk: AdapterDesk) -> tuple[AdapterRow, list[VersionRow], Ancestor]:
        row = await desk.adapter(adapter_id)
        first = max(0, row.version_count - SHOWN_VERSIONS)
        rows = await desk.history(adapter_id, first, SHOWN_VERSIONS)
        return row, rows, await desk.lineage(adapter_id)

    place = chain.place()
    row, versions, tree = asked(place, read)
    if json_lines:
        print_json(adapter_facts(row))
        for version in versions:
            print_json(_version_facts(row.id, version))
        print_json({"type": "lineage", **_tree_facts(tree)})
        return
    for name, value in adapter_facts(row).items():
        if name != "type" and value is not None:
            typer.echo(f"{name:<16} {value}")
    typer.echo(f"versions         {row.version_count}" + ("" if versions else ", waits for its checkpoint"))
    for version in versions:
        typer.echo("  " + _version_line(version))
    for line in _tree_lines(tree):
        typer.echo(line)


@app.command(name="list")
@bundled
def list_adapters(
    base_model: str = typer.Option(
        "",
        "--base-model",
        "--base",
        help="Only those that fit this base version: id, `embedded` or a folder.",
    ),
    offset: int = OFFSET,
    limit: int = LIMIT,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """List adapters in the order of their creation, a page at a time.

    With --base-model one page looks at 1,000 adapters at most, and says where to go on.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters_files import find_base

    place = chain.place()
    base_id = find_base(base_model, place.base_model)[0] if base_model else None
    rows, following = asked(place, lambda desk: desk.adapters(offset, limit, base_id))
    for row in rows:
        if json_lines:
            print_json(adapter_facts(row))
        else:
            versions = f"{row.version_count} versions" if row.version_count else "pending"
            base = f"base {row.base_model_id.hex()[:12]}…"
            typer.echo(
                f"0x{row.id.hex()}  {row.name or '(composition)'}  rank {row.rank}  {versions}  {base}"
            )
    if json_lines:
        print_json({"type": "page", "offset": offset, "count": len(rows), "next_offset": following})
    elif following is not None:
        typer.echo(f"more: --offset {following}")
    elif not rows:
        typer.echo("no adapters here")


@app.command()
@bundled
def history(
    adapter: str = _ID,
    offset: int = OFFSET,
    limit: int = LIMIT,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """List the versions of an adapter from the oldest, a page at a time."""
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import id_bytes

    adapter_id = id_bytes(adapter, "adapter id")

    async def read(desk: AdapterDesk) -> tuple[AdapterRow, list[VersionRow]]:
        return await desk.adapter(adapter_id), await desk.history(adapter_id, offset, limit)

    place = chain.place()
    row, versions = asked(place, read)
    following = offset + len(versions) if offset + len(versions) < row.version_count else None
    for version in versions:
        if json_lines:
            print_json(_version_facts(adapter_id, version))
        else:
            typer.echo(_version_line(version))
    if json_lines:
        print_json({"type": "page", "offset": offset, "count": len(versions), "next_offset": following})
    elif following is not None:
        typer.echo(f"more: --offset {following}")
    elif not versions:
        typer.echo(
            "no versions here: " + ("pending" if row.version_count == 0 else f"{row.version_count} in all")
        )


@app.command()
@bundled
def pull(
    reference: str = _REFERENCE,
    out: Path = typer.Option(..., "--out", help="Folder to write; it must be absent or empty."),
    stores: list[Path] = STORES,
    gateways: list[str] = GATEWAYS,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Get the weights of a version, check them against the chain, and write a PEFT folder.

    Looks in the content stores, behind the gateways, then in the transaction that recorded the version.
    PEFT's `PeftModel.from_pretrained` loads the folder; its adapter_model.safetensors is, byte for byte, the
    file that the chain names. provenance.json and README.md (the adapter card) say where it came from: signed
    by its creator where a store has that, else what the chain knows.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.adapters import adapter_reference
    from citrate_node.runtime.adapters_card import pulled
    from citrate_node.runtime.adapters_files import write_peft_folder

    adapter_id, number = adapter_reference(reference)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already and not an empty folder\n  give another --out")
    place = chain.place(stores, gateways)

    got = asked(place, lambda desk: pulled(desk, adapter_id, number))
    write_peft_folder(out, got.file, got.provenance)
    facts = _version_facts(adapter_id, got.version)
    if json_lines:
        signed = got.provenance.creator
        print_json({**facts, "type": "pulled", "out": str(out), "from": got.where, "signed_by": signed})
    else:
        typer.echo(
            f"version {got.version.version} from {got.where}: {len(got.file.data):,} bytes, as on chain"
        )
        typer.echo(f"  {got.file.content.cid}")
        typer.echo(f"  {out} loads with peft.PeftModel.from_pretrained")


@app.command()
@bundled
def verify(
    local: Path = typer.Argument(..., metavar="FOLDER", help="A PEFT folder, or a weights file."),
    reference: str = _REFERENCE,
    complete: bool = typer.Option(False, "--complete", help="Fail also where the card lacks a field."),
    stores: list[Path] = STORES,
    gateways: list[str] = GATEWAYS,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Compare a folder with a version on chain; ends with 1 and names what differs.

    Weights, settings, and the card: every fact of provenance.json that the chain or the file decides, the
    creator's signature, and README.md, which must be the card of that provenance.

    A folder that another tool saved again, with the same values in another spelling, is the same adapter.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.errors import CitrateError
    from citrate_node.runtime.adapters import adapter_reference
    from citrate_node.runtime.adapters_card import check_folder
    from citrate_node.runtime.adapters_files import decoded, file_differences, read_adapter
    from citrate_node.runtime.adapters_weights import WeightsMismatch, differences

    adapter_id, number = adapter_reference(reference)
    place = chain.place(stores, gateways)

    async def read(desk: AdapterDesk) -> tuple[AdapterRow, VersionRow, bytes | None, AdapterFile, CardReport]:
        version = await desk.version(adapter_id, number)
        row = await desk.adapter(adapter_id)
        try:
            data = (await desk.weights(adapter_id, version))[0]
        except CitrateError:
            data = None  # the hash decides; with the bytes at hand we can also say which tensor
        # made for another base: then that is what differs, and worth naming beside the rest
        own_base = None if _says_its_base(local, place) else row.base_model_id
        ours = read_adapter(local, place.limits, own_base)
        return row, version, data, ours, await check_folder(desk, local, row, version, data, ours)

    row, version, data, ours, card = asked(place, read)
    wrong = differences(ours.content, version)
    if ours.weights.config.base_model_id != row.base_model_id:
        wrong.append(
            f"base model {ours.weights.config.base_model_id.hex()}, on chain {row.base_model_id.hex()}"
        )
    if ours.weights.config.rank != row.rank:
        wrong.append(f"rank {ours.weights.config.rank}, on chain {row.rank}")
    theirs = decoded(data, place.limits, "the chain's file") if data is not None and wrong else None
    wrong += file_differences(local if local.is_dir() else None, ours, theirs)
    wrong += [f"card: {line}" for line in card.wrong]
    wrong += [f"card: {name} is missing" for name in card.missing if complete]
    what = f"version {version.version} of 0x{adapter_id.hex()}"
    if json_lines:
        facts = {**_version_facts(adapter_id, version), "type": "verified", "folder": str(local)}
        same = {"same": not wrong, "converted": ours.converted, "differences": wrong}
        print_json({**facts, **same, "card_signed_by": card.signed_by, "card_missing": list(card.missing)})
    elif not wrong:
        how = "the same values, in another spelling" if ours.converted else "the same bytes"
        typer.echo(f"{local} is {what}: {how}, {ours.content.cid}")
        typer.echo(
            "  card: " + (f"true, signed by {card.signed_by}" if card.signed_by else "true, not signed")
        )
        if card.missing:
            typer.echo(f"  the card lacks {', '.join(card.missing)}")
    if wrong:
        shown = wrong[:SHOWN_DIFFERENCES]
        if len(wrong) > len(shown):
            shown.append(f"… and {len(wrong) - len(shown)} more; --json names them all")
        raise WeightsMismatch(f"{local} is not {what}\n  " + "\n  ".join(shown))


# ---------------------------------------------------------------- the common part


def _says_its_base(local: Path, place: Place) -> bool:
    """Whether the file is in this network's spelling, which names its base model."""
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.adapters_files import read_adapter

    try:
        return not read_adapter(local, place.limits).converted
    except ConfigError:
        return False


def adapter_facts(row: AdapterRow) -> dict[str, Any]:
    """An adapter as one JSON object."""
    from citrate_node.chain.contract_types import MENTORSHIP_OPEN

    until = row.mentorship_until
    return {
        "type": "adapter",
        "adapter_id": "0x" + row.id.hex(),
        "name": row.name,
        "base_model_id": "0x" + row.base_model_id.hex(),
        "rank": row.rank,
        "depth": row.depth,
        "creator": "0x" + row.creator.hex(),
        "owner": "0x" + row.owner.hex(),
        "pending_owner": "0x" + row.pending_owner.hex() if any(row.pending_owner) else None,
        "version_count": row.version_count,
        "mentorship": "open"
        if until == MENTORSHIP_OPEN
        else f"until checkpoint {until}"
        if until
        else "closed",
    }


def _version_facts(adapter_id: bytes, version: VersionRow) -> dict[str, Any]:
    from citrate_node.protocol.certificate import ACCURACY_UNKNOWN_PPM
    from citrate_node.protocol.content_id import cid_text

    return {
        "type": "version",
        "adapter_id": "0x" + adapter_id.hex(),
        "version": version.version,
        "parent_id": "0x" + version.parent_id.hex() if any(version.parent_id) else None,
        "weights_hash": version.weights_hash.hex(),
        "cid": cid_text(version.codec, version.weights_hash),
        "size_bytes": version.size_bytes or None,
        "accuracy_ppm": version.accuracy if version.accuracy != ACCURACY_UNKNOWN_PPM else None,
        "creator": "0x" + version.creator.hex(),
        "checkpoint": version.checkpoint or None,
        "block": version.block_number,
    }


def _version_line(version: VersionRow) -> str:
    facts = _version_facts(b"", version)
    accuracy = facts["accuracy_ppm"]
    measured = f"{accuracy / 10_000:+.2f} %" if accuracy is not None else "not measured"
    size = f"{version.size_bytes:,} bytes" if version.size_bytes else "size unsaid"
    by = f"checkpoint {version.checkpoint}" if version.checkpoint else "published"
    return f"{version.version:>4}  {facts['cid']}  {size}  {measured}  {by}, block {version.block_number}"


def _tree_facts(node: Ancestor) -> dict[str, Any]:
    return {
        "adapter_id": "0x" + node.adapter.id.hex(),
        "name": node.adapter.name,
        "version": node.version,
        "weight_percent": node.weight_percent,
        "truncated": node.truncated,
        "parents": [_tree_facts(parent) for parent in node.parents],
    }


def _tree_lines(node: Ancestor, depth: int = 0) -> list[str]:
    if depth == 0 and not node.parents:
        return ["lineage          created from weights"]
    name = node.adapter.name or "(composition)"
    share = f"{node.weight_percent:>2} % of version {node.version} of " if node.version else ""
    more = " …" if node.truncated else ""
    own = f"{'  ' * depth}{share}{name} 0x{node.adapter.id.hex()}{more}"
    below = [line for parent in node.parents for line in _tree_lines(parent, depth + 1)]
    return [f"lineage          {own}" if depth == 0 else own, *below]
