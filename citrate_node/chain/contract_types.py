"""Rows and events of AdapterFactory as Python values: what each field means is said in IAdapterFactory.sol.

Hashes, ids and addresses are bytes. Called by adapter_factory.py; its users see only these types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

MENTORSHIP_OPEN = 2**64 - 1
"""Value of `mentorship_until` while an adapter is open."""


class Head(NamedTuple):
    """The newest block."""

    number: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class BaseModelRow:
    """A registered base model. Only the id is proof against lies."""

    id: bytes
    name: str
    uri: str
    licence: str
    size_bytes: int
    registrar: bytes


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """An adapter as it stands now."""

    id: bytes
    base_model_id: bytes
    name: str
    creator: bytes
    owner: bytes
    pending_owner: bytes
    """Zero address where none was offered the adapter."""
    rank: int
    depth: int
    version_count: int
    """0: a composition that waits for its first checkpoint."""
    mentorship_until: int
    """Last checkpoint that may add versions; 0 never opened, MENTORSHIP_OPEN open."""
    created_block: int
    """Block of version 1; 0 while there is none."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of an adapter."""

    version: int
    parent_id: bytes
    weights_hash: bytes
    accuracy: int
    """ppm above the base model; ACCURACY_UNKNOWN_PPM where the owner published it."""
    creator: bytes
    checkpoint: int
    """0 where the owner published it."""
    codec: int
    size_bytes: int
    """0 where it was not said."""
    block_number: int

    @property
    def cid(self) -> bytes:
        """Binary CIDv1 of the weights, 36 bytes."""
        return b"\x01" + bytes([self.codec]) + b"\x12\x20" + self.weights_hash


@dataclass(frozen=True, slots=True)
class LineageRow:
    """What a composition was made from."""

    parent_a: bytes
    parent_b: bytes
    version_a: int
    version_b: int
    weight_a: int
    weight_b: int


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A final checkpoint. Number 0 is the genesis record."""

    number: int
    record_hash: bytes
    block_number: int
    timestamp: int
    round: int
    updates: int


@dataclass(frozen=True, slots=True)
class ContractEvent:
    """One log, with its place in the chain."""

    block_number: int
    log_index: int
    tx_hash: str


@dataclass(frozen=True, slots=True)
class BaseModelRegistered(ContractEvent):
    base_model_id: bytes
    registrar: bytes
    name: str
    uri: str
    licence: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterCreated(ContractEvent):
    """`weights`: the bytes from the transaction's calldata, hash checked; None where it named a CID (or where
    another contract made the call, so that they are in no transaction)."""

    adapter_id: bytes
    base_model_id: bytes
    creator: bytes
    name: str
    rank: int
    weights_in_calldata: bool
    weights: bytes | None = None


@dataclass(frozen=True, slots=True)
class AdapterComposed(ContractEvent):
    adapter_id: bytes
    parent_a: bytes
    parent_b: bytes
    creator: bytes
    version_a: int
    version_b: int
    weight_a: int
    weight_b: int
    rank: int
    depth: int


@dataclass(frozen=True, slots=True)
class VersionAdded(ContractEvent):
    """`weights` as in AdapterCreated: version 1 of a creation, or what an owner published in calldata."""

    adapter_id: bytes
    checkpoint: int
    version: int
    weights_hash: bytes
    codec: int
    size_bytes: int
    accuracy_ppm: int
    creator: bytes
    weights: bytes | None = None


@dataclass(frozen=True, slots=True)
class CheckpointCommitted(ContractEvent):
    number: int
    record_hash: bytes
    round: int
    signed_stake: int
    total_stake: int


@dataclass(frozen=True, slots=True)
class ValidatorsChanged(ContractEvent):
    number: int
    validator_set_hash: bytes
    count: int


@dataclass(frozen=True, slots=True)
class EquivocationRecorded(ContractEvent):
    account: bytes
    number: int
    round: int
    first_digest: bytes
    second_digest: bytes
    excluded_from: int


@dataclass(frozen=True, slots=True)
class MentorshipChanged(ContractEvent):
    adapter_id: bytes
    until: int


@dataclass(frozen=True, slots=True)
class OwnershipOffered(ContractEvent):
    adapter_id: bytes
    owner: bytes
    pending_owner: bytes


@dataclass(frozen=True, slots=True)
class OwnershipTransferred(ContractEvent):
    adapter_id: bytes
    previous_owner: bytes
    owner: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """A transaction that was mined and did what it should."""

    tx_hash: str
    block_number: int
    gas_used: int
    events: tuple[ContractEvent, ...]

    @property
    def adapter_id(self) -> bytes:
        """The adapter that the transaction created or composed."""
        for event in self.events:
            if isinstance(event, AdapterCreated | AdapterComposed):
                return event.adapter_id
        raise LookupError(f"{self.tx_hash} created no adapter")

    @property
    def version(self) -> int:
        """The version that the transaction added."""
        for event in self.events:
            if isinstance(event, VersionAdded):
                return event.version
        raise LookupError(f"{self.tx_hash} added no version")


EVENT_TYPES: Mapping[str, type[ContractEvent]] = {
    kind.__name__: kind
    for kind in (
        *(BaseModelRegistered, AdapterCreated, AdapterComposed, VersionAdded, CheckpointCommitted),
        *(ValidatorsChanged, EquivocationRecorded, MentorshipChanged),
        *(OwnershipOffered, OwnershipTransferred),
    )
}
"""Every event of the contract by its name in Solidity."""

Row = TypeVar("Row")


def made(kind: type[Row], values: Mapping[str, Any], **more: Any) -> Row:
    """A dataclass from the contract's field names. A field that is missing or too many is a TypeError."""
    named = {_snake(name): value for name, value in values.items()}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    assert named.keys() <= known, f"{kind.__name__} does not know {sorted(named.keys() - known)}"
    return kind(**named, **more)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), name)
