"""Remedies below gossip: each of these fails without its remedy in hardening.py."""

import asyncio
import contextlib
import logging
import socket
from typing import Any

import libp2p.io.msgio
import libp2p.utils.varint
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IncompleteReadError
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from citrate_node.network import hardening
from citrate_node.network.settings import BLOB_PROTOCOL, REQUEST_PROTOCOL


async def pair(start_node: Any, until: Any, **settings: Any) -> tuple[Any, Any]:
    """(attacker, victim), connected."""
    victim = await start_node(1, **settings)
    attacker = await start_node(2, peers=victim.addresses)
    await until(lambda: victim.connected_peers() == (attacker.peer_id,))
    return attacker, victim


async def test_a_peer_that_offers_only_plaintext_is_turned_away(start_node: Any) -> None:
    node = await start_node(1)
    transport, _, peer_id = node.addresses[0].partition("/p2p/")

    async def dial(security: dict[str, Any]) -> bool:
        host = new_host(key_pair=key_pair, sec_opt=security or None)
        host.get_network().retry_config.max_retries = 0
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            try:
                with trio.fail_after(5):
                    await host.get_network().dial_addr(Multiaddr(transport), ID.from_base58(peer_id))
            except Exception:
                return False
            finally:
                await host.close()
        return True

    key_pair = create_new_key_pair(bytes(31) + b"\x09")
    plaintext_only = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(key_pair)}
    assert await asyncio.to_thread(trio.run, dial, plaintext_only) is False
    assert await asyncio.to_thread(trio.run, dial, {}) is True


async def test_a_handler_that_raises_ends_its_stream_and_not_the_node(
    start_node: Any, until: Any, raw_stream: Any, on_trio: Any
) -> None:
    attacker, victim = await pair(start_node, until)

    async def break_down(stream: Any) -> None:
        raise RuntimeError("handler broke")

    victim._thread.run_soon(victim._parts.host.set_stream_handler, "/test/broken/1", break_down)
    await asyncio.sleep(0.05)
    with contextlib.suppress(StreamFailure):  # the reset may overtake the greeting
        await raw_stream(attacker, victim, "/test/broken/1")
    await until(lambda: victim.counters().get("streams_failed") == 1)
    assert await attacker.request(victim.peer_id, b"x") == b"answer to x"
    assert victim._thread.running


async def test_a_peer_that_opens_streams_without_end_is_refused_more(
    start_node: Any, until: Any, raw_stream: Any
) -> None:
    attacker, victim = await pair(start_node, until)
    other = await start_node(3, peers=victim.addresses)
    opened = 0
    for _ in range(hardening.STREAMS_PER_PEER_MAX + 10):
        with contextlib.suppress(StreamFailure):
            await raw_stream(attacker, victim, BLOB_PROTOCOL)
            opened += 1
    assert 0 < opened <= hardening.STREAMS_PER_PEER_MAX
    assert victim.counters()["streams_refused"] >= 10
    await until(lambda: victim.peer_id in other.connected_peers())
    assert await other.request(victim.peer_id, b"x") == b"answer to x"


async def test_a_peer_that_connects_again_and_again_is_never_locked_out(start_node: Any, until: Any) -> None:
    """Bare, each inbound connection keeps its slot until the host ends."""
    node = await start_node(1, connections_max=2, connections_wanted=0)
    other = await start_node(2, redial_ms=30_000, connections_wanted=0)
    for _ in range(4):
        await other.connect(node.addresses[0])
        await until(lambda: node.connected_peers() == (other.peer_id,))
        other._thread.run_soon(other._parts.peers.disconnect, node.peer_id)
        await until(lambda: node.connected_peers() == ())


async def test_one_address_holds_only_so_many_connections(start_node: Any, until: Any) -> None:
    node = await start_node(1, connections_per_ip_max=3)
    port = int(node.addresses[0].split("/")[4])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]

    async def is_closed(reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(0.5):
                while await reader.read(1_000):
                    pass  # the greeting of one that was let in
        except TimeoutError:
            return False
        return True

    closed = await asyncio.gather(*(is_closed(reader) for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    assert sorted(closed) == [False] * 3 + [True] * 5
    other = await start_node(2)
    await until(lambda: _connects(other, node))  # the slots come back


async def _connects(node: Any, other: Any) -> bool:
    try:
        await node.connect(other.addresses[0])
    except Exception:
        return False
    return True


async def test_a_peer_at_its_limit_of_connections_locks_out_nobody_else(
    start_node: Any, until: Any, on_trio: Any
) -> None:
    """Bare, a circuit breaker then refuses every peer for a minute."""
    attacker, victim = await pair(start_node, until)
    transport, _, peer_id = victim.addresses[0].partition("/p2p/")

    async def dial_many() -> int:
        refused = 0
        for _ in range(12):
            try:
                network = attacker._parts.host.get_network()
                await network.dial_addr(Multiaddr(transport), ID.from_base58(peer_id))
            except Exception:
                refused += 1
        return refused

    assert await on_trio(attacker, dial_many) >= 12 - hardening.CONNECTIONS_PER_PEER_MAX
    other = await start_node(3)
    await other.connect(victim.addresses[0])
    assert await other.request(victim.peer_id, b"x") == b"answer to x"


async def test_a_peer_that_ignores_the_window_is_cut_off_before_it_fills_the_memory(
    start_node: Any, until: Any, raw_stream: Any, on_trio: Any
) -> None:
    attacker, victim = await pair(start_node, until)
    stream = await raw_stream(attacker, victim, REQUEST_PROTOCOL)
    unread = 0

    async def flood() -> None:
        stream.muxed_stream.send_window = 1 << 30
        await stream.write((1).to_bytes(4, "big") + b"x")  # a whole request; nobody reads on
        for _ in range(60):
            await stream.write(bytes(1 << 20))

    async def watch() -> None:
        nonlocal unread
        while True:
            for connections in victim._parts.host.get_network().connections.values():
                for connection in connections:
                    buffers = connection.muxed_conn.stream_buffers.values()
                    unread = max(unread, sum(map(len, buffers)))
            await trio.sleep(0.005)

    watching = asyncio.create_task(on_trio(victim, watch))
    with pytest.raises(Exception, match=r".*"):  # whatever libp2p raises on a closed connection
        await on_trio(attacker, flood)
    watching.cancel()
    assert 1 << 20 < unread <= hardening.UNREAD_BYTES_MAX
    await until(lambda: _connects(attacker, victim))


async def test_a_few_tiny_reads_do_not_open_a_window_for_megabytes(
    start_node: Any, until: Any, raw_stream: Any, on_trio: Any
) -> None:
    attacker, victim = await pair(start_node, until)
    stream = await raw_stream(attacker, victim, REQUEST_PROTOCOL)

    async def ask() -> int:
        await stream.write((2_000).to_bytes(4, "big") + bytes(2_000))
        for _ in range(1_000):
            await stream.read(1)
        return int(stream.muxed_stream.target_recv_window)

    assert await on_trio(attacker, ask) <= hardening.WINDOW_SIZE_BYTES_MAX


async def test_the_library_forgets_peers_that_left(
    start_node: Any, build_node: Any, until: Any, on_trio: Any
) -> None:
    """Bare, whoever was connected once is remembered for ever, and identities cost nothing."""
    node = await start_node(1)
    staying = await start_node(2, peers=node.addresses)
    for number in (3, 4, 5):
        visitor = build_node(number, peers=node.addresses, connections_wanted=1)
        await visitor.start()
        await until(lambda visitor=visitor: visitor.peer_id in node.connected_peers())
        await visitor.stop()
    await until(lambda: node.connected_peers() == (staying.peer_id,))

    async def remembered() -> set[str]:
        host = node._parts.host
        absent = hardening.forget_absent(host, frozenset())
        hardening.forget_absent(host, absent)
        swarm = host.get_network()
        tables = (swarm.peerstore.peer_data_map, swarm.peerstore.peer_record_map)
        return {str(peer) for table in (*tables, swarm.auto_connector._recent_disconnects) for peer in table}

    assert await on_trio(node, remembered) == {node.peer_id, staying.peer_id}
    assert await staying.request(node.peer_id, b"x") == b"answer to x"


def test_a_frame_that_comes_byte_by_byte_is_read_whole() -> None:
    """Bare, a hundred pieces are the end of the connection."""

    class Slow:
        def __init__(self, data: bytes) -> None:
            self.data = data

        async def read(self, n: int | None = None) -> bytes:
            piece, self.data = self.data[:1], self.data[1:]
            return piece

    hardening.install()
    for module in (libp2p.io.msgio, libp2p.utils.varint, yamux):
        assert trio.run(module.read_exactly, Slow(b"ab" * 500), 1_000) == b"ab" * 500
        with pytest.raises(IncompleteReadError):
            trio.run(module.read_exactly, Slow(b"ab" * 499), 1_000)


def test_a_size_that_no_honest_peer_announces_is_refused_before_anything_is_read() -> None:
    class Endless:
        async def read(self, n: int | None = None) -> bytes:
            raise AssertionError("nothing of it may be read")

    hardening.install()
    with pytest.raises(IncompleteReadError):
        trio.run(libp2p.utils.varint.read_exactly, Endless(), hardening.READ_SIZE_BYTES_MAX + 1)


async def test_a_stalled_write_closes_the_connection_and_nothing_else(
    start_node: Any, until: Any, monkeypatch: pytest.MonkeyPatch, on_trio: Any
) -> None:
    """The peer's kernel takes no more bytes: its process hangs or its line is cut."""
    monkeypatch.setattr(hardening, "STALLED_WRITE_SECONDS", 0.3)
    node = await start_node(1)
    server = socket.create_server(("127.0.0.1", 0))

    async def write_to_the_deaf() -> str:
        stream = await trio.open_tcp_stream("127.0.0.1", server.getsockname()[1])
        writer = libp2p.io.trio.TrioTCPStream(stream)
        session = hardening.BaseNoiseMsgReadWriter.__new__(_Plain)
        session.read_writer = libp2p.io.msgio.FixedSizeLenMsgReadWriter.__new__(_Packets)
        session.read_writer.read_write_closer = writer
        try:
            for _ in range(1_000):
                await session.write_msg(bytes(60_000))
        except Exception as error:
            return f"{error} {stream.socket.fileno()}"
        return "took everything"

    assert "took no bytes for too long -1" in await on_trio(node, write_to_the_deaf)
    server.close()


class _Plain(hardening.BaseNoiseMsgReadWriter):  # type: ignore[misc]
    """The Noise writer without a session: what is tested is the writing."""

    def encrypt(self, data: bytes) -> bytes:
        return data

    def decrypt(self, data: bytes) -> bytes:
        return data


class _Packets(libp2p.io.msgio.FixedSizeLenMsgReadWriter):  # type: ignore[misc]
    size_len_bytes = 2


async def test_a_link_that_dies_in_silence_is_noticed_by_the_kernel(
    start_node: Any, until: Any, on_trio: Any
) -> None:
    attacker, victim = await pair(start_node, until)

    async def options() -> list[tuple[int, int]]:
        found = []
        for node in (attacker, victim):
            for connections in node._parts.host.get_network().connections.values():
                for connection in connections:
                    raw = connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer
                    sock = raw.stream.stream.socket
                    alive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    found.append((alive, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)))
        return found

    assert await on_trio(attacker, options) == [(1, 40_000)] * 2


def test_what_libp2p_logs_comes_to_our_handlers_and_the_root_logger_keeps_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from libp2p.network.connection import swarm_connection

    hardening.install()
    handlers = list(logging.getLogger().handlers)
    logging.getLogger("libp2p.pubsub").warning("seen")
    swarm_connection.logging.warning("seen too")
    assert [record.name for record in caplog.records] == ["libp2p.pubsub", "libp2p.network.connection"]
    assert logging.getLogger().handlers == handlers
