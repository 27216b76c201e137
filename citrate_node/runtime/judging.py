"""What the node's verdict on a message costs the peer that brought it. Pure; called by main_loop.

Gossip is forwarded before the node has judged it, so the peer here is who *published* a message (the libp2p
origin, whose signature was checked) or who handed it to us on our own request; never who merely forwarded.
"""

from __future__ import annotations

from ..network.identity import peer_id_of
from ..node.actions import ReportVerdict
from ..node.events import Event, MessageReceived
from ..protocol.rejection import Reason, Verdict

REJECTED_POINTS = 10.0
CONTRADICTED_POINTS = 5.0
"""Saying two things for one slot. Only of one's own author: others hand a contradiction on in good faith."""


def points_of(event: Event, report: ReportVerdict) -> float:
    """Points for `report.peer`, 0 where it is not to blame."""
    if report.peer is None:
        return 0.0
    if report.verdict is Verdict.REJECT:
        return REJECTED_POINTS
    if report.reason is Reason.EQUIVOCATION and isinstance(event, MessageReceived):
        is_author = report.peer == peer_id_of(event.message.author)
        return CONTRADICTED_POINTS if is_author else 0.0
    return 0.0
