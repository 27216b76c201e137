"""`citrate adapter card` and `lineage`: who made an adapter, of what, for what, and who says so.

Added to the group by cli/adapter.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli.adapter_options import STORES, Chain, Signing, bundled
from citrate_node.cli.adapter_read import app
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.runtime.adapters import AdapterDesk, Place
    from citrate_node.training.provenance import LineageFacts, Provenance


@dataclasses.dataclass(frozen=True, slots=True)
class _Said:
    """What the author says on the command line; empty where nothing is said."""

    intended_use: str
    limitations: str
    licence: str
    data: str
    data_licence: str
    tags: tuple[str, ...]

    def added_to(self, known: Provenance) -> Provenance:
        """Raises ConfigError where data is described that the training did not record."""
        from citrate_node.errors import ConfigError

        changes: dict[str, Any] = {}
        for name in ("intended_use", "limitations", "licence"):
            if getattr(self, name):
                changes[name] = getattr(self, name)
        if self.tags:
            changes["tags"] = tuple(dict.fromkeys(("lora", "citrate", *self.tags)))
        if self.data or self.data_licence:
            if known.training is None or len(known.training.data) != 1:
                count = 0 if known.training is None else len(known.training.data)
                raise ConfigError(
                    f"--data describes the one data set of a training; the provenance records {count}\n"
                    "  provenance.json of `citrate train` has its digest; edit training.data there"
                )
            told = known.training.data[0]
            told = dataclasses.replace(
                told, description=self.data or told.description, licence=self.data_licence or told.licence
            )
            changes["training"] = dataclasses.replace(known.training, data=(told,))
        return dataclasses.replace(known, **changes)


@app.command()
@bundled
def card(
    target: str = typer.Argument(
        ..., metavar="ID[@VERSION]|FOLDER", help="An adapter on chain, or a PEFT folder of yours."
    ),
    adapter: str = typer.Option("", "--adapter", help="Of a folder: the ID[@VERSION] that it is on chain."),
    base_model: str = typer.Option(
        "", "--base-model", help="Of another tool's folder: the base's id or name."
    ),
    intended_use: str = typer.Option("", "--intended-use", help="What the adapter is for."),
    limitations: str = typer.Option("", "--limitations", help="What it cannot do, or must not be used for."),
    licence: str = typer.Option("", "--licence", help="Of the adapter. Default: the base model's."),
    data: str = typer.Option("", "--data", help="What it was trained on, in words; the digest is there."),
    data_licence: str = typer.Option("", "--data-licence", help="Licence of that data."),
    tags: list[str] = typer.Option([], "--tag", help="Beside lora and citrate. Repeat it for more."),
    out: Path | None = typer.Option(None, "--out", help="Of an ID: folder to write to. Default: print it."),
    stores: list[Path] = STORES,
    chain: Chain = Chain(),
    signing: Signing = Signing(),
    json_lines: bool = JSON,
) -> None:
    """Write the adapter card: README.md with Hugging Face front matter, and provenance.json for machines.

    **Of a folder** it keeps what `citrate train` and `citrate evaluate` recorded, adds what you say here
    and, with `--adapter`, what the chain says (the weights must be that version's). With `--wallet` or
    `--key-file` your account signs it; signed provenance is laid into the devnet's own store (or `--store`),
    where `pull` finds it. What you write below the card in README.md is kept.

    **Of an id** it shows the card of that version: its creator's where a store has it, else what the chain
    knows.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.errors import ConfigError
    from citrate_node.training.card import card_text

    said = _Said(intended_use, limitations, licence, data, data_licence, tuple(tags))
    local = Path(target)
    if not local.exists():
        if said != _Said("", "", "", "", "", ()) or signing.wallet or signing.key_file or adapter:
            raise ConfigError(f"{target} is no folder here\n  what an author says is added to a folder")
        found = _of_chain(chain.place(stores), target)
        if out is not None:
            _write(out, found, None)
        if json_lines:
            print_json(_facts(found, out))
        elif out is None:
            typer.echo(card_text(found), nl=False)
        else:
            typer.echo(f"{out}: card and provenance of {target}")
        return
    if out is not None:
        raise ConfigError("--out goes with an ID; the card of a folder is written into it")
    if not local.is_dir():
        raise ConfigError(f"{local} is a file\n  give the PEFT folder that it is in")
    place = chain.place(stores) if adapter else None
    known, creators = _of_folder(local, adapter, base_model, place)
    full = said.added_to(known)
    if signing.wallet or signing.key_file is not None:
        signer = signing.signer(json_lines=json_lines)
        full = _signed(full, signer.account, creators, signer.key)
    _write(local, full, known)
    where = _kept(place, stores, full)
    if json_lines:
        print_json(_facts(full, local) | {"kept": str(where) if where else None})
        return
    typer.echo(f"{local}: " + (f"signed by {full.creator}" if full.signature else "not signed"))
    if where is not None:
        typer.echo(f"  kept at {where}, where `citrate adapter pull` finds it")


@app.command()
@bundled
def lineage(
    reference: str = typer.Argument(..., metavar="ID[@VERSION]", help="An adapter, and a version."),
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Show the tree of compositions above an adapter, down to trained weights and their base model."""
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import adapter_reference
    from citrate_node.runtime.adapters_card import lineage_of

    adapter_id, number = adapter_reference(reference)
    place = chain.place()
    tree = _asked(place, lambda desk: lineage_of(desk, adapter_id, number))
    if json_lines:
        print_json({"type": "lineage", **dataclasses.asdict(tree)})
        return
    for line in _tree(tree):
        typer.echo(line)


def _tree(node: LineageFacts, lead: str = "", below: str = "") -> list[str]:
    """Branches as a file tree has them; a stranger's name stays on one line."""
    share = f"{node.weight_percent} % of " if node.weight_percent is not None else ""
    version = f"version {node.version}" if node.version else "no version yet"
    name = " ".join(node.name.split()) or "(composition)"
    more = "  (its parents are shown elsewhere, or too many)" if node.truncated else ""
    lines = [f"{lead}{share}{name}, {version}  {node.adapter_id}  by {node.creator}{more}"]
    if not node.parents and not node.truncated:
        return [*lines, f"{below}└── trained on base model {node.base_model_id}"]
    for place, parent in enumerate(node.parents, 1):
        last = place == len(node.parents)
        lines += _tree(parent, below + ("└── " if last else "├── "), below + ("    " if last else "│   "))
    return lines


def _asked(place: Place, read: Any) -> Any:
    from citrate_node.runtime.adapters import connected

    async def run() -> Any:
        async with connected(place) as desk:
            return await read(desk)

    return asyncio.run(run())


def _of_chain(place: Place, reference: str) -> Provenance:
    from citrate_node.runtime.adapters import adapter_reference
    from citrate_node.runtime.adapters_card import Pulled, pulled

    adapter_id, number = adapter_reference(reference)
    found: Pulled = _asked(place, lambda desk: pulled(desk, adapter_id, number))
    return found.provenance


def _of_folder(
    local: Path, reference: str, base_model: str, place: Place | None
) -> tuple[Provenance, tuple[bytes, ...]]:
    """What a folder says of itself, corrected by its weights and the chain; and whose signature counts."""
    from citrate_node.runtime.adapters import adapter_reference, default_limits
    from citrate_node.runtime.adapters_card import chain_provenance, creators_of, folder_provenance, joined
    from citrate_node.runtime.adapters_weights import require_same
    from citrate_node.training.provenance import read_provenance

    limits = place.limits if place is not None else default_limits()
    own = read_provenance(local)
    file, alone = folder_provenance(local, own, base_model, limits)
    if place is None:
        return alone, ()
    adapter_id, number = adapter_reference(reference)

    async def read(desk: AdapterDesk) -> tuple[Provenance, tuple[bytes, ...]]:
        version = await desk.version(adapter_id, number)
        require_same(file.data, version, str(local))
        row = await desk.adapter(adapter_id)
        return joined(own, await chain_provenance(desk, row, version, file)), creators_of(row, version)

    found: tuple[Provenance, tuple[bytes, ...]] = _asked(place, read)
    return found


def _signed(full: Provenance, account: bytes, creators: tuple[bytes, ...], key: Any) -> Provenance:
    from citrate_node.errors import ConfigError
    from citrate_node.training.provenance import signed

    if creators and account not in creators:
        raise ConfigError(
            f"account 0x{account.hex()} did not make this adapter: its signature would count for nothing\n"
            f"  sign with the wallet of {', '.join('0x' + each.hex() for each in creators)}"
        )
    return signed(full, key())


def _write(target: Path, full: Provenance, before: Provenance | None) -> None:
    """Both files; what an author wrote below the former card stays."""
    from citrate_node.training.card import notes_below, write_card
    from citrate_node.training.provenance import read_provenance, write_provenance

    notes = ""
    if before is not None:
        notes = notes_below(target, read_provenance(target))
    target.mkdir(parents=True, exist_ok=True)
    write_provenance(target, full)
    write_card(target, full, notes)


def _kept(place: Place | None, stores: list[Path], full: Provenance) -> Path | None:
    from citrate_node.runtime.adapters import store_folder
    from citrate_node.runtime.adapters_card import keep

    if place is None or full.signature is None:
        return None
    store = store_folder(stores[0]) if stores else place.own_store
    return keep(store, full) if store is not None else None


def _facts(full: Provenance, where: Path | None) -> dict[str, Any]:
    return {"type": "card", "folder": str(where) if where else None, "provenance": dataclasses.asdict(full)}
