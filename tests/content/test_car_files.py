"""CAR files: what goes out comes in again here and elsewhere, and nothing of a bad one stays."""

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import LEAF, block_files, leftovers, stream

from citrate_node.content.block_store import BlockStore
from citrate_node.content.car import encode_header, encode_section, export_car, import_car, read_sections
from citrate_node.content.interface import ContentRefused, Entry
from citrate_node.protocol.content_id import RAW, ContentId, content_id

JS_CAR = bytes.fromhex(  # recorded from npm @ipld/car 5.4.7: the file "hello world"
    "3aa265726f6f747381d82a58250001551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
    "6776657273696f6e012f01551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
    "68656c6c6f20776f726c64"
)


def exported(store: BlockStore, content: ContentId) -> bytes:
    return b"".join(export_car(store, content))


def imported(store: BlockStore, car: bytes, **options: object) -> ContentId:
    return import_car(store, io.BytesIO(car), **{"size_bytes_max": 1 << 30, **options})  # type: ignore[arg-type]


def test_a_car_of_the_js_tools_is_read_and_written_byte_for_byte(store: BlockStore) -> None:
    content = imported(store, JS_CAR)
    assert store.get(content) == b"hello world"
    assert exported(store, content) == JS_CAR


@pytest.mark.parametrize("size", [0, 1, LEAF, LEAF + 1, 3 * LEAF + 5])
def test_a_content_travels_in_a_car_from_store_to_store(store: BlockStore, tmp_path: Path, size: int) -> None:
    content = store.put(stream(size))
    other = BlockStore(tmp_path / "other", disk_reserve_bytes=0)
    assert imported(other, exported(store, content), expected=content.cid) == content
    assert other.get(content) == stream(size)
    assert other.entries() == (Entry(content, True, None),)
    other.close()


def test_no_block_travels_twice(store: BlockStore) -> None:
    content = store.put(bytes(5 * LEAF))
    sections = list(read_sections(io.BytesIO(exported(store, content)[59:])))
    assert [len(block) for _, _, block in sections] == [len(store.block(content.digest)), LEAF]


def test_blocks_may_come_in_any_order_and_strangers_are_not_kept(store: BlockStore, tmp_path: Path) -> None:
    data = stream(3 * LEAF)
    content = store.put(data)
    sections = list(read_sections(io.BytesIO(exported(store, content)[59:])))
    stranger = stream(50, "stranger")
    shuffled = [*sections[::-1], (RAW, content_id(stranger).digest, stranger)]
    other = BlockStore(tmp_path / "other", disk_reserve_bytes=0)
    car = encode_header(content.cid_bytes) + b"".join(encode_section(*section) for section in shuffled)
    imported(other, car, ephemeral_checkpoint=9)
    assert other.entries() == (Entry(content, False, 9),)
    assert block_files(other) == block_files(store)
    other.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(position=st.integers(0, len(JS_CAR) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused_and_leaves_nothing(
    store: BlockStore, position: int, bit: int
) -> None:
    car = bytearray(JS_CAR)
    car[position] ^= 1 << bit
    with pytest.raises(ContentRefused):
        imported(store, bytes(car), expected=content_id(b"hello world").cid)
    assert (block_files(store), store.entries(), leftovers(store)) == (set(), (), [])


@pytest.mark.parametrize("kept", [0, 1, 30, 59, 60, 100, 2 * LEAF, 3 * LEAF + 300])
def test_a_cut_car_is_refused_and_leaves_what_was_there(store: BlockStore, tmp_path: Path, kept: int) -> None:
    content = store.put(stream(3 * LEAF + 500))
    other = BlockStore(tmp_path / "other", disk_reserve_bytes=0)
    old = other.put(stream(LEAF + 1, "old"))
    before = block_files(other)
    with pytest.raises(ContentRefused):
        imported(other, exported(store, content)[:kept])
    assert (block_files(other), [entry.content for entry in other.entries()]) == (before, [old])
    other.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(JS_CAR[:59].__add__))
def test_any_bytes_are_imported_or_refused(store: BlockStore, car: bytes) -> None:
    try:
        content = imported(store, car)
    except ContentRefused:
        return
    assert content == content_id(store.get(content))


def test_a_car_that_lacks_a_block_is_refused(store: BlockStore, tmp_path: Path) -> None:
    content = store.put(stream(2 * LEAF))
    sections = list(read_sections(io.BytesIO(exported(store, content)[59:])))
    other = BlockStore(tmp_path / "other", disk_reserve_bytes=0)
    car = encode_header(content.cid_bytes) + b"".join(encode_section(*section) for section in sections[:-1])
    with pytest.raises(ContentRefused, match="blocks are missing"):
        imported(other, car)
    assert block_files(other) == set()
    other.close()


@pytest.mark.parametrize(
    ("car", "message"),
    [
        (b"", "does not begin with a header"),
        (b"\xff\xff\xff\xff\xff\xff", "impossible length"),
        (b"\x0a\xa1\x67version\x02", "version 2"),
        (b"\x11\xa2\x65roots\x80\x67version\x01", "exactly one root"),
        (JS_CAR[:59] + b"\xa5\x80\x80\x01", "outside the limits"),  # 2 MiB and 1 byte, refused unread
        (JS_CAR[:59] + b"\x05abcde", "outside the limits"),
        (JS_CAR + JS_CAR[59:-1], "ends after bafkreifzjut3te"),
        (encode_header(b"\x01\x71\x12\x20" + bytes(32)), "codec 0x71"),
    ],
)
def test_a_stream_that_is_no_car_of_ours_says_why(store: BlockStore, car: bytes, message: str) -> None:
    with pytest.raises(ContentRefused, match=message):
        imported(store, car)
    assert block_files(store) == set()


def test_a_car_of_another_content_or_above_the_limit_is_refused(store: BlockStore, tmp_path: Path) -> None:
    content = store.put(stream(5 * LEAF))
    other = BlockStore(tmp_path / "other", disk_reserve_bytes=0)
    with pytest.raises(ContentRefused, match=f"not {content_id(b'x').cid}"):
        imported(other, exported(store, content), expected=content_id(b"x").cid)
    for limit, message in ((LEAF, "more than 1048576 bytes"), (5 * LEAF - 1, "the limit is 5242879")):
        with pytest.raises(ContentRefused, match=message):
            imported(other, exported(store, content), size_bytes_max=limit)
    assert block_files(other) == set()
    other.close()
