"""What one node asks another: bounded before it is parsed, canonical, and of this network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import delta, inputs, network, signal

from citrate_node.protocol.catch_up import (
    ANSWER_SIZE_BYTES_MAX,
    HAVE_MAX,
    MESSAGES_MAX,
    REQUEST_SIZE_BYTES_MAX,
    MessagesRequest,
    RecordRequest,
    messages_answer,
    messages_request,
    parse_messages_answer,
    parse_record_answer,
    parse_request,
    record_answer,
    record_request,
)
from citrate_node.protocol.checkpoint import RECORD_SIZE_BYTES_MAX
from citrate_node.protocol.encoding import EncodingError, encode
from citrate_node.protocol.messages import ENVELOPE_SIZE_BYTES_MAX

STATE = network(4)
NETWORK = STATE.network_id
IDS = st.frozensets(st.binary(min_size=32, max_size=32), max_size=8)


@given(st.integers(0, 2**64 - 1), IDS)
def test_a_request_comes_back_whole_with_its_ids_in_order(checkpoint: int, have: frozenset[bytes]) -> None:
    request = parse_request(messages_request(NETWORK, checkpoint, have), NETWORK)
    assert request == MessagesRequest("messages", NETWORK, checkpoint, tuple(sorted(have)))


def test_a_request_for_a_record_comes_back_whole() -> None:
    request = parse_request(record_request(NETWORK, bytes(32)), NETWORK)
    assert request == RecordRequest("record", NETWORK, bytes(32))


def test_whoever_holds_very_much_names_what_fits_a_request() -> None:
    have = frozenset(i.to_bytes(32, "big") for i in range(HAVE_MAX + 5))
    data = messages_request(NETWORK, 1, have)
    assert len(data) <= REQUEST_SIZE_BYTES_MAX
    request = parse_request(data, NETWORK)
    assert isinstance(request, MessagesRequest)
    assert request.have == tuple(sorted(have))[:HAVE_MAX]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (messages_request(bytes(32), 1, frozenset()), "another network"),
        (encode({"ask": "everything", "network_id": NETWORK}), "unknown request 'everything'"),
        (encode(["messages"]), "unknown request 'None'"),
        (encode({"ask": ["messages"]}), "unknown request"),
        (encode({"ask": "record", "network_id": NETWORK}), "field record_hash is missing"),
        (encode({"ask": "record", "network_id": NETWORK, "record_hash": b"x"}), "record_hash has length 1"),
        (
            encode({"ask": "messages", "network_id": NETWORK, "checkpoint": 1, "have": [b"x"]}),
            "field have has length 1",
        ),
        (b"\0" * (REQUEST_SIZE_BYTES_MAX + 1), "limit 1048576"),
    ],
)
def test_nonsense_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        parse_request(data, NETWORK)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_another_error(data: bytes) -> None:
    for parse in (lambda d: parse_request(d, NETWORK), parse_messages_answer, parse_record_answer):
        with pytest.raises(EncodingError):
            parse(data)


def test_an_answer_carries_envelopes_as_they_are() -> None:
    envelopes = tuple(m.envelope for m in inputs(STATE).signals)
    assert parse_messages_answer(messages_answer(envelopes)) == envelopes


def test_an_answer_takes_what_fits_and_no_more() -> None:
    small = signal(STATE, 1, delta(STATE, 1)).envelope
    assert len(parse_messages_answer(messages_answer((small,) * (MESSAGES_MAX + 9)))) == MESSAGES_MAX
    large = bytes(ENVELOPE_SIZE_BYTES_MAX)
    answer = messages_answer((large,) * 200)
    assert len(answer) <= ANSWER_SIZE_BYTES_MAX
    assert len(parse_messages_answer(answer)) == (ANSWER_SIZE_BYTES_MAX - 1024) // (len(large) + 8)


def test_an_empty_answer_says_that_the_record_is_not_here() -> None:
    assert parse_record_answer(record_answer(b"")) == b""
    assert parse_record_answer(record_answer(b"record")) == b"record"
    with pytest.raises(EncodingError, match=f"limit {ANSWER_SIZE_BYTES_MAX}|must have between"):
        parse_record_answer(encode({"record": bytes(RECORD_SIZE_BYTES_MAX + 1)}))
