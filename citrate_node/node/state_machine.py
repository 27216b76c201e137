"""One honest node, without waiting: `handle(event)` gives the actions that follow. Pure but for its memory.

Two drivers run it: runtime/main_loop.py with real services, simulation/cluster.py with pretended ones. There
is no clock (blocks are the time), no randomness, no I/O. The parts: mentor, evaluator, composer, committer;
this file routes events to them and opens the next checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from ..protocol.encoding import EncodingError
from ..protocol.gossip_validation import check_checkpoint
from ..protocol.messages import Evaluation, MentorshipSignal, Message, Proposal, Vote
from ..protocol.rejection import Reason, Rejection, Verdict
from ..protocol.schedule import Phase
from ..protocol.state import NetworkState
from ..protocol.state_transition import Outcome
from ..protocol.tensors import Factor, FormatError
from .actions import (
    Action,
    AnswerCatchUp,
    CatchUp,
    FetchState,
    Finalize,
    Notice,
    ReportVerdict,
    StoreMessage,
)
from .committer import Committer
from .composer import Composer
from .core import REPEAT_BLOCKS, ChainIdentity, Core, Identity
from .evaluator import Evaluator
from .events import (
    AdapterComposed,
    CatchUpRequested,
    CheckpointCommitted,
    CompositionMeasured,
    CompositionSettled,
    DeltaFetched,
    DeltaUnavailable,
    EvaluationFinished,
    Event,
    HeadAdvanced,
    MeasurementFinished,
    MessageReceived,
    StateFetched,
    StateUnavailable,
    TrainingFailed,
    TrainingFinished,
)
from .functions import Functions
from .mentor import Mentor
from .pool import delta_hash

EARLY_MESSAGES_PER_NODE_MAX = 8
"""Messages of one author kept for checkpoints that have not opened here yet."""
CATCH_UP_MESSAGES_MAX = 2048
"""Messages in one answer to a peer; it asks again for the rest."""


class Node:
    """One node of the network."""

    def __init__(
        self,
        identity: Identity,
        chain: ChainIdentity,
        state: NetworkState,
        *,
        opened_block: int,
        journal: Mapping[str, bytes] | None = None,
        residuals: Mapping[Factor, npt.NDArray[np.float32]] | None = None,
        mentors: bool = True,
        evaluates: bool = True,
        functions: Functions | None = None,
    ) -> None:
        """state: after the last final checkpoint that this node knows. opened_block: the block of its commit.

        journal and residuals: what an earlier run of the same node stored. mentors, evaluates: whether it has
        training data and held-out data.
        """
        self.core = Core(identity, chain, state, opened_block, dict(journal or {}), functions or Functions())
        self.mentor = Mentor(self.core, mentors, dict(residuals or {}))
        self.evaluator = Evaluator(self.core, evaluates)
        self.composer = Composer(self.core, evaluates)
        self.committer = Committer(self.core, self.evaluator, self.composer)
        self._early: dict[int, dict[bytes, Message]] = {}
        self._committed: CheckpointCommitted | None = None
        """The newest commit on chain that this node has not reached yet."""
        self._asked_state_at: int | None = None
        self._merged_at: set[str] = set()

    @property
    def state(self) -> NetworkState:
        """After the last checkpoint that is final here."""
        return self.core.state

    @property
    def node_key(self) -> bytes:
        return self.core.node_key

    def withheld(self) -> frozenset[bytes]:
        """Digests of deltas that must not be served yet: copying is prevented, not only detected.

        Every delta of the open checkpoint until a block after its signal phase.
        """
        if self.core.deltas_served:
            return frozenset()
        return frozenset(delta_hash(message) for message in self.core.pool.signals.values())

    def handle(self, event: Event) -> list[Action]:
        """What follows from an event, in the order in which it must be done."""
        match event:
            case HeadAdvanced():
                return self._on_head(event)
            case MessageReceived():
                return self._on_message(event)
            case DeltaFetched():
                return [*self.evaluator.on_delta_fetched(event), *self.committer.tick()]
            case DeltaUnavailable():
                return self.evaluator.on_delta_unavailable(event)
            case TrainingFinished():
                return self.mentor.on_training_finished(event)
            case EvaluationFinished():
                return self.evaluator.on_evaluation_finished(event)
            case MeasurementFinished():
                return [*self.evaluator.on_measurement_finished(event), *self.committer.tick()]
            case TrainingFailed():
                return self._on_failed(event)
            case AdapterComposed():
                return self.composer.on_composed(event)
            case CompositionSettled():
                return self.composer.on_settled(event)
            case CompositionMeasured():
                return [*self.composer.on_measured(event), *self.committer.tick()]
            case CheckpointCommitted():
                return self._on_committed(event)
            case StateFetched():
                return self._on_state_fetched(event)
            case StateUnavailable():
                self._asked_state_at = None
                return []
            case CatchUpRequested():
                return [self._answer(event)]
        raise AssertionError(f"unknown event {event!r}")

    def _on_head(self, event: HeadAdvanced) -> list[Action]:
        if event.block_number <= self.core.head:
            return []
        self.core.head = event.block_number
        return self._tick()

    def _tick(self) -> list[Action]:
        return [
            *self._follow_chain(),
            *self.mentor.tick(),
            *self._merge_sets(),
            *self.evaluator.tick(),
            *self.composer.tick(),
            *self.committer.tick(),
        ]

    def _merge_sets(self) -> list[Action]:
        """Ask peers for what they hold and we do not: at each deadline, and in every round without commit."""
        core = self.core
        if core.phase is Phase.SIGNAL or core.follows:
            return []
        name = f"{core.phase.value}/{core.round}"
        if name in self._merged_at:
            return []
        self._merged_at.add(name)
        return [CatchUp(core.state.next_number, frozenset(core.pool.by_id))]

    def _on_message(self, event: MessageReceived) -> list[Action]:
        message, stored = event.message, event.peer is None
        if message.id in self.core.pool.by_id:  # most of what comes: every duty is repeated until it is seen
            return [ReportVerdict(Verdict.IGNORE, Reason.DUPLICATE, peer=event.peer)]
        try:
            check_checkpoint(self.core.state, message)
            if message.checkpoint > self.core.state.next_number:
                self._keep_early(message)
                return [] if stored else [StoreMessage(message)]
            consequences = self._take(message, stored=stored)
        except Rejection as rejection:
            return [ReportVerdict(rejection.verdict, rejection.reason, rejection.detail, event.peer)]
        if stored:
            return consequences
        return [StoreMessage(message), ReportVerdict(Verdict.ACCEPT, peer=event.peer), *consequences]

    def _take(self, message: Message, *, stored: bool) -> list[Action]:
        """A message of the open checkpoint, and what follows. Raises Rejection."""
        self.core.pool.add(message, self.core.elapsed, stored=stored)
        return self._consequences(message)

    def _consequences(self, message: Message) -> list[Action]:
        body = message.body
        if isinstance(body, MentorshipSignal):
            return self.evaluator.tick()
        if isinstance(body, Evaluation):
            return self.evaluator.on_evaluation()
        if isinstance(body, Proposal):
            return [*self.committer.consider_proposals(), *self.committer.certify()]
        if isinstance(body, Vote):
            return self.committer.certify()
        return []

    def _keep_early(self, message: Message) -> None:
        if isinstance(message.body, Proposal):  # large, and of a phase that is far off: catch-up brings it
            raise Rejection(
                Verdict.IGNORE, Reason.TOO_EARLY, f"checkpoint {message.checkpoint} is not open yet"
            )
        early = self._early.setdefault(message.checkpoint, {})
        if message.id in early:
            raise Rejection(Verdict.IGNORE, Reason.DUPLICATE)
        if sum(1 for m in early.values() if m.author == message.author) >= EARLY_MESSAGES_PER_NODE_MAX:
            raise Rejection(
                Verdict.IGNORE, Reason.TOO_MANY, f"checkpoint {message.checkpoint} is not open yet"
            )
        early[message.id] = message

    def _on_failed(self, event: TrainingFailed) -> list[Action]:
        if event.what == "train":
            self.mentor.training_for = None
        elif event.checkpoint == self.core.state.next_number:
            self.evaluator.on_failed(event.what)
        return [Notice("failed", {"what": event.what, "reason": event.reason})]

    def _on_committed(self, event: CheckpointCommitted) -> list[Action]:
        if event.number <= self.core.state.number:
            return []
        if self._committed is None or event.number > self._committed.number:
            self._committed = event
        self.core.head = max(self.core.head, event.block_number)  # a follower may not have looked for long
        return self._follow_chain()

    def _follow_chain(self) -> list[Action]:
        """Go on to the newest commit: computed where all inputs are here, else fetched."""
        committed = self._committed
        core = self.core
        if committed is None:
            return []
        if committed.number == core.state.next_number:
            record = core.pool.records.get(committed.record_hash)
            try:
                outcome = record and self.committer.computed(committed.record_hash, record)
            except Rejection:
                # the chain is the arbiter: a quorum certified what we compute differently; take it
                outcome = None
            if outcome:
                return self._finalize_computed(outcome, committed)
        if self._asked_state_at is not None and core.head - self._asked_state_at < 2 * REPEAT_BLOCKS:
            return []
        self._asked_state_at = core.head
        return [FetchState(committed.number, committed.record_hash)]

    def _finalize_computed(self, outcome: Outcome, committed: CheckpointCommitted) -> list[Action]:
        pool = self.core.pool
        record = outcome.record
        named = [*record.signals, *record.withheld, *record.evaluations, *record.measurements]
        named += [i for update in record.compositions for i in update.measurements]
        pairs = [i for pair in record.equivocations for i in (pair.first, pair.second)]
        inputs = pool.inputs_of(record)
        finalize = Finalize(
            outcome=outcome,
            number=record.number,
            record=record.encode(),
            state_file=outcome.state.file,
            weights=outcome.state.weights.encode(),
            block_number=committed.block_number,
            certificate=self.committer.certificates.get(committed.record_hash),
            committee=self.core.state.committee,
            inputs=tuple(pool.by_id[i] for i in (*named, *pairs)),
            deltas=inputs.deltas,
            compositions=outcome.compositions,
        )
        self.composer.finalized(record)
        return [finalize, *self._open(outcome.state, committed.block_number)]

    def _on_state_fetched(self, event: StateFetched) -> list[Action]:
        self._asked_state_at = None
        committed = self._committed
        state = self.core.state
        if committed is None or event.number != committed.number or event.number <= state.number:
            return []
        try:
            record, restored = self.core.functions.follow(
                state, committed.record_hash, event.record, event.state_file, event.weights
            )
        except (EncodingError, FormatError, ValueError) as error:
            return [Notice("failed", {"what": "catch up", "reason": str(error)})]
        finalize = Finalize(
            outcome=None,
            number=event.number,
            record=event.record,
            state_file=event.state_file,
            weights=event.weights,
            block_number=committed.block_number,
        )
        self.composer.finalized(record)
        return [
            finalize,
            Notice("caught_up", {"checkpoint": event.number}),
            *self._open(restored, committed.block_number),
        ]

    def _open(self, state: NetworkState, block_number: int) -> list[Action]:
        """Open the checkpoint after `state`, with the messages that came early."""
        if self._committed is not None and self._committed.number <= state.number:
            self._committed = None
        self.core.open_next(state, block_number)
        self.evaluator.reset()
        self.committer.reset()
        self._merged_at = set()
        actions: list[Action] = [Notice("opened", {"checkpoint": state.next_number, "block": block_number})]
        early = self._early.pop(state.next_number, {})
        self._early = {n: kept for n, kept in self._early.items() if n > state.next_number}
        for message in early.values():  # stored when it came
            with suppress(Rejection):
                actions += self._take(message, stored=False)
        return [*actions, *self._tick()]

    def _answer(self, event: CatchUpRequested) -> AnswerCatchUp:
        """What we hold of the open checkpoint and the peer does not; nothing of a closed one."""
        pool = self.core.pool
        if event.checkpoint != self.core.state.next_number:
            return AnswerCatchUp(event.request, ())
        missing = sorted(pool.by_id.keys() - event.have)
        return AnswerCatchUp(event.request, tuple(pool.by_id[i] for i in missing[:CATCH_UP_MESSAGES_MAX]))
