"""The messages of one open checkpoint, as one node has received them. Bounded per author; no I/O.

What arrives in good time (before the deadline of its kind, by this node's own view of the chain) is noted,
because a proposal that leaves it out is refused.

Somebody who says two things for one slot must not split the network: here the first one counts, but a variant
that a proposed record names is kept beside it, so that everybody can compute that record.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from ..protocol.checkpoint import CheckpointRecord
from ..protocol.content_id import ContentId
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
    _by_author: dict[bytes, dict[bytes, Message]] = field(default_factory=dict)
    """Author to its evaluations, measurements and votes by id, so that a limit per author costs no search."""
    _halves: tuple[list[Message], list[Message]] | None = None
    """Signals whose bytes are here, and those without; None once either may have changed."""
    _inputs: CheckpointInputs | None = None
    """What `inputs` gives; None once it may have changed."""

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
        self._halves = self._inputs = None

    def _add_evaluation(self, message: Message, body: Evaluation) -> None:
        signal = self.by_id.get(body.signal_id)
        if signal is not None:
            check_evaluation(self.state, message, signal)
        elif body.author not in self.state.drawn_to_measure:
            raise reject(Reason.NOT_DRAWN, "author evaluates nobody in this checkpoint")
        slot = (body.author, body.signal_id)
        if slot in self.evaluations and self._is_variant(message, "a second evaluation of the same signal"):
            return
        held = len(self.said_by(body.author, Evaluation))
        if held >= 2 * self.state.preset.evaluations_per_node + 1 and message.id not in self.named:
            # not the fault of the peer that hands it on: it may hold others of this author's
            raise ignore(Reason.TOO_MANY, f"{held} evaluations in one checkpoint")
        self.evaluations[slot] = message
        self._inputs = None
        self._note(message)

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
        mine = [m for m in self.said_by(body.author, Measurement) if m.id not in self.named]
        if len(mine) >= MEASUREMENTS_PER_NODE_MAX:
            oldest = mine[0].body
            assert isinstance(oldest, Measurement)
            self._forget(self.measurements.pop((oldest.author, oldest.weights_hash)))
        self.measurements[slot] = message
        self._note(message)

    def _add_proposal(self, message: Message, body: Proposal) -> None:
        if body.round in self.proposals:
            raise ignore(Reason.EQUIVOCATION, f"a second proposal for round {body.round}")
        try:
            record = message.record
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
        self.records[message.record_hash] = record
        self.named |= record.ids_named

    def _drop_proposal(self, round_number: int) -> None:
        """Forget a proposal of a round long past, and its record unless another round proposes it too."""
        self.by_id.pop(self.proposals.pop(round_number).id, None)
        kept = {proposal.record_hash for proposal in self.proposals.values()}
        self.records = {name: record for name, record in self.records.items() if name in kept}
        self.named = set().union(*(record.ids_named for record in self.records.values()))

    def _add_vote(self, message: Message, body: Vote) -> None:
        if (body.author, body.round) in self.votes:
            raise ignore(Reason.EQUIVOCATION, f"a second vote in round {body.round}")
        mine = {m.body.round: m for m in self.said_by(body.author, Vote) if isinstance(m.body, Vote)}
        if len(mine) >= ROUNDS_KEPT_MAX:
            dropped = self.votes.pop((body.author, min(mine)))
            self._forget(dropped)
            self.uncounted_votes = [m for m in self.uncounted_votes if m.id != dropped.id]
        self.votes[(body.author, body.round)] = message
        self.uncounted_votes.append(message)
        self._note(message)

    def _note(self, message: Message) -> None:
        self._by_author.setdefault(message.author, {})[message.id] = message

    def _forget(self, message: Message) -> None:
        self.by_id.pop(message.id, None)
        self._by_author[message.author].pop(message.id, None)

    def said_by(self, author: bytes, *kinds: type) -> list[Message]:
        """An author's evaluations, measurements of the network's adapter or votes, in order of arrival."""
        return [m for m in self._by_author.get(author, {}).values() if isinstance(m.body, kinds)]

    def keep_delta(self, digest: bytes, data: bytes) -> None:
        """Bytes that were checked against their signal."""
        self.deltas[digest] = data
        self._halves = self._inputs = None

    def give_up(self, content: ContentId) -> None:
        """Nobody gave these bytes: their signal counts as withheld, unless they come after all."""
        self.unavailable.add(content)
        self._inputs = None

    def holds(self, signal: Message) -> bool:
        """Whether the announced bytes are here; a signal may name another's hash, and a false size."""
        content = signal.delta_content
        return len(self.deltas.get(content.digest, b"")) == content.size_bytes

    def _split(self) -> tuple[list[Message], list[Message]]:
        """The signals whose bytes are here, and the others; asked several times per event, so remembered."""
        if self._halves is None:
            halves: tuple[list[Message], list[Message]] = ([], [])
            for message in self.signals.values():
                halves[not self.holds(message)].append(message)
            self._halves = halves
        return self._halves

    def unresolved_signals(self) -> list[Message]:
        """Signals in good time whose bytes are neither here nor given up."""
        missing = self._split()[1]
        return [m for m in missing if m.delta_content not in self.unavailable and m.id not in self.late]

    def usable_signals(self) -> list[Message]:
        return self._split()[0]

    def withheld_signals(self) -> list[Message]:
        missing = self._split()[1]
        return [m for m in missing if m.delta_content in self.unavailable and m.id not in self.late]

    def signals_without_bytes(self) -> list[Message]:
        """All whose bytes are of use: of what is given up too, and of what a proposed record averages."""
        missing = self._split()[1]
        if not self.records:
            return missing
        known = {m.id: m for m in missing}
        for i in sorted({i for record in self.records.values() for i in record.signals}):
            named = self.by_id.get(i)
            if named is not None and isinstance(named.body, MentorshipSignal) and not self.holds(named):
                known[i] = named
        return list(known.values())

    def inputs(self) -> CheckpointInputs:
        """All that is held and valid, without measurements: what a candidate is computed from."""
        if self._inputs is None:
            self._inputs = self._gathered()
        return self._inputs

    def _gathered(self) -> CheckpointInputs:
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
        return set(record.ids_named - self.by_id.keys())

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
