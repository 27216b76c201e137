"""go-libp2p, as a real Kubo carries it, among our nodes: gossip to it, from it, and through it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from go_peer import GoPeer, go_peer, why_not
from interop_world import World, python_node, until, whole_checkpoint
from small_network import identity, signal, signed

from citrate_node.network.identity import peer_id_of
from citrate_node.network.libp2p_network import Libp2pNetwork
from citrate_node.protocol.topics import all_topics, topic_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no peer in Go: {why_not()}"),
]
GO = 2
"""The registered node whose key the peer in Go has."""


@dataclasses.dataclass
class Scene:
    """left – Go – right: our two nodes are not connected to each other."""

    world: World
    left: Libp2pNetwork
    right: Libp2pNetwork
    peer: GoPeer

    async def publish(self, topic: str, data: bytes) -> None:
        published = await self.peer.ask("publish", topic=topic, data=base64.b64encode(data).decode())
        assert published == 0


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = whole_checkpoint()
    topics = all_topics(world.state.network_id)
    async with AsyncExitStack() as stack:
        left, right = [await stack.enter_async_context(python_node(i, world)) for i in range(2)]
        peer = await stack.enter_async_context(go_peer(tmp_path / "kubo", identity(GO).seed, topics))
        assert await peer.ask("connect", address=left.addresses[0]) >= 0  # Go dials us
        await right.connect(peer.addresses[0])  # and we dial Go

        async def is_meshed() -> bool:
            meshes = [await node.mesh_peers(topic) for topic in topics for node in (left, right)]
            theirs = [await peer.ask("peers", topic=topic) for topic in topics]
            return all(meshes) and all(len(peers) == 2 for peers in theirs)

        await until(is_meshed, 40)
        yield Scene(world, left, right, peer)


async def test_every_kind_of_message_passes_through_it_between_two_of_our_nodes(scene: Scene) -> None:
    assert scene.peer.peer_id == peer_id_of(identity(GO).node_key)
    world = scene.world
    for message in world.messages:
        await scene.left.publish(topic_of(world.state.network_id, message.body), message.envelope)
    received = []
    for _ in world.messages:
        received.append(await asyncio.wait_for(scene.right.inbox.get(), 20))
    assert scene.left.connected_peers() == scene.right.connected_peers() == (scene.peer.peer_id,)
    assert {r.data for r in received} == {m.envelope for m in world.messages}
    assert {(r.peer_id, r.forwarder) for r in received} == {(scene.left.peer_id, scene.peer.peer_id)}
    heard: list[dict[str, Any]] = []

    async def has_heard_all() -> bool:
        heard.extend(await scene.peer.heard())
        return len(heard) >= len(world.messages)

    await until(has_heard_all)
    assert {h["data"] for h in heard} == {m.envelope for m in world.messages}
    assert {h["from"] for h in heard} == {scene.left.peer_id}
    for node in (scene.left, scene.right):
        assert node.counters().get("penalties", 0) == 0


async def test_what_it_publishes_reaches_our_nodes_with_numbers_that_grow(scene: Scene) -> None:
    world = scene.world
    mine = [m for m in world.messages if m.author == identity(GO).node_key]
    assert len(mine) >= 3
    for message in mine:
        await scene.publish(topic_of(world.state.network_id, message.body), message.envelope)
    for node in (scene.left, scene.right):
        received = [await asyncio.wait_for(node.inbox.get(), 20) for _ in mine]
        assert {(r.peer_id, r.data) for r in received} == {(scene.peer.peer_id, m.envelope) for m in mine}
        assert node.counters().get("penalties", 0) == 0
    numbers = [h["seqno"] for h in await scene.peer.heard()]
    assert len(set(numbers)) == len(mine)


async def test_what_is_wrong_goes_no_further_than_the_first_of_our_nodes(scene: Scene) -> None:
    """It has no validator: what it hands over that is wrong costs it points, and our nodes stay whole."""
    world = scene.world
    name = world.state.network_id
    topic = topic_of(name, world.messages[0].body)
    foreign = dataclasses.replace(world.messages[0].body, network_id=bytes(32))
    for data in (b"", b"\xff" * 100, signed(0, foreign).envelope):
        await scene.publish(topic, data)
    fresh = signal(world.state, GO, b"other delta")
    await scene.publish(topic, fresh.envelope)
    for node in (scene.left, scene.right):
        assert (await asyncio.wait_for(node.inbox.get(), 20)).data == fresh.envelope
        assert node.counters()["messages_invalid"] == 3
        assert node.connected_peers() == (scene.peer.peer_id,)
