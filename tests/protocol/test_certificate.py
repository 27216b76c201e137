"""Votes and certificates: the digests that Solidity computes too, and who counts towards a quorum."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.protocol.certificate import (
    CODEC_RAW,
    UPDATES_MAX,
    Certificate,
    CertifiedUpdate,
    CheckpointCommitment,
    Validator,
    account_of,
    check_certificate,
    commitment_digest,
    compact_signature,
    has_quorum,
    recover_account,
    sign_digest,
    updates_hash,
    validator_set_hash,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "certificate.json").read_text())
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
CHAIN_ID, CONTRACT = 40299, bytes.fromhex("00" * 18 + "0103")


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def commitment_of(case: dict[str, Any]) -> CheckpointCommitment:
    fields = case["commitment"]
    return CheckpointCommitment(
        number=fields["number"],
        round=fields["round"],
        parent_record_hash=unhex(fields["parentRecordHash"]),
        record_hash=unhex(fields["recordHash"]),
        validator_set_hash=unhex(fields["validatorSetHash"]),
        next_validator_set_hash=unhex(fields["nextValidatorSetHash"]),
        updates=tuple(
            CertifiedUpdate(
                adapter_id=unhex(update["adapterId"]),
                weights_hash=unhex(update["weightsHash"]),
                codec=update["codec"],
                size_bytes=update["sizeBytes"],
                accuracy_ppm=update["accuracyPpm"],
            )
            for update in fields["updates"]
        ),
    )


KEYS = [unhex(seat["private_key"]) for seat in VECTORS["validators"]]
VALIDATORS = [
    Validator(unhex(seat["node_key"]), unhex(seat["account"]), seat["stake"])
    for seat in VECTORS["validators"]
]
COMMITMENTS = [commitment_of(case) for case in VECTORS["cases"]]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_digest_and_signatures_are_those_of_an_independent_eip712_encoder(case: dict[str, Any]) -> None:
    digest = commitment_digest(case["chain_id"], unhex(case["contract"]), commitment_of(case))
    signatures = {"0x" + account_of(key).hex(): "0x" + sign_digest(key, digest).hex() for key in KEYS}
    assert ("0x" + digest.hex(), signatures) == (case["digest"], case["signatures"])


def test_every_vector_signature_recovers_to_its_account() -> None:
    recovered = [
        {recover_account(unhex(case["digest"]), unhex(text)) for text in case["signatures"].values()}
        for case in VECTORS["cases"]
    ]
    assert recovered == [{validator.account for validator in VALIDATORS}] * len(VECTORS["cases"])


@given(st.permutations(VALIDATORS))
def test_set_hash_does_not_depend_on_the_order_given(seats: list[Validator]) -> None:
    assert "0x" + validator_set_hash(seats).hex() == VECTORS["validator_set_hash"]


def test_set_hash_binds_every_field_of_every_validator() -> None:
    first = VALIDATORS[0]
    changed = [
        replace(first, stake=first.stake ^ 1),
        replace(first, node_key=bytes(32)),
        replace(first, account=bytes(20)),
    ]
    hashes = {validator_set_hash([seat, *VALIDATORS[1:]]) for seat in [first, *changed]}
    hashes.add(validator_set_hash(VALIDATORS[:3]))
    assert len(hashes) == 5


@pytest.mark.parametrize("field", ["account", "node_key"])
def test_a_set_where_two_seats_share_an_identity_is_refused(field: str) -> None:
    twin = replace(VALIDATORS[1], **{field: getattr(VALIDATORS[0], field)})
    with pytest.raises(ValueError, match="share"):
        validator_set_hash([VALIDATORS[0], twin])


def test_digest_binds_chain_contract_and_every_field() -> None:
    base = COMMITMENTS[2]
    update = base.updates[0]
    variants = [
        replace(base, number=8),
        replace(base, round=4),
        replace(base, parent_record_hash=bytes(32)),
        replace(base, record_hash=bytes(32)),
        replace(base, validator_set_hash=bytes(32)),
        replace(base, next_validator_set_hash=bytes(32)),
        replace(base, updates=base.updates[1:]),
        *(
            replace(base, updates=(replace(update, **change), *base.updates[1:]))
            for change in [
                {"adapter_id": bytes(32)},
                {"weights_hash": bytes(32)},
                {"codec": 0x70 if update.codec == 0x55 else 0x55},
                {"size_bytes": update.size_bytes + 1},
                {"accuracy_ppm": -1},
            ]
        ),
    ]
    digests = [commitment_digest(CHAIN_ID, CONTRACT, variant) for variant in [base, *variants]]
    digests += [commitment_digest(1, CONTRACT, base), commitment_digest(CHAIN_ID, bytes(20), base)]
    assert len(set(digests)) == len(digests)


def test_updates_are_one_per_adapter_and_sorted() -> None:
    one, two, three = COMMITMENTS[2].updates
    for updates in [(one, one), (two, one, three)]:
        with pytest.raises(ValueError, match="strictly ascending"):
            replace(COMMITMENTS[0], updates=updates)
    many = tuple(CertifiedUpdate(bytes([i]) * 32, bytes(32), CODEC_RAW, 1, 0) for i in range(UPDATES_MAX + 1))
    assert len(updates_hash(many[:UPDATES_MAX])) == 32
    with pytest.raises(ValueError, match="65"):
        replace(COMMITMENTS[0], updates=many)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codec", 0x71),
        ("size_bytes", 0),
        ("size_bytes", 2**64),
        ("accuracy_ppm", -(2**63)),
        ("adapter_id", b""),
    ],
)
def test_an_update_the_contract_could_not_hold_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(COMMITMENTS[1].updates[0], **{field: value})


def test_malformed_signatures_are_refused_and_never_recover_to_somebody() -> None:
    digest = unhex(VECTORS["cases"][0]["digest"])
    good = sign_digest(KEYS[0], digest)
    s = int.from_bytes(good[32:64], "big")
    high_s = good[:32] + (ORDER - s).to_bytes(32, "big") + bytes([55 - good[64]])
    bad = [
        b"",
        good[:64],
        good + b"\0",
        good[:64] + b"\0",
        good[:64] + b"\x1d",
        bytes(32) + good[32:],
        good[:32] + bytes(32) + good[64:],
        b"\xff" * 32 + good[32:],
        high_s,
        (5).to_bytes(32, "big") + good[32:],  # no curve point has x = 5
    ]
    for signature in bad:
        with pytest.raises(ValueError, match="signature"):
            recover_account(digest, signature)


@given(
    st.binary(min_size=32, max_size=32).filter(lambda key: 0 < int.from_bytes(key, "big") < ORDER),
    st.binary(min_size=32, max_size=32),
)
def test_a_signature_is_repeatable_low_and_compacts_without_loss(key: bytes, digest: bytes) -> None:
    signature = sign_digest(key, digest)
    r, vs = compact_signature(signature)
    s = int.from_bytes(vs, "big") & (2**255 - 1)
    restored = r + s.to_bytes(32, "big") + bytes([27 + (vs[0] >> 7)])
    assert (restored, sign_digest(key, digest), recover_account(digest, signature)) == (
        signature,
        signature,
        account_of(key),
    )
    assert s <= ORDER // 2


def seats(*stakes: int) -> list[Validator]:
    return [Validator(bytes([i]) * 32, bytes([i]) * 20, stake) for i, stake in enumerate(stakes, 1)]


def test_exactly_two_thirds_is_no_quorum_and_one_more_is() -> None:
    accounts = [bytes([i]) * 20 for i in (1, 2)]
    assert [
        has_quorum(seats(*stakes), accounts) for stakes in [(1, 1, 1), (1, 2, 1), (2**95, 2**95, 2**95 - 1)]
    ] == [
        False,
        True,
        True,
    ]


def test_strangers_and_repeats_add_nothing_to_a_quorum() -> None:
    one = bytes([1]) * 20
    assert not has_quorum(seats(1, 1, 1), [one, one, one, b"\x09" * 20, b"\x08" * 20])


def certificate_by(*signers: int, commitment: CheckpointCommitment = COMMITMENTS[0]) -> Certificate:
    digest = commitment_digest(CHAIN_ID, CONTRACT, commitment)
    return Certificate(commitment, {account_of(KEYS[i]): sign_digest(KEYS[i], digest) for i in signers})


def test_a_certificate_needs_the_right_set_the_right_digest_and_a_quorum() -> None:
    whale = max(range(4), key=lambda i: VALIDATORS[i].stake)
    minnows = [i for i in range(4) if i != whale]
    check_certificate(CHAIN_ID, CONTRACT, VALIDATORS, certificate_by(whale))
    with pytest.raises(ValueError, match="not more than 2/3"):
        check_certificate(CHAIN_ID, CONTRACT, VALIDATORS, certificate_by(*minnows))
    with pytest.raises(ValueError, match="another validator set"):
        check_certificate(CHAIN_ID, CONTRACT, VALIDATORS[:3], certificate_by(whale))
    with pytest.raises(ValueError, match="not over this commitment"):
        check_certificate(1, CONTRACT, VALIDATORS, certificate_by(whale))
    stranger = Certificate(COMMITMENTS[0], {bytes(20): certificate_by(0).signatures[account_of(KEYS[0])]})
    with pytest.raises(ValueError, match="not a validator"):
        check_certificate(CHAIN_ID, CONTRACT, VALIDATORS, stranger)
