"""The composer's part: measure what the chain asks to be composed, and say what a record may certify.

The driver brings requests with both parents' weights (events.AdapterComposed); every node computes the same
bytes from them. Used by state_machine.Node and by committer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol.checkpoint import CheckpointRecord
from ..protocol.composition_request import (
    COMPOSITION_MEASUREMENTS_MAX,
    COMPOSITIONS_MAX,
    CompositionRequest,
    MeasuredComposition,
    certified_compositions,
    check_composition,
)
from ..protocol.messages import Measurement, Message
from ..protocol.rejection import Rejection
from ..protocol.schedule import Phase
from .actions import Action, MeasureComposition, Notice
from .core import Core
from .events import AdapterComposed, CompositionMeasured, CompositionSettled

PATIENCE_CHECKPOINTS = 8
"""One that found no quorum for so long makes room for others; the driver may offer it again later."""
FAILURES_MAX = 3
"""Measurements of one composition that may fail; then this node does without a figure of its own."""


@dataclass
class Composer:
    """Compositions that wait for their version 1: at most COMPOSITIONS_MAX of them, kept over checkpoints."""

    core: Core
    enabled: bool = True
    figures: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Weights hash to (improvement in ppm, held-out examples) by this node: said anew in each checkpoint."""
    failures: dict[bytes, int] = field(default_factory=dict)
    measuring: bytes | None = None
    waited: dict[bytes, int] = field(default_factory=dict)
    """Adapter id to the checkpoints that passed without its version."""
    settled: set[bytes] = field(default_factory=set)
    """Adapter ids that have their version, or were given up: a late offer of one is no new composition."""

    def on_composed(self, event: AdapterComposed) -> list[Action]:
        request = event.request
        pending = self.core.pending
        if request.adapter_id in pending or request.adapter_id in self.settled:
            return []
        name = request.adapter_id[:8].hex()
        try:
            check_composition(self.core.state, request)
        except Rejection as rejection:
            return [Notice("composition", {"adapter": name, "refused": str(rejection)})]
        if len(pending) >= COMPOSITIONS_MAX:
            return []
        pending[request.adapter_id] = request
        facts = {
            "adapter": name,
            "weights_hash": request.content.digest.hex(),
            "rank": request.result.weights.config.rank,
            "recompressed": request.result.recompressed,
        }
        return [Notice("composition", facts), *self.tick()]

    def on_settled(self, event: CompositionSettled) -> list[Action]:
        # its checkpoint may not be final here yet, and is computed from the request: `finalized` drops it
        self.settled.add(event.adapter_id)
        return []

    def on_measured(self, event: CompositionMeasured) -> list[Action]:
        self.measuring = None
        if event.improvement_ppm is None:
            self.failures[event.weights_hash] = self.failures.get(event.weights_hash, 0) + 1
        else:
            self.figures[event.weights_hash] = (event.improvement_ppm, event.held_out_examples)
        return self.tick()

    def tick(self) -> list[Action]:
        core = self.core
        if not core.in_committee or core.phase is Phase.SIGNAL:
            return []
        actions: list[Action] = []
        for adapter_id, request in self._open():
            own = core.pool.composed.get((core.node_key, adapter_id))
            if own is None:
                actions += self._say(request)
            elif core.phase is not Phase.FINALITY:
                actions += core.repeat(own)
        return [*actions, *self._measure()]

    def _say(self, request: CompositionRequest) -> list[Action]:
        core = self.core
        figure = self.figures.get(request.content.digest)
        if figure is None:
            return []
        number = core.state.next_number
        body = Measurement(
            core.state.network_id, core.node_key, number, request.adapter_id, request.content.digest, *figure
        )
        return core.say(f"composition/{number}/{request.adapter_id.hex()}", body)

    def _measure(self) -> list[Action]:
        """One at a time, once training and evaluating are over: a composition can wait, they cannot."""
        if not self.enabled or self.measuring is not None or self.core.phase is Phase.EVALUATION:
            return []
        for _, request in self._open():
            name = request.content.digest
            if name not in self.figures and self.failures.get(name, 0) < FAILURES_MAX:
                self.measuring = name
                return [MeasureComposition(request.result.weights, name)]
        return []

    def ready(self) -> tuple[MeasuredComposition, ...]:
        """What a proposal may certify: measured by a quorum, as many as a record has room for."""
        chosen: list[MeasuredComposition] = []
        room = COMPOSITION_MEASUREMENTS_MAX
        for adapter_id, request in self._open():
            measured = MeasuredComposition(request, self._measurements(adapter_id, request))
            try:
                certified_compositions(self.core.state, [measured])
            except Rejection:
                continue  # no quorum yet, or no reputation behind it
            if len(measured.measurements) <= room:
                room -= len(measured.measurements)
                chosen.append(measured)
        return tuple(chosen)

    def _measurements(self, adapter_id: bytes, request: CompositionRequest) -> tuple[Message, ...]:
        return tuple(
            message
            for (_, measured), message in self.core.pool.composed.items()
            if measured == adapter_id
            and isinstance(message.body, Measurement)
            and message.body.weights_hash == request.content.digest
        )

    def inputs_of(self, record: CheckpointRecord) -> tuple[MeasuredComposition, ...] | None:
        """The compositions that a record names, as this node knows them; None while one is not known here.

        The measurements must be in the pool (see CheckpointPool.missing_ids).
        """
        found = []
        for update in record.compositions:
            request = self.core.pending.get(update.adapter_id)
            if request is None:
                return None
            messages = tuple(self.core.pool.by_id[i] for i in update.measurements)
            found.append(MeasuredComposition(request, messages))
        return tuple(found)

    def finalized(self, record: CheckpointRecord) -> None:
        """A checkpoint is final: what it certified is done, what waits too long makes room."""
        self.settled |= {update.adapter_id for update in record.compositions}
        for adapter_id in self.settled & self.core.pending.keys():
            del self.core.pending[adapter_id]
        for adapter_id in list(self.core.pending):
            self.waited[adapter_id] = self.waited.get(adapter_id, 0) + 1
            full = len(self.core.pending) >= COMPOSITIONS_MAX
            if full and self.waited[adapter_id] >= PATIENCE_CHECKPOINTS:
                del self.core.pending[adapter_id]
        self.waited = {i: n for i, n in self.waited.items() if i in self.core.pending}
        kept = {request.content.digest for request in self.core.pending.values()}
        self.figures = {name: figure for name, figure in self.figures.items() if name in kept}
        self.failures = {name: count for name, count in self.failures.items() if name in kept}

    def _open(self) -> list[tuple[bytes, CompositionRequest]]:
        """Without a version as far as this node knows, ascending by adapter id."""
        return [(i, self.core.pending[i]) for i in sorted(self.core.pending.keys() - self.settled)]
