"""Whole contents between nodes: `/citrate/blob/1.0.0`. Resumable, bounded, verified before they appear.

Request: digest (32 bytes) ‖ size u64 ‖ offset u64. Answer: one status byte (`BlobStatus`), then, when found,
the bytes from the offset to the end. Integers are big-endian. The digest is that of the UnixFS root
(`protocol.content_id`), so a download is right exactly when re-importing it gives the same name.
The megabytes of a delta would drown gossip, which drops what is above 1 MiB in silence.
Called by libp2p_network, on the trio side; files and hashing are worked on in trio's worker threads.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from citrate_node.network.ledger import MALFORMED_FRAME, WRONG_BLOB, Ledger
from citrate_node.network.settings import (
    BLOB_PROTOCOL,
    BlobReader,
    BlobRefused,
    BlobStatus,
    NetworkConfig,
    PeerFailed,
    WrongBlob,
)
from citrate_node.network.streams import Host, Stream, opened_stream, read_exactly, read_some, write
from citrate_node.protocol.content_id import ContentId, Importer

log = logging.getLogger(__name__)

BlobSource = Path | bytes | BlobReader | BlobStatus | None
FindBlob = Callable[[bytes, int], BlobSource]
"""Looks a content up by (digest, size) in a worker thread. None: not here. A status: refused for that."""

HEADER_SIZE_BYTES: Final = 48
CHUNK_SIZE_BYTES: Final = 1 << 18
"""Served at a time. Larger makes gossip on the same connection wait longer behind a transfer."""
FLUSH_SIZE_BYTES: Final = 1 << 20
"""Received bytes are hashed and written in pieces of this size: one hop to a worker thread for each."""
ATTEMPTS_WITHOUT_PROGRESS: Final = 4
REQUEST_SECONDS: Final = 10.0


class Blobs:
    """Both ends of the protocol."""

    def __init__(
        self, config: NetworkConfig, host: Host, nursery: trio.Nursery, ledger: Ledger, find: FindBlob
    ) -> None:
        self._config = config
        self._host = host
        self._nursery = nursery
        self._ledger = ledger
        self._find = find
        self._arriving: set[Path] = set()

    # the side that serves

    async def serve(self, stream: Stream) -> None:
        """Answer one inbound stream."""
        peer_id = str(stream.muxed_conn.peer_id)
        config, ledger = self._config, self._ledger
        with trio.fail_after(REQUEST_SECONDS):
            header = await read_exactly(stream, HEADER_SIZE_BYTES)
        digest, size_bytes = header[:32], int.from_bytes(header[32:40], "big")
        offset = int.from_bytes(header[40:], "big")
        if offset > size_bytes:
            ledger.penalise(peer_id, MALFORMED_FRAME, "asks for a blob from beyond its end")
            raise PeerFailed(f"peer {peer_id} asks for a blob from beyond its end")
        await trio.sleep(ledger.admit_request(peer_id))
        if not ledger.begin("blob", peer_id, config.blobs_at_once_per_peer, config.blobs_at_once):
            ledger.count("blobs_refused_busy")
            await self._refuse(stream, BlobStatus.BUSY)
            return
        try:
            source = await trio.to_thread.run_sync(self._find, digest, size_bytes)
            if source is None or isinstance(source, BlobStatus):
                await self._refuse(stream, source if source is not None else BlobStatus.NOT_HERE)
                return
            await self._send(stream, source, size_bytes, offset)
            ledger.count("blobs_served")
        finally:
            ledger.end("blob", peer_id)

    async def _refuse(self, stream: Stream, status: BlobStatus) -> None:
        with trio.fail_after(REQUEST_SECONDS):
            await write(stream, bytes((status,)))
            await stream.close()

    async def _send(
        self, stream: Stream, source: Path | bytes | BlobReader, size_bytes: int, offset: int
    ) -> None:
        idle_seconds = self._config.blob_idle_timeout_ms / 1000
        slowest = (size_bytes - offset) / self._config.blob_bytes_per_second_min
        with trio.fail_after(idle_seconds + slowest):
            read, close = await trio.to_thread.run_sync(_open_source, source)
            try:
                await write(stream, bytes((BlobStatus.FOUND,)))
                while offset < size_bytes:
                    piece = await trio.to_thread.run_sync(
                        read, offset, min(CHUNK_SIZE_BYTES, size_bytes - offset)
                    )
                    if not piece:
                        raise OSError(f"a stored blob ends after {offset} of {size_bytes} bytes")
                    with trio.fail_after(idle_seconds):
                        await write(stream, piece)
                    offset += len(piece)
                    self._ledger.count("blob_bytes_sent", len(piece))
            finally:
                close()
            await stream.close()

    # the side that fetches

    async def fetch(self, peer: Any, content: ContentId, destination: Path, idle_timeout_ms: int) -> Path:
        """Bring a content to `destination`, which appears only when complete and right.

        What has arrived stays in `<destination>.part` after a failure, and the next call goes on from there.
        Raises BlobRefused (with the peer's status), WrongBlob, or PeerFailed when the peer broke off
        several times without sending anything new.
        """
        if content.size_bytes > self._config.blob_size_bytes_max:
            raise ValueError(
                f"a blob of {content.size_bytes} bytes is above the limit, {self._config.blob_size_bytes_max}"
            )
        if destination in self._arriving:
            raise ValueError(f"{destination} is already being fetched")
        self._arriving.add(destination)
        try:
            return await self._fetch(peer, content, destination, idle_timeout_ms / 1000)
        finally:
            self._arriving.discard(destination)

    async def _fetch(self, peer: Any, content: ContentId, destination: Path, idle_seconds: float) -> Path:
        arriving = await trio.to_thread.run_sync(_Arriving.resume, destination, content.size_bytes)
        try:
            resumed = arriving.size_bytes > 0
            await self._receive_all(peer, content, arriving, idle_seconds)
            right = await trio.to_thread.run_sync(arriving.finish) == content
            if not right and resumed:
                # the first part may be another peer's: blaming this one would let that one frame it
                await trio.to_thread.run_sync(arriving.restart)
                await self._receive_all(peer, content, arriving, idle_seconds)
                right = await trio.to_thread.run_sync(arriving.finish) == content
            if not right:
                self._ledger.penalise(str(peer), WRONG_BLOB, "sent bytes that are not the blob asked for")
                self._ledger.count("blobs_wrong")
                raise WrongBlob(f"peer {peer} sent other bytes than {content.digest.hex()}")
            await trio.to_thread.run_sync(arriving.appear)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(arriving.close)
        self._ledger.count("blobs_fetched")
        return destination

    async def _receive_all(
        self, peer: Any, content: ContentId, arriving: "_Arriving", idle_seconds: float
    ) -> None:
        """Receive until complete, over as many streams as it takes while each brings something new."""
        missing = content.size_bytes - arriving.size_bytes
        slowest = 4 * idle_seconds + missing / self._config.blob_bytes_per_second_min
        try:
            with trio.fail_after(slowest):
                await self._receive_persistently(peer, content, arriving, idle_seconds)
        except trio.TooSlowError as error:
            raise PeerFailed(f"peer {peer} took more than {slowest:.0f} s for a blob") from error

    async def _receive_persistently(
        self, peer: Any, content: ContentId, arriving: "_Arriving", idle_seconds: float
    ) -> None:
        failures = 0
        while True:
            before = arriving.size_bytes
            try:
                return await self._receive(peer, content, arriving, idle_seconds)
            except BlobRefused as refusal:
                if refusal.status != BlobStatus.BUSY:
                    raise
                failure: PeerFailed = refusal
            except PeerFailed as error:
                failure = error
            failures = 0 if arriving.size_bytes > before else failures + 1
            if failures == ATTEMPTS_WITHOUT_PROGRESS:
                raise failure
            log.info("fetching %s goes on after: %s", content.digest.hex(), failure)
            await trio.sleep(self._config.blob_retry_ms / 1000 * 2**failures)

    async def _receive(
        self, peer: Any, content: ContentId, arriving: "_Arriving", idle_seconds: float
    ) -> None:
        """One stream's worth. PeerFailed when it ends early or stalls."""
        try:
            async with opened_stream(self._host, self._nursery, peer, BLOB_PROTOCOL) as stream:
                request = content.digest + content.size_bytes.to_bytes(8, "big")
                with trio.fail_after(idle_seconds):
                    await write(stream, request + arriving.size_bytes.to_bytes(8, "big"))
                    status = (await read_exactly(stream, 1))[0]
                if status != BlobStatus.FOUND:
                    raise _refusal(peer, status)
                missing = content.size_bytes - arriving.size_bytes
                await self._receive_bytes(stream, missing, arriving, idle_seconds)
        except trio.TooSlowError as error:
            raise PeerFailed(f"peer {peer} sent nothing for {idle_seconds:.1f} s") from error

    async def _receive_bytes(
        self, stream: Stream, missing: int, arriving: "_Arriving", idle_seconds: float
    ) -> None:
        held = bytearray()
        try:
            while missing:
                with trio.fail_after(idle_seconds):
                    piece = await read_some(stream, min(FLUSH_SIZE_BYTES, missing))
                self._ledger.count("blob_bytes_received", len(piece))
                if not piece:
                    raise PeerFailed(f"peer {stream.muxed_conn.peer_id} ended {missing} bytes too early")
                missing -= len(piece)
                held += piece
                if len(held) >= FLUSH_SIZE_BYTES:
                    await trio.to_thread.run_sync(arriving.add, bytes(held))
                    held.clear()
        finally:  # what did arrive is worth keeping whatever happened
            if held:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(arriving.add, bytes(held))


class _Arriving:
    """A blob on its way: the `.part` file and the import of the bytes in it. Used from worker threads."""

    def __init__(self, destination: Path, part: Path) -> None:
        self._destination = destination
        self._part = part
        self._file = part.open("ab")
        self._importer = Importer()
        self.size_bytes = 0

    @classmethod
    def resume(cls, destination: Path, size_bytes_max: int) -> "_Arriving":
        """Begin, or go on where an earlier fetch of the same destination ended."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = destination.with_name(destination.name + ".part")
        if part.exists() and part.stat().st_size > size_bytes_max:
            part.unlink()
        arriving = cls(destination, part)
        with part.open("rb") as file:
            while piece := file.read(FLUSH_SIZE_BYTES):
                arriving._importer.update(piece)
                arriving.size_bytes += len(piece)
        return arriving

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self._importer.update(data)
        self.size_bytes += len(data)

    def restart(self) -> None:
        """Throw away what arrived and begin anew."""
        self._file.truncate(0)  # in append mode the next write follows the end
        self._importer = Importer()
        self.size_bytes = 0

    def finish(self) -> ContentId:
        """The name of what arrived. After this nothing more can be added."""
        return self._importer.finish()

    def appear(self) -> None:
        """Make the verified bytes last, then give them their name: never a short file under it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._part, self._destination)
        folder = os.open(self._destination.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Close the file; remove it where it is empty, or finished without having appeared: it is wrong."""
        self._file.close()
        if self._importer.root is not None or self.size_bytes == 0:
            with suppress(FileNotFoundError):
                self._part.unlink()


def _open_source(
    source: Path | bytes | BlobReader,
) -> tuple[Callable[[int, int], bytes], Callable[[], object]]:
    """(read_at, close) of whatever the owner of the content handed out."""
    if isinstance(source, bytes):
        return lambda offset, size_bytes: source[offset : offset + size_bytes], lambda: None
    if isinstance(source, Path):
        descriptor = os.open(source, os.O_RDONLY)
        return (
            lambda offset, size_bytes: os.pread(descriptor, size_bytes, offset),
            lambda: os.close(descriptor),
        )
    return source.read_at, lambda: None


def _refusal(peer: Any, status: int) -> PeerFailed:
    try:
        known = BlobStatus(status)
    except ValueError:
        return PeerFailed(f"peer {peer} answered with the unknown status {status}")
    reason = {
        BlobStatus.NOT_HERE: "does not have the blob",
        BlobStatus.WITHHELD: "does not give the blob yet",
        BlobStatus.BUSY: "is busy",
    }[known]
    return BlobRefused(f"peer {peer} {reason}", known)
