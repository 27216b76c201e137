"""From one known address to the whole network, and a newcomer from nothing to the last checkpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from small_network import GENESIS_RECORD, inputs, network

from citrate_node.content.store import EmbeddedStore
from citrate_node.protocol import catch_up
from citrate_node.protocol.adapter import AdapterLimits, decode_adapter
from citrate_node.protocol.checkpoint import decode_record
from citrate_node.protocol.state import restore_state
from citrate_node.protocol.state_transition import process_checkpoint
from citrate_node.runtime.fetching import Fetcher

TOPIC = "/citrate/test/1"


@pytest.mark.parametrize("hosts", [8])
async def test_hosts_in_a_line_that_each_know_one_address_all_find_each_other(
    hosts: int, start_node: Any, until: Any
) -> None:
    """Host n is told only of host n - 1. Addresses travel by exchange, a hop at a time."""
    line = [await start_node(1, peer_exchange_ms=400)]
    for number in range(2, hosts + 1):
        line.append(await start_node(number, peers=line[-1].addresses[:1], peer_exchange_ms=400))
    everybody = {node.peer_id for node in line}
    for node in line:
        await until(lambda node=node: {node.peer_id, *node.connected_peers()} == everybody, seconds=120)


async def test_a_message_crosses_a_line_of_eight_hosts_that_may_not_connect_otherwise(
    start_node: Any, until: Any, meshed: Any
) -> None:
    """Gossip alone, over seven hops: each hop checks the message once and hands it on."""
    line = [await start_node(1, connections_wanted=0)]
    for number in range(2, 9):
        line.append(await start_node(number, peers=line[-1].addresses[:1], connections_wanted=0))
    for node in line:
        await node.subscribe(TOPIC)
    for place, node in enumerate(line):
        await meshed(node, TOPIC, 1 if place in (0, len(line) - 1) else 2)
    await line[0].publish(TOPIC, b"from the first")
    received = await asyncio.wait_for(line[-1].inbox.get(), 15)
    assert (received.peer_id, received.forwarder) == (line[0].peer_id, line[-2].peer_id)
    await until(lambda: [len(node.connected_peers()) for node in line] == [1, *[2] * 6, 1])


async def test_a_newcomer_gets_record_state_and_weights_of_the_certified_checkpoint_and_nothing_else(
    start_node: Any, until: Any, tmp_path: Path
) -> None:
    """It knows one address and, from the chain, a record hash. A liar who answers first changes nothing."""
    state = network(4)
    outcome = process_checkpoint(state, inputs(state))
    record, weights = outcome.record, outcome.state.weights.encode()
    contents = {record.state_root: outcome.state.file, record.weights_hash: weights}
    lie = catch_up.record_answer(record.encode()[:-1] + bytes((record.encode()[-1] ^ 1,)))

    async def answer(peer: str, payload: bytes) -> bytes:
        request = catch_up.parse_request(payload, state.network_id)
        assert isinstance(request, catch_up.RecordRequest)
        return catch_up.record_answer(record.encode() if request.record_hash == record.hash else b"")

    async def answer_lie(peer: str, payload: bytes) -> bytes:
        return lie

    honest = await start_node(1, find_blob=lambda digest, size: contents.get(digest), answer=answer)
    liar = await start_node(2, peers=honest.addresses, answer=answer_lie)
    newcomer = await start_node(3, peers=honest.addresses, peer_exchange_ms=400)
    await until(lambda: set(newcomer.connected_peers()) == {honest.peer_id, liar.peer_id})
    async with EmbeddedStore(tmp_path / "content") as store:
        fetcher = Fetcher(store, newcomer, tmp_path / "incoming")
        fetched = None
        for _ in range(4):  # peers are asked in random order: the liar may be asked first, or not at all
            fetched = await fetcher.fetch_state(state.network_id, 1, record.hash)
            assert fetched is not None
            assert (fetched.record, fetched.state_file, fetched.weights) == (
                record.encode(),
                outcome.state.file,
                weights,
            )
        assert await fetcher.fetch_state(state.network_id, 1, GENESIS_RECORD) is None
    assert fetched is not None
    limits = AdapterLimits(state.preset.weights_size_bytes_max)
    restored = restore_state(
        state.preset,
        state.network_id,
        state.nodes,
        decode_record(fetched.record),
        fetched.state_file,
        decode_adapter(fetched.weights, limits),
    )
    assert restored == outcome.state
    assert honest.peer_id in newcomer.connected_peers()


async def test_two_nodes_reconcile_by_set_difference_over_the_network(start_node: Any, until: Any) -> None:
    """Each asks the other for what it does not hold; only that travels, and both end with the union."""
    state = network(4)
    made = inputs(state)
    messages = {m.id: m for m in (*made.signals, *made.evaluations, *made.measurements)}
    ids = sorted(messages)
    held = [set(ids[: 2 * len(ids) // 3]), set(ids[len(ids) // 3 :])]
    travelled: list[int] = []

    def answering(mine: set[bytes]) -> Any:
        async def answer(peer: str, payload: bytes) -> bytes:
            request = catch_up.parse_request(payload, state.network_id)
            assert isinstance(request, catch_up.MessagesRequest)
            missing = sorted(mine - set(request.have))
            travelled.append(len(missing))
            return catch_up.messages_answer(tuple(messages[i].envelope for i in missing))

        return answer

    left = await start_node(1, answer=answering(held[0]))
    right = await start_node(2, peers=left.addresses, answer=answering(held[1]))
    await until(lambda: left.connected_peers() == (right.peer_id,))
    by_envelope = {m.envelope: m.id for m in messages.values()}
    for node, other, mine in ((left, right, held[0]), (right, left, held[1])):
        request = catch_up.messages_request(state.network_id, 1, frozenset(mine))
        answer = await node.request(other.peer_id, request)
        mine |= {by_envelope[envelope] for envelope in catch_up.parse_messages_answer(answer)}
    assert held == [set(ids), set(ids)]
    assert travelled == [len(ids) - 2 * len(ids) // 3, len(ids) // 3]
