"""The embedded store in order: what goes in comes out under Kubo's names, and what is kept stays."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from store_samples import LEAF, block_files, leftovers, stream

from citrate_node.content.block_store import BlockStore
from citrate_node.content.interface import ContentMissing, ContentRefused, Entry, StoreFull
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.content_id import RAW, ContentId, Importer, content_id

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "content_ids.json").read_text())


@pytest.mark.parametrize("size", [0, 1, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF, 3 * LEAF + 7])
def test_a_file_comes_back_whole_and_from_any_offset(store: BlockStore, size: int) -> None:
    data = stream(size)
    content = store.put(data)
    assert content == content_id(data)
    assert store.get(content) == data
    for offset in {0, size // 2, max(0, size - 1), size, min(size, LEAF), min(size, LEAF + 1)}:
        reader = store.reader(content, offset)
        parts = list(iter(reader.next_bytes, None))
        assert b"".join(parts) == data[offset:]
        assert all(len(part) <= LEAF for part in parts)


def test_a_file_on_disk_and_the_same_bytes_are_one_content(store: BlockStore, tmp_path: Path) -> None:
    data = stream(2 * LEAF + 5)
    (tmp_path / "weights").write_bytes(data)
    from_file = store.put(tmp_path / "weights")
    before = block_files(store)
    assert store.put(data) == from_file == content_id(data)
    assert block_files(store) == before
    assert store.used_bytes == sum(os.path.getsize(store.path / "blocks" / name) for name in before)


def test_a_raw_block_on_disk_is_named_by_its_sha256_and_nothing_else(store: BlockStore) -> None:
    store.put(b"hello world")
    assert block_files(store) == {hashlib.sha256(b"hello world").hexdigest()}


def test_a_reader_sees_what_the_cid_alone_names(store: BlockStore) -> None:
    small, large = stream(10, "small"), stream(LEAF + 10, "large")
    for data in (small, large):
        content = store.put(data)
        assert store.resolve(content.cid, len(data)) == content
        assert store.get_by_cid(content.cid, len(data)) == data
        with pytest.raises(ContentRefused, match=f"has {len(data)} bytes, the limit is {len(data) - 1}"):
            store.get_by_cid(content.cid, len(data) - 1)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "bafkqaaa", "b" * 59]
)
def test_what_is_no_cid_never_reaches_the_disk(store: BlockStore, name: str) -> None:
    with pytest.raises(ConfigError, match="does not name a content"):
        store.get_by_cid(name, LEAF)


def test_absent_content_is_missing_to_every_question(store: BlockStore) -> None:
    absent = content_id(b"never stored")
    assert not store.has(absent)
    assert store.open_path(absent) is None
    assert store.ephemeral_checkpoint_of(absent) is None
    for question in (store.get, store.pin, store.unpin):
        with pytest.raises(ContentMissing, match="is not in this store"):
            question(absent)


def test_the_same_digest_with_another_size_is_another_content(store: BlockStore) -> None:
    """The root block of a large file, read as a raw file, shares its digest; the size tells them apart."""
    content = store.put(stream(LEAF + 1))
    block = store.block(content.digest)
    as_raw = ContentId(content.digest, len(block))
    assert store.get(as_raw) == block
    for wrong in (ContentId(content.digest, LEAF + 2), ContentId(content.digest, len(block) + 1)):
        assert not store.has(wrong)
        with pytest.raises((ContentRefused, ContentMissing)):
            store.get(wrong)
    assert len(store.get(content)) == LEAF + 1  # and asking wrongly has cost the store nothing


def test_put_pins_and_a_checkpoint_does_not(store: BlockStore) -> None:
    kept, served = store.put(b"weights"), store.put(b"delta", ephemeral_checkpoint=7)
    assert store.entries() == tuple(
        sorted([Entry(kept, True, None), Entry(served, False, 7)], key=lambda entry: entry.content)
    )
    assert store.pins() == (kept,)
    assert (store.ephemeral_checkpoint_of(kept), store.ephemeral_checkpoint_of(served)) == (None, 7)


@pytest.mark.parametrize(
    ("puts", "expected"),
    [
        ([3, 5], (False, 5)),
        ([5, 3], (False, 5)),
        ([3, None], (True, None)),
        ([None, 3], (True, None)),
    ],
)
def test_storing_again_keeps_the_longer_promise(store: BlockStore, puts, expected) -> None:
    for checkpoint in puts:
        content = store.put(b"twice", ephemeral_checkpoint=checkpoint)
    assert store.entries() == (Entry(content, *expected),)


def test_a_store_opened_again_knows_the_same(store: BlockStore) -> None:
    store.put(stream(LEAF + 1))
    store.put(b"delta", ephemeral_checkpoint=2)
    before, used = store.entries(), store.used_bytes
    store.close()
    again = BlockStore(store.path)
    assert (again.entries(), again.used_bytes) == (before, used)
    again.close()


def test_collection_follows_pins_and_checkpoints_and_shared_blocks_survive(store: BlockStore) -> None:
    shared = stream(LEAF)
    pinned = store.put(shared + b"pinned")
    over = store.put(shared + b"over", ephemeral_checkpoint=4)
    open_still = store.put(shared + b"open", ephemeral_checkpoint=5)
    held = store.put(shared + b"held", ephemeral_checkpoint=1)
    store.pin(held)
    loose = store.put(b"loose")
    store.unpin(loose)
    report = store.collect(4)
    assert set(report.contents_removed) == {over, loose}
    assert (report.contents_kept, report.blocks_removed) == (3, 3)  # a leaf and a root of `over`, and `loose`
    assert [entry.content for entry in store.entries()] == sorted([pinned, open_still, held])
    assert store.get(held) == shared + b"held"
    store.unpin(held)
    store.unpin(pinned)
    assert set(store.collect(5).contents_removed) == {held, pinned, open_still}
    assert (block_files(store), store.used_bytes) == (set(), 0)


def test_without_a_final_checkpoint_only_unpinned_contents_go(store: BlockStore) -> None:
    store.put(b"delta", ephemeral_checkpoint=0)
    loose = store.put(b"loose")
    store.unpin(loose)
    assert store.collect().contents_removed == (loose,)


def test_a_running_transfer_keeps_its_content_through_a_collection(store: BlockStore) -> None:
    data = stream(3 * LEAF)
    content = store.put(data, ephemeral_checkpoint=1)
    with store.lease(content):
        reader = store.reader(content)
        first = reader.next_bytes()
        assert store.collect(1).contents_removed == ()
        assert b"".join([first or b"", *iter(reader.next_bytes, None)]) == data
    assert store.collect(1).contents_removed == (content,)


def test_an_import_under_way_keeps_its_blocks_through_a_collection(store: BlockStore) -> None:
    """Also those that were there before, and that nothing else keeps any more."""
    data = stream(2 * LEAF + 1)
    old = store.put(data[:LEAF])
    store.unpin(old)
    with store.importing(len(data)) as blocks:
        importer = Importer(blocks.add)
        importer.update(data[: 2 * LEAF])
        store.collect(0)
        importer.update(data[2 * LEAF :])
        content = importer.finish()
        blocks.keep(content)
    assert store.get(content) == data


def test_an_import_that_is_not_kept_leaves_nothing(store: BlockStore) -> None:
    kept = store.put(stream(LEAF))
    before = block_files(store)
    with store.importing(0) as blocks:
        for data in (stream(LEAF), b"stray"):
            blocks.add(hashlib.sha256(data).digest(), RAW, data)
        assert len(block_files(store)) == 2
    assert (block_files(store), leftovers(store)) == (before, [])
    assert store.has(kept)


def test_a_pin_needs_the_whole_content(store: BlockStore) -> None:
    content = content_id(stream(2 * LEAF))
    with store.importing(0) as blocks:
        blocks.add(hashlib.sha256(stream(LEAF)).digest(), RAW, stream(LEAF))
        with pytest.raises(ContentRefused, match="blocks are missing"):
            blocks.keep(content)
    assert store.entries() == ()


def test_a_large_content_is_put_together_for_senders_within_a_budget(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "content", disk_reserve_bytes=0, assembled_bytes_max=5 * LEAF)
    datas = [stream(2 * LEAF + n, str(n)) for n in range(1, 4)]
    contents = [store.put(data, ephemeral_checkpoint=1) for data in datas]
    small = store.put(b"one block")
    small_path = store.open_path(small)
    assert small_path is not None
    assert small_path.read_bytes() == b"one block"
    for content, data in zip(contents, datas, strict=True):
        path = store.open_path(content)
        assert path is not None
        assert path.read_bytes() == data
    assembled = store.path / "assembled"
    assert {path.name for path in assembled.iterdir()} == {c.cid_bytes.hex() for c in contents[1:]}
    store.collect(1)
    assert list(assembled.iterdir()) == []
    store.close()


def test_the_budget_is_checked_before_a_byte_is_written(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "content", size_bytes_max=LEAF, disk_reserve_bytes=0)
    store.put(stream(LEAF // 2))
    with pytest.raises(StoreFull, match="pass its limit of 1048576"):
        store.put(stream(LEAF // 2 + 1, "more"))
    assert len(block_files(store)) == 1
    store.put(stream(LEAF // 2, "fits"))
    store.close()


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe"])
def test_a_source_that_is_no_file_is_the_operators_mistake(
    store: BlockStore, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "source"
    if kind == "folder":
        source.mkdir()
    if kind == "pipe":
        os.mkfifo(source)
    with pytest.raises(ConfigError, match=r"cannot read|not a regular file"):
        store.put(source)


def test_reading_an_absent_store_is_the_operators_mistake_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no content store"):
        BlockStore(tmp_path / "content", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_format_is_left_alone(store: BlockStore) -> None:
    store.close()
    (store.path / "format").write_text("citrate content store 9\n")
    with pytest.raises(ServiceError, match="another format"):
        BlockStore(store.path)


def test_a_closed_store_says_so(store: BlockStore) -> None:
    content = store.put(b"x")
    store.close()
    for call in (lambda: store.put(b"y"), lambda: store.get(content), store.entries, store.collect):
        with pytest.raises(ServiceError, match="is closed"):
            call()
