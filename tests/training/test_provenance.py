"""provenance.json: strict to read, one canonical form, signed as any wallet signs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from citrate_node.training.card import card_text, lineage_lines
from citrate_node.training.provenance import (
    BaseFacts,
    ChainFacts,
    DataFacts,
    EvaluationFacts,
    LineageFacts,
    Provenance,
    ProvenanceError,
    TrainingFacts,
    WeightsFacts,
    canonical,
    from_json,
    read_provenance,
    require_signature,
    signed,
    signed_text,
    to_json,
    write_provenance,
)

KEY = bytes([7]) * 32
CREATOR = str(Account.from_key(KEY).address)


def ancestor(name: str, *parents: LineageFacts, weight: int | None = None) -> LineageFacts:
    return LineageFacts(
        adapter_id="0x" + name[0] * 64,
        name=name,
        creator=CREATOR,
        base_model_id="aa" * 32,
        version=1,
        weights_hash="bb" * 32,
        weight_percent=weight,
        parents=parents,
    )


TREE = ancestor("c", ancestor("a", weight=70), ancestor("b", weight=30))
FULL = Provenance(
    base=BaseFacts("embedded", "aa" * 32, "psf-2.0"),
    weights=WeightsFacts("bb" * 32, 8192, 4, 8, ("q_proj", "v_proj"), "bafkrei"),
    training=TrainingFacts(
        "local", data=(DataFacts("cc" * 32, "letters", "cc-by-4.0", 40),), steps=8, learning_rate=0.01
    ),
    evaluations=(EvaluationFacts({"loss_own_nats": 1.5, "improvement_ppm": 1000}, passed=True),),
    chain=ChainFacts(40299, "0x" + "01" * 20, "0x" + "cc" * 32, "c", 1, CREATOR, "bb" * 32, 3, -5),
    lineage=TREE,
    licence="psf-2.0",
    intended_use="Letters.",
    limitations="Nothing else.",
)


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    full = signed(FULL, KEY)
    write_provenance(tmp_path, full)
    assert read_provenance(tmp_path) == full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["provenance.json"]


def test_a_folder_without_provenance_has_none(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None


def test_the_signature_is_what_a_wallet_makes_and_checks() -> None:
    """personal_sign, by eth_account as the second implementation."""
    full = signed(FULL, KEY)
    message = encode_defunct(text=signed_text(full))
    assert Account.recover_message(message, signature=full.signature) == CREATOR
    assert full.signature == "0x" + Account.sign_message(message, KEY).signature.hex().removeprefix("0x")
    assert require_signature(full) == bytes.fromhex(CREATOR[2:])


def test_one_and_one_point_zero_are_the_same_figure() -> None:
    whole = dataclasses.replace(FULL, evaluations=(EvaluationFacts({"loss_own_nats": 2}),))
    real = dataclasses.replace(FULL, evaluations=(EvaluationFacts({"loss_own_nats": 2.0}),))
    assert canonical(whole) == canonical(real)
    require_signature(from_json(to_json(signed(whole, KEY)).encode()))


@pytest.mark.parametrize(
    "changed",
    [
        dataclasses.replace(FULL, intended_use="Anything."),
        dataclasses.replace(FULL, weights=dataclasses.replace(FULL.weights, sha256="dd" * 32)),
        dataclasses.replace(FULL, evaluations=(EvaluationFacts({"loss_own_nats": 0.5}),)),
        dataclasses.replace(FULL, lineage=None),
    ],
)
def test_a_fact_that_was_changed_after_signing_is_seen(changed: Provenance) -> None:
    full = signed(FULL, KEY)
    forged = dataclasses.replace(changed, creator=full.creator, signature=full.signature)
    with pytest.raises(ProvenanceError, match="signature: it is not of creator"):
        require_signature(forged)


def test_a_provenance_without_or_with_a_broken_signature_is_named() -> None:
    with pytest.raises(ProvenanceError, match="not signed"):
        require_signature(FULL)
    for signature in ("0x00", "0x" + "00" * 65, "no hex"):
        with pytest.raises(ProvenanceError, match="signature"):
            require_signature(dataclasses.replace(FULL, creator=CREATOR, signature=signature))


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"rank": 4', '"rank": "4"', "weights.rank"),
        ('"rank": 4', '"rnk": 4', "weights.rank"),
        ('"licence": "psf-2.0",', '"licence": "psf-2.0", "colour": "red",', "colour"),
        ("citrate-provenance-v1", "citrate-provenance-v2", "schema"),
        ('"learning_rate": 0.01', '"learning_rate": NaN', "training.learning_rate"),
        ('"steps": 8', '"steps": 8.5', "training.steps"),
    ],
)
def test_a_field_that_is_wrong_is_named(old: str, new: str, field: str) -> None:
    text = to_json(FULL)
    assert old in text
    with pytest.raises(ProvenanceError, match=field):
        from_json(text.replace(old, new).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"x" * ((1 << 20) + 1)])
def test_bytes_that_are_no_provenance_are_refused(data: bytes) -> None:
    with pytest.raises(ProvenanceError):
        from_json(data)


def test_an_evaluation_that_is_added_takes_the_signature_away() -> None:
    found = signed(FULL, KEY).evaluated(EvaluationFacts({"loss_own_nats": 1.0}))
    assert (found.creator, found.signature, len(found.evaluations)) == (None, None, 2)


def test_the_card_says_what_the_provenance_says() -> None:
    import yaml

    card = card_text(signed(FULL, KEY))
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "base_model": "embedded",
        "library_name": "peft",
        "license": "psf-2.0",
        "tags": ["lora", "citrate"],
    }
    for said in (
        "Letters.",
        "Nothing else.",
        "cc-by-4.0",
        "`loss_own_nats`: 1.5",
        f"`{'cc' * 32}`",
        "70 % of a",
    ):
        assert said in card
    assert f"signed by `{CREATOR.lower()}`" in card


def test_the_lineage_goes_down_to_the_base() -> None:
    assert lineage_lines(TREE) == [
        f"- c version 1 `0x{'c' * 64}`",
        f"  - 70 % of a version 1 `0x{'a' * 64}`, trained on base aaaaaaaaaaaa…",
        f"  - 30 % of b version 1 `0x{'b' * 64}`, trained on base aaaaaaaaaaaa…",
    ]


def test_a_name_with_markup_stays_a_name() -> None:
    chain = dataclasses.replace(FULL.chain, name="x\n---\n# [free](http://x)") if FULL.chain else None
    card = card_text(dataclasses.replace(FULL, chain=chain))
    assert "\n# x --- \\# \\[free\\](http://x)\n" in card
