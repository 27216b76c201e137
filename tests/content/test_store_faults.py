"""What goes wrong around the embedded store: damaged and short blocks, full disks, kills, two processes.

Every case is a real one: bytes are changed on the disk, a small file system is mounted and filled, and
processes are killed while they write.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from store_samples import LEAF, block_files, leftovers, stream

from citrate_node.content import files
from citrate_node.content.block_store import BlockStore, Damage
from citrate_node.content.interface import (
    ContentDamaged,
    ContentMissing,
    ContentRefused,
    Entry,
    StoreBusy,
    StoreFull,
)
from citrate_node.errors import ServiceError
from citrate_node.protocol.content_id import (
    DAG_PB,
    RAW,
    ContentId,
    Importer,
    Link,
    cid_text,
    content_id,
    encode_node,
)

ROOT = Path(__file__).parents[2]


def blocks_of(data: bytes) -> list[bytes]:
    """Digests of the blocks of a file, leaves first, the root last."""
    digests: list[bytes] = []
    importer = Importer(lambda digest, codec, block: digests.append(digest))
    importer.update(data)
    importer.finish()
    return digests


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first leaf", "second leaf", "root"])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "emptied", "too long"])
def test_a_damaged_block_is_never_served_and_heals(store: BlockStore, which: int, damage: str) -> None:
    """The reader is told, the block is set aside, and storing the file again makes it whole."""
    data = stream(2 * LEAF + 9)
    content = store.put(data)
    digest = blocks_of(data)[which]
    path = store.path / "blocks" / digest.hex()
    good = path.read_bytes()
    bad = {
        "one bit": bytes([good[0] ^ 1]) + good[1:],
        "cut short": good[:-1],
        "emptied": b"",
        "too long": good + b"x",
    }[damage]
    path.write_bytes(bad)
    assert store.has(content) is (damage == "one bit" and which != -1)  # leaves are hashed when they are read
    with pytest.raises(ContentDamaged, match="does not hash to its name"):
        store.get(content)
    assert (store.path / "quarantine" / digest.hex()).read_bytes() == bad
    assert not store.has(content)
    assert store.open_path(content) is None
    assert store.put(data) == content
    assert store.get(content) == data
    store.collect()
    assert list((store.path / "quarantine").iterdir()) == []
    assert store.used_bytes == sum(len(p.read_bytes()) for p in (store.path / "blocks").iterdir())


def test_a_damaged_block_that_is_stored_again_before_anyone_reads_it_heals_too(store: BlockStore) -> None:
    content = store.put(b"some delta")
    (store.path / "blocks" / content.digest.hex()).write_bytes(b"some_delta")
    store.put(b"some delta")
    assert store.get(content) == b"some delta"


def test_a_reader_without_the_lock_reports_damage_and_moves_nothing(store: BlockStore) -> None:
    content = store.put(b"some delta")
    path = store.path / "blocks" / content.digest.hex()
    path.write_bytes(b"some_delta")
    reader = BlockStore(store.path, read_only=True)
    with pytest.raises(ContentDamaged):
        reader.get(content)
    assert path.read_bytes() == b"some_delta"
    reader.close()


def test_a_link_or_an_oversized_file_in_place_of_a_block_is_not_read(
    store: BlockStore, tmp_path: Path
) -> None:
    content = store.put(b"some delta")
    path = store.path / "blocks" / content.digest.hex()
    (tmp_path / "elsewhere").write_bytes(b"some delta")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ContentMissing):
        store.get(content)
    path.unlink()
    with open(path, "wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(ContentMissing):
        store.get(content)


def test_verify_reads_everything_and_names_what_is_damaged(store: BlockStore) -> None:
    good, bad = store.put(stream(LEAF + 1, "good")), store.put(b"bad")
    (store.path / "blocks" / bad.digest.hex()).write_bytes(b"BAD")
    report = store.verify()
    assert (report.contents, report.bytes_read) == (2, good.size_bytes)
    assert report.damaged == (Damage(bad.cid, f"block {bad.digest.hex()} does not hash to its name"),)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 4000, b'{"size_bytes": -1}', b'{"size_bytes": "9"}'])
def test_an_unreadable_record_counts_as_a_pin_and_is_named(store: BlockStore, text: bytes) -> None:
    data = stream(LEAF + 5)
    content = store.put(data, ephemeral_checkpoint=1)
    store.close()
    (store.path / "roots" / content.cid_bytes.hex()).write_bytes(text)
    again = BlockStore(store.path)
    assert again.collect(1).contents_removed == ()
    assert again.get(content) == data
    assert again.entries() == (Entry(content, True, None),)
    assert again.verify().damaged == (Damage(content.cid, "its record is unreadable; it counts as a pin"),)
    again.pin(content)
    assert again.verify().damaged == ()
    again.close()


def test_a_tree_that_no_importer_makes_is_refused_though_every_hash_is_right(store: BlockStore) -> None:
    """Two leaves cut elsewhere than the profile cuts: the same file under a second name."""
    data = stream(LEAF + 100)
    parts = [data[:100], data[100:]]
    links = [Link(content_id(part).digest, RAW, len(part), len(part)) for part in parts]
    root = encode_node(links)
    forged = content_id(root)
    store.put(root)
    for part in parts:
        store.put(part)
    name = ContentId(forged.digest, len(data))
    assert not store.has(name)
    with pytest.raises(ContentRefused, match="does not part 1048676 bytes as the profile does"):
        store.get_by_cid(cid_text(DAG_PB, forged.digest), 1 << 30)


def test_a_node_that_claims_a_huge_file_is_refused_before_a_leaf_is_read(store: BlockStore) -> None:
    """A size bomb: a root of one small block that names a thousand times the same leaf."""
    leaf = stream(LEAF)
    root = encode_node([Link(content_id(leaf).digest, RAW, LEAF, LEAF)] * 1024)
    store.put(root)
    store.put(leaf)
    with pytest.raises(ContentRefused, match="has 1073741824 bytes, the limit is 1048576"):
        store.get_by_cid(cid_text(DAG_PB, content_id(root).digest), LEAF)


def test_blocks_above_two_mebibytes_are_refused(store: BlockStore) -> None:
    data = bytes(2 * LEAF + 1)
    with store.importing(0) as blocks, pytest.raises(ContentRefused, match="above the limit of 2097152"):
        blocks.add(bytes(32), RAW, data)
    assert block_files(store) == set()


def test_a_file_that_grows_while_it_is_stored_is_refused_whole(store: BlockStore, tmp_path: Path) -> None:
    source = tmp_path / "growing"
    source.write_bytes(stream(LEAF))
    status = os.stat(source)
    with open(source, "ab") as file:
        file.write(b"late")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    with source.open("rb") as file, pytest.raises(ContentRefused, match="changed while it was read"):
        store._put(iter(lambda: file.read(4 * LEAF), b""), LEAF, None, None)
    assert (block_files(store), store.entries()) == (set(), ())


def test_a_stopped_import_leaves_nothing(store: BlockStore) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        store.put(stream(2 * LEAF), stop=stop)
    assert (block_files(store), leftovers(store), store.used_bytes) == (set(), [], 0)


# two processes

HOLD = """
import sys
from pathlib import Path
from citrate_node.content.block_store import BlockStore
store = BlockStore(Path(sys.argv[1]), disk_reserve_bytes=0)
print("open", flush=True)
sys.stdin.readline()
store.close()
"""


def python(code: str, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "content"
    store = BlockStore(folder, disk_reserve_bytes=0)
    content = store.put(b"kept")
    store.close()
    with python(HOLD, str(folder)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreBusy, match=f"in use by process {holder.pid}"):
            BlockStore(folder)
        reader = BlockStore(folder, read_only=True)
        assert reader.get(content) == b"kept"
        assert reader.entries() == (Entry(content, True, None),)
        for write in (lambda: reader.put(b"x"), lambda: reader.pin(content), reader.collect):
            with pytest.raises(ServiceError, match="open for reading only"):
                write()
        reader.close()
        holder.communicate("\n", timeout=20)
    BlockStore(folder).close()


def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path: Path) -> None:
    with python(HOLD, str(tmp_path / "content")) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        holder.kill()
        holder.wait(20)
    BlockStore(tmp_path / "content").close()


def test_a_reader_beside_the_writer_sees_what_was_added_after_it_opened(store: BlockStore) -> None:
    reader = BlockStore(store.path, read_only=True)
    content = store.put(b"later")
    assert reader.pins() == (content,)
    store.unpin(content)
    store.collect()
    with pytest.raises(ContentMissing):
        reader.get(content)
    reader.close()


# kills

CHURN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/content")
from store_samples import LEAF, stream
from citrate_node.content.block_store import BlockStore
store = BlockStore(Path(sys.argv[1]), disk_reserve_bytes=0)
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    kept = store.put(stream(LEAF + number, "kept"))
    print("kept", kept.cid, kept.size_bytes, flush=True)
    store.put(stream(LEAF + number, "delta"), ephemeral_checkpoint=number)
    store.collect(number - 1)
    if number % 2 == 0:
        print("lets go", kept.cid, kept.size_bytes, flush=True)  # said first: the kill may come in between
        store.unpin(kept)
"""


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(12, 5), pytest.param(150, 6, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],  # 2 s a kill, busy
    ids=["a dozen", "150"],
)
def test_kill_at_any_moment_of_put_and_collect_loses_nothing_that_was_acknowledged(
    tmp_path: Path, kills: int, seed: int
) -> None:
    """Kills at random moments; after each the store opens, and what was said to be kept is whole."""
    chance = random.Random(seed)
    promised: dict[str, int] = {}
    number = 0
    for _ in range(kills):
        with python(CHURN, str(tmp_path / "content"), str(number)) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            timer = threading.Timer(chance.uniform(0.0, 0.25), worker.send_signal, (signal.SIGKILL,))
            timer.start()
            lines = worker.stdout.read().split("\n")[:-1]  # the kill may have cut the last line
            timer.join()
        for word, cid, size in (line.rsplit(" ", 2) for line in lines):
            number += word == "kept"
            if word == "kept":
                promised[cid] = int(size)
            else:
                del promised[cid]
        number += 1  # the one under way may have been recorded
        store = BlockStore(tmp_path / "content", disk_reserve_bytes=0)
        assert leftovers(store) == []
        assert store.verify().damaged == ()
        for cid, size in promised.items():
            assert store.get_by_cid(cid, size) == stream(size, "kept")
        assert set(promised) <= {content.cid for content in store.pins()}
        store.collect(1 << 40)
        referenced = {d.hex() for e in store.entries() for d in blocks_of(store.get(e.content))}
        assert block_files(store) == referenced
        store.close()
    assert number > kills, "no worker ever finished a put before it was killed"


# full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 MiB; only root may mount one."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    point = tmp_path / "disk"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=60", "tmpfs", str(point)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this kernel does not let us mount: {mounted.stderr.decode().strip()}")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_file_that_cannot_fit_is_refused_before_a_byte_is_written(small_disk: Path) -> None:
    store = BlockStore(small_disk / "content", disk_reserve_bytes=4 * LEAF)
    old = store.put(stream(LEAF + 1))
    before = shutil.disk_usage(small_disk).used
    with pytest.raises(StoreFull, match="bytes free, of which 4194304 stay reserved"):
        store.put(bytes(22 * LEAF))
    assert shutil.disk_usage(small_disk).used == before
    assert store.get(old) == stream(LEAF + 1)
    store.close()


def test_a_disk_that_fills_on_the_way_is_cleaned_of_the_failed_import(small_disk: Path) -> None:
    """Someone else takes the room between the check and the write: a true ENOSPC in the middle."""
    store = BlockStore(small_disk / "content", disk_reserve_bytes=0)
    old = store.put(stream(LEAF + 1, "old"))
    before = block_files(store)
    hog = small_disk / "hog"

    def chunks() -> Iterator[bytes]:
        for number in range(10):
            yield stream(LEAF, str(number))
            if number == 4:
                hog.write_bytes(bytes(15 * LEAF))

    with pytest.raises(StoreFull):
        store._put(chunks(), 10 * LEAF, None, None)
    assert (block_files(store), leftovers(store)) == (before, [])
    assert store.get(old) == stream(LEAF + 1, "old")
    hog.unlink()
    assert store.put(stream(10 * LEAF)) == content_id(stream(10 * LEAF))
    store.close()


def test_a_file_system_without_room_for_another_name_is_a_full_disk_too(small_disk: Path) -> None:
    """Bytes are free, inodes are not: no check of free space can see it, only the write fails."""
    store = BlockStore(small_disk / "content", disk_reserve_bytes=0)
    old = store.put(b"old")
    before, used = block_files(store), store.used_bytes

    def fill() -> None:
        for number in range(60):
            store.put(stream(LEAF // 100, str(number)), ephemeral_checkpoint=1)

    with pytest.raises(StoreFull, match="is full"):
        fill()
    assert len(store.entries()) > 10
    assert leftovers(store) == []
    assert store.verify().damaged == ()
    store.collect(1)
    assert (block_files(store), store.used_bytes) == (before, used)
    assert store.get(old) == b"old"
    store.close()


def test_a_record_that_cannot_be_written_leaves_neither_content_nor_record(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills at the very last file: the blocks are there, the record is not."""
    real = files.sync_folder

    def full_at_the_record(folder: Path) -> None:
        if folder.name == "roots":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    monkeypatch.setattr(files, "sync_folder", full_at_the_record)
    with pytest.raises(StoreFull):
        store.put(stream(LEAF + 1))
    monkeypatch.undo()
    assert (block_files(store), list((store.path / "roots").iterdir())) == (set(), [])


def test_a_disk_error_names_the_store_and_is_no_crash(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, size_bytes_max: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    content = store.put(b"x")
    monkeypatch.setattr(files, "read_regular", broken)
    with pytest.raises(ServiceError, match=r"cannot be used \(Input/output error\)"):
        store.get(content)
