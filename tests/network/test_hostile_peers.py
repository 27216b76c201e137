"""A hostile peer costs a bounded amount and is cut off; an honest one that spoke through it is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hostile_world import (  # pytest puts this folder on the path
    ATTACKS,
    HONEST,
    HOSTILE,
    careful,
    careless,
    network,
    running_victim,
)
from small_network import delta, signal, signal_body, signed

from citrate_node.network.identity import peer_id_of
from citrate_node.network.settings import PeerFailed
from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.protocol.rejection import Reason, Verdict
from citrate_node.protocol.topics import all_topics, topic_of
from citrate_node.runtime.judging import points_of

HELD_MAX = 40
"""Messages that one hostile author may leave in the node's memory: bounds of node/pool.py, together."""


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_hostile_peer_is_cut_off_at_a_bounded_cost_and_the_honest_one_behind_it_is_heard(
    name: str, until: Any
) -> None:
    state = network(4)
    topics = all_topics(state.network_id)
    # the default burst is 500; less makes no other test of it, only a shorter one
    async with running_victim(state, origin_messages_burst=100) as victim:
        hostile = careless(HOSTILE, peers=victim.network.addresses)
        async with hostile:
            honest = careful(HONEST, state, peers=hostile.addresses)
            async with honest:
                for node in (hostile, honest):
                    for topic in topics:
                        await node.subscribe(topic)

                async def is_meshed() -> bool:
                    return all([len(await hostile.mesh_peers(topic)) == 2 for topic in topics])

                await until(is_meshed)
                body = signal_body(state, HONEST, delta(state, HONEST))
                message = signed(HONEST, body)
                await honest.publish(topic_of(state.network_id, body), message.envelope)
                await until(lambda: message.id in victim.accepted)
                await until(lambda: victim.network.connected_peers() == (hostile.peer_id,))

                for sent, (topic, data) in enumerate(ATTACKS[name](state)):
                    if hostile.peer_id not in victim.network.connected_peers():
                        break
                    await hostile.publish(topic, data)
                    assert sent < 5_000, "it is never cut off"
                await until(lambda: victim.network.counters().get("blocks") == 1)
                with pytest.raises(PeerFailed):
                    await victim.network.connect(hostile.addresses[0])
                assert victim.held <= HELD_MAX
                assert victim.stored_bytes < 20_000

                # the honest peer, whose only way led through the hostile one
                await honest.connect(victim.network.addresses[0])
                await until(lambda: victim.network.connected_peers() == (honest.peer_id,))

                async def is_heard() -> bool:
                    return honest.peer_id in await victim.network.mesh_peers(topics[0])

                await until(is_heard)
                later = signed(HONEST, signal_body(state, HONEST, delta(state, 9), target_checkpoint=2))
                await honest.publish(topics[0], later.envelope)
                await until(lambda: later.id in victim.accepted)


@pytest.mark.parametrize("name", ["malformed", "replayed", "foreign", "contradictory"])
async def test_slowness_does_not_save_a_hostile_peer(name: str, until: Any) -> None:
    """Points that fade at once are what a peer has that sends one message an hour."""
    state = network(4)
    topics = all_topics(state.network_id)
    # the default is 256; less makes no other test of it, only a shorter one
    async with running_victim(state, score_decay_per_second=1e9, useless_messages_max=60) as victim:
        hostile = careless(HOSTILE, peers=victim.network.addresses)
        async with hostile:
            for topic in topics:
                await hostile.subscribe(topic)

            async def is_meshed() -> bool:
                return all([len(await hostile.mesh_peers(topic)) == 1 for topic in topics])

            await until(is_meshed)
            # the mesh may stand before the victim's own list of peers knows
            await until(lambda: hostile.peer_id in victim.network.connected_peers())
            for sent, (topic, data) in enumerate(ATTACKS[name](state)):
                if hostile.peer_id not in victim.network.connected_peers():
                    break
                await hostile.publish(topic, data)
                await asyncio.sleep(0.002)  # slow: the victim has judged most of what was sent before
                assert sent < 1_000, "it is never cut off"
            await until(lambda: victim.network.counters().get("blocks") == 1)


def test_only_the_author_pays_for_a_contradiction_and_whoever_published_for_what_is_wrong() -> None:
    state = network(4)
    event = ev.MessageReceived(signal(state, HOSTILE, delta(state, 1)), "")
    author, other = (peer_id_of(event.message.author), peer_id_of(bytes(32)))
    costs = [
        points_of(event, act.ReportVerdict(verdict, reason, peer=peer))
        for peer in (author, other, None)
        for verdict, reason in (
            (Verdict.REJECT, Reason.NOT_DRAWN),
            (Verdict.IGNORE, Reason.EQUIVOCATION),
            (Verdict.IGNORE, Reason.TOO_EARLY),
            (Verdict.ACCEPT, None),
        )
    ]
    assert costs == [10, 5, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]


async def test_a_burst_that_an_origin_may_have_costs_nobody_points(until: Any) -> None:
    """And what is above it costs nothing where another peer has forwarded it."""
    state = network(4)
    topic = all_topics(state.network_id)[1]
    # one a second: a busy machine may bring no more than the usual fifty
    async with running_victim(state, origin_messages_burst=60, origin_messages_per_second=1) as victim:
        middle = careless(2, peers=victim.network.addresses)
        async with middle:
            origin = careless(HONEST, peers=middle.addresses)
            async with origin:
                for node in (middle, origin):
                    await node.subscribe(topic)

                async def is_meshed() -> bool:
                    return len(await middle.mesh_peers(topic)) == 2

                await until(is_meshed)
                message = signal(state, HONEST, delta(state, HONEST))
                topic_of_signal = topic_of(state.network_id, message.body)
                assert topic_of_signal != topic
                evaluations = ATTACKS["too_many"](state)
                for _ in range(150):
                    await origin.publish(*next(evaluations))
                await until(lambda: victim.network.counters().get("messages_over_rate", 0) >= 20)
                await asyncio.sleep(0.3)
                assert "penalties" not in victim.network.counters()
                assert victim.network.connected_peers() == (middle.peer_id,)
