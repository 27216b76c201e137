"""The evaluator's part: fetch deltas once they are served, measure them, measure the candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..protocol.content_id import ContentId
from ..protocol.messages import Evaluation, Measurement, MentorshipSignal, Message
from ..protocol.preset import ONE_PPM
from ..protocol.rejection import Reason, Verdict
from ..protocol.schedule import Phase
from ..protocol.state_transition import Aggregation
from ..protocol.tensors import delta_from_grid
from .actions import Action, Evaluate, FetchDelta, Measure, Notice, ReportVerdict, StoreDelta
from .core import REPEAT_BLOCKS, Core
from .events import DeltaFetched, DeltaUnavailable, EvaluationFinished, MeasurementFinished
from .pool import delta_hash


@dataclass
class Evaluator:
    """Deltas, evaluations and measurements of the open checkpoint. `enabled`: has held-out data."""

    core: Core
    enabled: bool = True
    asked_at: dict[ContentId, int] = field(default_factory=dict)
    """Delta to the block at which it was last asked for."""
    refusals: dict[ContentId, int] = field(default_factory=dict)
    """Delta to the number of times that nobody gave it."""
    evaluating: frozenset[bytes] = frozenset()
    """Signal ids in the evaluation that runs now."""
    evaluated: set[bytes] = field(default_factory=set)
    measuring: bytes | None = None
    measured: set[bytes] = field(default_factory=set)
    _candidate: tuple[object, Aggregation] | None = None

    def reset(self) -> None:
        """A new checkpoint has opened."""
        self.asked_at, self.refusals = {}, {}
        self.evaluating, self.evaluated = frozenset(), set()
        self.measuring, self.measured = None, set()
        self._candidate = None

    def tick(self) -> list[Action]:
        core = self.core
        if core.phase is Phase.SIGNAL:
            return []
        actions: list[Action] = [*self._fetch(), *self._evaluate(), *self._measure()]
        if core.phase is not Phase.FINALITY:
            for kind in (Evaluation, Measurement):
                for message in core.pool.said_by(core.node_key, kind):
                    actions += core.repeat(message)
        return actions

    def _fetch(self) -> list[Action]:
        """Ask for the bytes of every signal, again after a while; give up only after the evaluation phase."""
        core = self.core
        drawn = core.state.drawn_to_measure.get(core.node_key, frozenset())
        if not core.deltas_served or not (core.in_committee or drawn):
            return []
        wanted = core.pool.signals_without_bytes()
        if not core.in_committee:  # who only evaluates needs no delta but those that he measures
            wanted = [m for m in wanted if m.author in drawn]
        actions: list[Action] = []
        closed = core.phase is not Phase.EVALUATION
        # what was given up is asked for again all the same: it may have been the network's fault
        for message in wanted:
            content = message.delta_content
            if closed and self.refusals.get(content, 0) >= 2 and content not in core.pool.unavailable:
                core.pool.give_up(content)
                actions.append(Notice("withheld", {"mentor": message.author[:4].hex()}))
            elif core.head - self.asked_at.get(content, -REPEAT_BLOCKS) >= REPEAT_BLOCKS:
                self.asked_at[content] = core.head
                actions.append(FetchDelta(content, message.author, message.checkpoint))
        return actions

    def on_delta_fetched(self, event: DeltaFetched) -> list[Action]:
        """Keep bytes that are what their signal says; others are refused, and count as withheld."""
        pool = self.core.pool
        asked = [m for m in pool.signals_without_bytes() if delta_hash(m) == event.delta_hash]
        for message in asked:
            if not self.core.functions.is_valid_delta(self.core.state, _signal(message), event.data):
                continue
            pool.keep_delta(event.delta_hash, event.data)
            content = message.delta_content
            pool.unavailable.discard(content)
            return [StoreDelta(content, event.data, message.checkpoint), *self.tick()]
        for message in asked:
            self._count_refusal(message.delta_content)
        # no peer is to blame: the bytes have the hash that the mentor announced, and are no delta
        return [ReportVerdict(Verdict.REJECT, Reason.DELTA_MISMATCH)] if asked else []

    def on_delta_unavailable(self, event: DeltaUnavailable) -> list[Action]:
        self._count_refusal(event.content)
        return []

    def _count_refusal(self, content: ContentId) -> None:
        self.refusals[content] = self.refusals.get(content, 0) + 1

    def _evaluate(self) -> list[Action]:
        """One evaluation at a time, of all drawn signals whose bytes are here."""
        core = self.core
        if not self.enabled or self.evaluating or core.phase is Phase.FINALITY:
            return []
        state = core.state
        drawn = state.drawn_to_measure.get(core.node_key, frozenset())
        due = {}
        for message in core.pool.usable_signals() if drawn else ():
            if message.author not in drawn:
                continue
            done = message.id in self.evaluated or (core.node_key, message.id) in core.pool.evaluations
            if not done and message.id not in core.pool.late:
                due[message.id] = message
        if not due:
            return []
        waiting = any(m.author in drawn for m in core.pool.unresolved_signals())
        if waiting and core.phase is Phase.EVALUATION and not self._is_urgent():
            return []
        self.evaluating = frozenset(due)
        deltas = {
            signal_id: delta_from_grid(state.decode_delta(core.pool.deltas[delta_hash(m)])).astype(np.float32)
            for signal_id, m in due.items()
        }
        scale = state.preset.evaluation_scale_ppm / ONE_PPM
        return [Evaluate(state.next_number, state.weights, state.moving_manifest, deltas, scale)]

    def _is_urgent(self) -> bool:
        """Half of the evaluation phase is over: measure what is here, do not wait for the rest."""
        preset = self.core.state.preset
        return 2 * self.core.elapsed >= preset.signal_deadline_blocks + preset.evaluation_deadline_blocks

    def on_evaluation_finished(self, event: EvaluationFinished) -> list[Action]:
        core = self.core
        if event.checkpoint != core.state.next_number:
            return []  # another evaluation may run by now
        self.evaluating = frozenset()
        if core.phase is Phase.FINALITY:
            return []
        actions: list[Action] = []
        for signal_id, (improvement_ppm, examples) in sorted(event.improvements_ppm.items()):
            self.evaluated.add(signal_id)
            body = Evaluation(
                core.state.network_id,
                core.node_key,
                event.checkpoint,
                signal_id,
                improvement_ppm,
                examples,
            )
            actions += core.say(f"evaluation/{event.checkpoint}/{signal_id.hex()}", body)
        values = [ppm for ppm, _ in event.improvements_ppm.values()]
        actions.append(Notice("evaluated", {"signals": len(values), "improvement_ppm": sorted(values)}))
        return [*actions, *self.tick()]

    def on_evaluation(self) -> list[Action]:
        """Somebody's evaluation came: it may change the candidate."""
        return [] if self.core.phase in (Phase.SIGNAL, Phase.EVALUATION) else self._measure()

    def on_failed(self, what: str) -> None:
        """Evaluating or measuring raised: it may be tried again at the next tick."""
        if what == "evaluate":
            self.evaluating = frozenset()
        elif what == "measure":
            self.measuring = None

    def candidate(self) -> Aggregation | None:
        """The result of all that is here, once every signal's bytes are here or given up."""
        core = self.core
        if core.phase in (Phase.SIGNAL, Phase.EVALUATION) or core.pool.unresolved_signals():
            return None
        inputs = core.pool.inputs()
        if self._candidate is None or self._candidate[0] != inputs.key:
            self._candidate = (inputs.key, core.functions.aggregate(core.state, inputs))
        return self._candidate[1]

    def _measure(self) -> list[Action]:
        core = self.core
        if not self.enabled or not core.in_committee or self.measuring is not None:
            return []
        candidate = self.candidate()
        if candidate is None or not candidate.changed:
            return []
        name = candidate.content.digest
        if name in self.measured or (core.node_key, name) in core.pool.measurements:
            return []
        self.measuring = name
        return [Measure(core.state.next_number, candidate.weights, name, core.state.weights)]

    def on_measurement_finished(self, event: MeasurementFinished) -> list[Action]:
        core = self.core
        if event.checkpoint != core.state.next_number:
            return []
        self.measuring = None
        self.measured.add(event.weights_hash)
        body = Measurement(
            core.state.network_id,
            core.node_key,
            event.checkpoint,
            core.state.adapter_id,
            event.weights_hash,
            event.improvement_ppm,
            event.held_out_examples,
            event.parent_improvement_ppm,
        )
        said = core.say(f"measurement/{event.checkpoint}/{event.weights_hash.hex()}", body)
        return [*said, Notice("measured", {"accuracy_ppm": event.improvement_ppm}), *self.tick()]


def _signal(message: Message) -> MentorshipSignal:
    assert isinstance(message.body, MentorshipSignal)
    return message.body
