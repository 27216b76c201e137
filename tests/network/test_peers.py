"""Connections: redial, peer exchange, blocking, ports, and nothing left behind."""

import asyncio
import contextlib
import os
import threading
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.network.settings import PEERS_PROTOCOL, PeerFailed

TOPIC = "/citrate/test/1"


async def test_nodes_that_know_one_address_find_each_other(start_node: Any, until: Any) -> None:
    first = await start_node(1)
    nodes = [await start_node(number, peers=first.addresses) for number in (2, 3, 4)]
    everybody = {node.peer_id for node in (first, *nodes)}
    for node in (first, *nodes):
        await until(lambda node=node: {node.peer_id, *node.connected_peers()} == everybody)


async def test_only_as_many_found_peers_are_dialled_as_are_wanted(start_node: Any, until: Any) -> None:
    first = await start_node(1, connections_wanted=1)
    nodes = [
        await start_node(number, peers=first.addresses, connections_wanted=1, peer_exchange_ms=200)
        for number in (2, 3, 4)
    ]
    await until(lambda: len(first.connected_peers()) == 3)
    await asyncio.sleep(1.0)  # several exchanges
    assert [node.connected_peers() for node in nodes] == [(first.peer_id,)] * 3


async def test_a_peer_that_comes_back_is_redialled_and_heard(
    start_node: Any, build_node: Any, until: Any, meshed: Any
) -> None:
    """Three times, since each reconnection is another chance to keep a dead stream."""
    first = build_node(1)
    await first.start()
    other = await start_node(2, peers=first.addresses)
    await other.subscribe(TOPIC)
    listen = first.addresses[0].partition("/p2p/")[0]
    for number in range(3):
        await first.subscribe(TOPIC)
        await meshed(first, TOPIC)
        await meshed(other, TOPIC)
        await first.publish(TOPIC, b"out %d" % number)
        await other.publish(TOPIC, b"back %d" % number)
        assert (await asyncio.wait_for(other.inbox.get(), 10)).data == b"out %d" % number
        while (await asyncio.wait_for(first.inbox.get(), 10)).data != b"back %d" % number:
            pass  # a peer that was away is told the messages of the last seconds again
        await first.stop()
        await until(lambda: other.connected_peers() == ())
        first = build_node(1, listen=listen)
        await first.start()
    await first.stop()


async def test_a_node_that_is_back_before_its_old_connection_has_closed_is_greeted_anew(
    start_node: Any, build_node: Any, meshed: Any
) -> None:
    """The gossip stream died with the old connection, the peer's subscriptions came over the new one.

    Bare, the peer counts as greeted because of the first and is forgotten because of its end: the restarted
    node never learns who listens, and publishes to nobody.
    """
    node = await start_node(1)
    await node.subscribe(TOPIC)
    other = build_node(2, peers=node.addresses)
    await other.start()
    await other.subscribe(TOPIC)
    for number in range(5):
        await meshed(node, TOPIC)
        await meshed(other, TOPIC)
        leaving, other = other, build_node(2, peers=node.addresses)
        farewell = asyncio.create_task(leaving.stop())
        await asyncio.sleep(0.02 * number)
        await other.start()
        await other.subscribe(TOPIC)
        await farewell
    await meshed(node, TOPIC)
    await meshed(other, TOPIC)
    await other.publish(TOPIC, b"back")
    await node.publish(TOPIC, b"welcome")
    assert (await asyncio.wait_for(node.inbox.get(), 5)).data == b"back"
    assert (await asyncio.wait_for(other.inbox.get(), 5)).data == b"welcome"
    await other.stop()


async def test_a_second_connection_takes_over_gossip_when_the_first_one_ends(
    start_node: Any, meshed: Any, until: Any, on_trio: Any
) -> None:
    """Two nodes that dialled each other have two; bare, gossip stays tied to the first and dies with it."""
    left = await start_node(1)
    right = await start_node(2, peers=left.addresses)
    for node in (left, right):
        await node.subscribe(TOPIC)
    await meshed(left, TOPIC)
    transport, _, peer_id = left.addresses[0].partition("/p2p/")
    swarm = right._parts.host.get_network()

    async def replace() -> None:
        (old,) = swarm.get_connections(ID.from_base58(peer_id))
        await swarm.dial_addr(Multiaddr(transport), ID.from_base58(peer_id))
        await trio.sleep(0.2)
        await old.close()

    async def reached(node: Any) -> list[bool]:
        pubsub = node._parts.pubsub
        listeners = pubsub.peer_topics.get(TOPIC, set()) & pubsub.peers.keys()
        return [not pubsub.peers[peer].muxed_conn.is_closed for peer in listeners]

    async def are_renewed() -> bool:
        return [await on_trio(node, lambda node=node: reached(node)) for node in (left, right)] == [
            [True]
        ] * 2

    await on_trio(right, replace)
    await until(are_renewed, seconds=5)
    await meshed(left, TOPIC)
    await meshed(right, TOPIC)
    await left.publish(TOPIC, b"from left")
    assert (await asyncio.wait_for(right.inbox.get(), 5)).data == b"from left"


async def test_a_node_that_is_back_at_once_without_its_topics_is_no_longer_sent_them(
    start_node: Any, build_node: Any, meshed: Any, until: Any
) -> None:
    node = await start_node(1)
    await node.subscribe(TOPIC)
    other = build_node(2, peers=node.addresses)
    await other.start()
    await other.subscribe(TOPIC)
    await meshed(node, TOPIC)
    farewell = asyncio.create_task(other.stop())
    await start_node(2, peers=node.addresses)
    await farewell
    await asyncio.sleep(1.5)  # a heartbeat would graft whoever counts as a subscriber
    assert node.connected_peers() == (other.peer_id,)
    assert await node.mesh_peers(TOPIC) == ()


async def test_a_blocked_peer_is_disconnected_refused_and_let_in_again(
    start_node: Any, until: Any, meshed: Any
) -> None:
    node = await start_node(1)
    other = await start_node(2, peers=node.addresses)
    await until(lambda: node.connected_peers() == (other.peer_id,))
    node.block_peer(other.peer_id)
    await until(lambda: node.connected_peers() == ())
    await until(lambda: node.counters().get("connections_refused", 0) >= 2)
    assert node.connected_peers() == ()
    with pytest.raises(PeerFailed, match="is blocked"):
        await node.connect(other.addresses[0])
    node.unblock_peer(other.peer_id)
    await until(lambda: node.connected_peers() == (other.peer_id,))


async def test_messages_of_a_blocked_publisher_are_dropped_though_others_forward_them(
    start_node: Any, until: Any, meshed: Any
) -> None:
    middle = await start_node(1)
    settings = {"peers": middle.addresses, "connections_wanted": 1}
    left, right = await start_node(2, **settings), await start_node(3, **settings)
    for node in (left, middle, right):
        await node.subscribe(TOPIC)
    await meshed(middle, TOPIC, 2)
    right.block_peer(left.peer_id)
    await left.publish(TOPIC, b"unwanted")
    await middle.publish(TOPIC, b"wanted")
    assert (await asyncio.wait_for(right.inbox.get(), 10)).data == b"wanted"
    await until(lambda: right.counters().get("messages_refused") == 1)
    assert "penalties" not in right.counters(), "the one who forwarded is not to blame"


async def test_misbehaviour_that_the_node_reports_adds_up_to_a_block(start_node: Any, until: Any) -> None:
    node = await start_node(1)
    other = await start_node(2, peers=node.addresses)
    await until(lambda: node.connected_peers() == (other.peer_id,))
    node.report_misbehaviour(other.peer_id, 60.0, "vote for a checkpoint of another network")
    await asyncio.sleep(0.3)
    assert node.connected_peers() == (other.peer_id,)
    node.report_misbehaviour(other.peer_id, 60.0, "again")
    await until(lambda: node.connected_peers() == ())


async def test_a_second_node_on_the_port_is_refused_and_told_which(start_node: Any, build_node: Any) -> None:
    """Bare, both would listen and take each other's connections."""
    node = await start_node(1)
    listen = node.addresses[0].partition("/p2p/")[0]
    port = listen.rpartition("/")[2]
    with pytest.raises(
        ServiceError, match=rf"cannot listen on port {port} of 127.0.0.1: Address already in use"
    ):
        await build_node(2, listen=listen).start()


@pytest.mark.parametrize("listen", ["nonsense", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1"])
async def test_an_address_that_cannot_be_listened_on_is_the_operators_fault(
    build_node: Any, listen: str
) -> None:
    with pytest.raises(ConfigError, match=r"network\.listen = "):
        await build_node(1, listen=listen).start()


async def test_a_wrong_peer_address_stops_the_start_and_says_so(build_node: Any) -> None:
    with pytest.raises(ConfigError, match="is not the address of a peer"):
        await build_node(1, peers=("/ip4/127.0.0.1/tcp/1",)).start()


async def test_a_peer_is_refused_that_is_not_the_one_the_address_names(
    start_node: Any, node_peer_id: Any
) -> None:
    node, other = await start_node(1), await start_node(2)
    transport = other.addresses[0].partition("/p2p/")[0]
    with pytest.raises(PeerFailed, match="cannot connect"):
        await node.connect(f"{transport}/p2p/{node_peer_id(3)}")
    assert await node.connect(other.addresses[0]) == other.peer_id


async def test_addresses_that_a_peer_invents_are_dialled_and_told_to_nobody(
    start_node: Any, until: Any, node_peer_id: Any
) -> None:
    victim = await start_node(1, peer_exchange_ms=200)
    liar = await start_node(2, peers=victim.addresses)
    await until(lambda: victim.connected_peers() == (liar.peer_id,))
    invented = {
        node_peer_id(number): f"/ip4/127.0.0.1/tcp/9/p2p/{node_peer_id(number)}" for number in range(9, 29)
    }

    async def tell_lies(stream: Any) -> None:
        await stream.write("\n".join([*invented.values(), "nonsense", "", "é"]).encode("latin-1"))
        await stream.close()

    liar._thread.run_soon(liar._parts.host.set_stream_handler, PEERS_PROTOCOL, tell_lies)

    async def known(node: Any) -> set[str]:
        return set(node._parts.peers._known)

    async def has_learned() -> bool:
        return await victim._thread.call(known, victim) >= invented.keys()

    await until(has_learned)
    await until(lambda: victim.counters().get("dials_failed", 0) >= len(invented))
    honest = await start_node(3, peers=victim.addresses)
    await until(lambda: liar.peer_id in honest.connected_peers())
    assert await honest._thread.call(known, honest) == {victim.peer_id, liar.peer_id}


async def test_a_peer_that_calls_tells_its_own_address_and_nobody_elses(
    start_node: Any, until: Any, node_peer_id: Any
) -> None:
    node = await start_node(1)
    caller = await start_node(2, peers=node.addresses, peer_exchange_ms=1_000_000)
    await until(lambda: node.connected_peers() == (caller.peer_id,))
    stranger = f"/ip4/127.0.0.1/tcp/9/p2p/{node_peer_id(9)}"

    async def call() -> None:
        peer = next(iter(caller._parts.host.get_network().connections))
        stream = await caller._parts.host.new_stream(peer, [PEERS_PROTOCOL])
        await stream.write("\n".join([stranger, *caller.addresses]).encode())
        await stream.close_write()
        await stream.read(100)

    async def known() -> set[str]:
        return set(node._parts.peers._known)

    with contextlib.suppress(Exception):  # the answer is an empty list, which reads as the stream's end
        await caller._thread.call(call)
    assert await node._thread.call(known) == {caller.peer_id}


async def test_an_endless_list_of_peers_is_cut_off_and_blamed(start_node: Any, until: Any) -> None:
    victim = await start_node(1)
    attacker = await start_node(2, peers=victim.addresses)
    await until(lambda: victim.connected_peers() == (attacker.peer_id,))

    async def attack() -> None:
        peer = next(iter(attacker._parts.host.get_network().connections))
        stream = await attacker._parts.host.new_stream(peer, [PEERS_PROTOCOL])
        await stream.write(b"x" * 100_000)

    await attacker._thread.call(attack)
    await until(lambda: victim.counters().get("penalties") == 1)


async def test_starting_and_stopping_leaves_no_thread_and_no_socket_behind(
    build_node: Any, until: Any, meshed: Any
) -> None:
    async def cycle() -> None:
        left = build_node(1)
        await left.start()
        right = build_node(2, peers=left.addresses)
        await right.start()
        for node in (left, right):
            await node.subscribe(TOPIC)
        await meshed(left, TOPIC)
        await right.request(left.peer_id, b"x")
        await right.stop()
        await left.stop()

    def sockets_and_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def threads() -> list[str]:  # trio keeps idle worker threads for ten seconds, shared by all runs
        return sorted(t.name for t in threading.enumerate() if not t.name.startswith("trio.to_thread"))

    await cycle()
    before = sockets_and_files(), threads()
    for _ in range(5):
        await cycle()
    assert (sockets_and_files(), threads()) == before
