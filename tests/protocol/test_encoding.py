"""One value, one byte string; and every limit is named with its field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.protocol.encoding import (
    Between,
    EncodingError,
    Sized,
    decode,
    decode_fields,
    digest,
    encode,
    encode_fields,
)

VALUES = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | st.text(max_size=20) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_encoded_decodes_to_the_same_value_and_bytes(value: Any) -> None:
    data = encode(value)
    assert decode(data, size_bytes_max=len(data)) == value
    assert encode(decode(data, size_bytes_max=len(data))) == data


@given(st.binary(max_size=80))
def test_whatever_bytes_are_accepted_encode_back_to_themselves(data: bytes) -> None:
    try:
        value = decode(data, size_bytes_max=80)
    except EncodingError:
        return
    assert encode(value) == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x01\x01", "bytes behind the value"),
        (b"\x18\x01", "an integer longer than needed"),
        (b"\x9f\x01\xff", "an indefinite list"),
        (b"\xa2\x61\x61\x01\x61\x61\x02", "a key twice"),
        (b"\xa2\x61\x62\x01\x61\x61\x02", "keys out of order"),
        (b"\xc2\x41\x05", "a tag: bignum"),
        (b"\xd8\x23\x63a+b", "a tag: regular expression"),
        (b"\xd9\x01\x02\x81\x01", "a tag: set"),
        (b"\xd9\xff\xff\x01", "an unknown tag"),
        (b"\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00", "a double that a half float holds"),
        (b"\xf9\x3e\x00", "a float in its shortest form"),
        (b"\x81\xf9\x7e\x00", "not a number, in a list"),
        (b"\xf6", "null"),
        (b"\xf7", "undefined"),
        (b"\xe0", "a simple value"),
        (b"\xa1\x01\x02", "a map key that is no text"),
        (b"\xa1\x41\x61\x02", "a map key of bytes"),
        (b"\x81" * 20 + b"\x01", "nesting too deep"),
        (b"\x58\xff", "cut short"),
        (b"", "nothing"),
    ],
)
def test_other_spellings_and_types_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(EncodingError):
        decode(data, size_bytes_max=100)


def test_size_is_looked_at_before_anything_is_parsed() -> None:
    with pytest.raises(EncodingError, match="101 bytes, limit 100"):
        decode(b"\xff" * 101, size_bytes_max=100)


@dataclass(frozen=True, slots=True)
class Inner:
    count: Annotated[int, Between(0, 9)]


@dataclass(frozen=True, slots=True)
class Outer:
    name: Annotated[str, Sized(1, 4)]
    key: Annotated[bytes, Sized(2, 2)]
    parts: tuple[Inner, ...]
    ids: Annotated[tuple[Annotated[bytes, Sized(1, 1)], ...], Sized(0, 2)]


GOOD = Outer("ab", b"xy", (Inner(3),), (b"a", b"b"))


def test_a_dataclass_comes_back_whole() -> None:
    assert decode_fields(Outer, encode_fields(GOOD), size_bytes_max=200) == GOOD


RAW = {"name": "ab", "key": b"xy", "parts": [{"count": 3}], "ids": [b"a"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "field name has length 0, must have between 1 and 4"),
        ({"name": b"ab"}, "field name must be str, is bytes"),
        ({"key": b"xyz"}, "field key has length 3"),
        ({"parts": [{"count": 10}]}, "field count is 10, must lie between 0 and 9"),
        ({"parts": [{"count": True}]}, "field count must be int, is bool"),
        ({"parts": [{"count": 1.0}]}, "float is not used here"),
        ({"parts": {}}, "field parts must be a list"),
        ({"ids": [b"a", b"b", b"c"]}, "field ids has length 3"),
        ({"ids": [b"aa"]}, "field ids has length 2, must have between 1 and 1"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_each_limit_is_named_with_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode_fields(Outer, cbor2.dumps({**RAW, **change}, canonical=True), size_bytes_max=200)


def test_a_missing_field_is_named() -> None:
    raw = {key: value for key, value in RAW.items() if key != "key"}
    with pytest.raises(EncodingError, match="field key is missing"):
        decode_fields(Outer, cbor2.dumps(raw, canonical=True), size_bytes_max=200)


def test_equal_bytes_in_two_roles_hash_differently() -> None:
    assert digest("a", b"bc") != digest("ab", b"c")
    assert digest("signal", b"x") != digest("vote", b"x")
