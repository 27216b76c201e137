"""Gossip that a peer attacks: each of these fails without its remedy in gossip.py."""

import asyncio
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from citrate_node.network import gossip

TOPIC = "/citrate/test/1"
MESHSUB = "/meshsub/1.1.0"


@pytest.fixture
async def attacked(start_node: Any, until: Any, meshed: Any) -> tuple[Any, Any]:
    """(attacker, victim), connected and gossiping; the victim blocks slowly."""
    victim = await start_node(1, score_max=1_000_000)
    attacker = await start_node(2, peers=victim.addresses)
    for node in (attacker, victim):
        await node.subscribe(TOPIC)
    await meshed(victim, TOPIC)
    return attacker, victim


@pytest.fixture
def send(attacked: Any, raw_stream: Any, on_trio: Any) -> Any:
    """`await send(bytes or RPC)`: the attacker writes to the victim's gossip stream handler."""
    attacker, victim = attacked

    async def write(what: Any) -> None:
        data = what if isinstance(what, bytes) else encode_varint_prefixed(what.SerializeToString())
        stream = await raw_stream(attacker, victim, MESHSUB)

        async def write_it() -> None:
            await stream.write(data)
            await stream.close()

        await on_trio(attacker, write_it)

    return write


def control(**entries: Any) -> Any:
    rpc = rpc_pb2.RPC()
    for kind, values in entries.items():
        for value in values:
            getattr(rpc.control, kind).add(**value)
    return rpc


async def still_gossips(attacked: Any, meshed: Any) -> bool:
    attacker, victim = attacked
    await meshed(victim, TOPIC)
    await meshed(attacker, TOPIC)
    await attacker.publish(TOPIC, b"still here")
    return (await asyncio.wait_for(victim.inbox.get(), 10)).data == b"still here"


MALFORMED = {
    "no protobuf": encode_varint_prefixed(b"\xff" * 100),
    "a frame of 4 GiB": b"\xff\xff\xff\xff\x0f" + bytes(100),
    "a frame just above the limit": b"\x81\x80\x40" + bytes(100),
    "a length that never ends": b"\xff" * 20,
    "ten thousand messages": encode_varint_prefixed(b"\x12\x00" * 10_000),
    "a thousand control messages": encode_varint_prefixed(
        control(graft=[{"topicID": "x"}] * 1_000).SerializeToString()
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_frame_costs_its_sender_points_and_the_node_nothing(
    attacked: Any, send: Any, until: Any, meshed: Any, name: str
) -> None:
    """Bare, the first of these ends the host."""
    _, victim = attacked
    await send(MALFORMED[name])
    await until(lambda: victim.counters().get("frames_malformed") == 1)
    assert victim.counters()["penalties"] == 1
    assert await still_gossips(attacked, meshed)


@pytest.mark.parametrize(
    "what", ["garbage key", "no key", "wrong signature", "no signature", "short number", "two topics"]
)
async def test_a_message_with_a_wrong_envelope_is_invalid_and_nothing_else(
    attacked: Any, send: Any, until: Any, meshed: Any, what: str
) -> None:
    """Bare, a garbage key ends the host."""
    _, victim = attacked
    pair = create_new_key_pair(bytes(32))
    message = rpc_pb2.Message(
        data=b"x", topicIDs=[TOPIC], from_id=ID.from_pubkey(pair.public_key).to_bytes(), seqno=bytes(8)
    )
    message.signature = pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    if what in ("garbage key", "no key"):
        message.from_id = bytes.fromhex("1220") + bytes(32)  # a hash: the key must come along
        message.key = b"garbage" if what == "garbage key" else b""
    elif what == "wrong signature":
        message.signature = bytes(64)
    elif what == "no signature":
        message.signature = b""
    elif what == "short number":
        message.seqno = b"\x01"
    else:
        message.topicIDs.append("another")
    await send(rpc_pb2.RPC(publish=[message]))
    if what != "two topics":  # which we never sent and never ask for: left alone
        await until(lambda: victim.counters().get("messages_invalid") == 1)
    assert await still_gossips(attacked, meshed)
    assert victim.counters()["messages_received"] == 1


async def test_a_validator_that_raises_refuses_the_message_and_the_node_lives(
    start_node: Any, until: Any, meshed: Any
) -> None:
    def validate(topic: str, data: bytes) -> bool:
        if data == b"trap":
            raise KeyError("validator broke")
        return True

    victim = await start_node(1, validate=validate)
    attacker = await start_node(2, peers=victim.addresses)
    for node in (attacker, victim):
        await node.subscribe(TOPIC)
    await meshed(victim, TOPIC)
    await attacker.publish(TOPIC, b"trap")
    await until(lambda: victim.counters().get("messages_invalid") == 1)
    assert await still_gossips((attacker, victim), meshed)


async def test_a_message_above_the_limit_is_invalid_whoever_signed_it(
    start_node: Any, until: Any, meshed: Any
) -> None:
    victim = await start_node(1, message_size_bytes_max=1_000)
    attacker = await start_node(2, peers=victim.addresses, message_size_bytes_max=2_000)
    for node in (attacker, victim):
        await node.subscribe(TOPIC)
    await meshed(victim, TOPIC)
    await attacker.publish(TOPIC, bytes(1_001))
    await until(lambda: victim.counters().get("messages_invalid") == 1)
    assert await still_gossips((attacker, victim), meshed)


async def test_control_messages_about_invented_topics_leave_no_trace(
    attacked: Any, send: Any, on_trio: Any, meshed: Any
) -> None:
    _, victim = attacked
    router = victim._parts.router
    names = [f"/invented/{number}" for number in range(60)]
    for kind in ("graft", "prune", "ihave"):
        await send(control(**{kind: [{"topicID": name} for name in names]}))
    assert await still_gossips(attacked, meshed)

    async def remembered() -> set[str]:
        topics = set(router.back_off) | set(router.mesh) | set(router.fanout)
        for table in (router.graft_flood_tracking, router.ihave_message_limits):
            for by_topic in table.values():
                topics |= set(by_topic)
        return topics & set(names)

    assert await on_trio(victim, remembered) == set()


async def test_a_graft_of_a_topic_that_is_not_joined_yet_is_not_answered(
    attacked: Any, send: Any, meshed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bare, the answer is a PRUNE, and neither side lets the other into the mesh for a minute."""
    pruned: list[str] = []
    push = gossip.SendQueue.push

    def watch(self: Any, rpc: Any, priority: bool = False) -> bool:
        pruned.extend(prune.topicID for prune in rpc.control.prune)
        return push(self, rpc, priority)

    monkeypatch.setattr(gossip.SendQueue, "push", watch)
    await send(control(graft=[{"topicID": "/citrate/later/1"}]))
    await send(control(graft=[{"topicID": TOPIC}]))
    assert await still_gossips(attacked, meshed)
    assert pruned == []


async def test_a_prune_makes_the_node_dial_nobody(
    attacked: Any, send: Any, until: Any, meshed: Any, start_node: Any
) -> None:
    """Bare, a PRUNE may carry addresses, and they are dialled."""
    server_hit = asyncio.Event()
    server = await asyncio.start_server(lambda reader, writer: server_hit.set(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    from libp2p.peer.envelope import seal_record
    from libp2p.peer.peer_record import PeerRecord
    from multiaddr import Multiaddr

    pair = create_new_key_pair(b"\x07" * 32)
    peer = ID.from_pubkey(pair.public_key)
    record = seal_record(PeerRecord(peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]), pair.private_key)
    rpc = rpc_pb2.RPC()
    prune = rpc.control.prune.add(topicID=TOPIC, backoff=1)
    prune.peers.add(peerID=peer.to_bytes(), signedPeerRecord=record.marshal_envelope())
    await send(rpc)
    await asyncio.sleep(0.5)
    server.close()
    assert not server_hit.is_set()


async def test_one_message_asked_for_a_thousand_times_is_sent_once(
    attacked: Any, send: Any, until: Any, on_trio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker, victim = attacked
    await victim.publish(TOPIC, bytes(50_000))
    assert len((await asyncio.wait_for(attacker.inbox.get(), 10)).data) == 50_000

    async def cached() -> list[bytes]:
        return list(victim._parts.router.mcache.msgs)

    (message_id,) = await on_trio(victim, cached)
    sent: list[int] = []
    push = gossip.SendQueue.push

    def watch(self: Any, rpc: Any, priority: bool = False) -> bool:
        sent.append(len(rpc.publish))
        return push(self, rpc, priority)

    monkeypatch.setattr(gossip.SendQueue, "push", watch)
    await send(control(iwant=[{"messageIDs": [message_id] * 1_000}]))
    await until(lambda: sum(sent) >= 1)
    await asyncio.sleep(0.1)
    assert sum(sent) == 1


async def test_a_mesh_that_lost_a_peer_finds_it_again_by_the_next_heartbeats(
    attacked: Any, on_trio: Any, meshed: Any
) -> None:
    """Bare, the next heartbeat may be two minutes away, or thirty seconds once gossip has 'adapted'."""
    left, right = attacked

    async def forget(node: Any) -> None:
        node._parts.router.mesh[TOPIC].clear()

    for node in (left, right):
        await on_trio(node, lambda node=node: forget(node))
    async with asyncio.timeout(5):
        await meshed(left, TOPIC)
        await meshed(right, TOPIC)

    async def adapt() -> int:
        router = left._parts.router
        router.network_health_score = 0.27  # what the library makes of a small, healthy network
        if router.adaptive_gossip_enabled:
            router._adapt_gossip_parameters()
        return int(router.heartbeat_interval)

    assert await on_trio(left, adapt) == 1


async def test_payloads_are_not_kept_after_they_have_been_passed_on(
    attacked: Any, on_trio: Any, until: Any
) -> None:
    """Bare, a thousand whole messages stay in memory, and a time for every message ever."""
    attacker, victim = attacked
    for number in range(50):
        await attacker.publish(TOPIC, bytes((number,)) * 1_000)
    await until(lambda: victim.counters().get("messages_received") == 50)

    async def kept() -> tuple[int, int]:
        router = victim._parts.router
        return len(router.equivocation_detection), sum(map(len, router.recent_message_deliveries.values()))

    assert await on_trio(victim, kept) == (0, 0)


async def test_a_heartbeat_that_fails_is_followed_by_another(attacked: Any, on_trio: Any, until: Any) -> None:
    _, victim = attacked
    router = victim._parts.router
    beats = 0
    mesh_heartbeat = router.mesh_heartbeat

    def fail_once() -> Any:
        nonlocal beats
        beats += 1
        if beats == 1:
            raise RuntimeError("heartbeat broke")
        return mesh_heartbeat()

    router.mesh_heartbeat = fail_once
    await until(lambda: beats >= 2)
    assert victim._thread.running


async def test_a_peer_that_floods_is_blocked_while_an_honest_one_is_heard(
    start_node: Any, until: Any, meshed: Any
) -> None:
    """Valid messages, too many of them: read ever more slowly, and cut off when it does not end."""
    settings = {"messages_per_second": 100, "messages_burst": 100, "score_max": 8.0}
    victim = await start_node(1, **settings)
    flooder = await start_node(2, peers=victim.addresses, connections_wanted=1)
    honest = await start_node(3, peers=victim.addresses, connections_wanted=1)
    for node in (victim, flooder, honest):
        await node.subscribe(TOPIC)
    await meshed(victim, TOPIC, 2)
    await meshed(honest, TOPIC)
    heard: list[bytes] = []

    async def listen() -> None:
        while True:
            received = await victim.inbox.get()
            if received.peer_id == honest.peer_id:
                heard.append(received.data)

    async def flood() -> None:
        while victim.counters().get("blocks", 0) == 0:
            for _ in range(50):
                await flooder.publish(TOPIC, b"noise" * 20)
            await asyncio.sleep(0.05)

    listening = asyncio.create_task(listen())
    flooding = asyncio.create_task(flood())
    said = []
    while not flooding.done():
        said.append(b"%d" % len(said))
        await honest.publish(TOPIC, said[-1])
        await asyncio.sleep(0.1)
    await flooding
    await until(lambda: victim.connected_peers() == (honest.peer_id,))
    await until(lambda: heard == said)
    listening.cancel()
    assert len(said) > 10


async def test_a_send_queue_is_bounded_in_bytes_and_empties_again() -> None:
    def rpc(size_bytes: int) -> Any:
        return rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(size_bytes))], senderRecord=b"x" * 300)

    def fill_and_empty() -> tuple[int, int]:
        queue = gossip.SendQueue()
        pushed = 0
        while queue.push(rpc(1 << 20)):
            pushed += 1
        small = sum(queue.push(rpc(10)) for _ in range(2_000))

        async def drain() -> None:
            for _ in range(pushed + small):
                assert not (await queue.pop()).HasField("senderRecord")
            assert queue.push(rpc(1 << 20))

        trio.run(drain)
        return pushed, small

    pushed, small = await asyncio.to_thread(fill_and_empty)
    assert pushed == gossip.QUEUED_BYTES_MAX // (1 << 20) - 1
    assert small == gossip.QUEUED_MESSAGES_MAX - pushed


async def test_address_records_in_frames_are_neither_sent_nor_believed(
    attacked: Any, send: Any, meshed: Any, on_trio: Any
) -> None:
    """They cost each receiver two signature checks a frame; the library drops the frame when one is wrong."""
    _, victim = attacked
    pair = create_new_key_pair(b"\x05" * 32)
    message = rpc_pb2.Message(
        data=b"genuine", topicIDs=[TOPIC], from_id=ID.from_pubkey(pair.public_key).to_bytes(), seqno=bytes(8)
    )
    message.signature = pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    await send(rpc_pb2.RPC(publish=[message], senderRecord=b"garbage"))
    assert (await asyncio.wait_for(victim.inbox.get(), 10)).data == b"genuine"
    assert await still_gossips(attacked, meshed)
