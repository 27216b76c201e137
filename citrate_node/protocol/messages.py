"""What nodes say to each other, and the envelope every message travels in.

Five kinds. Mentorship signal, evaluation, proposal and vote are the protocol's own; a *measurement* is one
node's figure for the whole of a candidate result against the base model. It exists because the accuracy of
an average can only be measured once the average is known, and the contract's version row carries it.

Envelope: canonical CBOR list [kind, body bytes, signature]. The signature covers every field.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from . import signing
from .checkpoint import CheckpointRecord, decode_record
from .content_id import ContentId, content_id
from .encoding import (
    Between,
    CheckpointNumber,
    Count,
    EncodingError,
    Hash32,
    Name,
    NodeKey,
    Ppm,
    Round,
    Sized,
    decode,
    decode_fields,
    digest,
    encode,
    encode_fields,
)

ENVELOPE_SIZE_BYTES_MAX = 65_536
"""Gossip's bound (a libp2p message above 1 MiB vanishes without an error; announcements stay far below)."""

DELTA_SIZE_BYTES_LIMIT = 2**34


@dataclass(frozen=True, slots=True)
class MentorshipSignal:
    """Announces one delta. The delta itself travels by content hash, once the signal phase has closed."""

    network_id: Hash32
    """See identifiers.network_id."""

    author: NodeKey
    """The mentor: trained the delta and signs this message."""

    adapter_id: Hash32
    """The adapter, as the contract's createAdapter returned it."""

    base_model_id: Hash32
    """The frozen base model the delta was trained beside."""

    target_checkpoint: CheckpointNumber
    """Checkpoint the delta asks to join. Any other number is ignored."""

    parent_weights_hash: Hash32
    """Content digest of the weights that the training started from."""

    codec: Name
    """Name of the delta's codec; must be the preset's."""

    manifest_hash: Hash32
    """Hash of the names and shapes of the tensors that the delta changes."""

    delta_hash: Hash32
    """Content digest (UnixFS root, sha2-256) of the delta file."""

    delta_size_bytes: Annotated[int, Between(1, DELTA_SIZE_BYTES_LIMIT)]
    """Declared size, compared with preset.delta_size_bytes_max before any fetch."""

    examples: Count
    """Training examples, by the mentor's own word: it may lower a weight, never raise one."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One node's measurement of another's delta, on its own held-out data."""

    network_id: Hash32
    author: NodeKey
    """The evaluator."""

    checkpoint: CheckpointNumber
    signal_id: Hash32
    improvement_ppm: Ppm
    """(loss of the parent - loss of parent and scaled delta) / loss of the parent, in parts per million."""

    held_out_examples: Count


@dataclass(frozen=True, slots=True)
class Measurement:
    """One node's measurement of a candidate result against the base model alone."""

    network_id: Hash32
    author: NodeKey
    checkpoint: CheckpointNumber
    adapter_id: Hash32
    weights_hash: Hash32
    """Content digest of the candidate weights that were measured."""

    improvement_ppm: Ppm
    """(loss of the base model - loss with the candidate) / loss of the base model, in parts per million."""

    held_out_examples: Count

    parent_improvement_ppm: Ppm = 0
    """The same of the weights that the candidate would replace, on the same examples: committees change,
    and only what one node found on one set of examples can be compared. 0 for a composition."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A checkpoint record, put to the committee's vote."""

    network_id: Hash32
    author: NodeKey
    """The proposer drawn for this round."""

    checkpoint: CheckpointNumber
    round: Round
    """Which proposer's turn it is at this checkpoint, counted from 0."""

    record: Annotated[bytes, Sized(1, 60_000)]
    """Canonical bytes of a CheckpointRecord."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One validator's agreement to a record, signed for the contract as well."""

    network_id: Hash32
    author: NodeKey
    checkpoint: CheckpointNumber
    round: Round
    record_hash: Hash32
    account_signature: Annotated[bytes, Sized(65, 65)]
    """secp256k1 over the EIP-712 digest of the commitment (certificate.py), r ‖ s ‖ v."""


Body = MentorshipSignal | Evaluation | Measurement | Proposal | Vote

KINDS: dict[int, type] = {1: MentorshipSignal, 2: Evaluation, 3: Measurement, 4: Proposal, 5: Vote}
_KIND_OF = {kind: number for number, kind in KINDS.items()}
DOMAINS: dict[type, str] = {
    MentorshipSignal: "citrate/mentorship-signal/1",
    Evaluation: "citrate/evaluation/1",
    Measurement: "citrate/measurement/1",
    Proposal: "citrate/proposal/1",
    Vote: "citrate/vote/1",
}


@dataclass(frozen=True)
class Message:
    """A body with its signature: checked, or made, by this node."""

    body: Body
    signature: bytes

    @cached_property
    def body_bytes(self) -> bytes:
        """The canonical bytes that the signature covers."""
        return encode_fields(self.body)

    @cached_property
    def id(self) -> bytes:
        """Hash of domain and body. The signature is left out: who signs twice does not speak twice."""
        return digest(DOMAINS[type(self.body)], self.body_bytes)

    @cached_property
    def envelope(self) -> bytes:
        """The bytes that travel."""
        return encode([_KIND_OF[type(self.body)], self.body_bytes, self.signature])

    @cached_property
    def checkpoint(self) -> int:
        """The checkpoint that the message is about."""
        if isinstance(self.body, MentorshipSignal):
            return self.body.target_checkpoint
        return self.body.checkpoint

    @cached_property
    def author(self) -> bytes:
        return self.body.author

    @cached_property
    def delta_content(self) -> ContentId:
        """What a mentorship signal announces, by hash and size; asked of no other kind."""
        assert isinstance(self.body, MentorshipSignal)
        return ContentId(self.body.delta_hash, self.body.delta_size_bytes)

    @cached_property
    def record_hash(self) -> bytes:
        """Of the record that a proposal carries; asked of no other kind."""
        assert isinstance(self.body, Proposal)
        return content_id(self.body.record).digest

    @cached_property
    def record(self) -> CheckpointRecord:
        """The record that a proposal carries, read once. Raises EncodingError; asked of no other kind."""
        assert isinstance(self.body, Proposal)
        return decode_record(self.body.record)


def sign_message(seed: bytes, body: Body) -> Message:
    """The body signed with the author's Ed25519 seed. Raises EncodingError on a field past its limit."""
    return Message(body, signing.sign(seed, DOMAINS[type(body)], encode_fields(body)))


def parse_envelope(data: bytes) -> tuple[Message, bytes]:
    """The message of an envelope, and its exact body bytes. Raises EncodingError; checks no signature."""
    raw = decode(data, size_bytes_max=ENVELOPE_SIZE_BYTES_MAX)
    if not isinstance(raw, list) or len(raw) != 3:
        raise EncodingError("an envelope is a list of kind, body and signature")
    kind_number, body_bytes, signature = raw
    if type(kind_number) is not int or kind_number not in KINDS:
        raise EncodingError(f"unknown message kind {kind_number!r}"[:80])
    if type(body_bytes) is not bytes or type(signature) is not bytes or len(signature) != 64:
        raise EncodingError("body and signature must be byte strings, the signature of 64 bytes")
    body: Body = decode_fields(KINDS[kind_number], body_bytes, size_bytes_max=ENVELOPE_SIZE_BYTES_MAX)
    return Message(body, signature), body_bytes


def open_envelope(data: bytes) -> Message:
    """The message of an envelope whose signature is its author's.

    Raises EncodingError (malformed, too long, not canonical) or PermissionError (bad signature).
    """
    message, body_bytes = parse_envelope(data)
    if not signing.is_signed_by(message.author, DOMAINS[type(message.body)], body_bytes, message.signature):
        raise PermissionError("the signature is not the author's")
    return message
