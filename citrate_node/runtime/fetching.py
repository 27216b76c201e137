"""Gets contents and checkpoint results from peers: own store first, one named peer, then any.

Weights that the chain names may also lie where no peer serves them: in another store on this disk, behind a
gateway. Those are asked before the peers, and never for a delta. Every byte is checked by hash before anyone
sees it (network/blobs.py re-imports a download). Called by wiring (a node's first state), main_loop (deltas,
missed checkpoints) and chain_events (weights of other adapters).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

from ..content.interface import ContentMissing, ContentStore
from ..content.sources import ContentSource, FolderSource, from_sources
from ..errors import ServiceError
from ..network.libp2p_network import Libp2pNetwork
from ..network.settings import BlobRefused, BlobStatus, PeerFailed
from ..node.events import StateFetched
from ..protocol import catch_up
from ..protocol.checkpoint import decode_record
from ..protocol.content_id import ContentId
from ..protocol.encoding import EncodingError

PEERS_ASKED_MAX = 4
FETCHES_AT_ONCE = 4
WITHHELD_RETRIES = 3
WITHHELD_RETRY_SECONDS = 0.5
REQUEST_TIMEOUT_MS = 5_000


class Fetcher:
    """One node's way to what it does not hold.

    incoming: folder for downloads that are not complete. sources: where weights may lie beside the peers.
    """

    def __init__(
        self,
        store: ContentStore,
        network: Libp2pNetwork,
        incoming: Path,
        sources: Sequence[ContentSource] = (),
    ) -> None:
        incoming.mkdir(parents=True, exist_ok=True)
        self._store = store
        self._network = network
        self._incoming = incoming
        self._sources = tuple(sources)
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._running: dict[ContentId, asyncio.Future[tuple[bytes | None, str | None]]] = {}

    def some_peers(self, count: int, first: str | None = None) -> list[str]:
        """Connected peers in random order, `first` at the head if it is connected."""
        connected = list(self._network.connected_peers())
        random.shuffle(connected)
        if first in connected:
            connected.remove(first)
            connected.insert(0, first)
        return connected[:count]

    async def fetch(self, content: ContentId, first: str | None = None) -> tuple[bytes | None, str | None]:
        """(bytes, the peer that gave them), (bytes, None) from the own store, (None, None) from nobody.

        Two callers that want the same content at once share one download.
        """
        running = self._running.get(content)
        if running is None:
            running = asyncio.ensure_future(self._fetch(content, first))
            self._running[content] = running
            running.add_done_callback(lambda _: self._running.pop(content, None))
        return await asyncio.shield(running)

    async def fetch_weights(self, content: ContentId) -> tuple[bytes | None, str | None]:
        """As `fetch`, for weights that the chain names: the operator's sources are asked before the peers."""
        if self._sources and not await self._store.has(content):
            async with self._slots:
                data, source = await from_sources(self._sources, content)
            if data is not None:
                return data, source
        return await self.fetch(content)

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId | None:
        """The content of a CID that came without a size, from the own store or another one on this disk.

        Gateways are not asked: this is called while the chain is followed, and must not wait for a stranger.
        """
        places: list[ContentStore | FolderSource] = [self._store]
        places += [source for source in self._sources if isinstance(source, FolderSource)]
        for place in places:
            with contextlib.suppress(ServiceError):
                return await place.resolve(cid, size_bytes_max)
        return None

    async def _fetch(self, content: ContentId, first: str | None) -> tuple[bytes | None, str | None]:
        with contextlib.suppress(ContentMissing):  # damaged or gone since: a peer may have it whole
            if await self._store.has(content):
                return await self._store.get(content), None
        async with self._slots:
            for peer in self.some_peers(PEERS_ASKED_MAX, first):
                data = await self._from_peer(content, peer)
                if data is not None:
                    return data, peer
        return None, None

    async def _from_peer(self, content: ContentId, peer: str) -> bytes | None:
        destination = self._incoming / content.digest.hex()
        for _ in range(WITHHELD_RETRIES):
            try:
                path = await self._network.fetch_blob(peer, content.digest, content.size_bytes, destination)
                return await asyncio.to_thread(_take, path)
            except BlobRefused as refusal:
                if refusal.status not in (BlobStatus.WITHHELD, BlobStatus.BUSY):
                    return None
                await asyncio.sleep(WITHHELD_RETRY_SECONDS)  # its view of the chain is a moment behind ours
            except (PeerFailed, ServiceError, ValueError):
                return None
        return None

    async def fetch_state(self, network_id: bytes, number: int, record_hash: bytes) -> StateFetched | None:
        """Record, state file and weights of a committed checkpoint. None where nobody has them all."""
        request = catch_up.record_request(network_id, record_hash)
        for peer in self.some_peers(2 * PEERS_ASKED_MAX):
            try:
                answer = await self._network.request(peer, request, REQUEST_TIMEOUT_MS)
                data = catch_up.parse_record_answer(answer)
                if not data:
                    continue
                record = decode_record(data)
            except (PeerFailed, ServiceError, EncodingError):
                continue
            if record.hash != record_hash:
                self._network.report_misbehaviour(peer, 50.0, "a record that does not hash to its name")
                continue
            state_file, _ = await self.fetch(ContentId(record.state_root, record.state_size_bytes), peer)
            weights, _ = await self.fetch(ContentId(record.weights_hash, record.weights_size_bytes), peer)
            if state_file is not None and weights is not None:
                return StateFetched(number, data, state_file, weights)
        return None


def _take(path: Path) -> bytes:
    """Read a fetched file and remove it: the content store keeps it from now on."""
    data = path.read_bytes()
    path.unlink()
    return data
