"""int4, topk and float32: their definitions in Python integers, and one spelling per vector.

tests/vectors/codecs.json pins bytes of every codec; write it anew with
`PYTHONPATH=. python tests/protocol/test_codecs_small.py`.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from citrate_node.protocol.codecs import CODECS, codec
from citrate_node.protocol.codecs.int4 import LEVELS
from citrate_node.protocol.codecs.scales import pack_scales, unpack_scales
from citrate_node.protocol.tensors import DELTA_MAX, FormatError, delta_to_grid

VECTORS = Path(__file__).parents[1] / "vectors" / "codecs.json"

values_of = {
    size: arrays(
        np.float32,
        st.integers(1, size),
        elements=st.one_of(
            st.floats(-126, 126, width=32),
            st.floats(-(2.0**-9), 2.0**-9, width=32),
            st.sampled_from([0.0, 2.0**-32, -(2.0**-33), 0.5, 0.25, -0.25]),
        ),
        fill=st.just(np.float32(0)),
    )
    for size in (200, 5000)
}


def reason_of(name: str, data: bytes, count: int) -> str:
    with pytest.raises(FormatError) as refused:
        codec(name).decode(data, count)
    with pytest.raises(FormatError) as refused_again:
        codec(name).accumulate(data, count, 3, np.zeros(count, dtype=np.int64))
    assert refused.value.reason == refused_again.value.reason
    return refused.value.reason


def rounded_down(value: int) -> int:
    """The largest 16-bit scale that is not above: 12 significant bits."""
    surplus = max(value.bit_length() - 12, 0)
    return value >> surplus << surplus


def nearest(quotient: Fraction) -> int:
    return int(quotient + Fraction(1, 2))


@given(st.integers(0, 2**42 - 2**31))
def test_scales_round_down_to_twelve_significant_bits(value: int) -> None:
    assert unpack_scales(pack_scales(np.array([value]))).tolist() == [rounded_down(value)]


def test_every_scale_code_has_its_own_value_in_the_same_order() -> None:
    codes = np.arange(1 << 16)
    values = unpack_scales(codes)
    assert np.all(np.diff(values) > 0)
    assert np.array_equal(pack_scales(values), codes)


def int4_by_definition(values: np.ndarray) -> list[int]:
    decoded = []
    for start in range(0, len(values), 32):
        grid = delta_to_grid(values[start : start + 32]).tolist()
        scale = rounded_down(max(map(abs, grid)) // 127)
        for value in grid:
            near = nearest(Fraction(abs(value), scale)) if scale else 0
            level = max(LEVELS.tolist(), key=lambda each: (-abs(each - near), each)) if scale else 0
            decoded.append(scale * level * (1 if value >= 0 else -1))
    return decoded


@given(values_of[200])
def test_int4_is_the_nearest_level_of_its_block(values: np.ndarray) -> None:
    data = codec("int4").encode(values)
    assert codec("int4").decode(data, values.size).tolist() == int4_by_definition(values)


def topk_by_definition(values: np.ndarray, kept: int) -> list[int]:
    decoded = [0] * len(values)
    for start in range(0, len(values), 4096):
        block = values[start : start + 4096]
        grid = delta_to_grid(block).tolist()
        allowed = kept if len(block) == 4096 else max(1, kept * len(block) // 4096)
        order = sorted(range(len(block)), key=lambda i: (-abs(float(block[i])), i))[:allowed]
        entries = [i for i in order if grid[i]]
        if not entries:
            continue
        mean = sum(abs(grid[i]) for i in entries) // len(entries)
        large = [i for i in entries if abs(grid[i]) > mean] or entries
        small = [i for i in entries if i not in large]
        levels = [rounded_down(sum(abs(grid[i]) for i in g) // max(len(g), 1)) for g in (large, small)]
        if levels[0] == levels[1]:
            large, small = entries, []
        for group, level in ((large, levels[0]), (small, levels[1])):
            for i in group:
                decoded[start + i] = level if grid[i] > 0 else -level
    return decoded


@given(values_of[5000], st.sampled_from([("topk_1", 41), ("topk", 64), ("topk_12", 512)]))
def test_topk_is_two_levels_of_the_largest_values(values: np.ndarray, chosen: tuple[str, int]) -> None:
    name, kept = chosen
    data = codec(name).encode(values)
    assert codec(name).decode(data, values.size).tolist() == topk_by_definition(values, kept)
    assert len(data) <= codec(name).size_bytes_max(values.size)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=30)
@given(values_of[5000], st.integers(0, 2**16))
def test_accumulating_adds_weight_times_the_decoded_values(name: str, values, weight: int) -> None:
    data = codec(name).encode(values)
    accumulator = np.arange(values.size, dtype=np.int64)
    codec(name).accumulate(data, values.size, weight, accumulator)
    expected = np.arange(values.size) + weight * codec(name).decode(data, values.size)
    assert np.array_equal(accumulator, expected)
    assert np.abs(codec(name).decode(data, values.size)).max() <= DELTA_MAX


@pytest.mark.parametrize("name", CODECS)
def test_a_range_is_a_part_of_the_whole(name: str) -> None:
    values = np.random.default_rng(0).standard_normal(40_001).astype(np.float32)
    data = codec(name).encode(values)
    whole = codec(name).decode(data, values.size)
    for start, stop in [(0, 0), (0, 1), (4096, 4097), (4096, 20_001), (36_864, 40_001)]:
        part = codec(name).decode_range(data, values.size, start, stop)
        assert np.array_equal(part, whole[start:stop])


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_any_other_bytes_are_refused_or_mean_something_else(name: str, data: st.DataObject) -> None:
    """One vector, one spelling: nobody can send the same delta as two different files."""
    values = np.random.default_rng(1).standard_normal(4500).astype(np.float32)
    payload = bytearray(codec(name).encode(values))
    meaning = codec(name).decode(bytes(payload), 4500)
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = codec(name).decode(bytes(payload), 4500)
    except FormatError:
        return
    assert not np.array_equal(decoded, meaning)


def test_int4_payloads_that_no_encoder_writes_are_refused_by_name() -> None:
    data = codec("int4").encode(np.array([1.0, -1.0, 0.1], np.float32))
    assert data[2:] == bytes([0x97, 0x01])
    assert reason_of("int4", data[:2] + bytes([0x96, 0x01])[:1] + b"\x11", 3) == "padding"
    assert reason_of("int4", data[:2] + bytes([0x11, 0x01]), 3) == "block_not_canonical"
    assert reason_of("int4", data[:2] + bytes([0x87, 0x01]), 3) == "block_not_canonical"
    assert reason_of("int4", bytes([0, 0, 0x97, 0x01]), 3) == "block_not_canonical"
    assert reason_of("int4", data[:2] + bytes(2), 3) == "block_not_canonical"
    assert reason_of("int4", b"\xff\xff" + data[2:], 3) == "block_not_canonical"
    assert reason_of("int4", data[:-1], 3) == "payload_size"
    assert reason_of("int4", data + b"\x00", 3) == "payload_size"


def topk_payload(count: int, levels: tuple[int, int], places: int, codes: int) -> bytes:
    """One block: `places` and `codes` as whole numbers, lower entries in the lower bits."""
    head = count.to_bytes(2, "little") + b"".join(level.to_bytes(2, "little") for level in levels)
    return head + places.to_bytes(-(-12 * count // 8), "little") + codes.to_bytes(-(-count // 4), "little")


def test_topk_payloads_that_no_encoder_writes_are_refused_by_name() -> None:
    values = np.zeros(4096, np.float32)
    values[[3, 700, 4095]] = [3.0, -1.0, 1.0]
    places = 3 | 700 << 12 | 4095 << 24
    low, high = (int(pack_scales(np.array([v << 32]))[0]) for v in (1, 3))
    assert codec("topk").encode(values) == topk_payload(3, (low, high), places, 0b00_10_01)
    for broken, reason in [
        (topk_payload(3, (low, high), 700 | 3 << 12 | 4095 << 24, 0b00_10_01), "places_order"),
        (topk_payload(3, (low, high), 3 | 3 << 12 | 4095 << 24, 0b00_10_01), "places_order"),
        (topk_payload(3, (low, high), places | 1 << 36, 0b00_10_01), "padding"),
        (topk_payload(3, (low, high), places, 0b01_00_10_01), "padding"),
        (topk_payload(3, (high, low), places, 0b00_10_01), "block_not_canonical"),
        (topk_payload(3, (high, high), places, 0b00_10_01), "block_not_canonical"),
        (topk_payload(3, (low, high), places, 0b01_11_01), "block_not_canonical"),
        (topk_payload(3, (low, high), places, 0b00_10_00), "block_not_canonical"),
        (topk_payload(3, (0, high), places, 0b00_10_01), "block_not_canonical"),
        (topk_payload(3, (low, 0xFFFF), places, 0b00_10_01), "block_not_canonical"),
        (topk_payload(0, (0, high), 0, 0), "block_not_canonical"),
        (topk_payload(65, (low, high), 0, 0), "too_many_entries"),
        (topk_payload(3, (low, high), places, 0b00_10_01) + b"\x00", "payload_size"),
        (b"", "payload_size"),
    ]:
        assert reason_of("topk", broken, 4096) == reason
    short = topk_payload(1, (0, high), 100, 0b01)
    assert codec("topk").decode(short, 101).tolist() == [0] * 100 + [3 << 32]
    assert reason_of("topk", short, 100) == "places_range"


def test_float32_payloads_off_the_grid_are_refused_by_name() -> None:
    for value, reason in [
        (np.nan, "non_finite"),
        (np.inf, "non_finite"),
        (127.0, "too_large"),
        (-0.0, "off_grid"),
        (2.0**-33, "off_grid"),
    ]:
        assert reason_of("float32", np.array([1.0, value], "<f4").tobytes(), 2) == reason
    assert reason_of("float32", bytes(7), 2) == "payload_size"


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [np.nan, -np.inf, 127.0])
def test_values_that_a_broken_trainer_gives_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(FormatError) as refused:
        codec(name).encode(np.array([0.0, value], np.float32))
    assert refused.value.reason == ("too_large" if value == 127 else "non_finite")


@pytest.mark.parametrize(
    ("name", "error_max", "bytes_least"),
    [("int8", 0.0072, 3.9), ("int4", 0.092, 7.1), ("topk_12", 0.72, 18), ("topk", 0.95, 138)],
)
def test_gaussian_deltas_lose_no_more_than_the_codec_says(name, error_max, bytes_least) -> None:
    """int4 must not be worse than NF4 with blocks of 64, which has 0.092 at the same 4.5 bits."""
    values = np.random.default_rng(0).standard_normal(1 << 17).astype(np.float32)
    data = codec(name).encode(values)
    error = codec(name).decode(data, values.size) / 2.0**32 - values
    assert np.linalg.norm(error) / np.linalg.norm(values) <= error_max
    assert 4 * values.size / len(data) >= bytes_least


def cases() -> dict[str, object]:
    """Payloads of every codec for the same values, and what they decode to."""
    random = np.random.default_rng(2026)
    # whole numbers times powers of two: the same on every machine
    values = np.ldexp(random.integers(-1000, 1000, 4100), random.integers(-30, -6, 4100)).astype(np.float32)
    values[:300] = 0
    values[400:408] = [1e-10, -1e-9, 0.5, -0.5, 100.0, -100.0, 2.0**-32, -(2.0**-33)]
    encoded = {name: codec(name).encode(values) for name in CODECS}
    return {
        "float32_hex": values.astype("<f4").tobytes().hex(),
        "codecs": {
            name: {
                "payload": data.hex(),
                "decoded_sum": int(codec(name).decode(data, values.size).sum()),
                "decoded_absolute_sum": int(np.abs(codec(name).decode(data, values.size)).sum()),
            }
            for name, data in encoded.items()
        },
    }


def test_payloads_are_those_pinned_for_other_implementations() -> None:
    assert cases() == json.loads(VECTORS.read_text())


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(cases(), indent=1) + "\n")
