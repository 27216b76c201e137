"""Blobs between nodes: resumed, bounded, verified; refusals and liars."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from citrate_node.network.settings import (
    BLOB_PROTOCOL,
    BlobRefused,
    BlobStatus,
    PeerFailed,
    WrongBlob,
)
from citrate_node.network.streams import read_exactly
from citrate_node.protocol.content_id import content_id

BLOB = random.Random(1).randbytes((2 << 20) + 12_345)
NAME = content_id(BLOB)


def find_blob(digest: bytes, size_bytes: int) -> bytes | None:
    return BLOB if (digest, size_bytes) == (NAME.digest, NAME.size_bytes) else None


async def pair(
    start_node: Any, until: Any, find: Any = find_blob, retry_ms: int = 20, **settings: Any
) -> tuple[Any, Any]:
    """(fetching node, serving node), connected."""
    serving = await start_node(1, find_blob=find, **settings)
    fetching = await start_node(2, peers=serving.addresses, blob_retry_ms=retry_ms)
    await until(lambda: serving.peer_id in fetching.connected_peers())
    return fetching, serving


def serve_instead(node: Any, handler: Callable[[Any, bytes], Any]) -> None:
    """Let a node answer blob requests with `handler(stream, request)` on the trio side."""

    async def handle(stream: Any) -> None:
        await handler(stream, await read_exactly(stream, 48))

    node._thread.run_soon(node._parts.host.set_stream_handler, BLOB_PROTOCOL, handle)


async def fetch(node: Any, peer: Any, destination: Path, **options: Any) -> Path:
    result: Path = await node.fetch_blob(peer.peer_id, NAME.digest, NAME.size_bytes, destination, **options)
    return result


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Store:
    """A content that is no single file: what the content store hands out."""

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        return BLOB[offset : offset + min(size_bytes, 100_000)]


@pytest.mark.parametrize("kind", ["bytes", "file", "reader"])
async def test_a_blob_arrives_under_its_name_whatever_it_is_kept_in(
    start_node: Any, until: Any, tmp_path: Path, kind: str
) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(BLOB)
    source = {"bytes": BLOB, "file": kept, "reader": Store()}[kind]
    fetching, serving = await pair(start_node, until, lambda digest, size_bytes: source)
    folder = tmp_path / "new"
    assert await fetch(fetching, serving, folder / "blob") == folder / "blob"
    assert (folder / "blob").read_bytes() == BLOB
    assert names_in(folder) == ["blob"]
    assert serving.counters()["blobs_served"] == 1


async def test_an_empty_blob_is_a_blob(start_node: Any, until: Any, tmp_path: Path) -> None:
    fetching, serving = await pair(start_node, until, lambda digest, size_bytes: b"")
    empty = content_id(b"")
    await fetching.fetch_blob(serving.peer_id, empty.digest, 0, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == b""


async def test_a_fetch_goes_on_where_a_broken_one_ended(start_node: Any, until: Any, tmp_path: Path) -> None:
    """The first peer breaks off in the middle and every time; the second is asked only for the rest."""
    offsets: list[int] = []

    async def break_off(stream: Any, request: bytes) -> None:
        offset = int.from_bytes(request[40:], "big")
        offsets.append(offset)
        await stream.write(b"\0" + BLOB[offset:1_500_000])
        await trio.sleep(0.1)  # a reset overtakes what is under way
        await stream.reset()

    fetching, serving = await pair(start_node, until)
    breaking = await start_node(3)
    await fetching.connect(breaking.addresses[0])
    serve_instead(breaking, break_off)
    with pytest.raises(PeerFailed, match=r"ended|broke off"):
        await fetch(fetching, breaking, tmp_path / "blob")
    assert names_in(tmp_path) == ["blob.part"]
    assert (tmp_path / "blob.part").read_bytes() == BLOB[:1_500_000]
    assert offsets == [0, *[1_500_000] * 4]
    await fetch(fetching, serving, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert names_in(tmp_path) == ["blob"]
    assert serving.counters()["blob_bytes_sent"] == len(BLOB) - 1_500_000


async def test_a_cancelled_fetch_keeps_what_has_arrived(start_node: Any, until: Any, tmp_path: Path) -> None:
    async def stall(stream: Any, request: bytes) -> None:
        await stream.write(b"\0" + BLOB[:700_000])
        await trio.sleep(30)

    fetching, serving = await pair(start_node, until)
    stalling = await start_node(3)
    serve_instead(stalling, stall)
    await fetching.connect(stalling.addresses[0])
    task = asyncio.create_task(fetch(fetching, stalling, tmp_path / "blob"))
    await until(lambda: fetching.counters().get("blob_bytes_received") == 700_000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "blob.part").read_bytes() == BLOB[:700_000]
    await fetch(fetching, serving, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB


async def test_wrong_bytes_are_deleted_and_their_sender_is_blamed(
    start_node: Any, until: Any, tmp_path: Path
) -> None:
    wrong = bytearray(BLOB)
    wrong[1_234_567] ^= 1
    fetching, lying = await pair(start_node, until, lambda digest, size_bytes: bytes(wrong))
    for _ in range(3):  # fifty points each, which fade a little meanwhile
        with pytest.raises(WrongBlob, match="sent other bytes than"):
            await fetch(fetching, lying, tmp_path / "blob")
        assert names_in(tmp_path) == []
    await until(lambda: fetching.connected_peers() == ())


async def test_a_peer_that_completes_another_peers_garbage_is_not_blamed(
    start_node: Any, until: Any, tmp_path: Path
) -> None:
    (tmp_path / "blob.part").write_bytes(bytes(1_000_000))
    fetching, serving = await pair(start_node, until)
    await fetch(fetching, serving, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert "penalties" not in fetching.counters()


@pytest.mark.parametrize("status", [BlobStatus.NOT_HERE, BlobStatus.WITHHELD])
async def test_a_refusal_says_which_and_leaves_no_file(
    start_node: Any, until: Any, tmp_path: Path, status: BlobStatus
) -> None:
    """A delta is withheld until its signal phase has closed: the mentor says so, and is asked again later."""
    fetching, serving = await pair(
        start_node, until, lambda digest, size_bytes: None if status == BlobStatus.NOT_HERE else status
    )
    with pytest.raises(BlobRefused) as refusal:
        await fetch(fetching, serving, tmp_path / "blob")
    assert refusal.value.status == status
    assert names_in(tmp_path) == []


async def test_a_busy_peer_is_asked_again(start_node: Any, until: Any, tmp_path: Path) -> None:
    statuses = [BlobStatus.BUSY, BlobStatus.BUSY]
    fetching, serving = await pair(
        start_node, until, lambda digest, size_bytes: statuses.pop() if statuses else BLOB
    )
    await fetch(fetching, serving, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert statuses == []


async def test_a_peer_has_only_so_many_transfers_at_once(start_node: Any, until: Any, tmp_path: Path) -> None:
    # the pauses double from this: four transfers one after the other, on a machine that may be busy
    fetching, serving = await pair(start_node, until, retry_ms=500, blobs_at_once_per_peer=1)
    fetches = [asyncio.create_task(fetch(fetching, serving, tmp_path / f"{number}")) for number in range(4)]
    await asyncio.gather(*fetches)
    assert [(tmp_path / f"{number}").read_bytes() == BLOB for number in range(4)] == [True] * 4
    assert serving.counters()["blobs_refused_busy"] > 0
    assert serving._ledger._running["blob"] == 0


async def test_a_blob_above_the_limit_is_not_asked_for(start_node: Any, until: Any, tmp_path: Path) -> None:
    fetching, serving = await pair(start_node, until)
    with pytest.raises(ValueError, match="above the limit"):
        await fetching.fetch_blob(serving.peer_id, NAME.digest, 2 << 30, tmp_path / "blob")
    assert names_in(tmp_path) == []
    assert serving.counters().get("blobs_served", 0) == 0


async def test_a_peer_that_sends_more_than_it_announced_cannot_make_the_file_longer(
    start_node: Any, until: Any, tmp_path: Path
) -> None:
    async def send_too_much(stream: Any, request: bytes) -> None:
        await stream.write(b"\0" + BLOB + bytes(300_000))
        await stream.close()

    fetching, serving = await pair(start_node, until)
    serve_instead(serving, send_too_much)
    await fetch(fetching, serving, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB


async def test_a_stalled_sender_is_given_up(start_node: Any, until: Any, tmp_path: Path) -> None:
    async def stall(stream: Any, request: bytes) -> None:
        await stream.write(b"\0")
        await trio.sleep(30)

    fetching, serving = await pair(start_node, until)
    serve_instead(serving, stall)
    with pytest.raises(PeerFailed, match=r"sent nothing for 0\.1 s"):
        await fetch(fetching, serving, tmp_path / "blob", idle_timeout_ms=100)
    assert names_in(tmp_path) == []


async def test_a_reader_that_stops_reading_loses_its_slot(start_node: Any, until: Any) -> None:
    def find(digest: bytes, size_bytes: int) -> bytes:
        return bytes(size_bytes)

    settings = {"blob_idle_timeout_ms": 300, "blob_bytes_per_second_min": 100_000_000}
    fetching, serving = await pair(start_node, until, find, **settings)
    parts = fetching._parts

    async def ask_and_never_read() -> None:
        peer = next(iter(parts.host.get_network().connections))
        stream = await parts.host.new_stream(peer, [BLOB_PROTOCOL])
        await stream.write(NAME.digest + (20 << 20).to_bytes(8, "big") + bytes(8))
        await trio.sleep(1.0)

    await fetching._thread.call(ask_and_never_read)
    await until(lambda: serving._ledger._running.get("blob") == 0)
    assert serving.counters().get("blobs_served", 0) == 0
    assert serving.counters()["streams_failed"] == 1


async def test_an_offset_beyond_the_end_is_blamed(start_node: Any, until: Any) -> None:
    fetching, serving = await pair(start_node, until)
    parts = fetching._parts

    async def ask_beyond() -> None:
        peer = next(iter(parts.host.get_network().connections))
        stream = await parts.host.new_stream(peer, [BLOB_PROTOCOL])
        await stream.write(NAME.digest + (10).to_bytes(8, "big") + (11).to_bytes(8, "big"))
        await read_exactly(stream, 1)

    with pytest.raises(PeerFailed, match=r"ended after 0 of 1 bytes|broke off"):
        await fetching._thread.call(ask_beyond)
    await until(lambda: serving.counters().get("penalties") == 1)


async def test_the_same_destination_is_fetched_once_at_a_time(
    start_node: Any, until: Any, tmp_path: Path
) -> None:
    fetching, serving = await pair(start_node, until)
    both = [fetch(fetching, serving, tmp_path / "blob") for _ in range(2)]
    results = await asyncio.gather(*both, return_exceptions=True)
    refused = f"{tmp_path / 'blob'} is already being fetched"
    assert sorted(map(str, results)) == sorted([str(tmp_path / "blob"), refused])
    assert (tmp_path / "blob").read_bytes() == BLOB


async def test_a_failing_lookup_fails_only_that_fetch(start_node: Any, until: Any, tmp_path: Path) -> None:
    lookups = 0

    def find(digest: bytes, size_bytes: int) -> bytes:
        nonlocal lookups
        lookups += 1
        if lookups == 1:
            raise OSError("disk broke")
        return BLOB

    fetching, serving = await pair(start_node, until, find)
    await fetch(fetching, serving, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert lookups == 2
