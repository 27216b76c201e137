"""Every field of every message is signed, for its kind alone; the bytes are pinned for others to read."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import MINIMAL, identity, network, signed

from citrate_node.protocol.encoding import encode, encode_fields
from citrate_node.protocol.gossip_validation import open_message
from citrate_node.protocol.messages import (
    ENVELOPE_SIZE_BYTES_MAX,
    Body,
    Evaluation,
    Measurement,
    MentorshipSignal,
    Message,
    Proposal,
    Vote,
)
from citrate_node.protocol.rejection import Reason, Rejection, Verdict
from citrate_node.protocol.topics import all_topics, topic_of

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "messages.json"
NETWORK = bytes([7]) * 32
AUTHOR = identity(1).node_key


def h(value: int) -> bytes:
    return bytes([value]) * 32


BODIES: list[Body] = [
    MentorshipSignal(NETWORK, AUTHOR, h(1), h(2), 3, h(4), "int8", h(5), h(6), 7, 8),
    Evaluation(NETWORK, AUTHOR, 3, h(4), -1234, 50),
    Measurement(NETWORK, AUTHOR, 3, h(1), h(2), 25_000, 50, 24_000),
    Proposal(NETWORK, AUTHOR, 3, 0, b"record"),
    Vote(NETWORK, AUTHOR, 3, 1, h(9), bytes(65)),
]


def changed(value: object) -> object:
    """Another value of the same type that is within its limits."""
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    if isinstance(value, str):
        return value + "x"
    assert isinstance(value, int)
    return value + 1


@pytest.mark.parametrize(
    ("body", "field"),
    [(body, field.name) for body in BODIES for field in fields(body)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_field_travels_unsigned(body: Body, field: str) -> None:
    """A relay that rewrites any field breaks the signature, and the message has another id."""
    message = signed(1, body)
    forged = Message(replace(body, **{field: changed(getattr(body, field))}), message.signature)
    assert forged.id != message.id
    network_id = forged.body.network_id
    with pytest.raises(Rejection) as caught:
        open_message(forged.envelope, network_id)
    assert (caught.value.verdict, caught.value.reason) == (Verdict.REJECT, Reason.BAD_SIGNATURE)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_message_comes_back_whole(body: Body) -> None:
    message = signed(1, body)
    assert open_message(message.envelope, NETWORK) == message


def test_a_signature_for_one_kind_is_void_for_every_other() -> None:
    """The same body bytes under another kind number."""
    body = BODIES[1]
    message = signed(1, body)
    for kind in (1, 3, 4, 5):
        envelope = encode([kind, encode_fields(body), message.signature])
        with pytest.raises(Rejection):
            open_message(envelope, NETWORK)


def test_who_signs_twice_does_not_speak_twice() -> None:
    """The id leaves the signature out."""
    message = signed(1, BODIES[0])
    assert Message(message.body, bytes(64)).id == message.id


def test_a_message_of_another_network_is_refused() -> None:
    with pytest.raises(Rejection) as caught:
        open_message(signed(1, BODIES[0]).envelope, h(8))
    assert caught.value.reason is Reason.OTHER_NETWORK


def test_an_envelope_above_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Rejection) as caught:
        open_message(bytes(ENVELOPE_SIZE_BYTES_MAX + 1), NETWORK)
    assert caught.value.reason is Reason.TOO_LARGE


@given(st.sampled_from(BODIES), st.data())
def test_a_mutated_envelope_is_refused_and_nothing_else_happens(body: Body, data: st.DataObject) -> None:
    envelope = bytearray(signed(1, body).envelope)
    places = st.lists(st.integers(0, len(envelope) - 1), min_size=1, max_size=4, unique=True)
    for place in data.draw(places):
        envelope[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Rejection):
        open_message(bytes(envelope), NETWORK)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        open_message(data, NETWORK)
    assert caught.value.verdict is Verdict.REJECT


def test_bytes_ids_and_signatures_are_pinned() -> None:
    """tests/vectors/messages.json: fixed seeds give these envelopes in every implementation."""
    rows = [
        {
            "kind": type(body).__name__,
            "seed": identity(1).seed.hex(),
            "author": AUTHOR.hex(),
            "envelope": signed(1, body).envelope.hex(),
            "id": signed(1, body).id.hex(),
            "topic": topic_of(NETWORK, body),
        }
        for body in BODIES
    ]
    assert json.loads(VECTORS.read_text()) == rows


def test_topics_are_one_per_kind_and_network() -> None:
    names = {topic_of(NETWORK, body) for body in BODIES}
    assert names == set(all_topics(NETWORK))
    assert names.isdisjoint(all_topics(network(preset=MINIMAL).network_id))
