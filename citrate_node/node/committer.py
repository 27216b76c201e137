"""The committee's part: propose, recompute and vote, join votes to a certificate, see it on chain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..protocol.certificate import Certificate, commitment_digest, sign_digest
from ..protocol.checkpoint import CheckpointRecord, commitment_of
from ..protocol.messages import Message, Proposal, Vote
from ..protocol.rejection import Reason, Rejection, Verdict
from ..protocol.schedule import Phase
from ..protocol.state_transition import Outcome
from .actions import Action, CatchUp, Commit, Notice, ReportVerdict
from .composer import Composer
from .core import REPEAT_BLOCKS, Core
from .evaluator import Evaluator

COMMIT_PATIENCE_BLOCKS = 2
"""The proposer sends the certificate first; the others one after another, from this many blocks later."""
COMMIT_REPEAT_BLOCKS = 4
"""A transaction that is not mined by then is sent again."""


@dataclass
class Ballot:
    """The valid votes for one record in one round."""

    stake: int = 0
    signatures: dict[bytes, bytes] = field(default_factory=dict)
    """Account to its signature."""


@dataclass
class Committer:
    """Proposals, votes and certificates of the open checkpoint."""

    core: Core
    evaluator: Evaluator
    composer: Composer
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)
    """Record hash to what this node computed for it."""
    refused: set[bytes] = field(default_factory=set)
    """Record hashes that are not what their inputs give."""
    proposed: set[int] = field(default_factory=set)
    certified_at: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """(round, record hash) to the block at which a quorum was first seen."""
    certificates: dict[bytes, Certificate] = field(default_factory=dict)
    """Record hash to the votes of a quorum: kept with the checkpoint, should the chain lose blocks."""
    sent_at: int | None = None
    ballots: dict[tuple[int, bytes], Ballot] = field(default_factory=dict)
    """(round, record hash) to its votes."""

    def reset(self) -> None:
        """A new checkpoint has opened."""
        self.outcomes, self.refused, self.proposed = {}, set(), set()
        self.certified_at, self.certificates, self.sent_at = {}, {}, None
        self.ballots = {}

    def tick(self) -> list[Action]:
        core = self.core
        if not core.in_committee:
            return []
        actions: list[Action] = []
        if core.phase is Phase.FINALITY:
            actions += self._propose()
            actions += self._repeat_own()
        return [*actions, *self.consider_proposals(), *self.certify()]

    def _propose(self) -> list[Action]:
        """Once per round that is ours, when every signal is resolved."""
        core = self.core
        round_number = core.round
        if round_number in self.proposed or core.state.proposer(round_number) != core.node_key:
            return []
        candidate = self.evaluator.candidate()
        if candidate is None:
            return []
        self.proposed.add(round_number)
        inputs = core.pool.inputs()
        measurements = core.pool.measurements_of(candidate.content.digest) if candidate.changed else ()
        if candidate.changed and not measurements and round_number < core.state.preset.omission_rounds:
            self.proposed.discard(
                round_number
            )  # somebody is still measuring; better a later round than no figure
            return []
        # a composition can wait, the checkpoint cannot: where nobody agrees on one it is left out
        compositions = self.composer.ready() if round_number < core.state.preset.omission_rounds else ()
        inputs = replace(inputs, measurements=measurements, compositions=compositions)
        outcome = core.functions.process_checkpoint(core.state, inputs, candidate)
        record = outcome.record.encode()
        self.outcomes[outcome.record.hash] = outcome
        body = Proposal(core.state.network_id, core.node_key, core.state.next_number, round_number, record)
        said = core.say(f"proposal/{core.state.next_number}/{round_number}", body)
        facts = {"round": round_number, "signals": len(outcome.record.signals)}
        return [*said, Notice("proposed", facts)] if said else []

    def _repeat_own(self) -> list[Action]:
        """Votes and proposals of the latest round, until their effect is seen on chain."""
        core = self.core
        actions: list[Action] = []
        own = core.pool.said_by(core.node_key, Vote)
        own += [m for m in core.pool.proposals.values() if m.author == core.node_key]
        for message in own:
            body = message.body
            assert isinstance(body, (Vote, Proposal))
            if body.round + 1 >= core.round:
                actions += core.repeat(message)
        return actions

    def consider_proposals(self) -> list[Action]:
        """Vote for the newest proposals whose record this node computes to the same bytes."""
        core = self.core
        if not core.in_committee:
            return []
        actions: list[Action] = []
        for round_number in sorted(core.pool.proposals):
            voted = (core.node_key, round_number) in core.pool.votes
            if voted or not core.round - 1 <= round_number <= core.round + 1:
                continue
            actions += self._consider(core.pool.proposals[round_number])
        return actions

    def _consider(self, proposal: Message) -> list[Action]:
        core = self.core
        body = proposal.body
        assert isinstance(body, Proposal)
        record_hash = proposal.record_hash
        record = core.pool.records[record_hash]
        slot = f"vote/{core.state.next_number}/{body.round}"
        if record_hash in self.refused:
            return []
        if core.pool.missing_ids(record):
            return [CatchUp(core.state.next_number, frozenset(core.pool.by_id))]
        try:
            outcome = self.computed(record_hash, record)
        except Rejection as rejection:
            self.refused.add(record_hash)
            return [ReportVerdict(Verdict.REJECT, Reason.BAD_RECORD, str(rejection))]
        if outcome is None:
            return []  # some delta, or a parent of a composition, is still on its way
        omitted = core.pool.omitted(record, outcome.aggregation.content.digest)
        held_back = [i for i in record.withheld if core.pool.holds(core.pool.by_id[i])]
        if (omitted or held_back) and not self._insisted(record_hash):
            detail = (
                f"{len(omitted)} messages left out, {len(held_back)} deltas called withheld that are here"
            )
            return [ReportVerdict(Verdict.IGNORE, Reason.OMISSION, detail)]
        commitment = commitment_of(record, body.round)
        digest = commitment_digest(core.chain.chain_id, core.chain.contract, commitment)
        vote = Vote(
            core.state.network_id,
            core.node_key,
            core.state.next_number,
            body.round,
            record_hash,
            sign_digest(core.identity.account_key, digest),
        )
        said = core.say(slot, vote)
        return [*said, Notice("voted", {"round": body.round})] if said else []

    def _insisted(self, record_hash: bytes) -> bool:
        """Several proposers came to the very same record: then what is missing here was late for most."""
        proposals = self.core.pool.proposals.values()
        authors = {message.author for message in proposals if message.record_hash == record_hash}
        needed = min(self.core.state.preset.omission_rounds, len(self.core.state.committee))
        return len(authors) >= needed

    def computed(self, record_hash: bytes, record: CheckpointRecord) -> Outcome | None:
        """This node's own outcome for a record, None while bytes are missing.

        Raises Rejection where the record is not what its inputs give.
        """
        if record_hash in self.outcomes:
            return self.outcomes[record_hash]
        core = self.core
        if core.pool.missing_ids(record):
            return None
        inputs = core.pool.inputs_of(record)
        compositions = self.composer.inputs_of(record)
        if compositions is None or not all(core.pool.holds(m) for m in inputs.signals):
            return None
        inputs = replace(inputs, compositions=compositions)
        candidate = self.evaluator.candidate()
        same = candidate is not None and core.pool.inputs().key == inputs.key
        aggregation = candidate if same else core.functions.aggregate(core.state, inputs)
        outcome = core.functions.process_checkpoint(core.state, inputs, aggregation)
        if outcome.record != record:
            names = [
                name
                for name in CheckpointRecord.__dataclass_fields__
                if getattr(outcome.record, name) != getattr(record, name)
            ]
            raise Rejection(Verdict.REJECT, Reason.BAD_RECORD, f"differs in {', '.join(names)}")
        kept = core.pool.records.keys()  # a stuck checkpoint must not gather the weights of every round
        self.outcomes = {name: known for name, known in self.outcomes.items() if name in kept}
        self.outcomes[record_hash] = outcome
        return outcome

    def certify(self) -> list[Action]:
        """Join votes of one round and record; when they are a quorum, send them to the contract."""
        core = self.core
        if not core.in_committee:
            return []
        actions: list[Action] = []
        self._count_votes()
        for round_number, record_hash in sorted(self.ballots):
            ballot = self.ballots[(round_number, record_hash)]
            if 3 * ballot.stake <= 2 * core.state.committee_stake:
                continue
            if (round_number, record_hash) not in self.certified_at:
                self.certified_at[(round_number, record_hash)] = core.head
                facts = {"round": round_number, "votes": len(ballot.signatures)}
                actions.append(Notice("certified", facts))
            if record_hash not in self.certificates:
                self.certificates[record_hash] = self._certificate(round_number, record_hash)
            if self._is_my_turn(round_number, record_hash):
                self.sent_at = core.head
                actions.append(Commit(self._certificate(round_number, record_hash), core.state.committee))
                break
        return actions

    def _count_votes(self) -> None:
        """Add the votes that came since, once each; one for a record that is not here yet waits."""
        core = self.core
        waiting: list[Message] = []
        for message in core.pool.uncounted_votes:
            body = message.body
            assert isinstance(body, Vote)
            if body.record_hash not in core.pool.records:
                waiting.append(message)
            elif self._is_valid(message, body):
                seat = core.state.nodes[core.state.position[message.author]]
                ballot = self.ballots.setdefault((body.round, body.record_hash), Ballot())
                if seat.account not in ballot.signatures:
                    ballot.stake += seat.stake
                ballot.signatures[seat.account] = body.account_signature
        core.pool.uncounted_votes[:] = waiting
        # of a checkpoint that takes very long: what the pool has dropped is dropped here too
        kept = core.pool.records.keys()
        if any(record_hash not in kept for _, record_hash in self.ballots):
            self.ballots = {key: ballot for key, ballot in self.ballots.items() if key[1] in kept}

    def _certificate(self, round_number: int, record_hash: bytes) -> Certificate:
        ballot = self.ballots[(round_number, record_hash)]
        record = self.core.pool.records[record_hash]
        return Certificate(commitment_of(record, round_number), dict(ballot.signatures))

    def _is_valid(self, message: Message, body: Vote) -> bool:
        record = self.core.pool.records[body.record_hash]
        try:
            chain = self.core.chain
            self.core.functions.check_vote(self.core.state, chain.chain_id, chain.contract, message, record)
        except Rejection:
            return False
        return True

    def _is_my_turn(self, round_number: int, record_hash: bytes) -> bool:
        """The proposer at once, the others in the order of the committee, a block apart; then again."""
        core = self.core
        if self.sent_at is not None and core.head - self.sent_at < COMMIT_REPEAT_BLOCKS:
            return False
        if core.state.proposer(round_number) == core.node_key:
            return True
        rank = core.state.committee_rank[core.node_key]
        waited = core.head - self.certified_at[(round_number, record_hash)]
        return waited >= COMMIT_PATIENCE_BLOCKS + rank * REPEAT_BLOCKS // 2
