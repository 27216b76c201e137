"""The follower against real EVMs: anvil, and the chain in Python.

The contract, its client, logs in pages, a node and a chain that are killed in the middle are real; only the
peers are pretended. test_chain_events.py has the rest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from small_network import network

from citrate_node.chain import adapter_factory
from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument
from citrate_node.chain.anvil import find_anvil
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.chain.genesis import GenesisBaseModel, build_genesis
from citrate_node.content.store import EmbeddedStore
from citrate_node.node import events as ev
from citrate_node.protocol.certificate import Validator, account_of
from citrate_node.protocol.composition import compose
from citrate_node.protocol.content_id import ContentId, content_id
from citrate_node.runtime import chain_events
from citrate_node.runtime.chain_events import ChainEvents
from citrate_node.runtime.database import NodeDatabase
from citrate_node.runtime.devnet_folder import free_ports

STATE = network()
BASE = STATE.base_model_id
RANK = STATE.weights.config.rank
KEY = sha256(b"a wallet of the tests").digest()


@pytest.fixture(params=["anvil", "python"], autouse=True)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which EVM. The blocks read at once are few, so that a short chain has many pages."""
    if request.param == "python":
        monkeypatch.setenv("CITRATE_CHAIN", "python")
    elif find_anvil() is None:
        pytest.skip("anvil is not installed: run `npm ci`")
    monkeypatch.setattr(chain_events, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(chain_events, "RETRY_SECONDS_MAX", 0.05)
    monkeypatch.setattr(chain_events, "BLOCKS_AT_ONCE", 5)
    monkeypatch.setattr(adapter_factory, "LOG_BLOCKS_MAX", 2)
    return str(request.param)


@dataclass
class Peers:
    """What peers hold."""

    held: dict[ContentId, bytes] = field(default_factory=dict)
    asked: list[ContentId] = field(default_factory=list)

    async def fetch_weights(self, content: ContentId) -> tuple[bytes | None, str | None]:
        self.asked.append(content)
        return self.held.get(content), "peer" if content in self.held else None

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId | None:
        return None


@dataclass
class Follower:
    database: NodeDatabase
    store: EmbeddedStore
    composed: dict[bytes, ev.AdapterComposed] = field(default_factory=dict)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(40):
            while not holds():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_chain(folder: Path) -> AsyncIterator[tuple[DevnetChain, AdapterFactory]]:
    genesis = build_genesis(
        [Validator(sha256(b"node").digest(), account_of(KEY), 1)],
        sha256(b"genesis of the tests").digest(),
        funded={account_of(KEY): 10**21},
        timestamp=int(time.time()),
        base_models=[GenesisBaseModel(BASE, "synthetic", "", "MIT", 1)],
    )
    chain = DevnetChain(folder, genesis, free_ports(1)[0], block_time_s=0.1)
    await chain.start()
    factory = await AdapterFactory.connect(chain.rpc_url)
    try:
        yield chain, factory
    finally:
        await factory.close()
        await chain.stop()


@asynccontextmanager
async def following(
    folder: Path, factory: AdapterFactory, peers: Peers, first: int
) -> AsyncIterator[Follower]:
    """A node's follower on its own folder; the end of the block is its end, whatever it was doing."""
    made = Follower(NodeDatabase(folder / "node.db"), EmbeddedStore(folder / "content"))

    async def offer(event: ev.Event) -> None:
        if isinstance(event, ev.AdapterComposed):
            made.composed[event.request.adapter_id] = event

    follower = ChainEvents(
        chain=factory,
        database=made.database,
        store=made.store,
        fetcher=peers,
        first_block=first,
        state=lambda: STATE,
        pending=lambda: made.composed.keys(),
        offer=offer,
        report=lambda fact: None,
    )
    task = asyncio.create_task(follower.run())
    try:
        yield made
        assert not task.done(), "the follower ended by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await made.store.close()
        made.database.close()


def weights(seed: int) -> bytes:
    """A small adapter of the network's base model."""
    values = STATE.weights.values.copy()
    values[:] = values + (seed << 8)
    return replace(STATE.weights, values=values).encode()


async def created(factory: AdapterFactory, data: bytes, *, in_calldata: bool = True) -> bytes:
    content = content_id(data)
    given = data if in_calldata else cid_argument(content.digest, content.codec, content.size_bytes)
    name = content.digest[:4].hex()
    return (await factory.create_adapter(KEY, BASE, name, given, RANK)).adapter_id


async def blocks_after(factory: AdapterFactory, count: int) -> None:
    wanted = (await factory.head()).number + count
    while (await factory.head()).number < wanted:
        await asyncio.sleep(0.02)


async def test_a_node_that_comes_late_catches_up_from_an_old_block_page_by_page(tmp_path: Path) -> None:
    """Everything was said before it came: in calldata, by CID, published, composed, empty blocks between."""
    one, two, three = weights(1), weights(2), weights(3)
    async with running_chain(tmp_path / "chain") as (_, factory):
        first = (await factory.head()).number + 1
        a = await created(factory, one)
        await blocks_after(factory, 6)
        b = await created(factory, two, in_calldata=False)
        await factory.publish_version(KEY, a, three)
        await blocks_after(factory, 6)
        c = (await factory.compose_adapters(KEY, a, b, 60, 40)).adapter_id
        head = (await factory.head()).number
        peers = Peers({content_id(two): two})
        async with following(tmp_path, factory, peers, first) as node:
            await node.until(lambda: c in node.composed)
            request = node.composed[c].request
            assert (request.parent_a.encode(), request.parent_b.encode()) == (three, two)
            assert (request.weight_a, request.content.digest) == (60, _digest_of(request))
            assert set(await node.store.pins()) >= {content_id(data) for data in (one, two, three)}
            assert peers.asked == [content_id(two)]
            assert (node.database.followed_block() or 0) >= head


async def test_a_node_that_is_killed_in_the_middle_misses_nothing_and_offers_again(tmp_path: Path) -> None:
    one, two, three = weights(1), weights(2), weights(3)
    async with running_chain(tmp_path / "chain") as (_, factory):
        first = (await factory.head()).number + 1
        a = await created(factory, one)
        b = await created(factory, two, in_calldata=False)
        c = (await factory.compose_adapters(KEY, a, b, 30, 70)).adapter_id
        nobody, somebody = Peers(), Peers({content_id(two): two})
        async with following(tmp_path, factory, nobody, first) as node:
            await node.until(lambda: bool(nobody.asked))
            stopped_at = node.database.followed_block() or 0
            assert node.composed == {}
        d = await created(factory, three)  # while it is down
        await blocks_after(factory, 12)
        e = (await factory.compose_adapters(KEY, a, d, 50, 50)).adapter_id
        async with following(tmp_path, factory, somebody, first) as node:
            await node.until(lambda: {c, e} <= node.composed.keys())
            assert (node.database.followed_block() or 0) > stopped_at
            assert set(await node.store.pins()) >= {content_id(data) for data in (one, two, three)}


async def test_a_chain_that_is_killed_under_the_follower_is_followed_on(tmp_path: Path) -> None:
    """Blocks since the last snapshot are made anew, with other contents: what they say is not missed."""
    one, two = weights(1), weights(2)
    async with running_chain(tmp_path / "chain") as (chain, factory):
        first = (await factory.head()).number + 1
        a = await created(factory, one)
        async with following(tmp_path, factory, Peers(), first) as node:
            await node.until(lambda: bool(node.database.picked_up_bytes()))
            await _saved(chain)
            await _killed(chain)
            b = await created(factory, two)
            c = (await factory.compose_adapters(KEY, a, b, 10, 90)).adapter_id
            await node.until(lambda: c in node.composed)
            assert set(await node.store.pins()) >= {content_id(one), content_id(two)}


async def _saved(chain: DevnetChain) -> None:
    if chain.program == "anvil":  # the one in Python writes every block before it shows it
        await chain.snapshot()


async def _killed(chain: DevnetChain) -> None:
    restarts = chain.restarts
    assert chain.process_id is not None
    os.kill(chain.process_id, signal.SIGKILL)
    async with asyncio.timeout(30):
        while chain.restarts == restarts or chain.process_id is None:
            await asyncio.sleep(0.02)


def _digest_of(request: Any) -> bytes:
    result = compose(request.parent_a, request.parent_b, request.weight_a, 100 - request.weight_a)
    return content_id(result.weights.encode()).digest


async def test_a_chain_of_many_empty_blocks_is_read_in_pages_of_a_bounded_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public nodes refuse wide ranges: no request of the follower spans more than the limit."""
    one = weights(1)
    async with running_chain(tmp_path / "chain") as (_, factory):
        await blocks_after(factory, 20)
        await created(factory, one)
        widths: list[int] = []
        rpc: Any = factory._rpc
        ask: Callable[..., Awaitable[Any]] = rpc.request

        async def request(method: str, *params: Any) -> Any:
            if method == "eth_getLogs":
                widths.append(int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) + 1)
            return await ask(method, *params)

        monkeypatch.setattr(rpc, "request", request)
        async with following(tmp_path, factory, Peers(), 1) as node:
            await node.until(lambda: bool(node.database.picked_up_bytes()))
        assert max(widths) == 2
        assert sum(widths) >= 20
