"""Remedies for py-libp2p 0.8.1 below gossip: without them one peer can stop, starve or spoof a node.

`install()` changes the library in place, once per process, where it offers no other way in; `make_host`
builds a host that is safe to expose. Each remedy has a test that fails without it
(tests/network/test_hardening.py). The version is pinned: another one needs this file read again.
Called by libp2p_network; gossip has its own remedies in gossip.py.
"""

import contextlib
import logging
import socket
from collections import Counter
from typing import Any, Final
from weakref import WeakSet

import libp2p.io.msgio
import libp2p.io.trio
import libp2p.io.utils
import libp2p.network.connection.swarm_connection
import libp2p.transport.tcp.tcp
import libp2p.utils.varint
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.security.noise.io import BaseNoiseMsgReadWriter
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from citrate_node.network.ledger import Ledger
from citrate_node.network.settings import NetworkConfig
from citrate_node.network.streams import Stream

log = logging.getLogger(__name__)

STALLED_WRITE_SECONDS: Final = 20.0
WINDOW_SIZE_BYTES_MAX: Final = 2 << 20
"""What a peer may send ahead on one stream: 20 MB/s over 100 ms. yamux's own 16 MiB is reached by a few tiny
reads in a row, whether or not anybody will read that much."""
READ_SIZE_BYTES_MAX: Final = WINDOW_SIZE_BYTES_MAX
"""The largest thing any layer may announce. Unbounded, a stream's negotiation reads what a peer says."""
UNREAD_BYTES_MAX: Final = 16 << 20
"""Of one connection: eight streams at the largest window."""
UNREAD_BYTES_IN_ALL_MAX: Final = 256 << 20
STREAMS_PER_PEER_MAX: Final = 64
CONNECTIONS_PER_PEER_MAX: Final = 4
NEGOTIATION_SECONDS: Final = 8.0
KEEPALIVE: Final = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 40_000}

_installed = False


def install() -> None:
    """Change libp2p in place. Idempotent."""
    global _installed
    if _installed:
        return
    _installed = True
    make_writes_atomic()
    make_reads_exact()
    bound_unread_bytes()
    listen_exclusively()
    notice_dead_links()
    give_logs_back()


def make_writes_atomic() -> None:
    """Encrypting advances the Noise nonce: a write cancelled before its last byte ends the session.

    Every timeout of every layer cancels writes, so all streams of the connection died of one slow request.
    A write goes through now, or the connection is closed after `STALLED_WRITE_SECONDS`.
    """
    write_msg = BaseNoiseMsgReadWriter.write_msg

    async def write_whole_msg(self: Any, msg: bytes, prefix_encoded: bool = False) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STALLED_WRITE_SECONDS):
            await write_msg(self, msg, prefix_encoded)
            return
        with trio.CancelScope(shield=True):
            await self.close()
        raise ConnectionClosedError("the peer took no bytes for too long", transport="tcp")

    BaseNoiseMsgReadWriter.write_msg = write_whole_msg


def make_reads_exact() -> None:
    """libp2p gives up on a frame that comes in more than 100 pieces (a slow link), and reads any size."""

    async def read_exactly(reader: Any, n: int, retry_count: int = 0) -> bytes:
        if n > READ_SIZE_BYTES_MAX:
            raise IncompleteReadError(f"a peer announced {n} bytes", expected_bytes=n, received_bytes=0)
        data = bytearray()
        while len(data) < n:
            piece = await reader.read(n - len(data))
            if not piece:
                raise IncompleteReadError(
                    f"the peer ended after {len(data)} of {n} bytes",
                    expected_bytes=n,
                    received_bytes=len(data),
                )
            data += piece
        return bytes(data)

    for module in (libp2p.io.utils, libp2p.io.msgio, libp2p.utils.varint, yamux):
        module.read_exactly = read_exactly


def bound_unread_bytes() -> None:
    """yamux only warns when a peer sends more than its window; our memory would be the peer's to fill.

    Also stops it from answering every single read with a window update: half a window is soon enough.
    """
    read_data_body = yamux.Yamux._read_data_body
    connections: WeakSet[Any] = WeakSet()

    def unread(connection: Any) -> int:
        return sum(map(len, connection.stream_buffers.values()))

    async def read_bounded_data_body(self: Any, length: int) -> bytes:
        connections.add(self)
        ahead = unread(self) + length
        in_all = sum(map(unread, connections)) if ahead > WINDOW_SIZE_BYTES_MAX // 2 else 0
        if ahead > UNREAD_BYTES_MAX or in_all > UNREAD_BYTES_IN_ALL_MAX:
            raise trio.TooSlowError("the peer sends what nobody reads")  # this error closes the connection
        body: bytes = await read_data_body(self, length)
        return body

    reset = yamux.YamuxStream.reset

    async def reset_and_forget(self: Any) -> None:
        self.conn.stream_buffers.get(self.stream_id, bytearray()).clear()  # else kept for a minute and a half
        await reset(self)

    yamux.Yamux._read_data_body = read_bounded_data_body
    yamux.YamuxStream.reset = reset_and_forget
    yamux.MAX_WINDOW_SIZE = WINDOW_SIZE_BYTES_MAX
    yamux._yamux_release_on_read = lambda: False


def listen_exclusively() -> None:
    """libp2p listens with SO_REUSEPORT: a second node on the port starts, and takes half the connections."""

    async def open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
        return list(await trio.open_tcp_listeners(port, host=host, backlog=128))

    libp2p.transport.tcp.tcp._open_reuseport_listeners = open_listeners


def notice_dead_links() -> None:
    """A peer that vanished without a word would stay in the mesh for the kernel's quarter of an hour."""
    init = libp2p.io.trio.TrioTCPStream.__init__

    def init_with_keepalive(self: Any, stream: trio.SocketStream) -> None:
        init(self, stream)
        with contextlib.suppress(OSError, AttributeError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    stream.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    libp2p.io.trio.TrioTCPStream.__init__ = init_with_keepalive


def give_logs_back() -> None:
    """libp2p cuts its loggers off from ours, and one module's logging gives the root logger a handler."""
    logging.getLogger("libp2p").propagate = True
    if logging.getLogger("libp2p").level == logging.NOTSET:
        logging.getLogger("libp2p").setLevel(logging.WARNING)
    for name in ("host", "transport.tcp", "protocol_muxer", "network.swarm", "stream_muxer"):
        logging.getLogger(f"libp2p.{name}").setLevel(logging.CRITICAL)  # errors for each peer that is away
    libp2p.network.connection.swarm_connection.logging = logging.getLogger("libp2p.network.connection")


def make_host(config: NetworkConfig, ledger: Ledger) -> Any:
    """A libp2p host: TCP, Noise and yamux only, with every count bounded. Not yet listening."""
    key_pair = create_new_key_pair(config.identity_seed)
    # by default plaintext would be offered too, and accepted
    security = {NOISE_PROTOCOL: Noise(key_pair, noise_privkey=create_new_noise_key_pair().private_key)}
    # no circuit breaker, no "degradation": limits that move by themselves are none
    resources = ResourceManager(
        limits=ResourceLimits(max_connections=2 * config.connections_max, max_streams=16_384),
        connection_limits=ConnectionLimits(
            max_established_per_peer=CONNECTIONS_PER_PEER_MAX, max_established_total=config.connections_max
        ),
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
        enable_metrics=False,
        enable_rate_limiting=False,  # the ledger limits connections; this limiter never forgets a peer
    )
    host = new_host(
        key_pair=key_pair,
        listen_addrs=[Multiaddr(config.listen)],
        sec_opt=security,
        muxer_opt={yamux.PROTOCOL_ID: yamux.Yamux},
        resource_manager=resources,
        connection_config=ConnectionConfig(
            max_connections=config.connections_max,
            min_connections=0,
            low_watermark=0,
            high_watermark=config.connections_max,
            outbound_stream_protocol_negotiation_timeout=NEGOTIATION_SECONDS,
            inbound_stream_protocol_negotiation_timeout=NEGOTIATION_SECONDS,
        ),
        announce_addrs=[Multiaddr(address) for address in config.announce] or None,
        disable_identify_address_discovery=True,  # else any peer may tell us an address to announce
    )
    swarm = host.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)  # peers.py redials, and the library's own connector
    swarm.auto_connector.maybe_connect = _connect_nobody  # would dial whoever is in its address book
    _guard_streams(host, ledger)
    _refuse_blocked(swarm, ledger)
    _release_inbound_slots(swarm, config)
    return host


async def _connect_nobody() -> None:
    """In the place of the library's connector."""


def _guard_streams(host: Any, ledger: Ledger) -> None:
    """An exception in a stream handler would stop the whole host; a peer may open streams without end."""
    handle = host._swarm_stream_handler
    open_streams: Counter[str] = Counter()

    async def handle_guarded(stream: Stream) -> None:
        peer_id = str(stream.muxed_conn.peer_id)
        if ledger.is_blocked(peer_id) or open_streams[peer_id] >= STREAMS_PER_PEER_MAX:
            ledger.count("streams_refused")
            await _reset(stream)
            return
        open_streams[peer_id] += 1
        try:
            await handle(stream)
        except Exception as error:
            ledger.count("streams_failed")
            log.info("inbound stream of %s failed: %r", peer_id, error)
            await _reset(stream)
        finally:
            open_streams[peer_id] -= 1
            if not open_streams[peer_id]:
                del open_streams[peer_id]

    host.get_network().set_stream_handler(handle_guarded)


async def _reset(stream: Stream) -> None:
    with contextlib.suppress(Exception):
        await stream.reset()


def _refuse_blocked(swarm: Any, ledger: Ledger) -> None:
    """libp2p refuses addresses but not peers: a blocked one is turned away once Noise has told who it is."""
    add_conn = swarm.add_conn

    async def add_unless_blocked(muxed_conn: Any, direction: str = "unknown") -> Any:
        peer_id = str(muxed_conn.peer_id)
        if ledger.is_blocked(peer_id) or not ledger.admit_connection(peer_id):
            ledger.count("connections_refused")
            with contextlib.suppress(Exception):
                await muxed_conn.secured_conn.close()
            raise SwarmException(f"peer {peer_id} is blocked, or connects too often")
        return await add_conn(muxed_conn, direction)

    swarm.add_conn = add_unless_blocked


def _release_inbound_slots(swarm: Any, config: NetworkConfig) -> None:
    """libp2p gives an inbound slot back only when the host ends: after so many reconnections it is deaf.

    The slot is given back with the connection here, and one address may hold only so many of them.
    """
    per_ip: Counter[str] = Counter()

    async def handle(read_write_closer: Any, maddr: Any, failure_event: Any) -> None:
        remote = read_write_closer.get_remote_address()
        ip = remote[0] if remote is not None else ""
        if per_ip[ip] >= config.connections_per_ip_max or not swarm.accepts_connections:
            await read_write_closer.close()
            return
        per_ip[ip] += 1
        try:
            muxed_conn = await swarm.upgrade_inbound_raw_conn(RawConnection(read_write_closer, False), maddr)
            await muxed_conn.event_closed.wait()
        except Exception as error:
            log.debug("inbound connection from %s failed: %r", ip, error)
        finally:
            per_ip[ip] -= 1
            if not per_ip[ip]:
                del per_ip[ip]
            with trio.CancelScope(shield=True), contextlib.suppress(Exception):
                await read_write_closer.close()

    swarm.accepts_connections = True
    swarm._do_handle_inbound_connection = handle


def forget_absent(host: Any, absent_before: frozenset[Any]) -> frozenset[Any]:
    """Let the library forget the peers that are absent now and were so before; those absent now.

    It keeps addresses, keys and the time of leaving of whoever was connected once, and new key pairs cost
    an attacker nothing. Whoever should be dialled again is in our own address book.
    """
    swarm = host.get_network()
    tables = (
        swarm.peerstore.peer_data_map,
        swarm.peerstore.peer_record_map,
        swarm.auto_connector._recent_disconnects,
    )
    connected = {host.get_id(), *swarm.connections}
    absent = frozenset(peer for table in tables for peer in table if peer not in connected)
    for peer in absent & absent_before:
        for table in tables:
            table.pop(peer, None)
    return absent


def stop_accepting(host: Any) -> None:
    """Turn away new connections from now on: a node that leaves closes the old ones first, its port last."""
    host.get_network().accepts_connections = False
