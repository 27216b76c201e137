"""Ask one peer, get one answer: `/citrate/request/1.0.0`, which catch-up runs on.

One stream per request. Request: u32 length, payload. Answer: one status byte (0 answered, 1 failed,
2 busy), u32 length, payload; integers are big-endian. What a payload means is the node's business: the
answer comes from a coroutine on the asyncio loop. Called by libp2p_network.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from citrate_node.network.ledger import MALFORMED_FRAME, Ledger
from citrate_node.network.settings import REQUEST_PROTOCOL, NetworkConfig, PeerFailed
from citrate_node.network.streams import Host, Stream, opened_stream, read_exactly, write

log = logging.getLogger(__name__)

ANSWERED, FAILED, BUSY = range(3)
READ_SECONDS: Final = 15.0
"""For a whole request to arrive: at 1 MiB this asks for 70 KB/s."""
BUSY_POINTS: Final = 0.2
"""A catching-up peer may run into this now and then; only hundreds in a row add up to a block."""


class Requests:
    """Both ends of the protocol, on the trio side."""

    def __init__(
        self,
        config: NetworkConfig,
        host: Host,
        nursery: trio.Nursery,
        ledger: Ledger,
        answer: Callable[[str, bytes], Awaitable[bytes]],
    ) -> None:
        self._config = config
        self._host = host
        self._nursery = nursery
        self._ledger = ledger
        self._answer = answer

    async def ask(self, peer: Any, payload: bytes) -> bytes:
        """The peer's answer. PeerFailed when it cannot, will not, or answers too much."""
        async with opened_stream(self._host, self._nursery, peer, REQUEST_PROTOCOL) as stream:
            await write(stream, len(payload).to_bytes(4, "big") + payload)
            header = await read_exactly(stream, 5)
            status, size_bytes = header[0], int.from_bytes(header[1:], "big")
            if status == BUSY:
                raise PeerFailed(f"peer {peer} is busy")
            if status != ANSWERED:
                raise PeerFailed(f"peer {peer} could not answer the request")
            if size_bytes > self._config.answer_size_bytes_max:
                raise PeerFailed(f"peer {peer} announces an answer of {size_bytes} bytes")
            return await read_exactly(stream, size_bytes)

    async def serve(self, stream: Stream) -> None:
        """Answer one inbound stream. A peer in a hurry is slowed; one with too many at once is told so."""
        peer_id = str(stream.muxed_conn.peer_id)
        config, ledger = self._config, self._ledger
        if not ledger.begin("request", peer_id, config.requests_at_once_per_peer, config.requests_at_once):
            ledger.count("requests_refused")
            ledger.penalise(peer_id, BUSY_POINTS, "more requests at once than it may", in_haste=True)
            await _send(stream, BUSY, b"")
            return
        try:
            with trio.fail_after(READ_SECONDS):
                size_bytes = int.from_bytes(await read_exactly(stream, 4), "big")
                if size_bytes > config.request_size_bytes_max:
                    ledger.penalise(peer_id, MALFORMED_FRAME, f"announced a request of {size_bytes} bytes")
                    raise PeerFailed(f"peer {peer_id} announced a request of {size_bytes} bytes")
                payload = await read_exactly(stream, size_bytes)
            await trio.sleep(ledger.admit_request(peer_id))
            status, answer = await self._answered(peer_id, payload)
            with trio.fail_after(config.answer_timeout_ms / 1000):
                await _send(stream, status, answer)
        finally:
            ledger.end("request", peer_id)

    async def _answered(self, peer_id: str, payload: bytes) -> tuple[int, bytes]:
        try:
            with trio.fail_after(self._config.answer_timeout_ms / 1000):
                answer = await self._answer(peer_id, payload)
        except Exception as error:  # often the peer's nonsense: no traceback for it to fill the log with
            log.warning("answering a request of %s failed: %r", peer_id, error)
            self._ledger.count("requests_failed")
            return FAILED, b""
        if len(answer) > self._config.answer_size_bytes_max:
            log.error("an answer of %d bytes to %s is above the limit", len(answer), peer_id)
            return FAILED, b""
        self._ledger.count("requests_answered")
        return ANSWERED, answer


async def _send(stream: Stream, status: int, answer: bytes) -> None:
    await write(stream, bytes((status,)) + len(answer).to_bytes(4, "big") + answer)
    await stream.close()
