"""What can happen to a node. A driver (runtime/ or simulation/) makes these; the node answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..protocol.composition_request import CompositionRequest
from ..protocol.content_id import ContentId
from ..protocol.messages import Message


@dataclass(frozen=True, slots=True)
class HeadAdvanced:
    """The chain has a new block. Time, for a node, is nothing but this."""

    block_number: int


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message that `gossip_validation.open_message` has accepted: well formed, signed, of this network."""

    message: Message
    peer: str | None = None
    """Who brought it; None for a message that this node stored itself and reads again after a restart."""


@dataclass(frozen=True, slots=True)
class DeltaFetched:
    """The bytes of a delta, from a peer or from the own store."""

    delta_hash: bytes
    data: bytes
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class DeltaUnavailable:
    """Nobody who was asked gave the bytes of this delta."""

    content: ContentId


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """Local training ended."""

    target_checkpoint: int
    parent_weights_hash: bytes
    parent_values: npt.NDArray[np.float32]
    """The moving tensors before training, as the Train action gave them."""
    values: npt.NDArray[np.float32]
    """The moving tensors after training, flat in manifest order, float32."""
    examples: int
    loss: float
    """Training loss at the end, for the operator; never on the wire."""


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """Training or measuring raised. The node says so and goes on without."""

    what: str
    reason: str
    checkpoint: int


@dataclass(frozen=True, slots=True)
class EvaluationFinished:
    """Own held-out measurements of signals."""

    checkpoint: int
    improvements_ppm: Mapping[bytes, tuple[int, int]]
    """Signal id to (improvement in ppm, held-out examples)."""


@dataclass(frozen=True, slots=True)
class MeasurementFinished:
    """Own held-out measurement of a candidate, and of its parent, against the base model alone."""

    checkpoint: int
    weights_hash: bytes
    improvement_ppm: int
    held_out_examples: int
    parent_improvement_ppm: int


@dataclass(frozen=True, slots=True)
class AdapterComposed:
    """The chain asks for a composition, and the weights of both parents are here."""

    request: CompositionRequest


@dataclass(frozen=True, slots=True)
class CompositionSettled:
    """The chain has version 1 of this composition, or the driver has given it up."""

    adapter_id: bytes


@dataclass(frozen=True, slots=True)
class CompositionMeasured:
    """Own held-out measurement of a composition against the base model alone."""

    weights_hash: bytes
    improvement_ppm: int | None
    """None where it could not be measured."""
    held_out_examples: int


@dataclass(frozen=True, slots=True)
class CheckpointCommitted:
    """The contract has accepted a checkpoint."""

    number: int
    record_hash: bytes
    block_number: int


@dataclass(frozen=True, slots=True)
class StateFetched:
    """Record, state file and weights of a committed checkpoint that this node did not compute itself."""

    number: int
    record: bytes
    state_file: bytes
    weights: bytes


@dataclass(frozen=True, slots=True)
class StateUnavailable:
    """Nobody who was asked gave them all."""

    number: int


@dataclass(frozen=True, slots=True)
class CatchUpRequested:
    """A peer asks for the messages of a checkpoint that it does not hold."""

    request: int
    """Handed back with the answer."""
    checkpoint: int
    have: frozenset[bytes]


Event = (
    HeadAdvanced
    | MessageReceived
    | DeltaFetched
    | DeltaUnavailable
    | TrainingFinished
    | TrainingFailed
    | EvaluationFinished
    | MeasurementFinished
    | AdapterComposed
    | CompositionSettled
    | CompositionMeasured
    | CheckpointCommitted
    | StateFetched
    | StateUnavailable
    | CatchUpRequested
)
