"""The door to the network: an asyncio facade over a libp2p host that runs in a trio thread of its own.

Gossip, requests to one peer, blobs, and peers kept connected. Bytes in, bytes out. Four callbacks come from
the node: `validate` (in the trio thread: what never changes about a message), `worth` (in the trio thread, of
what is valid: whether it is of use now), `find_blob` (in a worker thread) and `answer` (on the asyncio
loop). Called by runtime; everything else in this folder is behind it.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import trio
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.network import gossip, hardening
from citrate_node.network.blobs import Blobs, FindBlob
from citrate_node.network.identity import node_key_of
from citrate_node.network.ledger import Ledger
from citrate_node.network.peers import Peers, close_quietly
from citrate_node.network.requests import Requests
from citrate_node.network.settings import (
    BLOB_PROTOCOL,
    PEERS_PROTOCOL,
    REQUEST_PROTOCOL,
    NetworkConfig,
    NetworkStopped,
    PeerFailed,
    Received,
)
from citrate_node.network.trio_thread import TrioThread
from citrate_node.network.waste import Worth
from citrate_node.protocol.content_id import ContentId

log = logging.getLogger(__name__)

GOODBYE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Parts:
    """What lives on the trio side while the network runs."""

    host: Any
    router: gossip.SafeGossipSub
    pubsub: gossip.SafePubsub
    peers: Peers
    requests: Requests
    blobs: Blobs


class Libp2pNetwork:
    """One node's place in the network, from `start()` to `stop()`. It starts once."""

    def __init__(
        self,
        config: NetworkConfig,
        *,
        validate: Callable[[str, bytes], bool],
        find_blob: FindBlob,
        answer: Callable[[str, bytes], Awaitable[bytes]],
        worth: Callable[[str, bytes], Worth] = lambda origin, data: Worth.USEFUL,
    ) -> None:
        """worth: of (peer id of the origin, message), asked once for each valid message."""
        self._config = config
        self._validate = validate
        self._worth = worth
        self._find_blob = find_blob
        self._answer = answer
        self._thread = TrioThread(self._serve, "citrate-network")
        self._ledger = Ledger(config, trio.current_time, self._on_block)
        self._arrived: deque[Received] = deque(maxlen=config.inbox_messages_max)
        self._draining = False
        self._connected: tuple[str, ...] = ()
        self._dropped = 0
        self._running_parts: _Parts | None = None
        self.inbox: asyncio.Queue[Received] = asyncio.Queue(config.inbox_messages_max)
        """Valid messages of the subscribed topics, each once, ours not. When it is full the oldest goes."""
        self.peer_id = ""
        self.addresses: tuple[str, ...] = ()
        """Where others reach this node, each with `/p2p/<peer id>`. Known once started."""

    async def start(self) -> None:
        """Listen and begin dialling. ServiceError when the address cannot be listened on."""
        await self._thread.start()

    async def stop(self) -> None:
        """Part from every peer and end the thread. Idempotent."""
        await self._thread.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def failed(self) -> None:
        """Returns after `stop()`; raises what killed the libp2p side, should anything. For a supervisor."""
        await self._thread.finished()

    def connected_peers(self) -> tuple[str, ...]:
        """Peer ids of the connected peers, as of the last fifth of a second."""
        return self._connected

    def counters(self) -> dict[str, int]:
        """What has happened so far, for metrics. Names appear with their first event."""
        return dict(self._ledger.counters) | {"inbox_dropped": self._dropped, "peers": len(self._connected)}

    @property
    def _parts(self) -> _Parts:
        if self._running_parts is None:
            raise NetworkStopped("the network has not been started")
        return self._running_parts

    # gossip

    async def subscribe(self, topic: str) -> None:
        """Receive the messages of a topic in `inbox` from now on, and forward them."""
        await self._thread.call(self._parts.pubsub.subscribe, topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand a message to the peers of a topic. Gossip promises no delivery; repeat what must arrive."""
        if len(data) > self._config.message_size_bytes_max:
            raise ValueError(
                f"a message of {len(data)} bytes is above the limit, {self._config.message_size_bytes_max}: "
                "send a blob and publish its hash"
            )
        await self._thread.call(self._parts.pubsub.publish, topic, data)

    async def mesh_peers(self, topic: str) -> tuple[str, ...]:
        """The peers that gossip of this topic is exchanged with at the moment."""

        async def read() -> tuple[str, ...]:
            return tuple(sorted(str(peer) for peer in self._parts.router.mesh.get(topic, ())))

        return await self._thread.call(read)

    # one peer

    async def connect(self, address: str) -> str:
        """Dial `/ip4/…/tcp/…/p2p/<peer id>` now; the peer id. Redialled like a peer found by exchange."""
        return await self._thread.call(self._parts.peers.connect, address)

    async def request(self, peer_id: str, payload: bytes, timeout_ms: int = 10_000) -> bytes:
        """Ask one peer; its answer. PeerFailed when none comes in time."""
        if len(payload) > self._config.request_size_bytes_max:
            raise ValueError(f"a request of {len(payload)} bytes is above the limit")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._thread.call(self._parts.requests.ask, _peer(peer_id), payload)
        except TimeoutError as error:
            raise PeerFailed(f"peer {peer_id} did not answer within {timeout_ms} ms") from error

    async def fetch_blob(
        self,
        peer_id: str,
        digest: bytes,
        size_bytes: int,
        destination: Path,
        *,
        idle_timeout_ms: int = 10_000,
    ) -> Path:
        """Bring a content to `destination`, which appears only when complete and right.

        What has arrived before a failure stays in `<destination>.part`, and the next call, from whichever
        peer, goes on from there. Raises BlobRefused with the peer's status, WrongBlob, or PeerFailed.
        """
        content = ContentId(digest, size_bytes)
        return await self._thread.call(
            self._parts.blobs.fetch, _peer(peer_id), content, destination, idle_timeout_ms
        )

    # judgement

    def report_misbehaviour(self, peer_id: str, weight: float, reason: str) -> None:
        """Add to a peer's points, from the node's verdicts; at `score_max` it is blocked for `block_ms`."""
        self._thread.run_soon(self._ledger.penalise, peer_id, weight, reason)

    def report_useful(self, peer_id: str) -> None:
        """The node has accepted a message of this peer: it makes up for a useless one."""
        self._thread.run_soon(self._ledger.note_useful, peer_id)

    def block_peer(self, peer_id: str) -> None:
        """Cut a peer off until `unblock_peer`: no connection, no message by or through it."""
        self._thread.run_soon(self._ledger.block, peer_id)

    def unblock_peer(self, peer_id: str) -> None:
        self._thread.run_soon(self._ledger.unblock, peer_id)

    # trio side

    async def _serve(self, stop: trio.Event, *, task_status: Any) -> None:
        hardening.install()
        gossip.install()
        listen = _listen_address(self._config.listen)
        host = hardening.make_host(self._config, self._ledger)
        router = gossip.SafeGossipSub(self._ledger)
        pubsub = gossip.SafePubsub(
            host, router, self._config, self._ledger, self._validate, self._worth, self._deliver
        )
        async with host.run([listen]):
            if not host.get_network().listeners:
                raise _cannot_listen(self._config.listen)
            async with background_trio_service(pubsub), background_trio_service(router):
                await pubsub.wait_until_ready()
                async with trio.open_nursery() as nursery:
                    self._running_parts = self._open_protocols(host, router, pubsub, nursery)
                    self.peer_id = str(host.get_id())
                    self.addresses = tuple(str(address) for address in host.get_addrs())
                    task_status.started()
                    await stop.wait()
                    nursery.cancel_scope.cancel()
                await _part(host)

    def _open_protocols(
        self, host: Any, router: gossip.SafeGossipSub, pubsub: gossip.SafePubsub, nursery: trio.Nursery
    ) -> _Parts:
        config, ledger = self._config, self._ledger

        async def answer(peer_id: str, payload: bytes) -> bytes:
            return await self._thread.to_asyncio(self._answer_on_loop, peer_id, payload)

        peers = Peers(config, host, nursery, ledger, self._note_connected)
        requests = Requests(config, host, nursery, ledger, answer)
        blobs = Blobs(config, host, nursery, ledger, self._find_blob)
        host.set_stream_handler(REQUEST_PROTOCOL, requests.serve)
        host.set_stream_handler(BLOB_PROTOCOL, blobs.serve)
        host.set_stream_handler(PEERS_PROTOCOL, peers.serve)
        nursery.start_soon(peers.keep_connected)
        nursery.start_soon(peers.exchange)
        nursery.start_soon(peers.forget_strangers)
        return _Parts(host, router, pubsub, peers, requests, blobs)

    async def _answer_on_loop(self, peer_id: str, payload: bytes) -> bytes:
        return await self._answer(peer_id, payload)

    def _note_connected(self, connected: tuple[str, ...]) -> None:
        self._connected = connected

    def _on_block(self, peer_id: str) -> None:
        self._thread.run_soon(self._disconnect, peer_id)

    def _disconnect(self, peer_id: str) -> None:
        if self._running_parts is not None:
            self._running_parts.peers.disconnect(peer_id)

    def _deliver(self, topic: str, origin: str, forwarder: str, data: bytes) -> None:
        """Hand a message to the asyncio side. A busy loop finds one wake-up and at most an inbox full."""
        if len(self._arrived) == self._arrived.maxlen:
            self._dropped += 1
        self._arrived.append(Received(topic, origin, forwarder, bytes(data)))
        if not self._draining:
            self._draining = True
            self._thread.post(self._drain)

    def _drain(self) -> None:
        """On the asyncio loop: move what has arrived into the inbox."""
        self._draining = False
        while self._arrived:
            if self.inbox.full():
                self.inbox.get_nowait()
                self._dropped += 1
            self.inbox.put_nowait(self._arrived.popleft())


def _peer(peer_id: str) -> Any:
    try:
        node_key_of(peer_id)
    except ValueError as error:
        raise PeerFailed(str(error)) from error
    return ID.from_base58(peer_id)


def _listen_address(text: str) -> Any:
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
        if len(names) != 2 or names[0] not in ("ip4", "ip6") or names[1] != "tcp":
            raise ValueError("only TCP is served")
    except Exception as error:
        raise ConfigError(
            f"network.listen = {text!r} is not an address to listen on: {error}\n"
            "  write it as /ip4/<address>/tcp/<port>, port 0 for a free one"
        ) from error
    return address


def _cannot_listen(text: str) -> ServiceError:
    """libp2p only says that it does not listen; trying once more tells why."""
    _, family, host, _, port = text.split("/")
    kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    reason = "the address is already in use"
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            reason = str(error.strerror or error)
    return ServiceError(
        f"cannot listen on port {port} of {host}: {reason}\n"
        "  another node may be running there: stop it, or set another port in network.listen"
    )


async def _part(host: Any) -> None:
    """Close the connections: cancelling alone leaves their sockets open, and peers mesh with the dead."""
    hardening.stop_accepting(host)
    with trio.move_on_after(GOODBYE_SECONDS):
        async with trio.open_nursery() as nursery:
            held = [one for several in host.get_network().connections.values() for one in several]
            for connection in held:
                nursery.start_soon(close_quietly, connection)
            for connection in held:
                await connection.muxed_conn.event_closed.wait()
            nursery.cancel_scope.cancel()  # what follows the closing of the socket are pauses of 0.2 s
        await host.close()


__all__ = ["Libp2pNetwork", "NetworkConfig", "NetworkStopped", "PeerFailed", "Received"]
