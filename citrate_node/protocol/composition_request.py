"""A composition as the chain asks for it, and what makes its result certain enough for version 1.

Pure. Everybody who holds both parents computes the result; a record takes it in once validators with more
than 2/3 of the committee's stake have measured the very same bytes. So nobody waits for a parent that only
some can fetch, and where floating point gives machines different bytes (above the rank limit the result is
recompressed) either a quorum agrees, or the composition stays without a version: it never stops a checkpoint.
Called by state_transition, by node/composer.py, by runtime/chain_events.py and by replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from .adapter import AdapterWeights
from .certificate import has_quorum
from .checkpoint import RecordedUpdate
from .composition import Composition, compose
from .content_id import ContentId, content_id
from .encoding import INT64_MIN
from .gossip_validation import check_message
from .messages import Measurement, Message
from .rejection import Reason, Rejection, reject
from .reputation import weighted_median
from .state import NetworkState
from .tensors import FormatError

COMPOSITIONS_MAX = 16
"""In one checkpoint: each must be computed and measured by everybody."""
COMPOSITION_MEASUREMENTS_MAX = 800
"""Ids that the compositions of one record name together, so that the record fits its proposal."""


@dataclass(frozen=True)
class CompositionRequest:
    """composeAdapters as the chain has it, with the parents' weights at the versions that it bound."""

    adapter_id: bytes
    """What composeAdapters returned."""
    parent_a: AdapterWeights
    parent_b: AdapterWeights
    weight_a: int
    """Per cent of the first, 1 to 99; the second has the rest."""

    @cached_property
    def result(self) -> Composition:
        """Computed once per request. Raises FormatError where the parents cannot be composed."""
        return compose(self.parent_a, self.parent_b, self.weight_a, 100 - self.weight_a)

    @cached_property
    def content(self) -> ContentId:
        """Names the file of the result."""
        return content_id(self.result.weights.encode())

    @cached_property
    def parent_hashes(self) -> tuple[bytes, bytes]:
        """Content digests of the parents' files."""
        return content_id(self.parent_a.encode()).digest, content_id(self.parent_b.encode()).digest


@dataclass(frozen=True)
class MeasuredComposition:
    """A composition that a record may certify."""

    request: CompositionRequest
    measurements: tuple[Message, ...]
    """Of its result, each by another node of the committee."""


def check_composition(state: NetworkState, request: CompositionRequest) -> None:
    """Whether this network can ever certify it. Raises Rejection: then no later checkpoint can either."""
    if request.adapter_id == state.adapter_id:
        raise reject(Reason.WRONG_ADAPTER, "the network's own adapter is no composition")
    for parent in (request.parent_a, request.parent_b):
        if parent.config.base_model_id != state.base_model_id:
            raise reject(Reason.WRONG_BASE_MODEL, parent.config.base_model_id[:8].hex())
    try:
        content = request.content
    except FormatError as error:
        raise reject(Reason.BAD_RECORD, f"the parents cannot be composed: {error}") from None
    if content.size_bytes > state.preset.weights_size_bytes_max:
        raise reject(
            Reason.TOO_LARGE,
            f"the composition has {content.size_bytes} bytes, limit {state.preset.weights_size_bytes_max}",
        )


def has_measured_quorum(state: NetworkState, authors: Iterable[bytes]) -> bool:
    """Whether these node keys hold strictly more than 2/3 of the committee's stake."""
    accounts = {node.node_key: node.account for node in state.committee}
    return has_quorum(state.committee, [accounts[key] for key in authors if key in accounts])


def certified_compositions(
    state: NetworkState, compositions: Iterable[MeasuredComposition]
) -> tuple[RecordedUpdate, ...]:
    """What the record of the open checkpoint says of these compositions, ascending by adapter id.

    Raises Rejection where one is not what its parents and its measurements give.
    """
    updates = [_certified(state, composition) for composition in compositions]
    updates.sort(key=lambda update: update.adapter_id)
    if len(updates) > COMPOSITIONS_MAX:
        raise reject(Reason.BAD_RECORD, f"{len(updates)} compositions, limit {COMPOSITIONS_MAX}")
    if len({update.adapter_id for update in updates}) != len(updates):
        raise reject(Reason.BAD_RECORD, "one composition twice")
    named = sum(len(update.measurements) for update in updates)
    if named > COMPOSITION_MEASUREMENTS_MAX:
        raise reject(Reason.BAD_RECORD, f"{named} measurements, limit {COMPOSITION_MEASUREMENTS_MAX}")
    return tuple(updates)


def _certified(state: NetworkState, composition: MeasuredComposition) -> RecordedUpdate:
    request = composition.request
    check_composition(state, request)
    authors: set[bytes] = set()
    values = []
    for message in composition.measurements:
        body = message.body
        if (
            not isinstance(body, Measurement)
            or body.adapter_id != request.adapter_id
            or body.weights_hash != request.content.digest
        ):
            raise reject(Reason.BAD_RECORD, "a measurement of something else than the composition")
        check_message(state, message, compositions={request.adapter_id})
        if body.author in authors:
            raise reject(Reason.EQUIVOCATION, f"two measurements by {body.author[:8].hex()}")
        authors.add(body.author)
        values.append((body.improvement_ppm, state.voice_of(body.author)))
    accuracy = weighted_median(values)
    if accuracy is None or not has_measured_quorum(state, authors):
        raise _unmeasured(request, len(authors))
    parent_a, parent_b = request.parent_hashes
    return RecordedUpdate(
        adapter_id=request.adapter_id,
        parent_a_hash=parent_a,
        parent_b_hash=parent_b,
        weight_a=request.weight_a,
        weights_hash=request.content.digest,
        size_bytes=request.content.size_bytes,
        accuracy_ppm=max(accuracy, INT64_MIN + 1),  # the least value means "unknown" to the contract
        measurements=tuple(sorted(message.id for message in composition.measurements)),
    )


def _unmeasured(request: CompositionRequest, count: int) -> Rejection:
    return reject(
        Reason.BAD_RECORD,
        f"composition {request.adapter_id[:8].hex()}: {count} measurements are no quorum of the committee",
    )
