"""A peer in JavaScript, written from docs/protocol.md alone, among our nodes: does the document suffice?"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from interop_world import World, python_node, until, whole_checkpoint
from js_peer import JsPeer, js_peer, why_not
from small_network import CHAIN, GENESIS_RECORD, identity, signed

from citrate_node.network.libp2p_network import Libp2pNetwork
from citrate_node.network.settings import BlobStatus, NetworkConfig
from citrate_node.protocol.messages import Vote
from citrate_node.protocol.topics import all_topics, topic_of
from citrate_node.runtime.opened import OpenedMessages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no JavaScript peer: {why_not()}"),
]


@dataclasses.dataclass
class Scene:
    """left – JavaScript – right: the two Python nodes are not connected to each other."""

    world: World
    left: Libp2pNetwork
    right: Libp2pNetwork
    peer: JsPeer


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    world = whole_checkpoint()
    async with AsyncExitStack() as stack:
        left, right = [await stack.enter_async_context(python_node(i, world)) for i in range(2)]
        known = (left.addresses[0], right.addresses[0])
        peer = await stack.enter_async_context(js_peer(world.state.network_id, known))

        async def is_meshed() -> bool:
            topics = all_topics(world.state.network_id)
            meshes = [await node.mesh_peers(topic) for topic in topics for node in (left, right)]
            theirs = await peer.ask("mesh")
            return all(meshes) and all(theirs.get(topic) == 2 for topic in topics)

        await until(is_meshed)
        yield Scene(world, left, right, peer)


async def test_it_verifies_every_kind_of_message_and_relays_between_nodes_that_are_not_connected(
    scene: Scene,
) -> None:
    world = scene.world
    for message in world.messages:
        await scene.left.publish(topic_of(world.state.network_id, message.body), message.envelope)
    received = []
    for _ in world.messages:
        received.append(await asyncio.wait_for(scene.right.inbox.get(), 20))
    assert scene.left.connected_peers() == scene.right.connected_peers() == (scene.peer.peer_id,)
    assert {r.data for r in received} == {m.envelope for m in world.messages}
    assert {(r.peer_id, r.forwarder) for r in received} == {(scene.left.peer_id, scene.peer.peer_id)}
    assert {bytes.fromhex(h["id"]) for h in scene.peer.heard} == {m.id for m in world.messages}
    assert {h["kind"] for h in scene.peer.heard} == {1, 2, 3, 4, 5}
    assert {h["origin"] for h in scene.peer.heard} == {scene.left.peer_id}
    for node in (scene.left, scene.right):
        assert node.counters().get("penalties", 0) == 0


async def test_its_own_messages_reach_our_nodes(scene: Scene) -> None:
    message = scene.world.messages[0]
    await scene.peer.ask("publish", kind=1, envelope=message.envelope.hex())
    for node in (scene.left, scene.right):
        received = await asyncio.wait_for(node.inbox.get(), 20)
        assert (received.peer_id, received.data) == (scene.peer.peer_id, message.envelope)


async def test_what_the_document_calls_invalid_it_refuses_as_we_do(scene: Scene) -> None:
    """Another network, a wrong signature, another kind's topic, bytes behind the end: nothing is relayed."""
    world = scene.world
    name, first = world.state.network_id, world.messages[0]
    foreign = dataclasses.replace(first.body, network_id=bytes(32))
    wrong = [
        signed(0, foreign).envelope,
        first.envelope[:-1] + bytes((first.envelope[-1] ^ 1,)),
        world.messages[-1].envelope,  # a vote, on the topic of signals
        first.envelope + b"\0",
        b"",
    ]
    opened = OpenedMessages(name)
    topic = topic_of(name, first.body)
    assert [opened.validate(topic, data) for data in wrong] == [False] * len(wrong)
    for data in wrong:
        await scene.left.publish(topic, data)
    await scene.left.publish(topic, first.envelope)
    assert (await asyncio.wait_for(scene.right.inbox.get(), 20)).data == first.envelope
    assert ["error" in h for h in scene.peer.heard] == [True] * len(wrong) + [False]
    assert scene.right.counters().get("messages_invalid", 0) == 0


async def test_it_fetches_a_delta_checks_its_hash_and_is_told_what_is_withheld_or_not_here(
    scene: Scene,
) -> None:
    seen = {}
    signals = {m.id: m.body for m in scene.world.messages if hasattr(m.body, "delta_hash")}
    for signal_id in scene.world.record.signals:
        body = signals[signal_id]
        seen[signal_id] = await scene.peer.ask(
            "fetch",
            peer=scene.left.peer_id,
            digest=body.delta_hash.hex(),  # type: ignore[union-attr]
            size=body.delta_size_bytes,  # type: ignore[union-attr]
        )
    first, *others = [seen[i] for i in scene.world.record.signals]
    assert first["status"] == BlobStatus.WITHHELD
    assert [(answer["status"], answer["right"]) for answer in others] == [(BlobStatus.FOUND, True)] * 3
    strange = await scene.peer.ask("fetch", peer=scene.left.peer_id, digest="ab" * 32, size=5)
    assert strange["status"] == BlobStatus.NOT_HERE


async def test_it_catches_up_by_set_difference_and_reads_the_record(scene: Scene) -> None:
    held = sorted(m.id for m in scene.world.messages)[::2]
    answer = await scene.peer.ask(
        "messages", peer=scene.right.peer_id, checkpoint=1, have=[i.hex() for i in held]
    )
    expected = {m.id for m in scene.world.messages} - set(held)
    assert {bytes.fromhex(m["id"]) for m in answer["messages"]} == expected
    name = scene.world.record.hash.hex()
    record = await scene.peer.ask("record", peer=scene.right.peer_id, hash=name)
    assert (record["found"], record["right"]) == (True, True)
    assert record["record"]["weights_hash"] == scene.world.record.weights_hash.hex()
    assert await scene.peer.ask("record", peer=scene.right.peer_id, hash="00" * 32) == {
        "event": "answer",
        "found": False,
    }


async def test_it_recovers_the_accounts_of_the_votes_and_the_names_of_network_and_committee(
    scene: Scene,
) -> None:
    state, record = scene.world.state, scene.world.record
    recovered = []
    for message in scene.world.messages:
        if isinstance(message.body, Vote):
            answer = await scene.peer.ask(
                "vote",
                record=record.encode().hex(),
                round=message.body.round,
                signature=message.body.account_signature.hex(),
                chainId=CHAIN.chain_id,
                contract=CHAIN.contract.hex(),
            )
            recovered.append(answer["account"])
    assert recovered == [identity(i).account.hex() for i in range(4)]
    seats = [
        {"node_key": v.node_key.hex(), "account": v.account.hex(), "stake": v.stake} for v in state.committee
    ]
    committee = await scene.peer.ask("validators", validators=seats)
    assert committee["hash"] == record.validator_set_hash.hex()
    name = await scene.peer.ask(
        "network",
        chainId=CHAIN.chain_id,
        genesisBlockHash=bytes(32).hex(),
        contract=CHAIN.contract.hex(),
        genesisRecordHash=GENESIS_RECORD.hex(),
        preset=dataclasses.asdict(state.preset),
    )
    assert name["id"] == state.network_id.hex()


async def test_it_asks_for_peers_and_whom_it_told_of_itself_tells_others(scene: Scene) -> None:
    """Its own address, which it tells when it asks, is passed on; the asker is never told of itself."""
    assert (await scene.peer.ask("peers", peer=scene.left.peer_id))["addresses"] == []
    newcomer = NetworkConfig(identity_seed=identity(9).seed, peers=scene.left.addresses)
    async with Libp2pNetwork(
        newcomer, validate=lambda topic, data: True, find_blob=lambda digest, size: None, answer=_no_answer
    ) as node:

        async def knows_it() -> bool:
            return scene.peer.peer_id in node.connected_peers()

        await until(knows_it)


async def _no_answer(peer: str, payload: bytes) -> bytes:
    return b""
