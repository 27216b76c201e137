"""Which places a node asks for what: sources are for weights that the chain names, and never for a delta."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from citrate_node.content.interface import missing
from citrate_node.content.sources import FolderSource
from citrate_node.content.store import BlockStore, EmbeddedStore
from citrate_node.protocol.content_id import ContentId, content_id
from citrate_node.runtime.fetching import Fetcher

WEIGHTS, DELTA = b"weights that the chain names", b"a delta"


@dataclass
class Source:
    """Holds what it is told, and remembers what it was asked for."""

    name: str
    held: tuple[bytes, ...] = ()
    asked: list[ContentId] = field(default_factory=list)

    async def get(self, content: ContentId) -> bytes:
        self.asked.append(content)
        for data in self.held:
            if content_id(data) == content:
                return data
        raise missing(content.cid)

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        raise AssertionError("a gateway is not asked while the chain is followed")


@dataclass
class Network:
    """One peer that holds everything."""

    folder: Path
    asked: list[bytes] = field(default_factory=list)

    def connected_peers(self) -> tuple[str, ...]:
        return ("peer",)

    async def fetch_blob(self, peer: str, digest: bytes, size_bytes: int, destination: Path) -> Path:
        self.asked.append(digest)
        data = next(each for each in (WEIGHTS, DELTA) if content_id(each).digest == digest)
        destination.write_bytes(data)
        return destination


async def test_sources_are_asked_in_their_order_before_any_peer(tmp_path: Path) -> None:
    first, second, third = Source("first"), Source("second", (WEIGHTS,)), Source("third", (WEIGHTS,))
    network: Any = Network(tmp_path)
    async with EmbeddedStore(tmp_path / "content") as store:
        fetcher = Fetcher(store, network, tmp_path / "incoming", (first, second, third))
        content = content_id(WEIGHTS)
        assert await fetcher.fetch_weights(content) == (WEIGHTS, "second")
        assert (first.asked, second.asked, third.asked, network.asked) == ([content], [content], [], [])
        await store.put(WEIGHTS)
        assert await fetcher.fetch_weights(content) == (WEIGHTS, None), "what is here is asked of nobody"
        assert second.asked == [content]


async def test_peers_are_asked_where_no_source_has_it_and_alone_for_a_delta(tmp_path: Path) -> None:
    empty = Source("empty")
    network: Any = Network(tmp_path)
    async with EmbeddedStore(tmp_path / "content") as store:
        fetcher = Fetcher(store, network, tmp_path / "incoming", (empty,))
        assert await fetcher.fetch_weights(content_id(WEIGHTS)) == (WEIGHTS, "peer")
        assert await fetcher.fetch(content_id(DELTA)) == (DELTA, "peer")
    assert empty.asked == [content_id(WEIGHTS)]
    assert network.asked == [content_id(WEIGHTS).digest, content_id(DELTA).digest]


async def test_a_size_is_looked_up_on_this_disk_alone(tmp_path: Path) -> None:
    beside = BlockStore(tmp_path / "beside")
    content = beside.put(WEIGHTS)
    beside.close()
    nobody: Any = SimpleNamespace(connected_peers=lambda: ())
    async with EmbeddedStore(tmp_path / "content") as store:
        sources = (Source("gateway", (WEIGHTS,)), FolderSource(tmp_path / "beside"))
        fetcher = Fetcher(store, nobody, tmp_path / "incoming", sources)
        assert await fetcher.resolve(content.cid, 1_000) == content
        assert await fetcher.resolve(content.cid, 3) is None, "above the limit"
        assert await fetcher.resolve(content_id(DELTA).cid, 1_000) is None
