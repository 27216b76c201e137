"""Provenance of a version on chain: made from what the chain says, and what an author says held against it.

The chain knows base, rank, hash, creator and the tree of compositions. How an adapter was trained, what it
is for and how it does, only its author can say, and signs. Signed provenance lies beside the weights in a
content store; whoever signed must be the adapter's creator, so it does not matter who handed it over.
Called by cli/adapter_card.py and cli/adapter_read.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..chain.contract_types import AdapterRow, BaseModelRow, VersionRow
from ..content.block_store import BlockStore
from ..errors import CitrateError
from ..protocol.adapter import AdapterLimits
from ..protocol.certificate import ACCURACY_UNKNOWN_PPM
from ..recording import write_atomically
from ..training.card import CARD_FILE, card_text
from ..training.export import weights_facts
from ..training.provenance import (
    PROVENANCE_FILE,
    BaseFacts,
    ChainFacts,
    LineageFacts,
    Provenance,
    ProvenanceError,
    from_json,
    read_provenance,
    require_signature,
    to_json,
)
from .adapters import AdapterDesk, Ancestor
from .adapters_files import (
    AdapterFile,
    NotAnAdapter,
    decoded,
    find_base,
    local_base,
    read_adapter,
    require_base,
    require_rank,
)

KEPT_FOLDER = "provenance"
"""Beside a content store's blocks: <hex of the weights hash>.json."""

_OF_THE_CHAIN = ("base.base_model_id", "weights", "chain", "lineage")
"""Fields that the file or the chain decides; the rest is the author's word."""

_WANTED = (
    *("chain", "training", "training.data", "evaluations", "intended_use", "limitations"),
    *("creator", "signature"),
)
"""Fields that a complete card has."""


@dataclasses.dataclass(frozen=True, slots=True)
class CardReport:
    """What is false, and what is missing, field by field."""

    wrong: tuple[str, ...]
    missing: tuple[str, ...]
    signed_by: str | None = None
    """A creator whose signature is good; None: nobody's, or a wrong one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pulled:
    """A version, whole and checked against the chain."""

    row: AdapterRow
    version: VersionRow
    file: AdapterFile
    where: str
    """The store or block that the bytes came from."""
    provenance: Provenance
    """Signed by a creator where a store has that; else what the chain knows."""


async def pulled(desk: AdapterDesk, adapter_id: bytes, number: int | None) -> Pulled:
    """Fetch a version. Raises WeightsMissing, or WeightsMismatch and its like for what is not as on chain."""
    version = await desk.version(adapter_id, number)
    row = await desk.adapter(adapter_id)
    data, where = await desk.weights(adapter_id, version)
    what = f"version {version.version} of {_hexed(adapter_id)}"
    file = decoded(data, desk.place.limits, what)
    require_base(file.weights, row.base_model_id, what)
    require_rank(file.weights, row.rank, what)
    chain = await chain_provenance(desk, row, version, file)
    signed = kept(desk.place.stores, chain, creators_of(row, version))
    return Pulled(row, version, file, where, signed or chain)


def folder_provenance(
    folder: Path, own: Provenance | None, base_model: str, limits: AdapterLimits
) -> tuple[AdapterFile, Provenance]:
    """A PEFT folder's weights, and its provenance corrected by them.

    base_model: id or name, for another tool's folder without provenance.
    """
    known = own.base.base_model_id if own is not None else ""
    base_id, base = find_base(base_model or known, "embedded") if base_model or known else (None, None)
    file = read_adapter(folder, limits, base_id)
    weights = weights_facts(file.weights.config, file.data)
    if own is not None:
        same = own if own.weights == weights else dataclasses.replace(own, weights=weights)
        return file, dataclasses.replace(same, creator=None, signature=None)
    base = base or local_base(file.weights.config.base_model_id, "embedded")
    name, licence = (base.name, base.licence) if base is not None else ("", "unknown")
    facts = BaseFacts(name, file.weights.config.base_model_id.hex(), licence)
    return file, Provenance(base=facts, weights=weights, licence=licence)


async def chain_provenance(
    desk: AdapterDesk, row: AdapterRow, version: VersionRow, file: AdapterFile
) -> Provenance:
    """All that chain and file say of a version. Raises ServiceError where the chain cannot be asked."""
    base = await desk.factory.base_model(row.base_model_id)
    tree = await desk.lineage(row.id)
    return Provenance(
        base=_base_facts(base),
        weights=weights_facts(file.weights.config, file.data),
        chain=ChainFacts(
            chain_id=desk.factory.chain_id,
            contract=_hexed(desk.factory.contract),
            adapter_id=_hexed(row.id),
            name=row.name,
            version=version.version,
            creator=_hexed(row.creator),
            weights_hash=version.weights_hash.hex(),
            checkpoint=version.checkpoint or None,
            accuracy_ppm=version.accuracy if version.accuracy != ACCURACY_UNKNOWN_PPM else None,
        ),
        lineage=await _lineage(desk, tree, version.version),
        licence=base.licence or "unknown",
    )


async def _lineage(desk: AdapterDesk, node: Ancestor, number: int | None) -> LineageFacts:
    """The tree with the hash of every version that it names."""
    version = await desk.version(node.adapter.id, number) if number else None
    return LineageFacts(
        adapter_id=_hexed(node.adapter.id),
        name=node.adapter.name,
        creator=_hexed(node.adapter.creator),
        base_model_id=node.adapter.base_model_id.hex(),
        version=number,
        weights_hash=version.weights_hash.hex() if version is not None else None,
        weight_percent=node.weight_percent,
        parents=tuple([await _lineage(desk, parent, parent.version) for parent in node.parents]),
        truncated=node.truncated,
    )


async def lineage_of(desk: AdapterDesk, adapter_id: bytes, number: int | None) -> LineageFacts:
    """The tree above a version, or above the latest; a composition that waits has none of its own yet."""
    row = await desk.adapter(adapter_id)
    if row.version_count:
        number = (await desk.version(adapter_id, number)).version
    return await _lineage(desk, await desk.lineage(adapter_id), number)


def joined(own: Provenance | None, chain: Provenance) -> Provenance:
    """The author's word, with everything that file and chain decide taken from them. Unsigned."""
    if own is None:
        return chain
    return dataclasses.replace(
        own,
        base=dataclasses.replace(own.base, base_model_id=chain.base.base_model_id),
        weights=dataclasses.replace(chain.weights, variant=own.weights.variant),
        chain=chain.chain,
        lineage=chain.lineage,
        creator=None,
        signature=None,
    )


def check(said: Provenance, chain: Provenance, creators: Sequence[bytes]) -> CardReport:
    """Hold a provenance against file and chain.

    creators: accounts whose signature counts, those that made the adapter and the version.
    """
    theirs, ours = _flat(dataclasses.asdict(said)), _flat(dataclasses.asdict(chain))
    wrong = []
    for name in sorted({*theirs, *ours}):
        if not any(name == part or name.startswith(part + ".") for part in _OF_THE_CHAIN):
            continue
        part = name.split(".")[0]
        if part in ("chain", "lineage") and getattr(said, part) is None:
            continue  # missing, not false
        if theirs.get(name) != ours.get(name):
            wrong.append(f"{name} is {_shown(theirs.get(name))}, in truth {_shown(ours.get(name))}")
    known = (said.base.licence, chain.base.licence)
    if "unknown" not in known and known[0].lower() != known[1].lower():
        wrong.append(f"base.licence is {known[0]}, on chain {known[1]}")
    signed_by = None
    if said.signature is not None or said.creator is not None:
        try:
            account = require_signature(said)
        except ProvenanceError as error:
            wrong.append(str(error).splitlines()[0])
        else:
            if account in creators:
                signed_by = _hexed(account)
            else:
                wrong.append(f"creator {_hexed(account)} signed, and did not make this adapter")
    missing = tuple(name for name in _WANTED if _is_missing(said, name))
    return CardReport(tuple(wrong), missing, signed_by)


async def check_folder(
    desk: AdapterDesk,
    folder: Path,
    row: AdapterRow,
    version: VersionRow,
    data: bytes | None,
    ours: AdapterFile,
) -> CardReport:
    """Hold a folder's provenance and card against the chain.

    data: the version's bytes where they were found, else the folder's weights stand for them.
    """
    try:
        said = read_provenance(folder) if folder.is_dir() else None
    except ProvenanceError as error:
        return CardReport((str(error).splitlines()[0],), ())
    if said is None:
        return CardReport((), (PROVENANCE_FILE, *_WANTED))
    try:
        theirs = decoded(data, desk.place.limits, "the chain's file") if data is not None else ours
    except NotAnAdapter:
        theirs = ours
    report = check(said, await chain_provenance(desk, row, version, theirs), creators_of(row, version))
    return dataclasses.replace(report, wrong=(*report.wrong, *check_card(folder, said)))


def check_card(folder: Path, said: Provenance) -> list[str]:
    """Whether README.md is the card of this provenance; what stands below the card is the author's own."""
    try:
        text = (folder / CARD_FILE).read_bytes()[: 1 << 22].decode("utf-8", errors="replace")
    except OSError:
        return [f"{CARD_FILE} is missing"]
    if text.startswith(card_text(said)):
        return []
    wanted, found = card_text(said).splitlines(), text.splitlines()
    for number, line in enumerate(wanted):
        if number >= len(found) or found[number] != line:
            have = found[number] if number < len(found) else "(its end)"
            return [f"{CARD_FILE} line {number + 1} is {have!r}, by the provenance {line!r}"]
    return [f"{CARD_FILE} is not the card of its provenance"]


def keep(store: Path, provenance: Provenance) -> Path:
    """Lay signed provenance beside a content store, where `pull` looks for it."""
    require_signature(provenance)
    assert provenance.chain is not None, "provenance is kept under the hash that the chain names"
    if not (store / "format").exists():  # a store of ours that nothing was put into yet
        BlockStore(store).close()
    path = store / KEPT_FOLDER / f"{provenance.chain.weights_hash}.json"
    write_atomically(path, to_json(provenance).encode())
    return path


def kept(stores: Sequence[Path], chain: Provenance, creators: Sequence[bytes]) -> Provenance | None:
    """Signed provenance of this version in a store, if it is true and one of its creators signed it."""
    if chain.chain is None:
        return None
    for store in stores:
        path = store / KEPT_FOLDER / f"{chain.chain.weights_hash}.json"
        try:
            found = from_json(path.read_bytes(), str(path))
        except (OSError, CitrateError):
            continue  # none here, or somebody's noise: what the chain says is enough
        if found.signature is not None and not check(found, chain, creators).wrong:
            return found
    return None


def creators_of(row: AdapterRow, version: VersionRow) -> tuple[bytes, ...]:
    """Accounts whose word on an adapter counts: who created it, who owns it, who published this version."""
    return tuple(dict.fromkeys((row.creator, row.owner, version.creator)))


def _base_facts(row: BaseModelRow) -> BaseFacts:
    return BaseFacts(row.name, row.id.hex(), row.licence or "unknown")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves by dotted name; the number of an element is its place."""
    parts: Iterator[tuple[str, Any]]
    if isinstance(value, Mapping):
        parts = iter((str(key), part) for key, part in value.items())
    elif isinstance(value, tuple | list):
        parts = iter((str(place), part) for place, part in enumerate(value))
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for key, part in parts:
        found |= _flat(part, f"{name}.{key}" if name else key)
    return found


def _is_missing(said: Provenance, name: str) -> bool:
    value: Any = said
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is None or value == () or value == ""


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)


def _hexed(data: bytes) -> str:
    return "0x" + data.hex()
