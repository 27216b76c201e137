"""`citrate base` on chain: register a base model, list those that are registered, show one by its id.

An adapter can be created only for a base model that is registered. Anyone may register one; of what is said
about it only the id is proof against lies. cli/base.py adds these commands to its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli.adapter_options import LIMIT, OFFSET, Chain, Sending, Signing, bundled
from citrate_node.cli.adapter_send import agreed, asked, sent, transaction_line
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.chain.contract_types import BaseModelRow
    from citrate_node.runtime.adapters import AdapterDesk


def add_to(app: typer.Typer) -> None:
    """Makes these commands part of `citrate base`."""
    app.command()(register)
    app.command(name="list")(list_bases)


@bundled
def register(
    base: str = typer.Argument(
        ..., metavar="BASE", help="`embedded`, a folder, a hub name, or the id itself (64 hex digits)."
    ),
    name: str = typer.Option("", "--name", help="1 to 64 bytes. Default: the name of the model."),
    uri: str = typer.Option("", "--uri", help="Where the files may be had, at most 256 bytes. A hint."),
    licence: str = typer.Option(
        "", "--licence", help="SPDX identifier. Default: what the model's files say."
    ),
    size_bytes: int = typer.Option(
        0, "--size", min=0, max=2**64 - 1, help="Bytes of all tensors. Default: as the files have them."
    ),
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    sending: Sending = Sending(),
    json_lines: bool = JSON,
) -> None:
    """Register a base model, so that adapters can be created for it. Once and for good: nobody can change it.

    Id, licence and size are computed from the files; name them all yourself where you have only the id.
    """
    from citrate_node.cli.output import print_json

    base_id, said = _said(base, {"name": name, "licence": licence, "size_bytes": size_bytes})
    place = chain.place()
    signer = signing.signer(json_lines=json_lines)

    async def act(desk: AdapterDesk) -> dict[str, Any]:
        arguments = (base_id, said["name"], uri, said["licence"], said["size_bytes"])
        run = await desk.dry_run(signer.account, "registerBaseModel", *arguments)
        lines = [
            f"{said['name']!r} 0x{base_id.hex()}",
            f"licence {said['licence']}, {said['size_bytes']:,} bytes, uri {uri or 'none'}",
        ]
        receipt = await agreed(desk, signer, run, lines, sending=sending)
        row = await desk.factory.base_model(base_id)
        return base_facts(row) | sent("base_registered", receipt, signer)

    facts = asked(place, act)
    if json_lines:
        print_json(facts)
        return
    typer.echo(f"registered {facts['base_model_id']}  {facts['name']}")
    typer.echo(transaction_line(facts))


@bundled
def list_bases(
    offset: int = OFFSET,
    limit: int = LIMIT,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """List the base models that are registered on chain, a page at a time."""
    from citrate_node.cli.output import print_json

    place = chain.place()
    rows, following = asked(place, lambda desk: desk.base_models(offset, limit))
    for row in rows:
        if json_lines:
            print_json(base_facts(row))
        else:
            typer.echo(f"0x{row.id.hex()}  {row.name}  {row.licence}  {row.size_bytes:,} bytes")
    if json_lines:
        print_json({"type": "page", "offset": offset, "count": len(rows), "next_offset": following})
    elif following is not None:
        typer.echo(f"more: --offset {following}")
    elif not rows:
        typer.echo("no base models here")


def show_registered(base_id: bytes, chain: Chain, *, json_lines: bool) -> None:
    """What the chain says of a base model. Raises ContractRefusal(UnknownBaseModel)."""
    from citrate_node.cli.output import print_json

    place = chain.place()
    facts = base_facts(asked(place, lambda desk: desk.base_model(base_id)))
    if json_lines:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "type":
            typer.echo(f"{name:<20} {value}")


def id_typed(text: str) -> bytes | None:
    """The id, where an id was typed: 64 hex digits, with or without 0x."""
    digits = text.removeprefix("0x")
    try:
        return bytes.fromhex(digits) if len(digits) == 64 else None
    except ValueError:
        return None


def base_facts(row: BaseModelRow) -> dict[str, Any]:
    """A registered base model as one JSON object."""
    return {
        "type": "base_model",
        "base_model_id": "0x" + row.id.hex(),
        "name": row.name,
        "uri": row.uri,
        "licence": row.licence,
        "size_bytes": row.size_bytes,
        "registrar": "0x" + row.registrar.hex(),
    }


def _said(base: str, flags: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Id, and name, licence and size: the flags over what the files say."""
    from citrate_node.errors import ConfigError

    base_id = id_typed(base)
    if base_id is None:
        from citrate_node.training.base_model import BaseModel

        model = BaseModel.load(base)
        size = sum(tensor.size_bytes for tensor in model.tensors.values())
        computed = {"name": model.name, "licence": model.licence, "size_bytes": size}
        base_id = model.base_model_id
        return base_id, {key: flags[key] or value for key, value in computed.items()}
    absent = [f"--{key.removesuffix('_bytes')}" for key, value in flags.items() if not value]
    if absent:
        raise ConfigError(
            f"of an id alone nothing is known: {', '.join(absent)} must be given too\n"
            "  or name the model's folder instead of its id"
        )
    return base_id, flags
