"""What an operator may set about the network, what the facade hands out, and how it fails.

Light: no libp2p here, so that the runtime can build a configuration and catch failures without loading it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from citrate_node.errors import ConfigError, ServiceError

REQUEST_PROTOCOL: Final = "/citrate/request/1.0.0"
BLOB_PROTOCOL: Final = "/citrate/blob/1.0.0"
PEERS_PROTOCOL: Final = "/citrate/peers/1.0.0"

MESSAGE_SIZE_BYTES_CEILING: Final = 900_000
"""libp2p drops a gossip frame above 1 MiB without a word; the frame also carries keys and signatures."""


class NetworkStopped(ServiceError):
    """The libp2p side is not running: stopped, or dead (then `failed()` tells why)."""


class PeerFailed(ServiceError):
    """A peer cannot be reached, broke off, answered nothing in time, or answered nonsense."""


class BlobStatus(IntEnum):
    """The first byte of a blob answer."""

    FOUND = 0
    NOT_HERE = 1
    WITHHELD = 2
    """The peer has it and will not give it yet: a delta before its signal phase has closed."""
    BUSY = 3


class BlobRefused(PeerFailed):
    """The peer is well and said no; `status` says which no."""

    def __init__(self, message: str, status: BlobStatus) -> None:
        super().__init__(message)
        self.status = status


class WrongBlob(PeerFailed):
    """The peer sent bytes that are not the content asked for. They are deleted and the peer is blamed."""


class BlobReader(Protocol):
    """A content that is not one file: the content store's own reader. Called in a worker thread."""

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """At most `size_bytes` bytes from `offset`; empty only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Received:
    """One gossip message that passed the validator."""

    topic: str

    peer_id: str
    """Who published it: the origin, whose libp2p signature was verified. Not a claim of the forwarder."""

    forwarder: str
    """The connected peer that handed it to us; often another than the origin."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Settings of one node's network. Everything that a peer could make grow has its bound here."""

    identity_seed: bytes
    """Ed25519 seed of 32 bytes. The same key signs the node's messages, so its peer id follows from it."""

    listen: str = "/ip4/127.0.0.1/tcp/0"
    """Multiaddr to listen on. Loopback unless told otherwise; port 0 takes a free one."""

    peers: tuple[str, ...] = ()
    """Multiaddrs with `/p2p/<peer id>` that are kept connected for as long as the node runs."""

    announce: tuple[str, ...] = ()
    """Addresses told to others instead of those listened on, for a node behind a port forwarding."""

    redial_ms: int = 2_000
    redial_ms_max: int = 30_000

    connections_wanted: int = 12
    """Peers found by exchange are dialled while fewer than this are connected."""
    connections_max: int = 256
    connections_per_ip_max: int = 64
    """Inbound ones. A devnet on loopback needs two per node; an attacker needs hundreds."""

    known_peers_max: int = 256
    peer_exchange_ms: int = 15_000

    message_size_bytes_max: int = 65_536
    inbox_messages_max: int = 4_096

    messages_per_second: int = 200
    """Per forwarding peer. One core handles 100 to 200 small messages a second, so more is never of use."""
    messages_burst: int = 1_000
    bytes_per_second: int = 4_000_000
    bytes_burst: int = 16_000_000
    origin_messages_per_second: int = 50
    """Per publishing peer, whoever forwards; what is above is dropped and blamed on nobody."""
    origin_messages_burst: int = 500

    request_size_bytes_max: int = 1 << 20
    answer_size_bytes_max: int = 4 << 20
    requests_per_second: int = 20
    requests_burst: int = 100
    requests_at_once_per_peer: int = 4
    requests_at_once: int = 32
    answer_timeout_ms: int = 30_000

    blob_size_bytes_max: int = 1 << 30
    blobs_at_once_per_peer: int = 4
    blobs_at_once: int = 16
    blob_bytes_per_second_min: int = 16_384
    """A transfer slower than this on the whole is cut off: it holds a slot that others could use."""
    blob_retry_ms: int = 200
    """Pause before a fetch asks the same peer again; doubles with each time that brought nothing."""
    blob_idle_timeout_ms: int = 20_000
    """Of the serving side. The fetching side says its own with each fetch."""

    score_max: float = 100.0
    """Points of misbehaviour at which a peer is blocked."""
    score_decay_per_second: float = 1.0
    useless_messages_max: int = 256
    """Useless messages of a peer, less the useful ones, at which it is blocked whatever time they took."""
    block_ms: int = 600_000

    def __post_init__(self) -> None:
        if len(self.identity_seed) != 32:
            raise ConfigError(f"network identity seed has {len(self.identity_seed)} bytes, it needs 32")
        if not 0 < self.message_size_bytes_max <= MESSAGE_SIZE_BYTES_CEILING:
            raise ConfigError(
                f"message_size_bytes_max is {self.message_size_bytes_max}, it must lie between 1 and "
                f"{MESSAGE_SIZE_BYTES_CEILING}\n  send anything larger as a blob and publish its hash"
            )
        if not 0 < self.redial_ms <= self.redial_ms_max:
            raise ConfigError("redial_ms must lie between 1 and redial_ms_max")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"network setting {name} must be above 0")


_POSITIVE: Final = (
    "connections_max",
    "connections_per_ip_max",
    "known_peers_max",
    "peer_exchange_ms",
    "inbox_messages_max",
    "messages_per_second",
    "messages_burst",
    "bytes_per_second",
    "bytes_burst",
    "origin_messages_per_second",
    "origin_messages_burst",
    "request_size_bytes_max",
    "answer_size_bytes_max",
    "requests_per_second",
    "requests_burst",
    "requests_at_once_per_peer",
    "requests_at_once",
    "answer_timeout_ms",
    "blob_size_bytes_max",
    "blobs_at_once_per_peer",
    "blobs_at_once",
    "blob_bytes_per_second_min",
    "blob_idle_timeout_ms",
    "blob_retry_ms",
    "score_max",
    "useless_messages_max",
    "block_ms",
)
