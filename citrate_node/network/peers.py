"""Who we are connected to and whom we dial: fixed peers for ever, found ones while they answer.

py-libp2p never redials a lost peer by itself (its own connector took 67 s). Peers tell each other addresses
over `/citrate/peers/1.0.0`, so a node that knows one address finds the others: the asking side writes its
own addresses, the answering side writes those it knows, both as text, one multiaddr with `/p2p/` per line,
and closes. A node passes on only addresses that it has dialled itself or that their owner told it.
Called by libp2p_network, on the trio side.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from citrate_node.errors import ConfigError
from citrate_node.network.hardening import forget_absent
from citrate_node.network.identity import node_key_of
from citrate_node.network.ledger import MALFORMED_FRAME, Ledger
from citrate_node.network.settings import PEERS_PROTOCOL, NetworkConfig, PeerFailed
from citrate_node.network.streams import Host, Stream, opened_stream, read_some, write

log = logging.getLogger(__name__)

DIAL_SECONDS: Final = 15.0
DIALS_AT_ONCE: Final = 8
DIALS_BEFORE_FORGETTING: Final = 8
"""Fruitless ones in a row, of a found peer; with the back-off that is about two minutes."""
LOOK_SECONDS: Final = 0.2
FORGET_SECONDS: Final = 10.0
ADDRESSES_PER_PEER_MAX: Final = 4
ADDRESSES_TOLD_MAX: Final = 64
LIST_SIZE_BYTES_MAX: Final = 16_384
EXCHANGE_SECONDS: Final = 10.0
ADDRESS_LENGTH_MAX: Final = 200


@dataclass(slots=True)
class KnownPeer:
    """A peer that we might dial."""

    addresses: list[str]
    """Most recently learned first."""

    fixed: bool
    """Given by the operator: dialled for as long as the node runs."""

    dial_at: float
    wait_seconds: float
    failures: int = 0

    trusted: bool = False
    """We reached it ourselves, or it told us its address itself: fit to be passed on."""

    dialling: bool = False


class Peers:
    """The address book, the redial loop and the peer exchange."""

    def __init__(
        self,
        config: NetworkConfig,
        host: Any,
        nursery: trio.Nursery,
        ledger: Ledger,
        on_change: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._config = config
        self._host = host
        self._streams: Host = host
        self._nursery = nursery
        self._ledger = ledger
        self._on_change = on_change
        self._own_id = str(host.get_id())
        self._known: dict[str, KnownPeer] = {}
        self._dials = trio.CapacityLimiter(DIALS_AT_ONCE)
        self._asked: dict[str, float] = {}
        self._absent: frozenset[Any] = frozenset()
        for address in config.peers:
            self._remember(address, fixed=True)

    # connections

    def connected(self) -> tuple[str, ...]:
        return tuple(sorted(str(peer) for peer in self._host.get_network().connections))

    async def connect(self, address: str) -> str:
        """Dial an address now; the peer's id, and it becomes a found peer. PeerFailed where it fails."""
        peer_id, _ = split_address(address)
        if self._ledger.is_blocked(peer_id):
            raise PeerFailed(f"peer {peer_id} is blocked")
        if peer_id not in self.connected():
            done, failure = trio.Event(), None

            async def dial_it() -> None:
                nonlocal failure
                failure = await self._dial(address)
                done.set()

            self._nursery.start_soon(dial_it)  # out of reach of the caller's cancellation
            await done.wait()
            if failure is not None:
                raise PeerFailed(f"cannot connect to {address}: {failure!r}") from failure
        self._remember(address, fixed=False)
        if peer_id in self._known:
            self._known[peer_id].trusted = True
        return peer_id

    def disconnect(self, peer_id: str) -> None:
        """Close every connection to a peer."""
        for connection in list(self._host.get_network().get_connections(ID.from_base58(peer_id))):
            self._nursery.start_soon(close_quietly, connection)

    async def keep_connected(self) -> None:
        """Dial whoever should be connected and is not, for as long as the node runs."""
        while True:
            now, connected = trio.current_time(), set(self.connected())
            room = self._config.connections_wanted - len(connected)
            for peer_id, known in list(self._known.items()):
                if peer_id in connected:
                    known.failures = 0
                    known.wait_seconds = self._config.redial_ms / 1000
                    known.dial_at = now + known.wait_seconds
                    known.trusted = known.trusted or known.fixed
                elif known.dialling or known.dial_at > now or self._ledger.is_blocked(peer_id):
                    continue
                elif known.fixed or room > 0:
                    room -= 1
                    known.dialling = True
                    self._nursery.start_soon(self._redial, peer_id, known)
            await trio.sleep(LOOK_SECONDS)

    async def _redial(self, peer_id: str, known: KnownPeer) -> None:
        async with self._dials:
            failure: Exception | None = PeerFailed("no address")
            for address in list(known.addresses):
                failure = await self._dial(address)
                if failure is None:
                    known.trusted = True
                    break
        known.dialling = False
        if failure is None:
            return
        known.failures += 1
        log.debug("dialling %s failed %d times: %r", peer_id, known.failures, failure)
        if known.failures >= DIALS_BEFORE_FORGETTING and not known.fixed:
            self._known.pop(peer_id, None)
            return
        known.dial_at = trio.current_time() + known.wait_seconds * (1 + 0.2 * _jitter(self._own_id, peer_id))
        known.wait_seconds = min(2 * known.wait_seconds, self._config.redial_ms_max / 1000)

    async def _dial(self, address: str) -> Exception | None:
        """One attempt; the failure, or None.

        Straight to the address: `host.connect` may choose another one that it knows, refuses for a minute
        after a failure, and always takes a quarter of a second.
        """
        peer_id, transport = split_address(address)
        try:
            with trio.fail_after(DIAL_SECONDS):
                await self._host.get_network().dial_addr(Multiaddr(transport), ID.from_base58(peer_id))
        except Exception as error:
            self._ledger.count("dials_failed")
            return error
        self._ledger.count("dials")
        return None

    async def forget_strangers(self) -> None:
        """Keep the library's memory of peers that left from growing, for as long as the node runs."""
        while True:
            await trio.sleep(FORGET_SECONDS)
            self._absent = forget_absent(self._host, self._absent)

    # exchange

    async def exchange(self) -> None:
        """Ask each connected peer for others: soon after it connects, then now and again."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            now, connected = trio.current_time(), self.connected()
            self._on_change(connected)
            for peer_id in connected:
                if peer_id not in self._asked:  # a moment for the connection to settle
                    self._asked[peer_id] = now - self._config.peer_exchange_ms / 1000 + LOOK_SECONDS
                elif now - self._asked[peer_id] >= self._config.peer_exchange_ms / 1000:
                    self._asked[peer_id] = now
                    self._nursery.start_soon(self._ask, peer_id)
            for peer_id in self._asked.keys() - set(connected):
                del self._asked[peer_id]

    async def serve(self, stream: Stream) -> None:
        """Learn the asking peer's addresses, and tell it those of others."""
        peer_id = str(stream.muxed_conn.peer_id)
        await trio.sleep(self._ledger.admit_request(peer_id))
        with trio.fail_after(EXCHANGE_SECONDS):
            told = await _read_list(stream, self._ledger)
            self._learn(
                peer_id, [address for address in told if _owner(address) == peer_id], stream, own=True
            )
            await write(stream, _as_list(self._worth_telling(peer_id, _is_local(stream))))
            await stream.close()

    async def _ask(self, peer_id: str) -> None:
        try:
            with trio.fail_after(EXCHANGE_SECONDS):
                peer = ID.from_base58(peer_id)
                async with opened_stream(self._streams, self._nursery, peer, PEERS_PROTOCOL) as stream:
                    own = [
                        a
                        for a in map(str, self._host.get_addrs())
                        if _is_local(stream) or not _is_loopback(a)
                    ]
                    await write(stream, _as_list(own))
                    await stream.close_write()
                    told = await _read_list(stream, self._ledger)
                    self._learn(peer_id, told, stream, own=False)
        except (PeerFailed, trio.TooSlowError) as error:
            log.debug("peer exchange with %s failed: %r", peer_id, error)

    def _learn(self, teller: str, addresses: Iterable[str], stream: Stream, *, own: bool) -> None:
        for address in addresses:
            if _is_loopback(address) and not _is_local(stream):
                continue  # somebody else's loopback
            self._remember(address, fixed=False, trusted=own or _owner(address) == teller)

    def _worth_telling(self, asker: str, local: bool) -> list[str]:
        """Trusted addresses, connected peers first; loopback ones only to a peer on this machine."""
        connected = set(self.connected())
        known = sorted(self._known.items(), key=lambda item: (item[0] not in connected, item[1].failures))
        return [
            address
            for peer_id, peer in known
            if peer.trusted and peer_id != asker and not self._ledger.is_blocked(peer_id)
            for address in peer.addresses
            if local or not _is_loopback(address)
        ][:ADDRESSES_TOLD_MAX]

    def _remember(self, address: str, *, fixed: bool, trusted: bool = False) -> None:
        peer_id, _ = split_address(address)
        if peer_id == self._own_id:
            return
        known = self._known.get(peer_id)
        if known is None:
            if not fixed and len(self._known) >= self._config.known_peers_max:
                return
            wait_seconds = self._config.redial_ms / 1000
            # two nodes that learn of each other together would both dial: one of them holds back a little
            pause = 0.0 if fixed or self._own_id < peer_id else 2 * LOOK_SECONDS
            known = KnownPeer([], fixed, dial_at=trio.current_time() + pause, wait_seconds=wait_seconds)
            self._known[peer_id] = known
        known.trusted = known.trusted or trusted
        if address not in known.addresses and (
            trusted or fixed or len(known.addresses) < ADDRESSES_PER_PEER_MAX
        ):
            known.addresses.insert(0, address)
            del known.addresses[ADDRESSES_PER_PEER_MAX:]


def split_address(address: str) -> tuple[str, str]:
    """(peer id, transport address) of `/ip4/…/tcp/…/p2p/<peer id>`; ConfigError naming what is wrong."""
    transport, separator, peer_id = address.rpartition("/p2p/")
    try:
        if not separator:
            raise ValueError("the /p2p/<peer id> at the end is missing")
        node_key_of(peer_id)
        names = [protocol.name for protocol in Multiaddr(transport).protocols()]
        if len(names) != 2 or names[0] not in ("ip4", "ip6", "dns", "dns4", "dns6") or names[1] != "tcp":
            raise ValueError("it must be /ip4|ip6|dns…/<host>/tcp/<port>")
    except Exception as error:
        raise ConfigError(
            f"{address[:ADDRESS_LENGTH_MAX]!r} is not the address of a peer: {error}\n"
            "  write it as /ip4/<address>/tcp/<port>/p2p/<peer id>"
        ) from error
    return peer_id, transport


def _owner(address: str) -> str:
    return address.rpartition("/p2p/")[2]


def _is_loopback(address: str) -> bool:
    host = address.split("/")[2]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(stream: Stream) -> bool:
    """Whether the peer at the other end runs on this machine."""
    remote = stream.muxed_conn.get_remote_address()
    return remote is not None and ip_address(remote[0].partition("%")[0]).is_loopback


def _as_list(addresses: Iterable[str]) -> bytes:
    return "\n".join(addresses).encode()


async def _read_list(stream: Stream, ledger: Ledger) -> list[str]:
    """The addresses that a peer tells. What is no address is left out; a list that is none is blamed."""
    data = bytearray()
    while piece := await read_some(stream, LIST_SIZE_BYTES_MAX):
        data += piece
        if len(data) > LIST_SIZE_BYTES_MAX:
            ledger.penalise(str(stream.muxed_conn.peer_id), MALFORMED_FRAME, "sent an endless list of peers")
            raise PeerFailed("the list of peers is too long")
    addresses = []
    for line in data.decode("utf-8", "replace").split("\n")[:ADDRESSES_TOLD_MAX]:
        if len(line) <= ADDRESS_LENGTH_MAX:
            try:
                split_address(line)
            except ConfigError:
                continue
            addresses.append(line)
    return addresses


def _jitter(own_id: str, peer_id: str) -> float:
    """Between 0 and 1, other for each pair: nodes that lost each other do not redial in step."""
    return hashlib.sha256(f"{own_id} {peer_id}".encode()).digest()[0] / 255


async def close_quietly(connection: Any) -> None:
    """Close a connection, dead or alive."""
    try:
        await connection.close()
    except Exception as error:
        log.debug("closing a connection failed: %r", error)
