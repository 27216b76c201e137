"""What one node asks another for, directly: messages by set difference, and the record of a checkpoint.

Gossip promises no delivery. A node sends the ids that it holds, and gets the messages that it does not. All
in canonical CBOR, a map with the key `ask` in requests; sizes are bounded before anything is parsed. Carried
by the request protocol of network/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .checkpoint import RECORD_SIZE_BYTES_MAX
from .encoding import (
    CheckpointNumber,
    EncodingError,
    Hash32,
    Sized,
    SizedIds,
    decode,
    decode_fields,
    encode_fields,
    fields_from,
)
from .messages import ENVELOPE_SIZE_BYTES_MAX

REQUEST_SIZE_BYTES_MAX = 1 << 20
ANSWER_SIZE_BYTES_MAX = 4 << 20
HAVE_MAX = 16_384
MESSAGES_MAX = 2_048


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """Give me what you hold of this open checkpoint and I do not."""

    ask: Annotated[str, Sized(8, 8)]
    """"messages"."""
    network_id: Hash32
    checkpoint: CheckpointNumber
    have: Annotated[SizedIds, Sized(0, HAVE_MAX)]
    """Ids, ascending."""


@dataclass(frozen=True, slots=True)
class RecordRequest:
    """Give me the record with this hash, if that checkpoint is final at yours."""

    ask: Annotated[str, Sized(6, 6)]
    """"record"."""
    network_id: Hash32
    record_hash: Hash32


@dataclass(frozen=True, slots=True)
class MessagesAnswer:
    envelopes: Annotated[
        tuple[Annotated[bytes, Sized(1, ENVELOPE_SIZE_BYTES_MAX)], ...], Sized(0, MESSAGES_MAX)
    ]


@dataclass(frozen=True, slots=True)
class RecordAnswer:
    record: Annotated[bytes, Sized(0, RECORD_SIZE_BYTES_MAX)]
    """Empty where the peer does not have it."""


Request = MessagesRequest | RecordRequest


def messages_request(network_id: bytes, checkpoint: int, have: frozenset[bytes]) -> bytes:
    ids = tuple(sorted(have))[:HAVE_MAX]
    return encode_fields(MessagesRequest("messages", network_id, checkpoint, ids))


def record_request(network_id: bytes, record_hash: bytes) -> bytes:
    return encode_fields(RecordRequest("record", network_id, record_hash))


def parse_request(data: bytes, network_id: bytes) -> Request:
    """Raises EncodingError on anything that is not one of the two requests, for this network."""
    raw = decode(data, size_bytes_max=REQUEST_SIZE_BYTES_MAX)
    ask = raw.get("ask") if isinstance(raw, dict) else None
    request: Request
    if ask == "messages":
        request = fields_from(MessagesRequest, raw)
    elif ask == "record":
        request = fields_from(RecordRequest, raw)
    else:
        raise EncodingError(f"unknown request {str(ask)[:40]!r}")
    if request.network_id != network_id:
        raise EncodingError("request for another network")
    return request


def messages_answer(envelopes: tuple[bytes, ...]) -> bytes:
    """As many of the envelopes, in order, as fit an answer."""
    taken, size = [], 0
    for envelope in envelopes[:MESSAGES_MAX]:
        size += len(envelope) + 8
        if size > ANSWER_SIZE_BYTES_MAX - 1024:
            break
        taken.append(envelope)
    return encode_fields(MessagesAnswer(tuple(taken)))


def record_answer(record: bytes) -> bytes:
    return encode_fields(RecordAnswer(record))


def parse_messages_answer(data: bytes) -> tuple[bytes, ...]:
    """Envelopes, unchecked: each must pass gossip_validation.open_message. Raises EncodingError."""
    return decode_fields(MessagesAnswer, data, size_bytes_max=ANSWER_SIZE_BYTES_MAX).envelopes


def parse_record_answer(data: bytes) -> bytes:
    """The record's bytes, empty for none. Raises EncodingError."""
    return decode_fields(RecordAnswer, data, size_bytes_max=ANSWER_SIZE_BYTES_MAX).record
