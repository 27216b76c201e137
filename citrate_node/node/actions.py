"""What a node wants done. The driver carries actions out in the order in which they come.

The order matters in one place: a Journal action stands before the Publish whose signature it covers, and is
on disk before that message leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..protocol.adapter import AdapterWeights
from ..protocol.certificate import Certificate, Validator
from ..protocol.composition_request import CompositionRequest
from ..protocol.content_id import ContentId
from ..protocol.messages import Message
from ..protocol.rejection import Reason, Verdict
from ..protocol.state_transition import Outcome
from ..protocol.tensors import Factor, Manifest


@dataclass(frozen=True, slots=True)
class Journal:
    """Write down, durably, that this slot has been signed, before anything else happens."""

    slot: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class StoreMessage:
    """Keep a message of an open checkpoint, so that a restart does not forget it."""

    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a message to everybody."""

    message: Message


@dataclass(frozen=True, slots=True)
class StoreDelta:
    """Keep a delta until its checkpoint is final."""

    content: ContentId
    data: bytes
    checkpoint: int


@dataclass(frozen=True, slots=True)
class StoreResidual:
    """Keep what quantization dropped, to be sent with a later delta (error feedback)."""

    factor: Factor
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FetchDelta:
    """Get the bytes of a delta, from its mentor first, then from any peer."""

    content: ContentId
    mentor: bytes
    checkpoint: int


@dataclass(frozen=True, slots=True)
class FetchState:
    """Get record, state file and weights of a committed checkpoint from any peer."""

    number: int
    record_hash: bytes


@dataclass(frozen=True, slots=True)
class Train:
    """Train the moving tensors from these weights on the own data."""

    target_checkpoint: int
    weights: AdapterWeights
    weights_hash: bytes
    manifest: Manifest
    """The tensors that move; all others stay frozen."""
    moving_values: npt.NDArray[np.float32]
    """Their values at the start, float32, flat in manifest order; handed back with TrainingFinished."""


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure, on the own held-out data, how much each delta improves on the parent."""

    checkpoint: int
    parent: AdapterWeights
    manifest: Manifest
    deltas: Mapping[bytes, npt.NDArray[np.float32]]
    """Signal id to decoded delta, flat in the order of `manifest`."""
    scale: float
    """Part of the delta that is applied (preset.evaluation_scale_ppm)."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure candidate weights, and those they would replace, each against the base model alone, on the own
    held-out data."""

    checkpoint: int
    weights: AdapterWeights
    weights_hash: bytes
    parent: AdapterWeights


@dataclass(frozen=True, slots=True)
class MeasureComposition:
    """Measure a composition against the base model alone. Its rank and targets may be any."""

    weights: AdapterWeights
    weights_hash: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """Send a certificate to the contract."""

    certificate: Certificate
    validators: tuple[Validator, ...]


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Ask peers for the messages of the open checkpoint that are not in `have`."""

    checkpoint: int
    have: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class AnswerCatchUp:
    """Answer a peer's CatchUpRequested."""

    request: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ReportVerdict:
    """What was thought of a peer's message; REJECT lowers the peer's score."""

    verdict: Verdict
    reason: Reason | None = None
    detail: str = ""
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Finalize:
    """A checkpoint is final here: store what others will fetch, drop what it used up."""

    outcome: Outcome | None
    """None where the node fetched the result instead of computing it."""
    number: int
    record: bytes
    state_file: bytes
    weights: bytes
    block_number: int
    certificate: Certificate | None = None
    """Votes of a quorum, where this node has seen them."""
    committee: tuple[Validator, ...] = ()
    """The validators whose stake the certificate is counted against."""
    inputs: tuple[Message, ...] = ()
    """Messages that the record names, for whoever records the run."""
    deltas: Mapping[bytes, bytes] = field(default_factory=dict)
    compositions: tuple[CompositionRequest, ...] = ()
    """Compositions that got their version 1: their weights are to be kept, for others will ask for them."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person who watches would like to see. `what` is one word."""

    what: str
    facts: Mapping[str, Any] = field(default_factory=dict)


Action = (
    Journal
    | StoreMessage
    | Publish
    | StoreDelta
    | StoreResidual
    | FetchDelta
    | FetchState
    | Train
    | Evaluate
    | Measure
    | MeasureComposition
    | Commit
    | CatchUp
    | AnswerCatchUp
    | ReportVerdict
    | Finalize
    | Notice
)
