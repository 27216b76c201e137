"""int4, topk and float32: their definitions in Python integers, and one spelling per vector.

tests/vectors/codecs.json pins bytes of every codec; write it anew with
`PYTHONPATH=. python tests/protocol/test_codecs_small.py`.
"""

from __future__ import annotations

import json
import tracemalloc
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
from citrate_node.protocol.codecs.topk import TopK
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


def topk_by_definition(values: np.ndarray, kept: int, levels: int) -> list[int]:
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
        large = [i for i in entries if abs(grid[i]) > mean and levels == 2] or entries
        small = [i for i in entries if i not in set(large)]
        both = [rounded_down(sum(abs(grid[i]) for i in g) // max(len(g), 1)) for g in (large, small)]
        if both[0] == both[1]:
            large, small = entries, []
        for group, level in ((large, both[0]), (small, both[1])):
            for i in group:
                decoded[start + i] = level if grid[i] > 0 else -level
    return decoded


TOPK = {name: each for name, each in CODECS.items() if isinstance(each, TopK)}


def bits_as_bytes(bits: list[int]) -> bytes:
    return sum(bit << i for i, bit in enumerate(bits)).to_bytes(-(-len(bits) // 8), "little")


def topk_file(
    levels: list[int],
    places: list[int],
    negative: list[int],
    large: list[int] | None = None,
    low_bits: int = 5,
    count: int | None = None,
) -> bytes:
    """The payload that the class describes, bit by bit; what no encoder writes can be written, too."""
    distances = [b - a - 1 for a, b in zip([-1, *places], places, strict=False)]
    return b"".join(
        (
            (len(places) if count is None else count).to_bytes(4, "little"),
            b"".join(level.to_bytes(2, "little") for level in levels),
            bits_as_bytes(negative),
            bits_as_bytes(large or []),
            bits_as_bytes([d >> i & 1 for d in distances for i in range(low_bits)]),
            bits_as_bytes([bit for d in distances for bit in [0] * (d >> low_bits) + [1]]),
        )
    )


@pytest.mark.parametrize("name", TOPK)
@settings(max_examples=30)
@given(values_of[5000])
def test_topk_is_the_mean_of_the_largest_values(name: str, values: np.ndarray) -> None:
    chosen = TOPK[name]
    data = chosen.encode(values)
    decoded = topk_by_definition(values, chosen.kept, chosen.levels)
    assert chosen.decode(data, values.size).tolist() == decoded
    assert len(data) <= chosen.size_bytes_max(values.size)


@pytest.mark.parametrize("name", TOPK)
@settings(max_examples=30)
@given(values_of[5000])
def test_topk_bytes_are_those_of_the_layout(name: str, values: np.ndarray) -> None:
    """Written once more from what they decode to: nothing else decides them."""
    chosen = TOPK[name]
    data = chosen.encode(values)
    decoded = chosen.decode(data, values.size).tolist()
    places = [i for i, value in enumerate(decoded) if value]
    levels, large = [], []
    for start in range(0, len(decoded), 4096):
        used = sorted({abs(value) for value in decoded[start : start + 4096]} - {0})
        padded = [0] * (chosen.levels - len(used)) + used
        levels += pack_scales(np.array(padded)).tolist()
        large += [int(abs(v) == padded[-1]) for v in decoded[start : start + 4096] if v]
    negative = [int(decoded[i] < 0) for i in places]
    assert data == topk_file(
        levels, places, negative, large if chosen.levels == 2 else None, low_bits=chosen.low_bits
    )


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=60), st.data())
def test_whatever_distances_occur_are_read_as_they_were_written(
    places: set[int], data: st.DataObject
) -> None:
    """From neighbours to the whole vector without an entry."""
    values = np.zeros(10_000, np.float32)
    for place in places:
        values[place] = data.draw(st.sampled_from([1.0, -1.0]))
    decoded = codec("topk_3").decode(codec("topk_3").encode(values), values.size)
    assert decoded.tolist() == (values.astype(np.float64) * 2**32).astype(np.int64).tolist()


@pytest.mark.parametrize("name", TOPK)
@given(count=st.integers(1, 20_000), kind=st.sampled_from(["first", "last", "random"]))
def test_no_topk_payload_is_longer_than_is_told_beforehand(name: str, count: int, kind: str) -> None:
    """The longest distances are those of a vector whose entries stand at the end of each block."""
    ramp = np.arange(count, dtype=np.float32) % 4096 + 1
    values = {"first": 1 / ramp, "last": ramp / 4096, "random": np.sin(ramp * 1000)}[kind]
    data = codec(name).encode(values.astype(np.float32))
    assert len(data) <= codec(name).size_bytes_max(count)


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


def test_topk_payloads_that_no_encoder_writes_are_refused_by_name() -> None:
    values = np.zeros(4096, np.float32)
    values[[3, 700, 4095]] = [1.0, -1.0, 1.0]
    (one,) = (int(pack_scales(np.array([1 << 32]))[0]),)
    places, negative = [3, 700, 4095], [0, 1, 0]
    right = topk_file([one], places, negative)
    assert codec("topk").encode(values) == right
    many = list(range(65))
    for broken, reason in [
        (topk_file([one], places, [0, 1, 0, 1]), "padding"),
        (topk_file([0], places, negative), "block_not_canonical"),
        (topk_file([0xFFFF], places, negative), "block_not_canonical"),
        (topk_file([one], [], []), "block_not_canonical"),
        (topk_file([one], many, [0] * 65), "too_many_entries"),
        (topk_file([one], places, negative, count=0xFFFFFFFF), "too_many_entries"),
        (topk_file([one], [3, 700, 4096], negative), "places_range"),
        (topk_file([one], [3, 700, 4127], negative), "places_range"),
        (topk_file([one], [3, 700], [0, 1]) + b"\x00", "padding"),
        (right + b"\x00", "payload_size"),
        (right[:-1], "padding"),  # what is left ends in a byte of zeros
        (right[:8], "payload_size"),
        (right[:3], "payload_size"),
        (b"", "payload_size"),
    ]:
        assert reason_of("topk", broken, 4096) == reason
    padded = bytearray(right)
    padded[8] |= 1 << 7  # behind three times five low bits
    assert reason_of("topk", bytes(padded), 4096) == "padding"
    short = topk_file([one], [100], [0])
    assert codec("topk").decode(short, 101).tolist() == [0] * 100 + [1 << 32]
    assert reason_of("topk", short, 100) == "places_range"
    twice = topk_file([one, one], many, [0] * 65, count=65)
    assert reason_of("topk", twice, 8192) == "too_many_entries"  # all in the first block of two


def test_topk_payloads_with_two_levels_that_no_encoder_writes_are_refused_by_name() -> None:
    values = np.zeros(4096, np.float32)
    values[[3, 700, 4095]] = [3.0, -1.0, 1.0]
    places, negative, large = [3, 700, 4095], [0, 1, 0], [1, 0, 0]
    low, high = (int(pack_scales(np.array([v << 32]))[0]) for v in (1, 3))

    def two(levels: list[int], large: list[int]) -> bytes:
        return topk_file(levels, places, negative, large, low_bits=0)

    assert codec("topk_48").encode(values) == two([low, high], large)
    for broken, reason in [
        (two([high, low], large), "block_not_canonical"),
        (two([high, high], large), "block_not_canonical"),
        (two([low, high], [1, 1, 1]), "block_not_canonical"),
        (two([low, high], [0, 0, 0]), "block_not_canonical"),
        (two([0, high], large), "block_not_canonical"),
        (two([low, 0xFFFF], large), "block_not_canonical"),
        (two([low, high], [1, 0, 0, 1]), "padding"),
        (topk_file([0, high], [], [], [], low_bits=0), "block_not_canonical"),
        (topk_file([low, high], places, negative, large, low_bits=0, count=2), "entries_count"),
        (topk_file([low, high], places, negative, large, low_bits=0, count=4), "entries_count"),
    ]:
        assert reason_of("topk_48", broken, 4096) == reason


@pytest.mark.parametrize("claimed", [0, 1, 320 * 1024, 0xFFFFFFFF])
def test_a_hostile_topk_payload_costs_no_more_memory_than_its_own_length_allows(claimed: int) -> None:
    """Neither a count nor a distance can claim what the bytes do not hold."""
    count = 4096 * 1024
    data = claimed.to_bytes(4, "little") + bytes(codec("topk_8").size_bytes_max(count) - 5) + b"\x80"
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"payload_size|too_many_entries|entries_count"):
        codec("topk_8").check(data, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * len(data) + (1 << 16)


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
    [
        ("int8", 0.0072, 3.9),
        ("int4", 0.092, 7.1),
        ("topk_48", 0.352, 16),
        ("topk_12", 0.72, 46),
        ("topk_8", 0.80, 64),
        ("topk", 0.95, 230),
    ],
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
