"""Nothing a peer writes may stop a node: mutated frames on every protocol, then one honest exchange."""

import random
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from citrate_node.network.settings import BLOB_PROTOCOL, PEERS_PROTOCOL, REQUEST_PROTOCOL

TOPIC = "/citrate/test/1"


def gossip_frame(dice: random.Random) -> bytes:
    """A valid frame with something of everything."""
    rpc = rpc_pb2.RPC()
    rpc.subscriptions.add(subscribe=True, topicid=TOPIC)
    pair = create_new_key_pair(dice.randbytes(32))
    message = rpc_pb2.Message(
        data=dice.randbytes(50), topicIDs=[TOPIC], from_id=ID.from_pubkey(pair.public_key).to_bytes()
    )
    message.seqno = dice.randbytes(8)
    message.signature = pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    message.key = pair.public_key.serialize()
    rpc.publish.append(message)
    rpc.control.ihave.add(topicID=TOPIC, messageIDs=[dice.randbytes(46)])
    rpc.control.iwant.add(messageIDs=[dice.randbytes(46)])
    rpc.control.graft.add(topicID=TOPIC)
    rpc.control.prune.add(topicID="/another", backoff=3)
    rpc.control.idontwant.add(messageIDs=[dice.randbytes(46)])
    return bytes(encode_varint_prefixed(rpc.SerializeToString()))


SEEDS = {
    "/meshsub/1.1.0": gossip_frame,
    REQUEST_PROTOCOL: lambda dice: (200).to_bytes(4, "big") + dice.randbytes(200),
    BLOB_PROTOCOL: lambda dice: dice.randbytes(32) + (1_000).to_bytes(8, "big") + (10).to_bytes(8, "big"),
    PEERS_PROTOCOL: lambda dice: b"/ip4/127.0.0.1/tcp/4001/p2p/" + dice.randbytes(20) + b"\n",
    "/ipfs/id/push/1.0.0": lambda dice: b"\x10" + dice.randbytes(16),
    "/ipfs/ping/1.0.0": lambda dice: dice.randbytes(32),
}


def mutated(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(0, 6)):
        where = dice.randrange(len(changed) + 1)
        match dice.randrange(4):
            case 0 if changed:
                changed[where % len(changed)] ^= 1 << dice.randrange(8)
            case 1:
                del changed[where : where + dice.randint(1, 8)]
            case 2:
                changed[where:where] = dice.randbytes(dice.randint(1, 8))
            case _:
                changed[where : where + 4] = b"\xff\xff\xff\xff"
    return bytes(changed)


@pytest.mark.parametrize("protocol", SEEDS)
async def test_no_bytes_on_any_protocol_stop_the_node(
    start_node: Any, until: Any, meshed: Any, on_trio: Any, protocol: str
) -> None:
    dice = random.Random(protocol)
    victim = await start_node(
        1, score_max=1e9, useless_messages_max=10**9, requests_burst=10_000, blobs_at_once_per_peer=1_000
    )
    # it asks for the same messages again and again, and must not blame the victim for sending them
    attacker = await start_node(2, peers=victim.addresses, redial_ms=20, useless_messages_max=10**9)
    for node in (attacker, victim):
        await node.subscribe(TOPIC)
    await meshed(victim, TOPIC)

    async def attack() -> int:
        host, sent = attacker._parts.host, 0
        for _ in range(120):
            data = mutated(SEEDS[protocol](dice), dice)
            with trio.move_on_after(1):
                try:
                    peer = ID.from_base58(victim.peer_id)
                    stream = await host.new_stream(peer, [protocol])
                    await stream.write(data)
                    await (stream.close() if dice.random() < 0.7 else stream.reset())
                    sent += 1
                except Exception:
                    await trio.sleep(0.05)  # the connection may have gone: it is dialled again
        return sent

    assert await on_trio(attacker, attack) > 60
    assert victim._thread.running
    await until(lambda: victim.peer_id in attacker.connected_peers())
    assert await attacker.request(victim.peer_id, b"x") == b"answer to x"
    honest = await start_node(3, peers=victim.addresses)
    await honest.subscribe(TOPIC)
    await meshed(honest, TOPIC)
    await honest.publish(TOPIC, b"still here")
    while (await victim.inbox.get()).data != b"still here":
        pass


async def test_no_bytes_before_the_handshake_stop_the_node(start_node: Any) -> None:
    """Raw TCP: what comes before anybody has said who he is."""
    dice = random.Random(5)
    victim = await start_node(1, connections_per_ip_max=1_000)
    port = int(victim.addresses[0].split("/")[4])
    greeting = b"\x13/multistream/1.0.0\n\x07/noise\n" + (32).to_bytes(2, "big") + dice.randbytes(32)

    async def attack() -> None:
        for _ in range(60):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(mutated(greeting, dice))
                with trio.move_on_after(0.02):
                    await stream.receive_some(100)

    await victim._thread.call(attack)
    other = await start_node(2)
    await other.connect(victim.addresses[0])
    assert await other.request(victim.peer_id, b"x") == b"answer to x"
