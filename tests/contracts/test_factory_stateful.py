"""Random histories of the contract against a model of a few lines, on both EVMs.

The model decides beforehand whether a call must pass or which error it must meet. After every step:
- the list of adapters only grows, and every version ever added is still what it was;
- versions count from 1 without gaps, and each was made by its owner or by a checkpoint that had leave;
- the last checkpoint is the number of commits, and each row still has the record it was given;
- the stored validators hash to the stored set hash, ascend, and hold stake;
- nobody who voted twice sits in a set after the exclusion was due.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from factory_evm import (
    BASE,
    GENESIS_RECORD,
    PEOPLE,
    VALIDATOR_NAMES,
    VALIDATORS,
    Evm,
    Receipt,
    Refused,
    account,
    commit,
    commitment,
    digest_of,
    seat_of,
    update,
    vote_argument,
    weights_cid,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from citrate_node.protocol.certificate import Validator, has_quorum, ordered, validator_set_hash

OPEN = 2**64 - 1
people = st.sampled_from(PEOPLE)
picks = st.integers(0, 2**16)


@dataclass
class Adapter:
    """One adapter in the model."""

    id: bytes
    owner: str
    rank: int
    depth: int = 0
    versions: list[tuple[bytes, int]] = field(default_factory=list)
    """Weights hash and checkpoint of each."""
    until: int = 0
    offered: str | None = None


class Histories(RuleBasedStateMachine):
    """Subclassed with an EVM by the test below."""

    evm: Evm

    def __init__(self) -> None:
        super().__init__()
        self.evm.reset(VALIDATORS)
        self.adapters: list[Adapter] = []
        self.records = [GENESIS_RECORD]
        self.validators: list[Validator] = list(VALIDATORS)
        self.equivocators: dict[str, int] = {}
        self.due = 0
        self.serial = 0
        self.composed: set[tuple[object, ...]] = set()

    def fresh(self) -> str:
        self.serial += 1
        return f"text {self.serial}"

    def expect(self, error: str | None, function: str, *args: object, sender: str) -> object:
        """Make the call: it must pass where error is None, else be refused with this error."""
        return self.outcome(error, lambda: self.evm.send(function, *args, sender=sender))

    @staticmethod
    def outcome(error: str | None, call: Callable[[], Receipt]) -> object:
        met, result = None, None
        try:
            result = call().result
        except Refused as refused:
            met = refused.why.name
        assert met == error
        return result

    # ------------------------------------------------------------------------------------------ adapters

    @rule(who=people, rank=st.integers(0, 66))
    def create(self, who: str, rank: int) -> None:
        text = self.fresh()
        error = None if 1 <= rank <= 64 else "RankOutOfRange"
        made = self.expect(
            error, "createAdapter", BASE.base_model_id, text, weights_cid(text), rank, sender=who
        )
        if error is None:
            assert isinstance(made, bytes)
            self.adapters.append(Adapter(made, who, rank, versions=[(digest_of(text), 0)]))

    @precondition(lambda self: self.adapters)
    @rule(who=people, pick=picks)
    def publish(self, who: str, pick: int) -> None:
        adapter, text = self.adapters[pick % len(self.adapters)], self.fresh()
        error = None
        if adapter.owner != who:
            error = "NotOwner"
        elif adapter.until > len(self.records) - 1:
            error = "OpenToMentorship"
        elif not adapter.versions:
            error = "NotYetCertified"
        number = self.expect(error, "publishVersion", adapter.id, weights_cid(text), sender=who)
        if error is None:
            adapter.versions.append((digest_of(text), 0))
            assert number == len(adapter.versions)

    @precondition(lambda self: self.adapters)
    @rule(who=people, one=picks, two=picks, weight=st.integers(0, 101))
    def compose(self, who: str, one: int, two: int, weight: int) -> None:
        a, b = self.adapters[one % len(self.adapters)], self.adapters[two % len(self.adapters)]
        depth = 1 + max(a.depth, b.depth)
        error = None
        if a is b:
            error = "SelfComposition"
        elif not 0 < weight < 100:
            error = "WeightsMustSumTo100"
        elif not a.versions or not b.versions:
            error = "NotYetCertified"
        elif depth > 16:
            error = "DepthLimit"
        asked = (who, a.id, len(a.versions), b.id, len(b.versions), weight)
        if error is None and asked in self.composed:
            error = "AdapterExists"
        made = self.expect(error, "composeAdapters", a.id, b.id, weight, max(0, 100 - weight), sender=who)
        if error is None:
            self.composed.add(asked)
            assert isinstance(made, bytes)
            self.adapters.append(Adapter(made, who, min(64, a.rank + b.rank), depth))

    @precondition(lambda self: self.adapters)
    @rule(who=people, pick=picks, opening=st.booleans())
    def open_or_close(self, who: str, pick: int, opening: bool) -> None:
        adapter = self.adapters[pick % len(self.adapters)]
        error = None if adapter.owner == who else "NotOwner"
        self.expect(error, "openToMentorship" if opening else "closeMentorship", adapter.id, sender=who)
        if error is None and opening:
            adapter.until = OPEN
        elif error is None and adapter.until == OPEN:
            adapter.until = len(self.records)

    @precondition(lambda self: self.adapters)
    @rule(pick=picks, who=people, to=people, accepting=people)
    def hand_over(self, pick: int, who: str, to: str, accepting: str) -> None:
        adapter = self.adapters[pick % len(self.adapters)]
        error = None if adapter.owner == who else "NotOwner"
        self.expect(error, "transferOwnership", adapter.id, account(to), sender=who)
        if error is None:
            adapter.offered = to
        error = None if adapter.offered == accepting else "NotPendingOwner"
        self.expect(error, "acceptOwnership", adapter.id, sender=accepting)
        if error is None:
            adapter.owner, adapter.offered = accepting, None

    # --------------------------------------------------------------------------------------- checkpoints

    @rule(
        signers=st.sets(st.sampled_from(VALIDATOR_NAMES), min_size=1).map(sorted),
        ahead=st.sampled_from([1, 1, 1, 1, 0, 2]),
        chosen=st.lists(picks, max_size=3),
        change=st.one_of(st.none(), st.none(), st.lists(st.integers(0, 9), min_size=4, max_size=4)),
    )
    def commit(self, signers: list[str], ahead: int, chosen: list[int], change: list[int] | None) -> None:
        last = len(self.records) - 1
        number = last + ahead
        if number == 0:
            return
        targets = {pick % len(self.adapters): None for pick in chosen} if self.adapters else {}
        adapters = sorted((self.adapters[i] for i in targets), key=lambda adapter: adapter.id)
        texts = [self.fresh() for _ in adapters]
        following = None
        if change is not None and any(change):
            following = [
                replace(seat, stake=stake) for seat, stake in zip(VALIDATORS, change, strict=True) if stake
            ]
            if validator_set_hash(following) == validator_set_hash(self.validators):
                following = None
        seated = [name for name in signers if account(name) in {seat.account for seat in self.validators}]
        made = commitment(
            number,
            self.records[last],
            [update(adapter.id, text) for adapter, text in zip(adapters, texts, strict=True)],
            self.validators,
            following,
            record=digest_of(self.fresh()),
        )
        error = self.commit_error(number, seated, adapters, following)
        self.outcome(error, lambda: commit(self.evm, made, seated, self.validators, following))
        if error is not None:
            return
        self.records.append(made.record_hash)
        for adapter, text in zip(adapters, texts, strict=True):
            adapter.versions.append((digest_of(text), number))
        if following is not None:
            self.validators = following
            if not any(account(name) in {seat.account for seat in following} for name in self.equivocators):
                self.due = 0

    def commit_error(
        self, number: int, signers: list[str], adapters: list[Adapter], following: list[Validator] | None
    ) -> str | None:
        last = len(self.records) - 1
        if number <= last:
            return "AlreadyCommitted"
        if number > last + 1:
            return "NotNextCheckpoint"
        if not has_quorum(self.validators, [account(name) for name in signers]):
            return "NoQuorum"
        if any(adapter.versions and adapter.until < number for adapter in adapters):
            return "ClosedToMentorship"
        must_exclude = self.due != 0 and number >= self.due
        if following is None:
            return "ExclusionDue" if must_exclude else None
        guilty = {account(name) for name in self.equivocators}
        if any(seat.account in guilty for seat in following) and (must_exclude or self.due == 0):
            return "EquivocatorInSet"
        return None

    @rule(name=st.sampled_from(VALIDATOR_NAMES), number=st.integers(1, 3), same=st.booleans())
    def report(self, name: str, number: int, same: bool) -> None:
        seated = any(seat.account == account(name) for seat in self.validators)
        left, right = (
            vote_argument(self.evm.chain_id, commitment(number, record=digest_of(text)), name)
            for text in ("left", "left" if same else "right")
        )
        if not seated:
            self.expect(
                "NotAValidator", "reportEquivocation", len(self.validators), left, right, sender="bob"
            )
            return
        error = "AlreadyRecorded" if name in self.equivocators else "NotEquivocation" if same else None
        self.expect(error, "reportEquivocation", seat_of(name, self.validators), left, right, sender="bob")
        if error is None:
            self.equivocators[name] = number
            self.due = self.due or len(self.records) + 1

    # ---------------------------------------------------------------------------------------- invariants

    @invariant()
    def adapters_only_grow_and_versions_stay_what_they_were(self) -> None:
        assert self.evm.read("adapters", 0, 1000) == [adapter.id for adapter in self.adapters]
        for adapter in self.adapters[-3:]:
            row = self.evm.read("adapter", adapter.id)
            assert (row["owner"], row["rank"], row["depth"], row["versionCount"], row["mentorshipUntil"]) == (
                account(adapter.owner),
                adapter.rank,
                adapter.depth,
                len(adapter.versions),
                adapter.until,
            )
            history = self.evm.read("history", adapter.id, 0, 1000)
            assert [(entry["weightsHash"], entry["checkpoint"]) for entry in history] == adapter.versions
            assert [entry["version"] for entry in history] == list(range(1, len(history) + 1))

    @invariant()
    def commits_are_counted_and_their_records_kept(self) -> None:
        last = self.evm.read("lastCheckpoint")
        assert (last["number"], last["recordHash"]) == (len(self.records) - 1, self.records[-1])
        middle = len(self.records) // 2
        assert self.evm.read("checkpoint", middle)["recordHash"] == self.records[middle]

    @invariant()
    def validators_hash_to_the_stored_hash_and_ascend_and_hold_stake(self) -> None:
        rows = [
            Validator(row["nodeKey"], row["account"], row["stake"]) for row in self.evm.read("validators")
        ]
        assert rows == ordered(self.validators)
        assert self.evm.read("validatorSetHash") == validator_set_hash(rows)

    @invariant()
    def equivocators_leave_when_it_is_due(self) -> None:
        due = self.evm.read("exclusionDueFrom")
        assert due == self.due
        if due and due < len(self.records):
            raise AssertionError(f"checkpoint {len(self.records) - 1} kept an equivocator, due from {due}")
        if not due:
            guilty = {account(name) for name in self.equivocators}
            assert not any(seat.account in guilty for seat in self.validators)


def run_histories(evm: Evm, examples: int, steps: int) -> None:
    kind = type("HistoriesOf", (Histories,), {"evm": evm})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_histories_follow_the_model(evm: Evm) -> None:
    run_histories(evm, examples=15, steps=20)


@pytest.mark.slow
def test_many_long_random_histories_follow_the_model(evm: Evm) -> None:
    run_histories(evm, examples=100, steps=40)
