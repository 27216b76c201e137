"""The delta file around a payload, and error feedback."""

from __future__ import annotations

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_adapters import small_adapter, small_delta

from citrate_node.protocol.codecs import (
    CODECS,
    DeltaLimits,
    check_delta,
    codec,
    decode_delta,
    delta_size_bytes_max,
    encode_delta,
    error_feedback,
)
from citrate_node.protocol.tensors import FormatError, Manifest, delta_from_grid

LIMITS = DeltaLimits(size_bytes_max=1 << 20)
MANIFEST = small_adapter().manifest
INT8 = codec("int8")


def reason_of(data: bytes, name: str = "int8", manifest: Manifest = MANIFEST) -> str:
    with pytest.raises(FormatError) as refused:
        decode_delta(data, codec(name), manifest, LIMITS)
    with pytest.raises(FormatError) as refused_again:
        check_delta(data, codec(name), manifest)
    assert refused.value.reason == refused_again.value.reason
    return refused.value.reason


@pytest.mark.parametrize("name", CODECS)
def test_a_delta_file_is_canonical_cbor_of_four_fields(name: str) -> None:
    values = small_delta(0, MANIFEST.count)
    data = encode_delta(codec(name), MANIFEST, values)
    fields = cbor2.loads(data)
    assert fields == {
        "codec": name,
        "encoded_values": codec(name).encode(values),
        "tensors": MANIFEST.hash,
        "version": 1,
    }
    assert cbor2.dumps(fields, canonical=True) == data
    decoded = decode_delta(data, codec(name), MANIFEST, LIMITS)
    assert np.array_equal(decoded, codec(name).decode(fields["encoded_values"], MANIFEST.count))


@pytest.mark.parametrize("modules", [{"q": (1, 1)}, {"q": (4, 4)}, {"q": (90, 90)}, {"q": (9000, 9000)}])
def test_every_length_of_the_byte_string_is_written_the_shortest_way(modules: dict) -> None:
    manifest = small_adapter(modules=modules, scale=0.001).manifest
    values = small_delta(1, manifest.count)
    data = encode_delta(INT8, manifest, values)
    assert cbor2.dumps(cbor2.loads(data), canonical=True) == data
    assert decode_delta(data, INT8, manifest, LIMITS).size == manifest.count


@pytest.mark.parametrize("name", CODECS)
def test_no_file_is_longer_than_the_limit_that_is_told_beforehand(name: str) -> None:
    """A signal that declares more than this is refused before anything is fetched."""
    for scale in (0.0, 1e-9, 0.01, 10):
        data = encode_delta(codec(name), MANIFEST, small_delta(0, MANIFEST.count, scale))
        assert len(data) <= delta_size_bytes_max(codec(name), MANIFEST)


def test_a_file_that_is_not_the_one_asked_for_is_refused_by_name() -> None:
    data = encode_delta(INT8, MANIFEST, small_delta(0, MANIFEST.count))
    fields = cbor2.loads(data)
    assert reason_of(b"") == "no_delta"
    assert reason_of(cbor2.dumps(fields | {"codec": "int16"}, canonical=True)) == "other_codec"
    assert reason_of(cbor2.dumps(fields | {"version": 2}, canonical=True)) == "other_version"
    assert reason_of(data, manifest=MANIFEST.subset("lora_B")) == "other_manifest"
    assert reason_of(cbor2.dumps(fields | {"more": 1}, canonical=True)) == "no_delta"
    assert reason_of(data + b"\x00") == "payload_size"
    assert reason_of(data[:-1]) == "payload_size"
    payload = fields["encoded_values"]
    head = data[: -len(payload) - 2]
    assert reason_of(head + b"\x59" + len(payload).to_bytes(2, "big") + payload) == "payload_size"
    with pytest.raises(FormatError, match="file_too_large"):
        decode_delta(data, INT8, MANIFEST, DeltaLimits(len(data) - 1))
    with pytest.raises(FormatError, match="values_shape"):
        encode_delta(INT8, MANIFEST, small_delta(0, MANIFEST.count - 1))
    with pytest.raises(ValueError, match="unknown codec 'zip', choose one of float32, int8"):
        codec("zip")


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_random_changes_never_raise_anything_but_a_format_error(name: str, data: st.DataObject) -> None:
    original = encode_delta(codec(name), MANIFEST, small_delta(2, MANIFEST.count))
    start = data.draw(st.integers(0, len(original)))
    stop = data.draw(st.integers(start, len(original)))
    mutated = original[:start] + data.draw(st.binary(max_size=8)) + original[stop:]
    try:
        decoded = decode_delta(mutated, codec(name), MANIFEST, LIMITS)
    except FormatError:
        return
    assert decoded.shape == (MANIFEST.count,)


@pytest.mark.parametrize("name", CODECS)
def test_with_error_feedback_nothing_is_lost_for_good(name: str) -> None:
    """After many checkpoints the sum of what was sent is the sum of what was meant, but for one residual."""
    meant = np.zeros(2000)
    sent = np.zeros(2000)
    residual = np.zeros(2000, dtype=np.float32)
    for checkpoint in range(20):
        delta = small_delta(checkpoint, 2000)
        intended = delta + residual
        decoded = codec(name).decode(codec(name).encode(intended), 2000)
        residual = error_feedback(intended, decoded)
        meant += delta
        sent += delta_from_grid(decoded)
    assert np.allclose(meant - sent, residual, atol=1e-6)
    assert np.linalg.norm(residual) < np.linalg.norm(meant)
