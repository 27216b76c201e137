"""Many nodes that gossip over many checkpoints in virtual time: each with the real judgement, no sockets.

`Desk` is SafePubsub with the host cut away: what a node does with each message that a neighbour hands it.
Signatures are not checked, for they are right; delays, and who is how far, come from seeded dice.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from small_network import identity, network, signed

from citrate_node.network.gossip import SafePubsub
from citrate_node.network.identity import peer_id_of
from citrate_node.network.ledger import Ledger
from citrate_node.network.settings import NetworkConfig
from citrate_node.network.waste import SeenMessages, SequenceMarks
from citrate_node.protocol.messages import Evaluation, Message
from citrate_node.runtime.opened import OpenedMessages

TOPIC = "topic"
CHECKPOINT_SECONDS = 60.0
LATENCY_SECONDS = 2.0
STATE = network(8)
NODES = range(len(STATE.nodes))
PEERS = {number: peer_id_of(identity(number).node_key) for number in range(40)}


class Desk(SafePubsub):
    """One node's gossip: judges what comes, and hands `passed_on` what it would forward."""

    def __init__(self, number: int, clock: Callable[[], float], pass_on: Callable[[str, Any], None]) -> None:
        self.blocked: list[str] = []
        self._config = NetworkConfig(identity_seed=identity(number).seed)
        self._ledger = Ledger(self._config, clock, self.blocked.append)
        self.seen_messages = SeenMessages(clock)
        self._sequences = SequenceMarks(clock)
        self.opened = OpenedMessages(STATE.network_id, clock)
        self._worth = self.opened.worth
        self._deliver = lambda topic, origin, forwarder, data: None
        self._id = ID.from_base58(PEERS[number])
        self._pass_on = pass_on

    @property
    def my_id(self) -> ID:
        return self._id

    @property
    def topic_ids(self) -> list[str]:
        return [TOPIC]

    @property
    def router(self) -> Any:
        return self

    async def publish(self, forwarder: Any, message: Any) -> None:
        self._pass_on(str(forwarder), message)

    def _msg_id_constructor(self, message: Any) -> bytes:
        return bytes(message.from_id + message.seqno)

    def _is_valid(self, topic: str, message: Any) -> bool:
        self.opened._opened[message.data] = OPEN[message.data]
        return True

    def take(self, forwarder: int, message: Any) -> None:
        """What gossip does with a message that a neighbour hands over; it never waits for anything."""
        with_nothing_to_wait_for(self.push_msg(ID.from_base58(PEERS[forwarder]), message))

    def useless(self, number: int) -> float:
        return self._ledger._account(PEERS[number]).useless

    def at(self, checkpoint: int) -> None:
        """This node's open checkpoint."""
        self.opened._peer_ids = {identity(n).node_key: PEERS[n] for n in NODES}
        self.opened._open_number = checkpoint


def with_nothing_to_wait_for(coroutine: Any) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


OPEN: dict[bytes, Message] = {}
"""Every envelope that was made, opened."""


def say(number: int, checkpoint: int, what: int) -> Message:
    """One of the things that a node says in a checkpoint."""
    signal_id = what.to_bytes(32, "big")
    body = Evaluation(STATE.network_id, identity(number).node_key, checkpoint, signal_id, 1_000, 32)
    message = signed(number, body)
    OPEN[message.envelope] = message
    return message


def wrapped(origin: int, sequence: int, message: Message) -> Any:
    """As a message of gossip, published by `origin`."""
    key = ID.from_base58(PEERS[origin]).to_bytes()
    return rpc_pb2.Message(
        from_id=key, seqno=sequence.to_bytes(8, "big"), data=message.envelope, topicIDs=[TOPIC]
    )


@dataclass
class World:
    """Nodes in a ring with chords. `lag(number, checkpoint)`: how many checkpoints a node stands behind."""

    seed: int
    lag: Callable[[int, int], int] = lambda number, checkpoint: 0
    silent: tuple[int, ...] = ()
    """Nodes that pass nothing on, and whose own messages do not leave."""
    now: float = 0.0
    sequence: int = 0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    """Every message of gossip so far."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.desks = {n: Desk(n, lambda: self.now, self._from(n)) for n in NODES}
        self.neighbours = {
            n: sorted({(n + step) % len(NODES) for step in (1, 3, len(NODES) - 1, len(NODES) - 3)})
            for n in NODES
        }

    def _from(self, number: int) -> Callable[[str, Any], None]:
        def pass_on(forwarder: str, message: Any) -> None:
            if number in self.silent:
                return
            for neighbour in self.neighbours[number]:
                if PEERS[neighbour] not in (forwarder, str(ID(message.from_id))):
                    self.hand_over(number, neighbour, message)

        return pass_on

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (self.now + seconds, self.sequence, do))

    def hand_over(self, sender: int, receiver: int, message: Any) -> None:
        desk = self.desks[receiver]
        self.after(self.dice.random() * LATENCY_SECONDS, lambda: desk.take(sender, message))

    def publish(self, number: int, message: Message) -> None:
        self.sequence += 1
        gossip = wrapped(number, self.sequence, message)
        self.said.append(gossip)
        desk = self.desks[number]
        with_nothing_to_wait_for(desk.push_msg(desk.my_id, gossip))

    def run(self, checkpoints: Iterable[int], things: int = 4, repeats: int = 2) -> None:
        """Each node says so many things in each checkpoint, each with so many repetitions."""
        for checkpoint in checkpoints:
            for number, desk in self.desks.items():
                own = max(1, checkpoint - self.lag(number, checkpoint))
                skew = self.dice.random() * LATENCY_SECONDS  # nobody sees a block at the same moment
                self.after(skew, lambda desk=desk, own=own: desk.at(own))  # type: ignore[misc]
                for what in range(things):
                    message = say(number, own, what)
                    for again in range(1 + repeats):
                        moment = skew + 5 + 10 * again + self.dice.random() * 5
                        self.after(moment, lambda n=number, m=message: self.publish(n, m))  # type: ignore[misc]
            end = self.now + CHECKPOINT_SECONDS
            while self.events and self.events[0][0] < end:
                self.now, _, do = heapq.heappop(self.events)
                do()
            self.now = end

    def blocked(self) -> set[tuple[int, int]]:
        """(who, whom) it has cut off."""
        numbers = {peer: number for number, peer in PEERS.items()}
        return {(n, numbers[peer]) for n, desk in self.desks.items() for peer in desk.blocked}
