"""The messages of one open checkpoint, as one node has received them. Bounded per author; no I/O.

What arrives in good time (before the deadline of its kind, by this node's own view of the chain) is noted,
because a proposal that leaves it out is refused.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from ..protocol.checkpoint import CheckpointRecord, decode_record
from ..protocol.content_id import content_id
from ..protocol.encoding import EncodingError
from ..protocol.gossip_validation import check_evaluation, check_message
from ..protocol.messages import (
    Evaluation,
    Measurement,
    MentorshipSignal,
    Message,
    Proposal,
    Vote,
)
from ..protocol.rejection import Reason, ignore, reject
from ..protocol.state import NetworkState
from ..protocol.state_transition import CheckpointInputs

MEASUREMENTS_PER_NODE_MAX = 8
"""A node measures again when late messages change the candidate; of so many, the latest are kept."""
ROUNDS_KEPT_MAX = 64
"""Rounds of votes kept per author. A checkpoint that takes longer drops the oldest."""


@dataclass
class CheckpointPool:
    """Everything known about the open checkpoint of `state`."""

    state: NetworkState
    compositions: Container[bytes] = ()
    """Adapter ids of compositions that wait for version 1: their measurements are taken too."""
    signals: dict[bytes, Message] = field(default_factory=dict)
    """Mentor's node key to its one signal."""
    equivocations: dict[bytes, tuple[Message, Message]] = field(default_factory=dict)
    evaluations: dict[tuple[bytes, bytes], Message] = field(default_factory=dict)
    """(evaluator, signal id) to evaluation, whether or not the signal is known yet."""
    measurements: dict[tuple[bytes, bytes], Message] = field(default_factory=dict)
    """(author, weights hash) to measurement."""
    composed: dict[tuple[bytes, bytes], Message] = field(default_factory=dict)
    """(author, adapter id) to the one measurement of a composition."""
    proposals: dict[int, Message] = field(default_factory=dict)
    """Round to proposal: a round has one proposer."""
    records: dict[bytes, CheckpointRecord] = field(default_factory=dict)
    """Record hash to record, from proposals."""
    votes: dict[tuple[bytes, int], Message] = field(default_factory=dict)
    """(author, round) to vote."""
    by_id: dict[bytes, Message] = field(default_factory=dict)
    deltas: dict[bytes, bytes] = field(default_factory=dict)
    """Delta hash to bytes that were checked against their signal."""
    unavailable: set[bytes] = field(default_factory=set)
    """Delta hashes that nobody gave after the evaluation deadline."""
    in_good_time: set[tuple[bytes, ...]] = field(default_factory=set)
    """`coverage_key`s of messages received before the deadline of their kind."""

    def add(self, message: Message, elapsed_blocks: int) -> None:
        """Take a message. Raises Rejection when it is invalid, a duplicate or a contradiction."""
        if message.id in self.by_id:
            raise ignore(Reason.DUPLICATE)
        check_message(self.state, message, self.compositions)
        body = message.body
        preset = self.state.preset
        if isinstance(body, MentorshipSignal):
            self._add_signal(message)
            in_time = elapsed_blocks < preset.signal_deadline_blocks
        elif isinstance(body, Evaluation):
            self._add_evaluation(message, body)
            in_time = elapsed_blocks < preset.evaluation_deadline_blocks
        elif isinstance(body, Measurement):
            self._add_measurement(message, body)
            in_time = False  # which candidate it is about, only the record tells
        elif isinstance(body, Proposal):
            self._add_proposal(message, body)
            in_time = False
        else:
            self._add_vote(message, body)
            in_time = False
        self.by_id[message.id] = message
        if in_time:
            self.in_good_time.add(coverage_key(message))

    def _add_signal(self, message: Message) -> None:
        earlier = self.signals.get(message.author)
        if message.author in self.equivocations:
            raise ignore(Reason.EQUIVOCATION, "already proven")
        if earlier is not None:
            self.equivocations[message.author] = (earlier, message)
            del self.signals[message.author]
            self.in_good_time.discard(coverage_key(earlier))
            return
        self.signals[message.author] = message

    def _add_evaluation(self, message: Message, body: Evaluation) -> None:
        signal = self.by_id.get(body.signal_id)
        if signal is not None:
            check_evaluation(self.state, message, signal)
        elif not any(body.author in drawn for drawn in self.state.evaluators.values()):
            raise reject(Reason.NOT_DRAWN, "author evaluates nobody in this checkpoint")
        if (body.author, body.signal_id) in self.evaluations:
            raise ignore(Reason.EQUIVOCATION, "a second evaluation of the same signal")
        held = sum(1 for author, _ in self.evaluations if author == body.author)
        if held >= 2 * self.state.preset.evaluations_per_node + 1:
            raise reject(Reason.TOO_MANY, f"{held} evaluations in one checkpoint")
        self.evaluations[(body.author, body.signal_id)] = message

    def _add_measurement(self, message: Message, body: Measurement) -> None:
        if body.adapter_id != self.state.adapter_id:
            if (body.author, body.adapter_id) in self.composed:
                raise ignore(Reason.EQUIVOCATION, "a second measurement of the same composition")
            self.composed[(body.author, body.adapter_id)] = message
            return
        if (body.author, body.weights_hash) in self.measurements:
            raise ignore(Reason.EQUIVOCATION, "a second measurement of the same weights")
        mine = [key for key in self.measurements if key[0] == body.author]
        if len(mine) >= MEASUREMENTS_PER_NODE_MAX:
            self.by_id.pop(self.measurements.pop(mine[0]).id, None)
        self.measurements[(body.author, body.weights_hash)] = message

    def _add_proposal(self, message: Message, body: Proposal) -> None:
        if body.round in self.proposals:
            raise ignore(Reason.EQUIVOCATION, f"a second proposal for round {body.round}")
        try:
            record = decode_record(body.record)
        except EncodingError as error:
            raise reject(Reason.MALFORMED, f"record: {error}") from None
        if (
            record.number != self.state.next_number
            or record.parent_record_hash != self.state.record_hash
            or record.network_id != self.state.network_id
        ):
            raise reject(Reason.BAD_RECORD, "record of another number, parent or network")
        mine = [r for r, proposal in self.proposals.items() if proposal.author == body.author]
        if len(mine) >= self.state.preset.proposals_per_node_max:
            self.by_id.pop(self.proposals.pop(min(mine)).id, None)  # its record stays: votes may name it
        self.proposals[body.round] = message
        self.records[content_id(body.record).digest] = record

    def _add_vote(self, message: Message, body: Vote) -> None:
        if (body.author, body.round) in self.votes:
            raise ignore(Reason.EQUIVOCATION, f"a second vote in round {body.round}")
        mine = [round_number for author, round_number in self.votes if author == body.author]
        if len(mine) >= ROUNDS_KEPT_MAX:
            oldest = min(mine)
            self.by_id.pop(self.votes.pop((body.author, oldest)).id, None)
        self.votes[(body.author, body.round)] = message

    def unresolved_signals(self) -> list[Message]:
        """Signals whose bytes are neither here nor given up."""
        return [
            m
            for m in self.signals.values()
            if delta_hash(m) not in self.deltas and delta_hash(m) not in self.unavailable
        ]

    def usable_signals(self) -> list[Message]:
        return [m for m in self.signals.values() if delta_hash(m) in self.deltas]

    def withheld_signals(self) -> list[Message]:
        return [
            m
            for m in self.signals.values()
            if delta_hash(m) in self.unavailable and delta_hash(m) not in self.deltas
        ]

    def inputs(self) -> CheckpointInputs:
        """All that is held and valid, without measurements: what a candidate is computed from."""
        signals = self.usable_signals()
        by_id = {m.id: m for m in signals}
        return CheckpointInputs(
            signals=tuple(signals),
            evaluations=tuple(
                message
                for (author, signal_id), message in self.evaluations.items()
                if signal_id in by_id
                and author in self.state.evaluators.get(by_id[signal_id].author, frozenset())
            ),
            withheld=tuple(self.withheld_signals()),
            equivocations=tuple(self.equivocations.values()),
            deltas={delta_hash(m): self.deltas[delta_hash(m)] for m in signals},
        )

    def measurements_of(self, weights_hash: bytes) -> tuple[Message, ...]:
        return tuple(m for (_, measured), m in self.measurements.items() if measured == weights_hash)

    def missing_ids(self, record: CheckpointRecord) -> set[bytes]:
        """Ids that a record names and this pool does not hold."""
        named = {*record.signals, *record.withheld, *record.evaluations, *record.measurements}
        for pair in record.equivocations:
            named |= {pair.first, pair.second}
        for update in record.compositions:
            named |= set(update.measurements)
        return named - self.by_id.keys()

    def inputs_of(self, record: CheckpointRecord) -> CheckpointInputs:
        """The inputs that a record names; all of them must be here (see missing_ids)."""
        signals = tuple(self.by_id[i] for i in record.signals)
        return CheckpointInputs(
            signals=signals,
            evaluations=tuple(self.by_id[i] for i in record.evaluations),
            measurements=tuple(self.by_id[i] for i in record.measurements),
            withheld=tuple(self.by_id[i] for i in record.withheld),
            equivocations=tuple((self.by_id[p.first], self.by_id[p.second]) for p in record.equivocations),
            deltas={
                delta_hash(m): self.deltas[delta_hash(m)] for m in signals if delta_hash(m) in self.deltas
            },
        )

    def omitted(self, record: CheckpointRecord) -> list[tuple[bytes, ...]]:
        """What arrived here in good time and the record leaves out."""
        named = (*record.signals, *record.withheld, *record.evaluations)
        covered = {coverage_key(self.by_id[i]) for i in named if i in self.by_id}
        for pair in record.equivocations:
            if pair.first in self.by_id:
                covered.add(coverage_key(self.by_id[pair.first]))
        used = set(record.signals)
        return [
            key
            for key in sorted(self.in_good_time - covered)
            # an evaluation of a signal that the record does not use has no place in it
            if len(key) == 1 or key[1] in used
        ]


def delta_hash(message: Message) -> bytes:
    assert isinstance(message.body, MentorshipSignal)
    return message.body.delta_hash


def coverage_key(message: Message) -> tuple[bytes, ...]:
    """What a record must cover: the mentor of a signal, the (evaluator, signal) of an evaluation."""
    if isinstance(message.body, Evaluation):
        return (message.author, message.body.signal_id)
    return (message.author,)
