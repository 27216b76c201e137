"""A node that judges what it hears, and a registered one that is hostile. For the tests and the benchmark."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from small_network import CHAIN, delta, identity, network, signal, signal_body, signed

from citrate_node.network.libp2p_network import Libp2pNetwork
from citrate_node.network.settings import NetworkConfig
from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.node.state_machine import Node
from citrate_node.protocol.messages import Evaluation, Vote
from citrate_node.protocol.rejection import Rejection, Verdict
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.topics import all_topics, topic_of
from citrate_node.runtime.judging import points_of
from citrate_node.runtime.opened import OpenedMessages

VICTIM, HONEST, HOSTILE = 0, 1, 3


def find_nothing(digest: bytes, size_bytes: int) -> None:
    return None


async def answer_nothing(peer: str, payload: bytes) -> bytes:
    return b""


def config_of(number: int, **settings: Any) -> NetworkConfig:
    settings.setdefault("connections_wanted", 0)  # who is connected to whom is the test's business
    return NetworkConfig(identity_seed=identity(number).seed, **settings)


def careless(number: int, **settings: Any) -> Libp2pNetwork:
    """A node that checks nothing and forwards everything."""
    config = config_of(number, message_size_bytes_max=200_000, redial_ms=100, **settings)
    return Libp2pNetwork(
        config, validate=lambda topic, data: True, find_blob=find_nothing, answer=answer_nothing
    )


def careful(number: int, state: NetworkState, **settings: Any) -> Libp2pNetwork:
    """A node that passes on only what any node may take: what an honest one does with a flood of others."""
    opened = OpenedMessages(state.network_id)
    opened.follow(state)
    return Libp2pNetwork(
        config_of(number, **settings),
        validate=opened.validate,
        worth=opened.worth,
        find_blob=find_nothing,
        answer=answer_nothing,
    )


class Victim:
    """A node's network and state machine, joined as main_loop joins them, without chain and training."""

    def __init__(self, state: NetworkState, **settings: Any) -> None:
        self.state = state
        self.opened = OpenedMessages(state.network_id)
        self.opened.follow(state)
        self.node = Node(identity(VICTIM), CHAIN, state, opened_block=100)
        self.node.handle(ev.HeadAdvanced(104))  # evaluations are under way
        self.stored_bytes = 0
        self.accepted: list[bytes] = []
        self.network = Libp2pNetwork(
            config_of(VICTIM, **settings),
            validate=self.opened.validate,
            worth=self.opened.worth,
            find_blob=find_nothing,
            answer=answer_nothing,
        )

    async def judge(self) -> None:
        """Hand everything that arrives to the node, and carry out what concerns the network and the disk."""
        while True:
            received = await self.network.inbox.get()
            with suppress(Rejection):
                event = ev.MessageReceived(self.opened.open(received.data), received.peer_id)
                for action in self.node.handle(event):
                    if isinstance(action, act.StoreMessage):
                        self.stored_bytes += len(action.message.envelope)
                        self.accepted.append(action.message.id)
                    elif isinstance(action, act.ReportVerdict) and action.peer is not None:
                        points = points_of(event, action)
                        if points:
                            self.network.report_misbehaviour(action.peer, points, "verdict")
                        elif action.verdict is Verdict.ACCEPT:
                            self.network.report_useful(action.peer)

    @property
    def held(self) -> int:
        """Messages that the node keeps in memory."""
        early = sum(len(kept) for kept in self.node._early.values())
        return len(self.node.core.pool.by_id) + early


@asynccontextmanager
async def running_victim(state: NetworkState, **settings: Any) -> AsyncIterator[Victim]:
    victim = Victim(state, **settings)
    async with victim.network:
        for topic in all_topics(state.network_id):
            await victim.network.subscribe(topic)
        judging = asyncio.create_task(victim.judge())
        try:
            yield victim
        finally:
            judging.cancel()


Hostile = Callable[[NetworkState], Iterator[tuple[str, bytes]]]
"""Endless (topic, data) of one kind of attack. Whoever publishes them is node HOSTILE."""


def malformed(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    dice, topic = random.Random(1), all_topics(state.network_id)[0]
    while True:
        yield topic, dice.randbytes(400)


def oversized(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    dice, topic = random.Random(2), all_topics(state.network_id)[0]
    while True:
        yield topic, dice.randbytes(65_537)


def replayed(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    """One valid message of somebody else, published again and again as a new one."""
    message = signal(state, HONEST, delta(state, HONEST))
    while True:
        yield topic_of(state.network_id, message.body), message.envelope


def foreign(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    """Valid on another network."""
    topic, number = all_topics(state.network_id)[0], 0
    body = signal_body(state, HOSTILE, delta(state, HOSTILE), network_id=bytes(32))
    while True:
        number += 1
        yield topic, signed(HOSTILE, replace(body, examples=number)).envelope


def future(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    """For checkpoints that are far away."""
    body, number = signal_body(state, HOSTILE, delta(state, HOSTILE)), 1_000
    while True:
        number += 1
        message = signed(HOSTILE, replace(body, target_checkpoint=number))
        yield topic_of(state.network_id, body), message.envelope


def contradictory(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    """Ever other votes for one round."""
    number = 0
    while True:
        number += 1
        record_hash = number.to_bytes(32, "big")
        body = Vote(state.network_id, identity(HOSTILE).node_key, 1, 0, record_hash, bytes(65))
        yield topic_of(state.network_id, body), signed(HOSTILE, body).envelope


def too_many(state: NetworkState) -> Iterator[tuple[str, bytes]]:
    """Evaluations of signals that nobody has seen: each might be right."""
    number = 0
    while True:
        number += 1
        body = Evaluation(
            state.network_id, identity(HOSTILE).node_key, 1, number.to_bytes(32, "big"), 1_000, 32
        )
        yield topic_of(state.network_id, body), signed(HOSTILE, body).envelope


ATTACKS: dict[str, Hostile] = {
    attack.__name__: attack
    for attack in (malformed, oversized, replayed, foreign, future, contradictory, too_many)
}
__all__ = [
    "ATTACKS",
    "HONEST",
    "HOSTILE",
    "VICTIM",
    "Victim",
    "careful",
    "careless",
    "network",
    "running_victim",
]
