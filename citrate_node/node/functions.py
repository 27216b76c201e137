"""The protocol's pure functions as a node calls them, so that a driver may put memories of them here.

A simulator with thousands of nodes computes the same checkpoint for each of them: the same arguments give the
same result, so it is enough to compute it once (simulation/shared.py). A live node takes them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..protocol.checkpoint import CheckpointRecord
from ..protocol.follow import follow
from ..protocol.gossip_validation import check_vote
from ..protocol.messages import MentorshipSignal, Message
from ..protocol.state import NetworkState
from ..protocol.state_transition import (
    Aggregation,
    CheckpointInputs,
    Outcome,
    aggregate,
    is_valid_delta,
    process_checkpoint,
)


@dataclass(frozen=True)
class Functions:
    """Each with the signature, results and errors of the function of its name."""

    aggregate: Callable[[NetworkState, CheckpointInputs], Aggregation] = aggregate
    process_checkpoint: Callable[[NetworkState, CheckpointInputs, Aggregation | None], Outcome] = (
        process_checkpoint
    )
    follow: Callable[[NetworkState, bytes, bytes, bytes, bytes], tuple[CheckpointRecord, NetworkState]] = (
        follow
    )
    is_valid_delta: Callable[[NetworkState, MentorshipSignal, bytes], bool] = is_valid_delta
    check_vote: Callable[[NetworkState, int, bytes, Message, CheckpointRecord], None] = check_vote
