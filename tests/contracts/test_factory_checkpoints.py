"""Certificates, their updates, and the leave that owners give to mentors, on both EVMs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
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
    create,
    digest_of,
    quorum_argument,
    refusal_of,
    update,
    weights_cid,
    with_stakes,
)

from citrate_node.chain.contract_abi import DEFAULT_CONTRACT, Reverted
from citrate_node.protocol.certificate import (
    Validator,
    commitment_digest,
    node_keys_hash,
    ordered,
    validator_set_hash,
)

OPEN = 2**64 - 1
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "certificate.json").read_text())


def record(number: int) -> bytes:
    return digest_of(f"record {number}") if number else GENESIS_RECORD


def open_adapter(evm: Evm, text: str = "w") -> bytes:
    made = create(evm, text)
    evm.send("openToMentorship", made)
    return made


# ------------------------------------------------------------------------------------------- the certificate


def test_a_certificate_commits_its_checkpoint_and_its_versions(evm: Evm) -> None:
    a, b = open_adapter(evm, "a"), open_adapter(evm, "b")
    receipt = commit(
        evm, commitment(1, updates=[update(a, "a2", 18_000), update(b, "b2", -7, codec=0x70)], round=3)
    )
    head = evm.block_number()
    row = evm.read("lastCheckpoint")
    assert row == evm.read("checkpoint", 1)
    assert {**row, "timestamp": 0} == {
        "number": 1,
        "recordHash": record(1),
        "blockNumber": head,
        "timestamp": 0,
        "round": 3,
        "updates": 2,
    }
    assert row["timestamp"] >= 1_700_000_000
    assert evm.read("latest", b) == {
        "version": 2,
        "parentId": b,
        "weightsHash": digest_of("b2"),
        "accuracy": -7,
        "creator": account("alice"),
        "checkpoint": 1,
        "codec": 0x70,
        "sizeBytes": 4096,
        "blockNumber": head,
    }
    first, *added = receipt.events
    assert (first.name, first.args) == (
        "CheckpointCommitted",
        {"number": 1, "recordHash": record(1), "round": 3, "signedStake": 300, "totalStake": 400},
    )
    assert [(event.name, event.args["adapterId"]) for event in added] == [
        ("VersionAdded", adapter) for adapter in sorted([a, b])
    ]


def test_a_number_is_committed_once_in_order_on_top_of_the_record_before(evm: Evm) -> None:
    first = commitment(1)
    assert commit_refusal(evm, commitment(2)) == Reverted("NotNextCheckpoint", {"number": 2, "expected": 1})
    assert commit_refusal(evm, commitment(1, parent=bytes(32))) == Reverted(
        "ParentMismatch", {"given": bytes(32), "stored": GENESIS_RECORD}
    )
    assert commit_refusal(evm, commitment(1, record=bytes(32))) == Reverted("ZeroRecordHash", {})
    commit(evm, first)
    assert commit_refusal(evm, first) == Reverted("AlreadyCommitted", {"number": 1})
    assert commit_refusal(evm, commitment(1, record=digest_of("another"))).name == "AlreadyCommitted"
    assert commit_refusal(evm, commitment(2)).name == "ParentMismatch"
    commit(evm, commitment(2, parent=record(1)))
    rows = [evm.read("checkpoint", number)["recordHash"] for number in (0, 1, 2)]
    assert rows == [GENESIS_RECORD, record(1), record(2)]
    assert refusal_of(evm, "checkpoint", 3) == Reverted("NotNextCheckpoint", {"number": 3, "expected": 3})


@pytest.mark.parametrize(
    ("stakes", "signers", "enough"),
    [
        ((1, 1, 1, 1), 2, False),
        ((1, 1, 1, 1), 3, True),
        ((2, 2, 1, 1), 2, False),  # exactly two thirds
        ((4, 3, 2, 1), 2, True),
        ((2**96 - 1, 2**96 - 1, 2**96 - 1, 2**96 - 1), 3, True),
        ((2**96 - 1, 2**96 - 1, 2**96 - 1, 1), 2, False),
        ((1, 1, 1, 2**96 - 1), 3, False),
    ],
)
def test_strictly_more_than_two_thirds_of_the_stake_is_a_quorum(
    evm: Evm, stakes: tuple[int, ...], signers: int, enough: bool
) -> None:
    validators = with_stakes(*stakes)
    evm.reset(validators)
    made = commitment(1, validators=validators)
    if enough:
        commit(evm, made, VALIDATOR_NAMES[:signers], validators)
        assert evm.read("lastCheckpoint")["number"] == 1
    else:
        why = Reverted("NoQuorum", {"signedStake": sum(stakes[:signers]), "totalStake": sum(stakes)})
        assert commit_refusal(evm, made, VALIDATOR_NAMES[:signers], validators) == why


def test_votes_for_anything_else_do_not_count(evm: Evm) -> None:
    """Another chain, number, parent, record, updates, set or round: the signers recovered are strangers."""
    a = open_adapter(evm)
    made = commitment(1, updates=[update(a, "x")])
    for signed in [
        replace(made, round=1),
        replace(made, record_hash=digest_of("another")),
        replace(made, updates=()),
        replace(made, updates=(replace(made.updates[0], accuracy_ppm=18_001),)),
        replace(made, updates=(replace(made.updates[0], size_bytes=4097),)),
        replace(made, next_validator_set_hash=bytes(32)),
        replace(made, validator_set_hash=bytes(32)),
        replace(made, number=2),
    ]:
        quorum = quorum_argument(evm.chain_id, signed, VALIDATOR_NAMES)
        why = refusal_of(evm, "commitCheckpoint", commitment_argument(made), quorum, [])
        assert (why.name, why.args["account"]) == ("WrongSigner", ordered(VALIDATORS)[0].account)
    quorum = quorum_argument(evm.chain_id + 1, made, VALIDATOR_NAMES)
    assert refusal_of(evm, "commitCheckpoint", commitment_argument(made), quorum, []).name == "WrongSigner"


def test_a_certificate_of_another_set_is_refused(evm: Evm) -> None:
    richer = with_stakes(1000, 100, 100, 100)
    made = commitment(1, validators=richer)
    assert commit_refusal(evm, made, validators=richer) == Reverted(
        "ValidatorSetMismatch",
        {"given": validator_set_hash(richer), "stored": validator_set_hash(VALIDATORS)},
    )
    seats, keys, signers, signatures = quorum_argument(evm.chain_id, commitment(1), VALIDATOR_NAMES[:3])
    for quorum in [(seats, bytes(32), signers, signatures), (seats[:3], keys, signers, signatures)]:
        why = refusal_of(evm, "commitCheckpoint", commitment_argument(commitment(1)), quorum, [])
        assert why.name == "ValidatorSetMismatch"


def test_malformed_votes_are_refused(evm: Evm) -> None:
    made = commitment(1)
    argument = commitment_argument(made)
    seats, keys, signers, signatures = quorum_argument(evm.chain_id, made, VALIDATOR_NAMES)
    r, vs = signatures[0]
    high_s = (2**255 - 1).to_bytes(32, "big")  # the largest that the compact form can carry

    def why(bitmap: int, votes: list[tuple[bytes, bytes]]) -> Reverted:
        return refusal_of(evm, "commitCheckpoint", argument, (seats, keys, bitmap, votes), [])

    first = ordered(VALIDATORS)[0].account
    zero = bytes(20)
    count = {"signers": 4, "signatures": 4, "seats": 4}
    assert [
        why(signers, [(bytes(32), vs), *signatures[1:]]),
        why(signers, [(r, bytes(32)), *signatures[1:]]),
        why(signers, [(r, high_s), *signatures[1:]]),
        why(signers, signatures[:3]),
        why(signers, [*signatures, signatures[3]]),
        why(signers | 1 << 4, signatures),
        why(signers | 1 << 255, [*signatures, signatures[0]]),
        why(0, []),
    ] == [
        Reverted("WrongSigner", {"account": first, "recovered": zero}),
        Reverted("WrongSigner", {"account": first, "recovered": zero}),
        Reverted("WrongSigner", {"account": first, "recovered": zero}),
        Reverted("SignerCount", {**count, "signatures": 3}),
        Reverted("SignerCount", {**count, "signatures": 5}),
        Reverted("SignerCount", {**count, "signers": 5}),
        Reverted("SignerCount", {**count, "signers": 5, "signatures": 5}),
        Reverted("NoQuorum", {"signedStake": 0, "totalStake": 400}),
    ]
    swapped = why(signers, [signatures[1], signatures[0], *signatures[2:]])
    repeated = why(signers, [signatures[0], signatures[0], *signatures[2:]])
    assert {swapped.name, repeated.name} == {"WrongSigner"}


def test_the_shared_vectors_have_these_digests(evm: Evm) -> None:
    """Same bytes as Python and as eth_account's encoder, for the chain and the set of this EVM."""
    for case in VECTORS["cases"]:
        made = commitment(
            case["commitment"]["number"], validators=VALIDATORS, round=case["commitment"]["round"]
        )
        made = replace(
            made,
            parent_record_hash=bytes.fromhex(case["commitment"]["parentRecordHash"][2:]),
            record_hash=bytes.fromhex(case["commitment"]["recordHash"][2:]),
            next_validator_set_hash=bytes.fromhex(case["commitment"]["nextValidatorSetHash"][2:]),
            updates=tuple(
                replace(
                    update(
                        bytes.fromhex(fields["adapterId"][2:]), "x", fields["accuracyPpm"], fields["codec"]
                    ),
                    weights_hash=bytes.fromhex(fields["weightsHash"][2:]),
                    size_bytes=fields["sizeBytes"],
                )
                for fields in case["commitment"]["updates"]
            ),
        )
        assert evm.read("commitmentDigest", commitment_argument(made)) == commitment_digest(
            evm.chain_id, DEFAULT_CONTRACT, made
        )


def test_the_set_and_the_votes_of_the_vectors_count_on_chain(evm: Evm) -> None:
    validators = [
        Validator(bytes.fromhex(seat["node_key"][2:]), bytes.fromhex(seat["account"][2:]), seat["stake"])
        for seat in VECTORS["validators"]
    ]
    evm.reset(validators)
    assert "0x" + evm.read("validatorSetHash").hex() == VECTORS["validator_set_hash"]
    case = VECTORS["cases"][0]
    domain = evm.read("eip712Domain")
    assert (case["chain_id"], int(case["contract"], 16), bytes.fromhex(case["contract"][2:])) == (
        evm.chain_id,
        0x103,
        domain["verifyingContract"],
    )
    fields = case["commitment"]
    argument = (
        fields["number"],
        fields["round"],
        GENESIS_RECORD,
        bytes.fromhex(fields["recordHash"][2:]),
        bytes.fromhex(fields["nextValidatorSetHash"][2:]),
        [],
    )
    # the vector's parent is zero, this network's is not: its votes must not count here
    signatures = [bytes.fromhex(text[2:]) for _, text in sorted(case["signatures"].items())]
    votes = [
        (s[:32], ((int.from_bytes(s[32:64], "big")) | (s[64] - 27) << 255).to_bytes(32, "big"))
        for s in signatures
    ]
    seats = [v.account + v.stake.to_bytes(12, "big") for v in ordered(validators)]
    quorum = (seats, node_keys_hash(validators), 15, votes)
    assert refusal_of(evm, "commitCheckpoint", argument, quorum, []).name == "WrongSigner"
    in_vectors = (*argument[:2], bytes(32), *argument[3:])
    assert "0x" + evm.read("commitmentDigest", in_vectors).hex() == case["digest"]


def test_the_domain_is_announced_as_erc_5267_says(evm: Evm) -> None:
    assert evm.read("eip712Domain") == {
        "fields": b"\x0f",
        "name": "Citrate AdapterFactory",
        "version": "1",
        "chainId": evm.chain_id,
        "verifyingContract": DEFAULT_CONTRACT,
        "salt": bytes(32),
        "extensions": [],
    }


# ------------------------------------------------------------------------------------- updates and mentorship


def test_updates_that_break_a_rule_stop_the_whole_checkpoint(evm: Evm) -> None:
    a, b = sorted([open_adapter(evm, "a"), open_adapter(evm, "b")])
    one, two = update(a, "a2"), update(b, "b2")
    quorum_of = {}

    def why(*updates: object) -> Reverted:
        made = commitment(1)
        object.__setattr__(made, "updates", updates)  # past our own checks, which would refuse it first
        quorum_of["last"] = quorum_argument(evm.chain_id, made, VALIDATOR_NAMES)
        return refusal_of(evm, "commitCheckpoint", commitment_argument(made), quorum_of["last"], [])

    def changed(entry: object, **fields: object) -> object:
        copy = replace(one) if entry is one else replace(two)
        for name, value in fields.items():
            object.__setattr__(copy, name, value)
        return copy

    many = [changed(one, adapter_id=bytes([0] * 31 + [i])) for i in range(1, 66)]
    assert [
        why(two, one),
        why(one, one),
        why(changed(one, adapter_id=bytes(32))),
        why(changed(one, adapter_id=b"\1" * 32)),
        why(one, changed(two, codec=0x71)),
        why(changed(one, size_bytes=0)),
        why(changed(one, accuracy_ppm=-(2**63))),
        why(*many),
    ] == [
        Reverted("UpdatesNotAscending", {"adapterId": a}),
        Reverted("UpdatesNotAscending", {"adapterId": a}),
        Reverted("UpdatesNotAscending", {"adapterId": bytes(32)}),
        Reverted("UnknownAdapter", {"adapterId": b"\1" * 32}),
        Reverted("UnsupportedCodec", {"codec": 0x71}),
        Reverted("ZeroSize", {}),
        Reverted("AccuracyMissing", {"adapterId": a}),
        Reverted("TooManyUpdates", {"count": 65, "max": 64}),
    ]
    assert (evm.read("lastCheckpoint")["number"], evm.read("versionCount", a)) == (0, 1)


def test_validators_cannot_touch_an_adapter_that_its_owner_did_not_open(evm: Evm) -> None:
    made = create(evm, "private")
    assert commit_refusal(evm, commitment(1, updates=[update(made, "x")])) == Reverted(
        "ClosedToMentorship", {"adapterId": made, "until": 0, "checkpoint": 1}
    )


def test_while_an_adapter_is_open_its_owner_cannot_publish(evm: Evm) -> None:
    made = open_adapter(evm)
    assert refusal_of(evm, "publishVersion", made, weights_cid("x")) == Reverted(
        "OpenToMentorship", {"adapterId": made, "until": OPEN}
    )


def test_closing_leaves_room_for_the_checkpoint_under_way_and_for_no_other(evm: Evm) -> None:
    a = open_adapter(evm)
    commit(evm, commitment(1, updates=[update(a, "v2")]))
    closing = evm.send("closeMentorship", a)
    assert [event.args for event in closing.events] == [{"adapterId": a, "until": 2}]
    assert evm.read("adapter", a)["mentorshipUntil"] == 2
    assert evm.send("closeMentorship", a).events == ()
    assert refusal_of(evm, "publishVersion", a, weights_cid("x")).name == "OpenToMentorship"

    commit(evm, commitment(2, record(1), [update(a, "v3")]))
    assert commit_refusal(evm, commitment(3, record(2), [update(a, "v4")])) == Reverted(
        "ClosedToMentorship", {"adapterId": a, "until": 2, "checkpoint": 3}
    )
    evm.send("publishVersion", a, weights_cid("x"))
    evm.send("openToMentorship", a)
    commit(evm, commitment(3, record(2), [update(a, "v5")]))
    assert evm.read("versionCount", a) == 5


def test_only_the_owner_opens_and_closes(evm: Evm) -> None:
    made = create(evm, "w")
    for function in ("openToMentorship", "closeMentorship"):
        assert refusal_of(evm, function, made, sender="bob").name == "NotOwner"
        assert refusal_of(evm, function, bytes(32)).name == "UnknownAdapter"
