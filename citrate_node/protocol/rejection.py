"""Why a message is not taken: whose fault it is (verdict) and what for (reason).

REJECT blames the peer that sent it; IGNORE does not (late, duplicate, not yet known). Raised by
gossip_validation, turned into a ReportVerdict action by the node.
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What a node does with a message and with the peer that brought it."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


class Reason(Enum):
    """One name for each way in which a message can be wrong."""

    TOO_LARGE = "too large"
    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad signature"
    OTHER_NETWORK = "other network"
    UNKNOWN_AUTHOR = "author is not a registered node"
    CLOSED_CHECKPOINT = "closed checkpoint"
    TOO_EARLY = "checkpoint too far ahead"
    WRONG_ADAPTER = "other adapter"
    WRONG_BASE_MODEL = "other base model"
    WRONG_PARENT = "other parent weights"
    WRONG_CODEC = "other codec"
    WRONG_MANIFEST = "other tensor manifest"
    DELTA_TOO_LARGE = "delta too large"
    DELTA_MISMATCH = "delta does not match its hash, size or codec"
    NOT_DRAWN = "author was not drawn for this role"
    OWN_SIGNAL = "evaluation of one's own signal"
    DUPLICATE = "duplicate"
    EQUIVOCATION = "equivocation"
    TOO_MANY = "more messages than one node may send"
    BAD_VOTE = "vote not signed by the author's account"
    BAD_RECORD = "checkpoint record is not what its inputs give"
    OMISSION = "proposal leaves out a message received in good time"


class Rejection(Exception):
    """A peer's message is refused. Carries verdict, reason and one sentence with the figures."""

    def __init__(self, verdict: Verdict, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.verdict = verdict
        self.reason = reason
        self.detail = detail


def reject(reason: Reason, detail: str = "") -> Rejection:
    """The sender could have known better."""
    return Rejection(Verdict.REJECT, reason, detail)


def ignore(reason: Reason, detail: str = "") -> Rejection:
    """Nobody's fault."""
    return Rejection(Verdict.IGNORE, reason, detail)
