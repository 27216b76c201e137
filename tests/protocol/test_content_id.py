"""Names of contents: equal to Kubo's and the JS importer's, one name per file, strict when read.

The reference importer below shares nothing with the one under test: it holds the whole file, builds the
tree level by level from the bottom and writes protobuf with its own three-line encoder.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cid import make_cid
from Crypto.Cipher import ChaCha20
from hypothesis import example, given
from hypothesis import strategies as st

from citrate_node.protocol.content_id import (
    BLOCK_SIZE_BYTES_MAX,
    DAG_PB,
    LEAF_SIZE_BYTES,
    RAW,
    ContentId,
    Importer,
    Link,
    cid_text,
    content_id,
    decode_cid,
    decode_node,
    encode_node,
    expected_links,
    parse_cid,
    tree_depth,
)

MIB = 1 << 20
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "content_ids.json").read_text())


def stream(size_bytes: int) -> bytes:
    blocks = (hashlib.sha256(b"content" + i.to_bytes(8, "big")).digest() for i in range(-(-size_bytes // 32)))
    return b"".join(blocks)[:size_bytes]


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + number(value // 128)


def reference(data: bytes, leaf: int, width: int) -> tuple[int, bytes, dict[bytes, bytes]]:
    """(codec, digest, blocks) by the definition: cut into leaves, then group each level until one is left."""
    blocks: dict[bytes, bytes] = {}

    def keep(block: bytes) -> bytes:
        blocks[hashlib.sha256(block).digest()] = block
        return hashlib.sha256(block).digest()

    cuts = [data[i : i + leaf] for i in range(0, len(data), leaf)] or [b""]
    level = [(RAW, keep(cut), len(cut), len(cut)) for cut in cuts]
    while len(level) > 1:
        above = []
        for group in [level[i : i + width] for i in range(0, len(level), width)]:
            links = b""
            for codec, digest, _, tree in group:
                body = b"\n$" + bytes([1, codec, 18, 32]) + digest + bytes([18, 0, 24]) + number(tree)
                links += b"\x12" + number(len(body)) + body
            total = sum(size for _, _, size, _ in group)
            meta = b"\x08\x02\x18" + number(total) + b"".join(b" " + number(size) for _, _, size, _ in group)
            block = links + b"\n" + number(len(meta)) + meta
            above.append((DAG_PB, keep(block), total, len(block) + sum(tree for *_, tree in group)))
        level = above
    return level[0][0], level[0][1], blocks


def imported(data: bytes, leaf: int, width: int, cuts: list[int]) -> tuple[int, bytes, dict[bytes, bytes]]:
    blocks: dict[bytes, bytes] = {}
    importer = Importer(
        lambda digest, _, block: blocks.__setitem__(digest, bytes(block)),
        leaf_size_bytes=leaf,
        links_max=width,
    )
    start = 0
    for cut in [*cuts, len(data)]:
        importer.update(data[start : start + cut])
        start += cut
    content = importer.finish()
    assert importer.root is not None
    assert content == ContentId(importer.root.digest, len(data))
    return importer.root.codec, importer.root.digest, blocks


def test_recorded_cids_of_the_js_importer_come_out_again() -> None:
    rows = [tuple(row) for row in VECTORS["recorded"]]
    longest = stream(max(row[3] for row in rows))
    ours = []
    for source, leaf, width, size, _ in rows:
        data = longest[:size] if source == "stream" else bytes(size)
        codec, digest, _ = imported(data, leaf, width, [])
        ours.append((source, leaf, width, size, cid_text(codec, digest)))
    assert ours == rows


def test_hello_world_has_the_cid_that_kubo_publishes() -> None:
    assert str(content_id(b"hello world")) == VECTORS["published"][0][4]


@pytest.mark.slow
@pytest.mark.parametrize("row", VECTORS["published"][1:], ids=["1024 links", "one link more"])
def test_kubos_fixtures_at_the_link_limit_come_out_again(row: list[object]) -> None:
    cipher = ChaCha20.new(key=hashlib.sha256(b"v1-2025-seed").digest(), nonce=bytes(8))
    importer = Importer()
    for _ in range(int(str(row[3])) // MIB):
        importer.update(cipher.encrypt(bytes(MIB)))
    assert importer.finish().cid == row[4]


@given(
    st.binary(max_size=400),
    st.integers(1, 9),
    st.integers(2, 5),
    st.lists(st.integers(0, 30), max_size=30),
)
@example(bytes(range(65)), 1, 2, [])
@example(b"\x00" * 64, 1, 4, [1] * 30)
def test_any_tree_equals_the_reference_however_the_bytes_arrive(data, leaf, width, cuts) -> None:
    assert imported(data, leaf, width, cuts) == reference(data, leaf, width)


@given(st.binary(max_size=300), st.integers(1, 5), st.integers(2, 4))
def test_a_reader_walks_exactly_the_tree_that_was_written(data: bytes, leaf: int, width: int) -> None:
    """Following expected_links from the root gives the file back, and uses every block."""
    codec, root, blocks = reference(data, leaf, width)
    used: set[bytes] = set()

    def walk(digest: bytes, size: int, depth: int, tree: int | None) -> Iterator[bytes]:
        used.add(digest)
        if depth == 0:
            yield blocks[digest]
            return
        links = expected_links(blocks[digest], size, depth, tree, leaf_size_bytes=leaf, links_max=width)
        for link in links:
            yield from walk(link.digest, link.size_bytes, depth - 1, link.tree_size_bytes)

    depth = tree_depth(len(data), leaf_size_bytes=leaf, links_max=width)
    assert b"".join(walk(root, len(data), depth, None)) == data
    assert (used, codec) == (set(blocks), DAG_PB if depth else RAW)


def test_another_way_to_cut_the_same_file_is_refused() -> None:
    """Leaves of 2 bytes, then of 3: both hash correctly, only the profile's cut may name the file."""
    leaves = [Link(hashlib.sha256(part).digest(), RAW, len(part), len(part)) for part in (b"ab", b"cde")]
    with pytest.raises(ValueError, match="does not part 5 bytes as the profile does"):
        expected_links(encode_node(leaves), 5, 1, leaf_size_bytes=3, links_max=4)


@pytest.mark.parametrize(
    ("links", "size", "depth", "tree", "message"),
    [
        ([Link(bytes(32), RAW, 3, 3)] * 3, 9, 1, None, "does not part 9 bytes"),  # above two links
        ([Link(bytes(32), DAG_PB, 3, 3)] * 2, 6, 1, None, "nodes where leaves belong"),
        ([Link(bytes(32), RAW, 6, 6)] * 2, 12, 2, None, "nodes where leaves belong"),
        ([Link(bytes(32), RAW, 3, 4)] * 2, 6, 1, None, "another tree size for a leaf"),
        ([Link(bytes(32), RAW, 3, 3)] * 2, 6, 1, 5, "parent states another tree size"),
        ([Link(bytes(32), RAW, 3, 3)] * 2, 5, 1, None, "does not part 5 bytes"),
    ],
)
def test_a_node_of_any_other_shape_is_refused(links, size, depth, tree, message) -> None:
    with pytest.raises(ValueError, match=message):
        expected_links(encode_node(links), size, depth, tree, leaf_size_bytes=3, links_max=2)


@given(
    st.binary(max_size=120)
    | st.builds(lambda n: encode_node([Link(bytes(32), RAW, 1, 1)] * n), st.integers(1, 3))
)
def test_what_decodes_as_a_node_encodes_to_the_same_bytes(block: bytes) -> None:
    try:
        links = decode_node(block)
    except ValueError:
        return
    assert encode_node(links) == block


@given(st.integers(0, 500), st.integers(0, 255))
def test_no_changed_byte_of_a_node_stands_for_the_same_links(position: int, value: int) -> None:
    block = bytearray(encode_node([Link(bytes(32), RAW, 300, 300), Link(b"\x01" * 32, RAW, 5, 5)]))
    links, before = decode_node(bytes(block)), bytes(block)
    block[position % len(block)] = value
    try:
        changed = decode_node(bytes(block))
    except ValueError:
        return
    assert (changed == links) == (bytes(block) == before)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"", "0 links"),
        (b"\x0a\x04\x08\x01\x18\x00", "not a UnixFS file"),  # a directory
        (b"\x0a\x07\x08\x02\x12\x01x\x18\x01", "0 links"),  # inline data, as the legacy profile writes leaves
        (b"\x12\x03\x0a\x24\x01", "reaches beyond"),
        (b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "longer than 63 bits"),
        (b"\x12", "ends inside a number"),
        (b"\x0d\x00\x00\x00\x00", "wire type 5"),
        (bytes(BLOCK_SIZE_BYTES_MAX + 1), "above the limit"),
    ],
)
def test_a_block_that_is_no_file_node_says_why(block: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_node(block)


@given(st.binary(min_size=32, max_size=32), st.sampled_from([RAW, DAG_PB]))
def test_cids_are_those_of_py_cid_and_parse_back(digest: bytes, codec: int) -> None:
    name = {RAW: "raw", DAG_PB: "dag-pb"}[codec]
    theirs = make_cid(1, name, b"\x12\x20" + digest)
    text = cid_text(codec, digest)
    assert text == theirs.encode("base32").decode()
    assert parse_cid(text) == decode_cid(theirs.buffer) == (codec, digest)


GOOD = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with 'b'"),
        ("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "CIDv0"),
        (GOOD.upper(), "starts with 'b'"),
        ("b" + GOOD[1:].upper(), "holds only"),
        ("z" + GOOD[1:], "starts with 'b'"),
        (GOOD + "=", "59 characters"),
        (GOOD[:-1], "59 characters"),
        (GOOD + "/../../etc/passwd", "59 characters"),
        ("b/../../../../../../../../../../../../../../../../etc/passwd", "59 characters"),
        (GOOD[:-1] + "/", "holds only"),
        (GOOD[:-1] + "é", "holds only"),
        (GOOD[:-1] + "f", "bits set after"),
        (make_cid(1, "dag-cbor", b"\x12\x20" + bytes(32)).encode("base32").decode(), "codec 0x71"),
        ("bafkqaaa", "59 characters"),  # identity hash: names bytes, not a content of ours
        (cid_text(RAW, bytes(32)).replace("bafkrei", "bafkroi"), "not sha2-256"),
    ],
)
def test_a_cid_in_any_other_spelling_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cid(text)


@given(
    st.text(max_size=70)
    | st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=58, max_size=58).map("b".__add__)
)
def test_whatever_parses_as_a_cid_is_written_back_the_same(text: str) -> None:
    try:
        codec, digest = parse_cid(text)
    except ValueError:
        return
    assert cid_text(codec, digest) == text


def test_the_codec_follows_from_the_size_and_a_cid_that_disagrees_is_refused() -> None:
    raw, node = ContentId(bytes(32), LEAF_SIZE_BYTES), ContentId(bytes(32), LEAF_SIZE_BYTES + 1)
    assert (raw.codec, node.codec) == (RAW, DAG_PB)
    assert (raw.cid_bytes[:4], node.cid_bytes[:4]) == (b"\x01\x55\x12\x20", b"\x01\x70\x12\x20")
    assert ContentId.from_cid(node.cid, node.size_bytes) == node
    with pytest.raises(ValueError, match=r"is raw, but 1048577 bytes make dag-pb"):
        ContentId.from_cid(raw.cid, node.size_bytes)


@pytest.mark.parametrize(
    ("digest", "size"), [(bytes(31), 1), (bytes(33), 1), (bytes(32), -1), (bytes(32), 1 << 63)]
)
def test_a_content_id_with_a_wrong_digest_or_size_cannot_be_made(digest: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="a content"):
        ContentId(digest, size)


def test_up_to_one_leaf_the_digest_is_the_sha256_of_the_file() -> None:
    data = stream(LEAF_SIZE_BYTES)
    assert content_id(memoryview(data)) == ContentId(hashlib.sha256(data).digest(), LEAF_SIZE_BYTES)


def test_a_finished_importer_takes_no_more() -> None:
    importer = Importer()
    importer.finish()
    with pytest.raises(ValueError, match="finished"):
        importer.update(b"x")
    with pytest.raises(ValueError, match="finished"):
        importer.finish()
