"""The checkpoint record: everything that is needed to compute a checkpoint again, and its commitment.

A record names its inputs by hash and states its results. It is kept in the content store under its own hash,
which is what votes and the chain carry. Made by state_transition.process_checkpoint.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from .certificate import CertifiedUpdate, CheckpointCommitment
from .content_id import ContentId, content_id
from .encoding import (
    Between,
    CheckpointNumber,
    EncodingError,
    Hash32,
    Ppm,
    SizedIds,
    decode_fields,
    encode_fields,
)

RECORD_SIZE_BYTES_MAX = 60_000
"""A record travels inside a proposal, so it fits a gossip message: about 1,700 ids."""

SizeBytes = Annotated[int, Between(0, 2**40)]


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two different signals of one mentor for one checkpoint: each is signed, together they are the proof."""

    first: Hash32
    second: Hash32


@dataclass(frozen=True, slots=True)
class RecordedUpdate:
    """Version 1 of a composition: what it was made from, what came out, and who measured it."""

    adapter_id: Hash32
    parent_a_hash: Hash32
    """Content digest of the first parent's weights, at the version that the chain bound."""
    parent_b_hash: Hash32
    weight_a: Annotated[int, Between(1, 99)]
    """Per cent of the first parent; the second has the rest."""
    weights_hash: Hash32
    size_bytes: Annotated[int, Between(1, 2**40)]
    accuracy_ppm: Ppm
    measurements: SizedIds
    """Ascending; by a quorum of the committee, and accuracy_ppm is their weighted median."""


@dataclass(frozen=True)
class CheckpointRecord:
    """Inputs by hash, results by value. Lists of ids are strictly ascending."""

    network_id: Hash32
    number: CheckpointNumber
    parent_record_hash: Hash32
    adapter_id: Hash32

    signals: SizedIds
    """Signals that were scored, whether or not they entered the average."""
    withheld: SizedIds
    """Signals announced whose bytes never appeared."""
    equivocations: tuple[Equivocation, ...]
    """Ordered by `first`."""
    evaluations: SizedIds
    measurements: SizedIds
    """Measurements of the resulting weights, of which accuracy_ppm is the weighted median."""

    weights_hash: Hash32
    """Content digest of the resulting weights; the parent's where nothing entered or nobody measured."""
    weights_size_bytes: SizeBytes
    promoted: bool
    """Whether the adapter gets a new version on chain."""
    accuracy_ppm: Ppm
    """Measured improvement over the base model alone; 0 where not promoted."""

    compositions: tuple[RecordedUpdate, ...]
    """Other adapters' versions certified with this checkpoint, ascending by adapter id."""

    reputations_root: Hash32
    """Content digest of the reputation table after this checkpoint."""
    state_root: Hash32
    """Content digest of the state file, from which a late node goes on."""
    state_size_bytes: SizeBytes
    validator_set_hash: Hash32
    """The committee that votes on this record."""
    next_validator_set_hash: Hash32
    """The committee of the next checkpoint."""

    def encode(self) -> bytes:
        """Canonical bytes. Their content digest is the record hash."""
        return self._bytes

    def content(self) -> ContentId:
        return content_id(self.encode())

    @cached_property
    def _bytes(self) -> bytes:
        return encode_fields(self)

    @cached_property
    def hash(self) -> bytes:
        """What votes and the chain carry: the sha256 of the canonical bytes (one raw block)."""
        return self.content().digest

    @cached_property
    def ids_named(self) -> frozenset[bytes]:
        """Ids of all messages that the record was computed from."""
        pairs = (i for pair in self.equivocations for i in (pair.first, pair.second))
        composed = (i for update in self.compositions for i in update.measurements)
        named = (self.signals, self.withheld, self.evaluations, self.measurements)
        return frozenset(itertools.chain(*named, pairs, composed))


def decode_record(data: bytes) -> CheckpointRecord:
    """The record of canonical bytes. Raises EncodingError; the order of the lists is checked too."""
    record = decode_fields(CheckpointRecord, data, size_bytes_max=RECORD_SIZE_BYTES_MAX)
    for name in ("signals", "withheld", "evaluations", "measurements"):
        ids = getattr(record, name)
        if any(a >= b for a, b in itertools.pairwise(ids)):
            raise EncodingError(f"field {name} must be strictly ascending")
    firsts = [pair.first for pair in record.equivocations]
    if any(a >= b for a, b in itertools.pairwise(firsts)):
        raise EncodingError("field equivocations must be strictly ascending")
    if any(pair.first >= pair.second for pair in record.equivocations):
        raise EncodingError("field equivocations: first must be below second")
    for update in record.compositions:
        if any(a >= b for a, b in itertools.pairwise(update.measurements)):
            raise EncodingError("field compositions: measurements must be strictly ascending")
    composed = [update.adapter_id for update in record.compositions]
    if any(a >= b for a, b in itertools.pairwise(composed)) or record.adapter_id in composed:
        raise EncodingError("field compositions must be strictly ascending, and of other adapters")
    return record


def commitment_of(record: CheckpointRecord, round_number: int) -> CheckpointCommitment:
    """What a validator signs, and the contract checks, for this record in this round."""
    updates = [
        CertifiedUpdate(
            update.adapter_id,
            update.weights_hash,
            ContentId(update.weights_hash, update.size_bytes).codec,
            update.size_bytes,
            update.accuracy_ppm,
        )
        for update in record.compositions
    ]
    if record.promoted:
        content = ContentId(record.weights_hash, record.weights_size_bytes)
        updates.append(
            CertifiedUpdate(
                record.adapter_id, content.digest, content.codec, content.size_bytes, record.accuracy_ppm
            )
        )
    return CheckpointCommitment(
        number=record.number,
        parent_record_hash=record.parent_record_hash,
        record_hash=record.hash,
        validator_set_hash=record.validator_set_hash,
        next_validator_set_hash=record.next_validator_set_hash,
        updates=tuple(sorted(updates, key=lambda update: update.adapter_id)),
        round=round_number,
    )
