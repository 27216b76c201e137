"""Names of the gossip topics: one per message kind and network. Documented for other implementations."""

from __future__ import annotations

from .messages import Body, Evaluation, Measurement, MentorshipSignal, Proposal, Vote

_SUFFIX: dict[type, str] = {
    MentorshipSignal: "signals",
    Evaluation: "evaluations",
    Measurement: "measurements",
    Proposal: "proposals",
    Vote: "votes",
}


def topic_of(network_id: bytes, body: Body) -> str:
    """Topic on which a body of this kind is published."""
    return f"/citrate/{network_id[:8].hex()}/{_SUFFIX[type(body)]}/1"


def all_topics(network_id: bytes) -> tuple[str, ...]:
    """Every topic that a node subscribes to."""
    return tuple(f"/citrate/{network_id[:8].hex()}/{suffix}/1" for suffix in _SUFFIX.values())
