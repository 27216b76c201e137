"""What the contract names is picked up, kept over kills, and brought to the node once it is whole."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from small_network import network

from citrate_node.chain.contract_types import (
    AdapterComposed,
    AdapterRow,
    ContractEvent,
    Head,
    VersionAdded,
    VersionRow,
)
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ServiceError
from citrate_node.node import events as ev
from citrate_node.protocol.content_id import ContentId, content_id
from citrate_node.runtime import chain_events
from citrate_node.runtime.chain_events import ChainEvents
from citrate_node.runtime.database import NodeDatabase

STATE = network()
FIRST, SECOND = sha256(b"first adapter").digest(), sha256(b"second adapter").digest()
COMPOSED = sha256(b"composed adapter").digest()
PUBLISHED = b"weights that an owner published" * 4


def version(
    adapter_id: bytes, content: ContentId, block: int, weights: bytes | None = None, **more: Any
) -> VersionAdded:
    made = VersionAdded(
        block, 0, f"0x{block}", adapter_id, 0, 1, content.digest, content.codec, content.size_bytes, 0,
        bytes(20), weights,
    )  # fmt: skip
    return replace(made, **more)


@dataclass
class FakeChain:
    """Events by block, as the contract's client gives them."""

    known: list[ContractEvent] = field(default_factory=list)
    block: int = 20
    base_model_id: bytes = STATE.base_model_id
    silent: bool = False

    async def head(self) -> Head:
        if self.silent:
            raise ServiceError("the chain is silent")
        return Head(self.block, 0)

    async def events(self, from_block: int, to_block: int) -> list[ContractEvent]:
        return [event for event in self.known if from_block <= event.block_number <= to_block]

    async def adapter(self, adapter_id: bytes) -> AdapterRow:
        return AdapterRow(
            adapter_id, self.base_model_id, "", bytes(20), bytes(20), bytes(20), 4, 1, 0, 0, 0
        )  # fmt: skip

    async def version(self, adapter_id: bytes, number: int) -> VersionRow:
        for event in self.known:
            if isinstance(event, VersionAdded) and (event.adapter_id, event.version) == (adapter_id, number):
                return VersionRow(
                    number, bytes(32), event.weights_hash, 0, bytes(20), 0, event.codec, event.size_bytes,
                    event.block_number,
                )  # fmt: skip
        raise ServiceError("no such version")


@dataclass
class FakePeers:
    """What peers hold, and how often each content was asked for."""

    held: dict[ContentId, bytes] = field(default_factory=dict)
    asked: list[ContentId] = field(default_factory=list)
    on_disk: list[ContentId] = field(default_factory=list)
    """Contents whose size another store on this disk tells."""

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId | None:
        return next((content for content in self.on_disk if content.cid == cid), None)

    async def fetch_weights(self, content: ContentId) -> tuple[bytes | None, str | None]:
        self.asked.append(content)
        data = self.held.get(content)
        return (data, "peer") if data is not None else (None, None)


@dataclass
class Follower:
    """A follower that runs, and what came of it."""

    chain: FakeChain
    peers: FakePeers
    store: EmbeddedStore
    database: NodeDatabase
    offered: list[ev.Event] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    pending: set[bytes] = field(default_factory=set)

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.005)

    @property
    def composed(self) -> list[ev.AdapterComposed]:
        return [event for event in self.offered if isinstance(event, ev.AdapterComposed)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_events, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(chain_events, "RETRY_SECONDS_MAX", 0.02)


@asynccontextmanager
async def following(folder: Path, chain: FakeChain, peers: FakePeers) -> AsyncIterator[Follower]:
    database = NodeDatabase(folder / "node.db")
    store = EmbeddedStore(folder / "content")
    follower = Follower(chain, peers, store, database)

    async def offer(event: ev.Event) -> None:
        follower.offered.append(event)
        if isinstance(event, ev.AdapterComposed):
            follower.pending.add(event.request.adapter_id)

    events = ChainEvents(
        chain=chain,
        database=database,
        store=store,
        fetcher=peers,
        first_block=5,
        state=lambda: STATE,
        pending=lambda: follower.pending,
        offer=offer,
        report=follower.reports.append,
    )
    task = asyncio.create_task(events.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()
        database.close()


def parents() -> tuple[bytes, bytes]:
    """Files of two small adapters of the network's base model."""
    weights = STATE.weights
    values = weights.values.copy()
    values[:] = values // 2 // 2**8 * 2**8
    return weights.encode(), replace(weights, values=values).encode()


def composition(block: int = 12) -> list[ContractEvent]:
    """Two adapters named by CID, and a composition of them."""
    first, second = parents()
    return [
        version(FIRST, content_id(first), 10),
        version(SECOND, content_id(second), 11),
        AdapterComposed(block, 0, "0xc", COMPOSED, FIRST, SECOND, bytes(20), 1, 1, 60, 40, 4, 1),
    ]


def held_by_peers() -> dict[ContentId, bytes]:
    return {content_id(data): data for data in parents()}


async def test_weights_in_calldata_are_stored_and_pinned(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    chain = FakeChain([version(FIRST, content, 7, PUBLISHED)])
    async with following(tmp_path, chain, FakePeers()) as follower:
        await follower.until(lambda: follower.database.followed_block() == 20)
        assert await follower.store.get(content) == PUBLISHED
        assert await follower.store.pins() == (content,)
        assert follower.database.wanted() == []
        assert follower.peers.asked == []


async def test_weights_named_by_cid_are_fetched_and_pinned(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    chain, peers = FakeChain([version(FIRST, content, 7)]), FakePeers({content: PUBLISHED})
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.database.picked_up_bytes())
        assert await follower.store.get(content) == PUBLISHED
        assert await follower.store.pins() == (content,)
        assert peers.asked == [content]


async def test_weights_that_are_here_for_a_while_are_pinned_for_good(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    chain = FakeChain()
    async with following(tmp_path, chain, FakePeers()) as follower:
        await follower.store.put(PUBLISHED, ephemeral_checkpoint=3)
        assert await follower.store.pins() == ()
        chain.known.append(version(FIRST, content, 21))
        chain.block = 21
        await follower.until(lambda: follower.database.picked_up_bytes())
        assert await follower.store.pins() == (content,)
        assert follower.peers.asked == []


async def test_what_came_before_the_network_is_not_its_business(tmp_path: Path) -> None:
    chain = FakeChain([version(FIRST, content_id(PUBLISHED), 4, PUBLISHED)])
    async with following(tmp_path, chain, FakePeers()) as follower:
        await follower.until(lambda: follower.database.followed_block() == 20)
        assert await follower.store.pins() == ()


async def test_what_nobody_has_is_asked_for_a_bounded_number_of_times(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    chain, peers = FakeChain([version(FIRST, content, 7)]), FakePeers()
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: any(r["type"] == "weights_unavailable" for r in follower.reports))
        await asyncio.sleep(0.1)
        assert peers.asked == [content] * chain_events.RETRIES_MAX
        assert follower.database.wanted() == [content], "the next start asks again"


async def test_a_killed_node_still_wants_what_it_wanted(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    chain, peers = FakeChain([version(FIRST, content, 7)]), FakePeers()
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: peers.asked)
    chain.known.clear()  # not because the event is read again
    peers.held[content] = PUBLISHED
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.database.picked_up_bytes())
        assert await follower.store.get(content) == PUBLISHED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size_bytes": STATE.preset.weights_size_bytes_max + 1}, "4194305 bytes, limit 4194304"),
        ({"size_bytes": 0}, "its size is not on chain, and it is in no store that this node reads"),
        ({"codec": 0x70}, "124 bytes have no root of codec 0x70"),
    ],
)
async def test_weights_that_cannot_be_asked_for_are_refused_by_name(
    tmp_path: Path, change: dict[str, int], reason: str
) -> None:
    content = content_id(PUBLISHED)
    peers = FakePeers({content: PUBLISHED})
    async with following(tmp_path, FakeChain([version(FIRST, content, 7, **change)]), peers) as follower:
        await follower.until(lambda: follower.reports)
        assert follower.reports == [
            {"type": "weights_refused", "digest": content.digest.hex(), "reason": reason}
        ]
        assert follower.database.wanted() == []


async def test_weights_named_without_a_size_are_found_in_another_store_on_this_disk(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    peers = FakePeers({content: PUBLISHED}, on_disk=[content])
    chain = FakeChain([version(FIRST, content, 7, size_bytes=0)])
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.database.picked_up_bytes())
        assert await follower.store.pins() == (content,)


async def test_a_composition_is_offered_once_both_parents_are_here(tmp_path: Path) -> None:
    chain, peers = FakeChain(composition()), FakePeers()
    first, second = parents()
    peers.held[content_id(first)] = first
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.database.picked_up_bytes())
        await asyncio.sleep(0.05)
        assert follower.composed == []
        peers.held[content_id(second)] = second
        await follower.until(lambda: follower.composed)
        (event,) = follower.composed
        request = event.request
        assert (request.adapter_id, request.weight_a) == (COMPOSED, 60)
        assert (request.parent_a.encode(), request.parent_b.encode()) == (first, second)


async def test_a_composition_is_offered_again_after_a_kill(tmp_path: Path) -> None:
    chain, peers = FakeChain(composition()), FakePeers(held_by_peers())
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.composed)
    chain.block += 5_000  # farther than what is read again
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.composed)
        assert follower.composed[0].request.adapter_id == COMPOSED


async def test_a_certified_composition_is_settled_and_its_weights_are_fetched(tmp_path: Path) -> None:
    chain, peers = FakeChain(composition()), FakePeers(held_by_peers())
    async with following(tmp_path, chain, peers) as follower:
        await follower.until(lambda: follower.composed)
        result = follower.composed[0].request.result.weights.encode()
        peers.held[content_id(result)] = result
        chain.known.append(version(COMPOSED, content_id(result), 21, checkpoint=3, accuracy_ppm=5))
        chain.block = 21
        await follower.until(lambda: follower.database.wanted() == [] and follower.offered[1:])
        assert follower.offered[1:] == [ev.CompositionSettled(COMPOSED)]
        assert follower.database.compositions() == []
        await follower.until(lambda: content_id(result) in peers.asked)
        await follower.until(lambda: follower.store.blocking.has(content_id(result)))


async def test_a_composition_for_another_base_model_is_left_alone(tmp_path: Path) -> None:
    chain = FakeChain(composition(), base_model_id=bytes(32))
    async with following(tmp_path, chain, FakePeers(held_by_peers())) as follower:
        await follower.until(lambda: follower.database.followed_block() == 20)
        assert follower.database.compositions() == []
        assert follower.composed == []


async def test_parents_that_are_no_adapters_are_forgotten_with_the_reason(tmp_path: Path) -> None:
    junk = content_id(PUBLISHED)
    events = composition()
    events[0] = version(FIRST, junk, 10, PUBLISHED)
    async with following(tmp_path, FakeChain(events), FakePeers(held_by_peers())) as follower:
        await follower.until(lambda: any("refused" in report for report in follower.reports))
        (refused,) = [report for report in follower.reports if "refused" in report]
        assert refused["adapter"] == COMPOSED[:8].hex()
        assert refused["refused"].startswith("header_too_large")
        assert follower.database.compositions() == []
        assert follower.composed == []


async def test_a_chain_that_fell_silent_is_followed_on(tmp_path: Path) -> None:
    content = content_id(PUBLISHED)
    chain = FakeChain()
    async with following(tmp_path, chain, FakePeers()) as follower:
        await follower.until(lambda: follower.database.followed_block() == 20)
        chain.silent = True
        await follower.until(lambda: follower.reports)
        # it comes back from a snapshot: the last blocks are made anew, with other transactions
        chain.known.append(version(FIRST, content, 18, PUBLISHED))
        chain.silent = False
        await follower.until(lambda: follower.database.picked_up_bytes())
        assert await follower.store.get(content) == PUBLISHED
        assert [report["type"] for report in follower.reports] == ["chain_events", "weights"]
