"""Changes of the validator set, evidence of equivocation, and sets of the largest sizes, on both EVMs."""

from dataclasses import replace

import pytest
from eth_hash.auto import keccak
from factory_evm import (
    GENESIS_RECORD,
    VALIDATOR_NAMES,
    VALIDATORS,
    Evm,
    account,
    commit,
    commit_refusal,
    commitment,
    commitment_argument,
    digest_of,
    quorum_argument,
    refusal_of,
    seat_of,
    update,
    validator,
    validators_argument,
    vote_argument,
    with_stakes,
)

from citrate_node.chain.contract_abi import DEFAULT_CONTRACT, Reverted
from citrate_node.protocol.certificate import (
    commitment_digest,
    ordered,
    validator_set_hash,
)


def record(number: int) -> bytes:
    return digest_of(f"record {number}") if number else GENESIS_RECORD


def test_a_certified_change_of_validators_counts_from_the_next_checkpoint(evm: Evm) -> None:
    following = [*with_stakes(100, 100, 100, 500)[1:], validator("v5", 70)]
    receipt = commit(evm, commitment(1, next_validators=following), next_validators=following)
    expected = [
        {"nodeKey": seat.node_key, "account": seat.account, "stake": seat.stake}
        for seat in ordered(following)
    ]
    assert evm.read("validators") == expected
    assert evm.read("validatorSetHash") == validator_set_hash(following)
    assert receipt.events[-1].args == {
        "number": 1,
        "validatorSetHash": validator_set_hash(following),
        "count": 4,
    }
    assert commit_refusal(evm, commitment(2, record(1))).name == "ValidatorSetMismatch"
    commit(evm, commitment(2, record(1), validators=following), ("v3", "v4", "v5"), following)
    assert evm.read("lastCheckpoint")["number"] == 2


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
def test_sets_may_grow_and_shrink(evm: Evm, size: int) -> None:
    following = [validator(f"new {i}", i + 1) for i in range(size)]
    commit(evm, commitment(1, next_validators=following), next_validators=following)
    assert [row["account"] for row in evm.read("validators")] == [seat.account for seat in ordered(following)]


def test_a_list_that_the_certificate_does_not_bind_is_refused(evm: Evm) -> None:
    following, other = VALIDATORS[:3], VALIDATORS[1:]
    bound, present = validator_set_hash(following), validator_set_hash(VALIDATORS)
    changing = commitment(1, next_validators=following)
    assert [
        commit_refusal(evm, changing, next_validators=other),
        commit_refusal(evm, changing),
        commit_refusal(evm, commitment(1), next_validators=other),
    ] == [
        Reverted("NextSetMismatch", {"given": validator_set_hash(other), "certified": bound}),
        Reverted("ValidatorCount", {"count": 0, "max": 256}),
        Reverted("NextSetMismatch", {"given": validator_set_hash(other), "certified": present}),
    ]


def test_a_set_out_of_order_or_without_stake_is_refused_even_if_certified(evm: Evm) -> None:
    one, two = ordered(VALIDATORS)[:2]

    def why(seats: list[tuple[bytes, bytes, int]]) -> Reverted:
        words = b"".join(account_ + stake.to_bytes(12, "big") for _, account_, stake in seats)
        bound = keccak(keccak(words) + keccak(b"".join(node_key for node_key, _, _ in seats)))
        made = replace(commitment(1), next_validator_set_hash=bound)
        quorum = quorum_argument(evm.chain_id, made, VALIDATOR_NAMES)
        return refusal_of(evm, "commitCheckpoint", commitment_argument(made), quorum, seats)

    first, second = (one.node_key, one.account, 1), (two.node_key, two.account, 1)
    zero = (one.node_key, bytes(20), 1)
    assert [why([second, first]), why([first, first]), why([zero]), why([first, (*second[:2], 0)])] == [
        Reverted("ValidatorsNotAscending", {"account": one.account}),
        Reverted("ValidatorsNotAscending", {"account": one.account}),
        Reverted("ValidatorsNotAscending", {"account": bytes(20)}),
        Reverted("ZeroStake", {"account": two.account}),
    ]


# ---------------------------------------------------------------------------------------------- equivocation


def evidence(
    evm: Evm, name: str = "v1", number: int = 1, parent: bytes = GENESIS_RECORD
) -> tuple[object, ...]:
    votes = [
        vote_argument(evm.chain_id, commitment(number, parent, record=digest_of(text)), name)
        for text in ("left", "right")
    ]
    return (seat_of(name), *votes)


def test_two_votes_for_one_number_are_recorded_and_the_voter_must_leave(evm: Evm) -> None:
    receipt = evm.send("reportEquivocation", *evidence(evm), sender="carol")
    digests = [
        commitment_digest(evm.chain_id, DEFAULT_CONTRACT, commitment(1, record=digest_of(text)))
        for text in ("left", "right")
    ]
    assert [event.args for event in receipt.events] == [
        {
            "account": account("v1"),
            "number": 1,
            "round": 0,
            "firstDigest": digests[0],
            "secondDigest": digests[1],
            "excludedFrom": 2,
        }
    ]
    assert (evm.read("equivocation", account("v1")), evm.read("exclusionDueFrom")) == (1, 2)
    assert refusal_of(evm, "reportEquivocation", *evidence(evm)) == Reverted(
        "AlreadyRecorded", {"account": account("v1")}
    )

    commit(evm, commitment(1))  # under way when the evidence came: spared
    assert commit_refusal(evm, commitment(2, record(1))) == Reverted(
        "ExclusionDue", {"number": 2, "excludedFrom": 2}
    )
    kept = [validator("v1", 1), *VALIDATORS[1:]]
    assert commit_refusal(
        evm, commitment(2, record(1), next_validators=kept), next_validators=kept
    ) == Reverted("EquivocatorInSet", {"account": account("v1")})
    without = VALIDATORS[1:]
    commit(evm, commitment(2, record(1), next_validators=without), next_validators=without)
    assert evm.read("exclusionDueFrom") == 0
    commit(evm, commitment(3, record(2), validators=without), VALIDATOR_NAMES[1:], without)
    back = commitment(4, record(3), validators=without, next_validators=VALIDATORS)
    assert commit_refusal(evm, back, VALIDATOR_NAMES[1:], without, VALIDATORS).name == "EquivocatorInSet"


def test_a_change_of_set_under_way_is_spared_too_but_does_not_settle_the_exclusion(evm: Evm) -> None:
    kept = VALIDATORS[:3]
    evm.send("reportEquivocation", *evidence(evm))
    commit(evm, commitment(1, next_validators=kept), next_validators=kept)
    assert evm.read("exclusionDueFrom") == 2
    assert (
        commit_refusal(evm, commitment(2, record(1), validators=kept), validators=kept).name == "ExclusionDue"
    )
    without = VALIDATORS[1:]
    made = commitment(2, record(1), validators=kept, next_validators=without)
    commit(evm, made, validators=kept, next_validators=without)
    assert evm.read("exclusionDueFrom") == 0


def test_what_is_no_equivocation_is_refused(evm: Evm) -> None:
    def vote(name: str = "v1", chain_id: int | None = None, **fields: object) -> tuple[object, ...]:
        made = replace(commitment(5, digest_of("parent")), **fields)  # type: ignore[arg-type]
        return vote_argument(evm.chain_id if chain_id is None else chain_id, made, name)

    left, seat = vote(), seat_of("v1")
    right = vote(record_hash=digest_of("right"))
    names = [
        refusal_of(evm, "reportEquivocation", *arguments).name
        for arguments in [
            (seat, left, left),
            (seat, left, vote(number=6)),
            (seat, left, vote(round=1)),
            (seat, left, vote(parent_record_hash=digest_of("another network"))),
            (seat, left, vote("v2", record_hash=digest_of("right"))),
            (seat, left, vote(chain_id=evm.chain_id + 1, record_hash=digest_of("right"))),
            (seat_of("v2"), left, right),
            (4, left, right),
            (2**256 - 1, left, right),
        ]
    ]
    assert names == ["NotEquivocation"] * 4 + ["WrongSigner"] * 3 + ["NotAValidator"] * 2
    assert evm.send("reportEquivocation", seat, left, right).events


def test_evidence_may_differ_in_updates_or_sets_alone(evm: Evm) -> None:
    base = commitment(1)
    for name, other in [
        ("v1", replace(base, updates=(update(digest_of("a"), "x"),))),
        ("v2", replace(base, next_validator_set_hash=digest_of("next"))),
        ("v3", replace(base, validator_set_hash=digest_of("set"))),
    ]:
        votes = [vote_argument(evm.chain_id, made, name) for made in (base, other)]
        evm.send("reportEquivocation", seat_of(name), *votes)
        assert evm.read("equivocation", account(name)) == 1


def test_a_hundred_validators_fit_one_certificate(evm: Evm) -> None:
    names = [f"w{i}" for i in range(100)]
    validators = [validator(name) for name in names]
    evm.reset(validators)
    made = commitment(1, validators=validators)
    assert commit_refusal(evm, made, names[:66], validators).name == "NoQuorum"
    commit(evm, made, names[33:], validators)
    assert validators_argument(validators)[0][1] == "0x" + evm.read("validators")[0]["account"].hex()


def test_seat_256_can_vote(evm: Evm) -> None:
    """The last bit of the bitmap is a seat like any other."""
    crowd = [validator(f"w{i}", 1) for i in range(256)]
    last = ordered(crowd)[255]
    names = {account(f"w{i}"): f"w{i}" for i in range(256)}
    validators = [replace(seat, stake=10_000) if seat is last else seat for seat in crowd]
    evm.reset(validators)
    commit(evm, commitment(1, validators=validators), [names[last.account]], validators)
    assert evm.read("lastCheckpoint")["number"] == 1
