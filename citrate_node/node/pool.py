"""The messages of one open checkpoint, as one node has received them. Bounded per author; no I/O.

What arrives in good time (before the deadline of its kind, by this node's own view of the chain) is noted,
because a proposal that leaves it out is refused.

Somebody who says two things for one slot must not split the network: here the first one counts, but a variant
that a proposed record names is kept beside it, so that everybody can compute that record.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from ..protocol.checkpoint import CheckpointRecord, decode_record
from ..protocol.content_id import ContentId, content_id
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
from ..protocol.schedule import round_of, serves_deltas
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
    uncounted_votes: list[Message] = field(default_factory=list)
    """Votes that the committer has not counted yet."""
    by_id: dict[bytes, Message] = field(default_factory=dict)
    deltas: dict[bytes, bytes] = field(default_factory=dict)
    """Delta hash to bytes that were checked against their signal."""
    unavailable: set[ContentId] = field(default_factory=set)
    """Deltas that nobody gave after the evaluation deadline."""
    late: set[bytes] = field(default_factory=set)
    """Ids of signals first seen when deltas were served already: copies, perhaps. Nobody waits for them."""
    named: set[bytes] = field(default_factory=set)
    """Ids that the records of the kept proposals name."""
    in_good_time: set[tuple[bytes, ...]] = field(default_factory=set)
    """`coverage_key`s of messages received before the deadline of their kind."""

    def add(self, message: Message, elapsed_blocks: int, *, stored: bool = False) -> None:
        """Take a message. Raises Rejection when it is invalid, a duplicate or a contradiction.

        stored: read again after a restart; when it first came is forgotten, so it is neither demanded of
        proposals nor late.
        """
        if message.id in self.by_id:
            raise ignore(Reason.DUPLICATE)
        check_message(self.state, message, self.compositions)
        body = message.body
        preset = self.state.preset
        in_time = False
        if isinstance(body, MentorshipSignal):
            self._add_signal(message)
            in_time = elapsed_blocks < preset.signal_deadline_blocks
            if serves_deltas(preset, elapsed_blocks) and not stored:
                self.late.add(message.id)
        elif isinstance(body, Evaluation):
            self._add_evaluation(message, body)
            in_time = elapsed_blocks < preset.evaluation_deadline_blocks
        elif isinstance(body, Measurement):
            self._add_measurement(message, body)
            # a block earlier than the first proposal, for nodes merge no sets in between
            in_time = elapsed_blocks + 1 < preset.measurement_deadline_blocks
        elif isinstance(body, Proposal):
            if not stored and body.round > round_of(preset, elapsed_blocks) + 1:
                raise ignore(Reason.TOO_EARLY, f"round {body.round} is not open yet")
            self._add_proposal(message, body)
        else:
            self._add_vote(message, body)
        self.by_id[message.id] = message
        if in_time and not stored:
            self.in_good_time.add(coverage_key(message))

    def _is_variant(self, message: Message, what: str) -> bool:
        """A second thing said for one slot: kept where a record names it, ignored where none does."""
        if message.id not in self.named:
            raise ignore(Reason.EQUIVOCATION, what)
        return True

    def _add_signal(self, message: Message) -> None:
        earlier = self.signals.get(message.author)
        if message.author in self.equivocations:
            self._is_variant(message, "already proven")
        elif earlier is not None:
            self.equivocations[message.author] = (earlier, message)
            del self.signals[message.author]
            self.in_good_time.discard(coverage_key(earlier))
        else:
            self.signals[message.author] = message

    def _add_evaluation(self, message: Message, body: Evaluation) -> None:
        signal = self.by_id.get(body.signal_id)
        if signal is not None:
            check_evaluation(self.state, message, signal)
        elif not any(body.author in drawn for drawn in self.state.evaluators.values()):
            raise reject(Reason.NOT_DRAWN, "author evaluates nobody in this checkpoint")
        slot = (body.author, body.signal_id)
        if slot in self.evaluations and self._is_variant(message, "a second evaluation of the same signal"):
            return
        held = sum(1 for author, _ in self.evaluations if author == body.author)
        if held >= 2 * self.state.preset.evaluations_per_node + 1 and message.id not in self.named:
            # not the fault of the peer that hands it on: it may hold others of this author's
            raise ignore(Reason.TOO_MANY, f"{held} evaluations in one checkpoint")
        self.evaluations[slot] = message

    def _add_measurement(self, message: Message, body: Measurement) -> None:
        if body.adapter_id != self.state.adapter_id:
            slot = (body.author, body.adapter_id)
            if slot in self.composed and self._is_variant(message, "a second one of the same composition"):
                return
            self.composed[slot] = message
            return
        slot = (body.author, body.weights_hash)
        if slot in self.measurements and self._is_variant(message, "a second one of the same weights"):
            return
        mine = [
            key for key, m in self.measurements.items() if key[0] == body.author and m.id not in self.named
        ]
        if len(mine) >= MEASUREMENTS_PER_NODE_MAX:
            self.by_id.pop(self.measurements.pop(mine[0]).id, None)
        self.measurements[slot] = message

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
            self._drop_proposal(min(mine))
        self.proposals[body.round] = message
        self.records[content_id(body.record).digest] = record
        self.named |= _ids_named(record)

    def _drop_proposal(self, round_number: int) -> None:
        """Forget a proposal of a round long past, and its record unless another round proposes it too."""
        self.by_id.pop(self.proposals.pop(round_number).id, None)
        kept = {
            content_id(p.body.record).digest for p in self.proposals.values() if isinstance(p.body, Proposal)
        }
        self.records = {name: record for name, record in self.records.items() if name in kept}
        self.named = set().union(*(_ids_named(record) for record in self.records.values()))

    def _add_vote(self, message: Message, body: Vote) -> None:
        if (body.author, body.round) in self.votes:
            raise ignore(Reason.EQUIVOCATION, f"a second vote in round {body.round}")
        mine = [round_number for author, round_number in self.votes if author == body.author]
        if len(mine) >= ROUNDS_KEPT_MAX:
            oldest = min(mine)
            dropped = self.votes.pop((body.author, oldest))
            self.by_id.pop(dropped.id, None)
            self.uncounted_votes = [m for m in self.uncounted_votes if m.id != dropped.id]
        self.votes[(body.author, body.round)] = message
        self.uncounted_votes.append(message)

    def holds(self, signal: Message) -> bool:
        """Whether the announced bytes are here; a signal may name another's hash, and a false size."""
        content = delta_content(signal)
        return len(self.deltas.get(content.digest, b"")) == content.size_bytes

    def unresolved_signals(self) -> list[Message]:
        """Signals in good time whose bytes are neither here nor given up."""
        return [
            m
            for m in self.signals.values()
            if not self.holds(m) and delta_content(m) not in self.unavailable and m.id not in self.late
        ]

    def usable_signals(self) -> list[Message]:
        return [m for m in self.signals.values() if self.holds(m)]

    def withheld_signals(self) -> list[Message]:
        return [
            m
            for m in self.signals.values()
            if not self.holds(m) and delta_content(m) in self.unavailable and m.id not in self.late
        ]

    def signals_without_bytes(self) -> list[Message]:
        """All whose bytes are of use: of what is given up too, and of what a proposed record averages."""
        proposed = {i for record in self.records.values() for i in record.signals}
        named = [self.by_id[i] for i in sorted(proposed) if i in self.by_id]
        known = {m.id: m for m in (*self.signals.values(), *named) if isinstance(m.body, MentorshipSignal)}
        return [m for m in known.values() if not self.holds(m)]

    def inputs(self) -> CheckpointInputs:
        """All that is held and valid, without measurements: what a candidate is computed from."""
        signals = self.usable_signals()
        by_id = {m.id: m for m in signals}
        return CheckpointInputs(
            signals=tuple(signals),
            evaluations=tuple(
                message
                for (author, signal_id), message in self.evaluations.items()
                if signal_id in by_id and self._is_drawn(author, by_id[signal_id])
            ),
            withheld=tuple(self.withheld_signals()),
            equivocations=tuple(self.equivocations.values()),
            deltas={delta_hash(m): self.deltas[delta_hash(m)] for m in signals},
        )

    def measurements_of(self, weights_hash: bytes) -> tuple[Message, ...]:
        return tuple(m for (_, measured), m in self.measurements.items() if measured == weights_hash)

    def missing_ids(self, record: CheckpointRecord) -> set[bytes]:
        """Ids that a record names and this pool does not hold."""
        return _ids_named(record) - self.by_id.keys()

    def inputs_of(self, record: CheckpointRecord) -> CheckpointInputs:
        """The inputs that a record names; all of them must be here (see missing_ids).

        Raises Rejection where an id names another kind of message.
        """
        signals = tuple(self.by_id[i] for i in record.signals)
        if not all(
            isinstance(m.body, MentorshipSignal)
            for m in (*signals, *(self.by_id[i] for i in record.withheld))
        ):
            raise reject(Reason.BAD_RECORD, "a signal id names another kind of message")
        return CheckpointInputs(
            signals=signals,
            evaluations=tuple(self.by_id[i] for i in record.evaluations),
            measurements=tuple(self.by_id[i] for i in record.measurements),
            withheld=tuple(self.by_id[i] for i in record.withheld),
            equivocations=tuple((self.by_id[p.first], self.by_id[p.second]) for p in record.equivocations),
            deltas={delta_hash(m): self.deltas[delta_hash(m)] for m in signals if self.holds(m)},
        )

    def omitted(self, record: CheckpointRecord, candidate_hash: bytes) -> list[tuple[bytes, ...]]:
        """What arrived here in good time and the record leaves out.

        candidate_hash: the weights that the record's signals and evaluations give, promoted or not. A
        proposer that chose among their measurements would choose the accuracy.
        """
        named = (*record.signals, *record.withheld, *record.evaluations, *record.measurements)
        covered = {coverage_key(self.by_id[i]) for i in named if i in self.by_id}
        for pair in record.equivocations:
            if pair.first in self.by_id:
                covered.add(coverage_key(self.by_id[pair.first]))
        used = set(record.signals)

        def has_place(key: tuple[bytes, ...]) -> bool:
            if len(key) == 1:
                return True
            author, subject, *measured = key
            if measured:
                return subject == candidate_hash
            # an evaluation: of a signal that is used, and by one who was drawn for it
            return subject in used and self._is_drawn(author, self.by_id[subject])

        return [key for key in sorted(self.in_good_time - covered) if has_place(key)]

    def _is_drawn(self, evaluator: bytes, signal: Message) -> bool:
        return evaluator in self.state.evaluators.get(signal.author, frozenset())


def _ids_named(record: CheckpointRecord) -> set[bytes]:
    named = {*record.signals, *record.withheld, *record.evaluations, *record.measurements}
    for pair in record.equivocations:
        named |= {pair.first, pair.second}
    for update in record.compositions:
        named |= set(update.measurements)
    return named


def delta_content(message: Message) -> ContentId:
    """What a signal announces, by hash and size."""
    assert isinstance(message.body, MentorshipSignal)
    return ContentId(message.body.delta_hash, message.body.delta_size_bytes)


def delta_hash(message: Message) -> bytes:
    assert isinstance(message.body, MentorshipSignal)
    return message.body.delta_hash


def coverage_key(message: Message) -> tuple[bytes, ...]:
    """What a record must cover: the mentor of a signal, who evaluated which signal, who measured what."""
    if isinstance(message.body, Evaluation):
        return (message.author, message.body.signal_id)
    if isinstance(message.body, Measurement):
        return (message.author, message.body.weights_hash, b"measured")
    return (message.author,)
