"""Gossip between nodes on loopback: relay, validation, bounds, restarts."""

import asyncio
from typing import Any

import pytest

from citrate_node.network.settings import NetworkStopped, Received

TOPIC = "/citrate/test/1"


async def next_message(node: Any) -> Received:
    return await asyncio.wait_for(node.inbox.get(), 10)


async def test_a_message_reaches_a_node_that_is_connected_only_through_another(
    start_node: Any, meshed: Any
) -> None:
    """The middle relays; the message names its publisher as origin and the middle as forwarder."""
    middle = await start_node(1)
    settings = {"peers": middle.addresses, "connections_wanted": 1}  # so that the ends do not find each other
    left, right = await start_node(2, **settings), await start_node(3, **settings)
    for node in (left, middle, right):
        await node.subscribe(TOPIC)
    await meshed(middle, TOPIC, 2)
    await left.publish(TOPIC, b"hello")
    assert await next_message(right) == Received(TOPIC, left.peer_id, middle.peer_id, b"hello")
    assert await next_message(middle) == Received(TOPIC, left.peer_id, left.peer_id, b"hello")
    assert left.inbox.empty()


async def test_a_message_that_the_validator_refuses_is_neither_delivered_nor_forwarded(
    start_node: Any, meshed: Any
) -> None:
    def validate(topic: str, data: bytes) -> bool:
        return not data.startswith(b"bad")

    middle = await start_node(1, validate=validate)
    settings = {"peers": middle.addresses, "connections_wanted": 1}
    left, right = await start_node(2, **settings), await start_node(3, **settings)
    for node in (left, middle, right):
        await node.subscribe(TOPIC)
    await meshed(middle, TOPIC, 2)
    await left.publish(TOPIC, b"bad")
    await left.publish(TOPIC, b"good")
    for node in (middle, right):
        assert (await next_message(node)).data == b"good"
        assert node.inbox.empty()
    assert middle.counters()["messages_invalid"] == 1


async def test_a_message_that_comes_from_three_peers_is_checked_and_delivered_once(
    start_node: Any, meshed: Any
) -> None:
    checked: list[bytes] = []

    def validate(topic: str, data: bytes) -> bool:
        checked.append(data)
        return True

    nodes = [await start_node(1, validate=validate)]
    for number in (2, 3, 4):
        known = tuple(address for node in nodes for address in node.addresses)
        nodes.append(await start_node(number, peers=known))
    for node in nodes:
        await node.subscribe(TOPIC)
    for node in nodes:
        await meshed(node, TOPIC, 3)
    for number in range(20):
        await nodes[3].publish(TOPIC, b"%d" % number)
    received = [(await next_message(nodes[0])).data for _ in range(20)]
    await asyncio.sleep(0.3)  # time for the copies to come in
    assert received == checked == [b"%d" % number for number in range(20)]
    assert nodes[0].inbox.empty()


async def test_a_full_inbox_drops_the_oldest_and_counts_them(
    start_node: Any, meshed: Any, until: Any
) -> None:
    reader = await start_node(1, inbox_messages_max=5)
    writer = await start_node(2, peers=reader.addresses)
    await reader.subscribe(TOPIC)
    await writer.subscribe(TOPIC)
    await meshed(writer, TOPIC)
    for number in range(12):
        await writer.publish(TOPIC, b"%d" % number)
    await until(lambda: reader.counters().get("messages_received") == 12)
    await until(lambda: reader.counters()["inbox_dropped"] == 7)
    assert [reader.inbox.get_nowait().data for _ in range(5)] == [b"%d" % number for number in range(7, 12)]


async def test_a_message_above_the_limit_is_refused_where_it_is_published(start_node: Any) -> None:
    node = await start_node(1, message_size_bytes_max=1_000)
    with pytest.raises(ValueError, match="1001 bytes is above the limit, 1000: send a blob"):
        await node.publish(TOPIC, bytes(1_001))


async def test_messages_published_after_a_restart_with_the_same_key_and_port_arrive(
    start_node: Any, build_node: Any, meshed: Any
) -> None:
    """The peer redials the node that came back, and does not take new messages for ones it has seen."""
    first = build_node(1)
    await first.start()
    reader = await start_node(2, peers=first.addresses)
    await reader.subscribe(TOPIC)
    await first.subscribe(TOPIC)
    await meshed(reader, TOPIC)
    before = [b"before %d" % number for number in range(30)]
    for data in before:
        await first.publish(TOPIC, data)
    assert [(await next_message(reader)).data for _ in before] == before
    await first.stop()
    listen = first.addresses[0].partition("/p2p/")[0]
    second = await start_node(1, listen=listen)
    assert second.addresses == first.addresses
    await second.subscribe(TOPIC)
    await meshed(second, TOPIC)
    after = [b"after %d" % number for number in range(30)]
    for data in after:
        await second.publish(TOPIC, data)
    assert [(await next_message(reader)).data for _ in after] == after


async def test_a_burst_of_our_own_messages_leaves_the_node_whole(start_node: Any, meshed: Any) -> None:
    """The library would send 10 of 300 and, of large ones, 32 at a time."""
    reader = await start_node(1)
    writer = await start_node(2, peers=reader.addresses)
    await reader.subscribe(TOPIC)
    await writer.subscribe(TOPIC)
    await meshed(writer, TOPIC)
    burst = [b"%d" % number for number in range(300)] + [bytes((number,)) * 60_000 for number in range(100)]
    await asyncio.gather(*(writer.publish(TOPIC, data) for data in burst))
    assert sorted([(await next_message(reader)).data for _ in burst]) == sorted(burst)


async def test_a_stopped_node_refuses_every_call(build_node: Any) -> None:
    node = build_node(1)
    with pytest.raises(NetworkStopped):
        await node.publish(TOPIC, b"early")
    await node.start()
    await node.stop()
    await node.stop()
    with pytest.raises(NetworkStopped):
        await node.publish(TOPIC, b"late")
    await asyncio.wait_for(node.failed(), 1)
