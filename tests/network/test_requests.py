"""Requests to one peer: answers, refusals, limits, cancellation."""

import asyncio
import contextlib
from typing import Any

import pytest
import trio
from libp2p.io.trio import TrioTCPStream

from citrate_node.network.settings import REQUEST_PROTOCOL, NetworkStopped, PeerFailed


async def pair(start_node: Any, until: Any, **settings: Any) -> tuple[Any, Any]:
    """(asking node, answering node), connected."""
    answering = await start_node(1, **settings)
    asking = await start_node(2, peers=answering.addresses)
    await until(lambda: answering.peer_id in asking.connected_peers())
    return asking, answering


async def test_an_answer_comes_from_the_asyncio_side_of_the_peer_and_knows_who_asks(
    start_node: Any, until: Any
) -> None:
    loop = asyncio.get_running_loop()
    asked: list[tuple[str, bytes, bool]] = []

    async def answer(peer_id: str, payload: bytes) -> bytes:
        asked.append((peer_id, payload, asyncio.get_running_loop() is loop))
        await asyncio.sleep(0)
        return payload[::-1]

    asking, answering = await pair(start_node, until, answer=answer)
    assert await asking.request(answering.peer_id, b"abc") == b"cba"
    assert asked == [(asking.peer_id, b"abc", True)]


async def test_an_answer_of_four_mebibytes_arrives_whole_and_a_larger_one_is_refused(
    start_node: Any, until: Any
) -> None:
    async def answer(peer_id: str, payload: bytes) -> bytes:
        return payload[:1] * int(payload[1:])

    asking, answering = await pair(start_node, until, answer=answer)
    assert await asking.request(answering.peer_id, b"x%d" % (4 << 20)) == b"x" * (4 << 20)
    assert await asking.request(answering.peer_id, b"x0") == b""
    with pytest.raises(PeerFailed, match="could not answer"):
        await asking.request(answering.peer_id, b"x%d" % ((4 << 20) + 1))


async def test_a_request_above_the_limit_is_refused_where_it_is_asked(start_node: Any, until: Any) -> None:
    asking, answering = await pair(start_node, until)
    with pytest.raises(ValueError, match="above the limit"):
        await asking.request(answering.peer_id, bytes((1 << 20) + 1))


async def test_a_failing_handler_fails_the_request_and_nothing_else(start_node: Any, until: Any) -> None:
    async def answer(peer_id: str, payload: bytes) -> bytes:
        if payload == b"bad":
            raise RuntimeError("handler broke")
        return b"fine"

    asking, answering = await pair(start_node, until, answer=answer)
    with pytest.raises(PeerFailed, match="could not answer"):
        await asking.request(answering.peer_id, b"bad")
    assert await asking.request(answering.peer_id, b"good") == b"fine"
    counters = answering.counters()
    assert (counters["requests_failed"], counters["requests_answered"]) == (1, 1)


async def test_a_peer_that_does_not_answer_in_time_fails_the_request(start_node: Any, until: Any) -> None:
    async def answer(peer_id: str, payload: bytes) -> bytes:
        await asyncio.sleep(60)
        return b""

    asking, answering = await pair(start_node, until, answer=answer)
    with pytest.raises(PeerFailed, match="did not answer within 200 ms"):
        await asking.request(answering.peer_id, b"", timeout_ms=200)


async def test_a_peer_that_is_not_connected_fails_the_request_at_once(
    start_node: Any, node_peer_id: Any
) -> None:
    node = await start_node(1)
    with pytest.raises(PeerFailed, match="is not connected"):
        await node.request(node_peer_id(9), b"")
    with pytest.raises(PeerFailed, match="is not the peer id"):
        await node.request("nonsense", b"")


async def test_requests_beyond_the_slots_of_a_peer_are_told_to_come_later(
    start_node: Any, until: Any
) -> None:
    release = asyncio.Event()

    async def answer(peer_id: str, payload: bytes) -> bytes:
        await release.wait()
        return b"done"

    asking, answering = await pair(start_node, until, answer=answer, requests_at_once_per_peer=2)
    tasks = [asyncio.create_task(asking.request(answering.peer_id, b"")) for _ in range(5)]
    await until(lambda: sum(task.done() for task in tasks) == 3)
    release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(str(result) for result in results) == sorted(
        ["b'done'"] * 2 + [f"peer {answering.peer_id} is busy"] * 3
    )
    assert answering.counters()["requests_refused"] == 3
    assert await asking.request(answering.peer_id, b"") == b"done"


async def test_a_peer_in_a_hurry_is_slowed_down_and_served_all_the_same(start_node: Any, until: Any) -> None:
    """Catching up asks for much at once; that must not look like an attack."""
    settings = {"requests_per_second": 20, "requests_burst": 5}
    asking, answering = await pair(start_node, until, **settings)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(15):
        assert await asking.request(answering.peer_id, b"%d" % number) == b"answer to %d" % number
    assert loop.time() - begun >= 0.4  # ten above the burst at twenty a second
    assert "blocks" not in answering.counters()


async def test_cancelled_requests_leave_the_connection_whole(start_node: Any, until: Any) -> None:
    """Bare, a write cancelled half-way ends the session of everything on the connection."""

    async def answer(peer_id: str, payload: bytes) -> bytes:
        return bytes(500_000)

    asking, answering = await pair(
        start_node,
        until,
        answer=answer,
        requests_at_once_per_peer=1_000,
        requests_at_once=1_000,
        requests_burst=1_000,
    )
    for number in range(300):  # more than the 256 stream slots of a connection
        task = asyncio.create_task(asking.request(answering.peer_id, bytes(100_000)))
        await asyncio.sleep(number % 10 / 2_000)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, PeerFailed):  # it may have been refused before
            await task

    async def is_answered() -> bool:  # the peer may still be busy with what was cancelled
        with contextlib.suppress(PeerFailed):
            return bool(await asking.request(answering.peer_id, b"") == bytes(500_000))
        return False

    await until(is_answered)
    assert answering.counters()["peers"] == 1
    assert asking.counters().get("dials", 0) == 1, "the connection broke and was dialled again"


async def test_a_write_that_is_cancelled_half_way_is_finished_first(
    start_node: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a link that takes its time, each cancellation falls between encrypting and sending."""
    asking, answering = await pair(start_node, until, requests_at_once_per_peer=100, requests_at_once=100)
    write, large = TrioTCPStream.write, list[int]()

    async def write_slowly(self: Any, data: bytes) -> None:
        if len(data) > 10_000:
            large.append(len(data))
            await trio.sleep(0.3)
        await write(self, data)

    monkeypatch.setattr(TrioTCPStream, "write", write_slowly)
    for _ in range(3):
        before = len(large)
        task = asyncio.create_task(asking.request(answering.peer_id, bytes(60_000)))
        await until(lambda before=before: len(large) > before)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, PeerFailed):
            await task
    monkeypatch.undo()
    assert await asking.request(answering.peer_id, b"x") == b"answer to x"
    assert asking.counters().get("dials", 0) == 1, "the connection broke and was dialled again"


async def test_a_request_that_waits_when_the_network_stops_ends(
    build_node: Any, start_node: Any, until: Any
) -> None:
    async def answer(peer_id: str, payload: bytes) -> bytes:
        await asyncio.sleep(60)
        return b""

    answering = await start_node(1, answer=answer)
    asking = build_node(2, peers=answering.addresses)
    await asking.start()
    await until(lambda: answering.peer_id in asking.connected_peers())
    task = asyncio.create_task(asking.request(answering.peer_id, b""))
    await asyncio.sleep(0.1)
    await asking.stop()
    with pytest.raises(NetworkStopped):
        await task


async def test_a_peer_that_announces_an_endless_request_is_blamed(start_node: Any, until: Any) -> None:
    asking, answering = await pair(start_node, until)
    parts = asking._parts

    async def attack() -> None:
        peer = next(iter(parts.host.get_network().connections))
        stream = await parts.host.new_stream(peer, [REQUEST_PROTOCOL])
        await stream.write((1 << 31).to_bytes(4, "big"))

    await asking._thread.call(attack)
    await until(lambda: answering.counters().get("penalties") == 1)
    assert await asking.request(answering.peer_id, b"x") == b"answer to x"


async def test_giving_up_while_a_stream_opens_keeps_no_slot_of_the_connection(
    start_node: Any, until: Any, on_trio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bare, each such cancellation costs one of 256 slots, until the connection opens no more streams."""
    asking, answering = await pair(start_node, until)
    ((connection,),) = asking._parts.host.get_network().connections.values()
    muxer, scope = connection.muxed_conn, trio.CancelScope()
    write_frame = muxer._write_frame

    async def write_and_lose_patience(data: bytes) -> None:
        await write_frame(data)
        scope.cancel()
        await trio.lowlevel.checkpoint()

    async def ask() -> int:
        nonlocal scope
        free = muxer.stream_backlog_semaphore.value
        monkeypatch.setattr(muxer, "_write_frame", write_and_lose_patience)
        for _ in range(20):
            scope = trio.CancelScope()
            with scope:
                await asking._parts.requests.ask(muxer.peer_id, b"x")
        monkeypatch.setattr(muxer, "_write_frame", write_frame)
        with trio.move_on_after(5):
            while muxer.stream_backlog_semaphore.value != free:
                await trio.sleep(0.02)
        return int(free - muxer.stream_backlog_semaphore.value)

    assert await on_trio(asking, ask) == 0
    assert await asking.request(answering.peer_id, b"x") == b"answer to x"
