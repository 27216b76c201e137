"""int8: the definition in exact fractions, and one spelling per vector."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from citrate_node.protocol.codecs import codec
from citrate_node.protocol.tensors import FormatError, delta_to_grid

INT8 = codec("int8")

float32_values = arrays(
    np.float32, st.integers(1, 600), elements=st.floats(-126, 126, width=32), fill=st.just(np.float32(0))
)


def reason_of(data: bytes, count: int) -> str:
    with pytest.raises(FormatError) as refused:
        INT8.decode(data, count)
    with pytest.raises(FormatError) as refused_again:
        INT8.accumulate(data, count, 3, np.zeros(count, dtype=np.int64))
    assert refused.value.reason == refused_again.value.reason
    return refused.value.reason


def by_definition(values: np.ndarray) -> bytes:
    """The payload worked out in Python integers and fractions."""
    scales, codes = [], []
    for start in range(0, len(values), 256):
        grid = delta_to_grid(values[start : start + 256]).tolist()
        scale = max(abs(v) for v in grid) // 127
        scales.append(scale)
        for v in grid:
            magnitude = int(Fraction(abs(v), scale) + Fraction(1, 2)) if scale else 0
            codes.append(min(magnitude, 127) * (1 if v > 0 else -1))
    return np.array(scales, "<u4").tobytes() + np.array(codes, np.int8).tobytes()


@given(float32_values)
def test_encoding_is_the_definition(values: np.ndarray) -> None:
    assert INT8.encode(values) == by_definition(values)


@given(float32_values)
def test_a_payload_decodes_to_codes_times_scale_and_no_further_than_half_a_scale(values: np.ndarray) -> None:
    data = INT8.encode(values)
    decoded = INT8.decode(data, values.size)
    scales = np.frombuffer(data, "<u4", -(-values.size // 256)).astype(np.int64)
    error = np.abs(decoded - delta_to_grid(values))
    assert np.all(error <= np.maximum(np.repeat(scales, 256)[: values.size] // 2, 127))


@given(float32_values)
def test_decoded_values_have_the_payload_they_came_from(values: np.ndarray) -> None:
    """One vector, one spelling: nobody can send the same delta as two different files."""
    data = INT8.encode(values)
    decoded = INT8.decode(data, values.size)
    scales = [int(np.abs(decoded[at : at + 256]).max()) // 127 for at in range(0, values.size, 256)]
    divisors = np.repeat(np.maximum(scales, 1), 256)[: values.size]
    assert np.array(scales, "<u4").tobytes() + (decoded // divisors).astype(np.int8).tobytes() == data


@given(float32_values, st.integers(0, 2**16))
def test_accumulating_adds_weight_times_the_decoded_values(values: np.ndarray, weight: int) -> None:
    data = INT8.encode(values)
    accumulator = np.arange(values.size, dtype=np.int64)
    INT8.accumulate(data, values.size, weight, accumulator)
    expected = np.arange(values.size) + weight * INT8.decode(data, values.size)
    assert np.array_equal(accumulator, expected)


def test_a_range_is_a_part_of_the_whole() -> None:
    values = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    data = INT8.encode(values)
    whole = INT8.decode(data, values.size)
    for start, stop in [(0, 1), (4096, 4097), (4096, 20_000), (36_864, 40_000)]:
        assert np.array_equal(INT8.decode_range(data, values.size, start, stop), whole[start:stop])


@given(st.data())
def test_any_other_bytes_are_refused_or_mean_something_else(data: st.DataObject) -> None:
    values = np.random.default_rng(1).standard_normal(300).astype(np.float32)
    original = bytearray(INT8.encode(values))
    position = data.draw(st.integers(0, len(original) - 1))
    original[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = INT8.decode(bytes(original), 300)
    except FormatError:
        return
    assert not np.array_equal(decoded, INT8.decode(INT8.encode(values), 300))


def test_payloads_that_no_encoder_writes_are_refused_by_name() -> None:
    one = np.array([1.0], np.float32)
    data = INT8.encode(one)
    assert data == (2**32 // 127).to_bytes(4, "little") + b"\x7f"
    assert reason_of(data[:-1] + b"\x7e", 1) == "block_not_canonical"
    assert reason_of(data[:-1] + b"\x80", 1) == "block_not_canonical"
    assert reason_of(bytes(4) + b"\x7f", 1) == "block_not_canonical"
    assert reason_of(data[:4] + b"\x00", 1) == "block_not_canonical"
    assert reason_of(data + b"\x00", 1) == "payload_size"
    assert reason_of(data, 2) == "payload_size"
    assert reason_of(b"", 1) == "payload_size"


def test_the_largest_delta_fits_its_scale() -> None:
    largest = np.nextafter(np.float32(127), np.float32(0))
    decoded = INT8.decode(INT8.encode(np.array([largest, -largest])), 2)
    assert decoded.tolist() == [int(largest * 2**32) // 127 * 127, -(int(largest * 2**32) // 127) * 127]


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "non_finite"), (np.inf, "non_finite"), (127.0, "too_large")]
)
def test_values_that_a_broken_trainer_gives_are_refused_by_name(value: float, reason: str) -> None:
    with pytest.raises(FormatError) as refused:
        INT8.encode(np.array([0.0, value], np.float32))
    assert refused.value.reason == reason
