"""Streams to peers: opened so that giving up leaks nothing, and read to an exact length.

Called by requests, blobs and peers, on the trio side.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import trio
from libp2p.network.stream.exceptions import StreamEOF

from citrate_node.network.settings import PeerFailed

log = logging.getLogger(__name__)

OPEN_SECONDS: Final = 12.0
"""libp2p's own negotiation ends after 8 (hardening.py) and cleans up; this is for what it does not bound."""
READ_SIZE_BYTES: Final = 65_536


class Stream(Protocol):
    """What we use of a libp2p stream."""

    muxed_conn: Any

    async def read(self, n: int | None = None) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...
    async def close_write(self) -> None: ...
    async def reset(self) -> None: ...


class Host(Protocol):
    """What we use of a libp2p host."""

    def new_stream(self, peer_id: Any, protocol_ids: Any) -> Awaitable[Stream]: ...
    def get_network(self) -> Any: ...


@asynccontextmanager
async def opened_stream(
    host: Host, nursery: trio.Nursery, peer_id: Any, protocol: str
) -> AsyncIterator[Stream]:
    """A stream for the length of a `with` block: closed after success, reset after failure or cancellation.

    The opening itself runs in `nursery`, out of reach of the caller's cancellation: cancelled inside
    libp2p, it would keep one of the connection's 256 stream slots for good. Raises PeerFailed when there
    is no connection or the peer does not speak the protocol.
    """
    opened = trio.Event()
    stream: Stream | None = None
    failure: Exception | None = None
    abandoned = False

    async def open_it() -> None:
        nonlocal stream, failure
        try:
            with trio.fail_after(OPEN_SECONDS):
                stream = await host.new_stream(peer_id, [protocol])
        except Exception as error:
            failure = error
        if abandoned and stream is not None:
            await _reset(stream)
        opened.set()

    if not host.get_network().get_connections(peer_id):
        raise PeerFailed(f"peer {peer_id} is not connected")
    nursery.start_soon(open_it)
    try:
        await opened.wait()
    except BaseException:
        abandoned = True
        if stream is not None:
            await _reset(stream)
        raise
    if stream is None:
        raise PeerFailed(f"peer {peer_id} does not open {protocol}: {failure!r}") from failure
    try:
        yield stream
    except BaseException:
        await _reset(stream)
        raise
    with trio.move_on_after(2.0), contextlib.suppress(Exception):
        await stream.close()


async def _reset(stream: Stream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 2.0), contextlib.suppress(Exception):
        await stream.reset()


async def read_some(stream: Stream, size_bytes_max: int) -> bytes:
    """The next bytes of a stream; empty at its end. PeerFailed when it was reset or the connection died."""
    try:
        return await stream.read(size_bytes_max)
    except StreamEOF:
        return b""
    except Exception as error:
        raise PeerFailed(f"peer {stream.muxed_conn.peer_id} broke off: {error!r}") from error


async def read_exactly(stream: Stream, size_bytes: int) -> bytes:
    """Exactly so many bytes, or PeerFailed. libp2p's own helper gives up after 100 partial reads."""
    data = bytearray()
    while len(data) < size_bytes:
        piece = await read_some(stream, min(READ_SIZE_BYTES, size_bytes - len(data)))
        if not piece:
            raise PeerFailed(
                f"peer {stream.muxed_conn.peer_id} ended after {len(data)} of {size_bytes} bytes"
            )
        data += piece
    return bytes(data)


async def write(stream: Stream, data: bytes) -> None:
    """Write all, or PeerFailed. libp2p itself gives up when the peer takes nothing for five seconds."""
    try:
        await stream.write(data)
    except Exception as error:
        raise PeerFailed(f"peer {stream.muxed_conn.peer_id} takes no more bytes: {error!r}") from error
