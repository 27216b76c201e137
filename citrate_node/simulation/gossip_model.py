"""What gossip and direct requests cost the nodes of a simulated network, counted, not simulated.

The simulator hands a message only to nodes that have a part in its checkpoint. On a real network every
subscribed node receives and passes on every message, so that load is computed here from the messages that
were really sent: in a gossipsub mesh each node passes a message it sees first to all its mesh peers but the
one it came from. Bytes of deltas, states and catch-up answers are counted as they are handed over.
Called by cluster; read by benchmarks and docs/scale.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..protocol.messages import Message

MESH_DEGREE = 6
"""Mesh peers of a node, as network/gossip.py asks for."""


@dataclass
class NetworkLoad:
    """Counts since the start. `nodes`: how many nodes the mesh has."""

    nodes: int
    messages: Counter[str] = field(default_factory=Counter)
    """Kind of message to how often it was published; repetitions of a duty count anew."""
    message_bytes: int = 0
    """Of their envelopes."""
    deliveries: int = 0
    """Messages that the simulator handed to a node."""
    deltas: int = 0
    delta_bytes: int = 0
    """Delta files handed over."""
    states: int = 0
    state_bytes: int = 0
    """Records, state files and weights handed over to nodes that follow."""
    catch_up_messages: int = 0
    catch_up_bytes: int = 0
    requests_failed: int = 0
    """Deltas and states that none of the peers asked had."""

    def published(self, message: Message) -> None:
        self.messages[type(message.body).__name__] += 1
        self.message_bytes += len(message.envelope)

    @property
    def gossip_copies(self) -> int:
        """Copies of messages on all links together."""
        passed_on = min(MESH_DEGREE, self.nodes - 1) - 1
        return self.messages.total() * (self.nodes * max(passed_on, 0) + 1)

    def row(self) -> dict[str, int]:
        """Totals under plain names; per-node figures are means over all nodes, rounded down."""
        published = self.messages.total()
        per_link = self.gossip_copies * self.message_bytes // max(1, published)
        return {
            **{f"published_{kind}": count for kind, count in sorted(self.messages.items())},
            "published": published,
            "published_bytes": self.message_bytes,
            "deliveries": self.deliveries,
            "gossip_received_per_node": published,
            "gossip_copies_per_node": self.gossip_copies // self.nodes,
            "gossip_bytes_per_node": per_link // self.nodes,
            "deltas": self.deltas,
            "delta_bytes": self.delta_bytes,
            "states": self.states,
            "state_bytes": self.state_bytes,
            "catch_up_messages": self.catch_up_messages,
            "catch_up_bytes": self.catch_up_bytes,
            "requests_failed": self.requests_failed,
        }
