"""Adapters, versions, compositions, ownership and base models, on both EVMs."""

import hashlib
from typing import Any

import pytest
from factory_evm import (
    ABI,
    BASE,
    OTHER_BASE,
    Evm,
    account,
    commit,
    commitment,
    create,
    digest_of,
    refusal_of,
    update,
    weights_cid,
)

from citrate_node.chain.contract_abi import Reverted
from citrate_node.protocol.certificate import ACCURACY_UNKNOWN_PPM

ZERO = bytes(32)
NOBODY = bytes(20)
BASE_ID, OTHER_ID = BASE.base_model_id, OTHER_BASE.base_model_id
OPEN = 2**64 - 1


def certified_composition(
    evm: Evm, a: bytes, b: bytes, number: int = 1, parent: bytes | None = None
) -> bytes:
    made: bytes = evm.send("composeAdapters", a, b, 50, 50).result
    before = digest_of("genesis record") if number == 1 else digest_of(f"record {number - 1}")
    commit(evm, commitment(number, parent or before, [update(made, f"composition {number}")]))
    return made


def test_creating_by_cid_records_exactly_what_was_said(evm: Evm) -> None:
    receipt = evm.send("createAdapter", BASE_ID, "poet", weights_cid("w", codec=0x70, size=5_000_000), 8)
    adapter_id = receipt.result
    row = {
        "baseModelId": BASE_ID,
        "name": "poet",
        "creator": account("alice"),
        "owner": account("alice"),
        "pendingOwner": NOBODY,
        "rank": 8,
        "depth": 0,
        "versionCount": 1,
        "mentorshipUntil": 0,
    }
    version = {
        "version": 1,
        "parentId": ZERO,
        "weightsHash": digest_of("w"),
        "accuracy": ACCURACY_UNKNOWN_PPM,
        "creator": account("alice"),
        "checkpoint": 0,
        "codec": 0x70,
        "sizeBytes": 5_000_000,
        "blockNumber": evm.block_number(),
    }
    assert evm.read("adapter", adapter_id) == row
    assert evm.read("version", adapter_id, 1) == evm.read("latest", adapter_id) == version
    assert evm.read("history", adapter_id, 0, 9) == [version]
    assert evm.read("cid", adapter_id, 1) == b"\x01\x70\x12\x20" + digest_of("w")
    assert [event.name for event in receipt.events] == ["AdapterCreated", "VersionAdded"]
    assert receipt.events[0].args == {
        "adapterId": adapter_id,
        "baseModelId": BASE_ID,
        "creator": account("alice"),
        "name": "poet",
        "rank": 8,
        "weightsInCalldata": False,
    }
    assert evm.read("lineage", adapter_id) == dict.fromkeys(("parentA", "parentB"), ZERO) | dict.fromkeys(
        ("versionA", "versionB", "weightA", "weightB"), 0
    )


def test_a_bare_cid_leaves_the_size_unknown(evm: Evm) -> None:
    made = evm.send("createAdapter", BASE_ID, "a", weights_cid("w", codec=0x55, size=None), 64).result
    version = evm.read("latest", made)
    assert (version["codec"], version["sizeBytes"], version["weightsHash"]) == (0x55, 0, digest_of("w"))


@pytest.mark.parametrize("length", [64, 1_000, 96 * 1024])
def test_weights_in_calldata_are_hashed_by_the_contract(evm: Evm, length: int) -> None:
    weights = hashlib.shake_128(b"weights").digest(length)
    receipt = evm.send("createAdapter", BASE_ID, "a", weights, 1)
    version = evm.read("latest", receipt.result)
    assert (version["weightsHash"], version["codec"], version["sizeBytes"]) == (
        hashlib.sha256(weights).digest(),
        0x55,
        length,
    )
    assert receipt.events[0].args["weightsInCalldata"] is True


GOOD = (BASE_ID, "a", weights_cid("w"), 8)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((ZERO, *GOOD[1:]), Reverted("ZeroBaseModelId", {})),
        ((digest_of("?"), *GOOD[1:]), Reverted("UnknownBaseModel", {"baseModelId": digest_of("?")})),
        (
            (BASE_ID, "", *GOOD[2:]),
            Reverted("TextLength", {"field": "name", "length": 0, "min": 1, "max": 64}),
        ),
        (
            (BASE_ID, "n" * 65, *GOOD[2:]),
            Reverted("TextLength", {"field": "name", "length": 65, "min": 1, "max": 64}),
        ),
        ((*GOOD[:3], 0), Reverted("RankOutOfRange", {"rank": 0, "min": 1, "max": 64})),
        ((*GOOD[:3], 65), Reverted("RankOutOfRange", {"rank": 65, "min": 1, "max": 64})),
        ((*GOOD[:3], 2**256 - 1), Reverted("RankOutOfRange", {"rank": 2**256 - 1, "min": 1, "max": 64})),
        ((BASE_ID, "a", b"", 8), Reverted("NotWeightsNorCid", {"length": 0})),
        ((BASE_ID, "a", weights_cid("w")[:35], 8), Reverted("NotWeightsNorCid", {"length": 35})),
        ((BASE_ID, "a", b"\0" + weights_cid("w")[1:], 8), Reverted("NotWeightsNorCid", {"length": 44})),
        ((BASE_ID, "a", b"w" * 63, 8), Reverted("NotWeightsNorCid", {"length": 63})),
        ((BASE_ID, "a", weights_cid("w", codec=0x71), 8), Reverted("UnsupportedCodec", {"codec": 0x71})),
        (
            (BASE_ID, "a", b"w" * 98_305, 8),
            Reverted("WeightsTooLarge", {"sizeBytes": 98_305, "maxBytes": 98_304}),
        ),
    ],
)
def test_a_wrong_creation_is_refused_with_the_facts(
    evm: Evm, arguments: tuple[Any, ...], why: Reverted
) -> None:
    assert refusal_of(evm, "createAdapter", *arguments) == why
    assert evm.read("adapterCount") == 0


def test_the_same_creation_twice_names_the_adapter_it_made_before(evm: Evm) -> None:
    made = evm.send("createAdapter", *GOOD).result
    assert refusal_of(evm, "createAdapter", *GOOD) == Reverted("AdapterExists", {"adapterId": made})
    others = [
        evm.send("createAdapter", *GOOD, sender="bob").result,
        evm.send("createAdapter", OTHER_ID, *GOOD[1:]).result,
        evm.send("createAdapter", BASE_ID, "b", *GOOD[2:]).result,
        evm.send("createAdapter", BASE_ID, "a", weights_cid("w", codec=0x55), 8).result,
        evm.send("createAdapter", BASE_ID, "a", weights_cid("w", size=1), 8).result,
        evm.send("createAdapter", *GOOD[:3], 9).result,
    ]
    assert evm.read("adapters", 0, 99) == [made, *others]
    assert len({made, *others}) == 7


def test_lists_are_read_by_pages_and_end_where_they_end(evm: Evm) -> None:
    ids = [create(evm, f"w{i}") for i in range(3)]
    pages = [
        evm.read("adapters", *page) for page in [(0, 2), (2, 2), (3, 2), (2**256 - 1, 1), (0, 2**256 - 1)]
    ]
    assert pages == [ids[:2], ids[2:], [], [], ids]


@pytest.mark.parametrize("view", ["adapter", "latest", "versionCount", "lineage"])
def test_views_of_an_unknown_adapter_say_so(evm: Evm, view: str) -> None:
    assert refusal_of(evm, view, ZERO) == Reverted("UnknownAdapter", {"adapterId": ZERO})


def test_only_existing_versions_are_shown(evm: Evm) -> None:
    made = create(evm, "w")
    for number in (0, 2, 2**256 - 1):
        why = Reverted("UnknownVersion", {"adapterId": made, "version": number, "versionCount": 1})
        assert refusal_of(evm, "version", made, number) == refusal_of(evm, "cid", made, number) == why


def test_an_owner_publishes_versions_with_unknown_accuracy(evm: Evm) -> None:
    made = create(evm, "w")
    receipt = evm.send("publishVersion", made, weights_cid("w2", size=7))
    assert receipt.result == 2
    assert evm.read("latest", made) == {
        "version": 2,
        "parentId": made,
        "weightsHash": digest_of("w2"),
        "accuracy": ACCURACY_UNKNOWN_PPM,
        "creator": account("alice"),
        "checkpoint": 0,
        "codec": 0x70,
        "sizeBytes": 7,
        "blockNumber": evm.block_number(),
    }
    why = Reverted("NotOwner", {"adapterId": made, "owner": account("alice"), "caller": account("bob")})
    assert refusal_of(evm, "publishVersion", made, weights_cid("w3"), sender="bob") == why
    assert refusal_of(evm, "publishVersion", made, b"").name == "NotWeightsNorCid"
    assert refusal_of(evm, "publishVersion", ZERO, weights_cid("w3")).name == "UnknownAdapter"


def test_ownership_moves_in_two_steps_and_the_creator_stays(evm: Evm) -> None:
    made = create(evm, "w")
    evm.send("transferOwnership", made, account("bob"))
    assert refusal_of(evm, "acceptOwnership", made, sender="carol") == Reverted(
        "NotPendingOwner", {"adapterId": made, "pendingOwner": account("bob"), "caller": account("carol")}
    )
    assert refusal_of(evm, "publishVersion", made, weights_cid("w2"), sender="bob").name == "NotOwner"
    evm.send("acceptOwnership", made, sender="bob")
    row = evm.read("adapter", made)
    assert (row["creator"], row["owner"], row["pendingOwner"]) == (account("alice"), account("bob"), NOBODY)
    assert refusal_of(evm, "publishVersion", made, weights_cid("w2")).name == "NotOwner"
    assert refusal_of(evm, "acceptOwnership", made, sender="bob").name == "NotPendingOwner"

    evm.send("publishVersion", made, weights_cid("w2"), sender="bob")
    assert [row["creator"] for row in evm.read("history", made, 0, 9)] == [account("alice"), account("bob")]


def test_an_offer_of_ownership_can_be_withdrawn(evm: Evm) -> None:
    made = create(evm, "w")
    evm.send("transferOwnership", made, account("bob"))
    evm.send("transferOwnership", made, NOBODY)
    assert refusal_of(evm, "acceptOwnership", made, sender="bob").name == "NotPendingOwner"


def test_composing_binds_the_parents_latest_versions_and_waits_for_a_checkpoint(evm: Evm) -> None:
    a, b = create(evm, "a", rank=8), create(evm, "b", sender="bob", rank=16)
    evm.send("publishVersion", a, weights_cid("a2"))
    receipt = evm.send("composeAdapters", a, b, 30, 70, sender="carol")
    made = receipt.result
    assert evm.read("lineage", made) == {
        "parentA": a,
        "parentB": b,
        "versionA": 2,
        "versionB": 1,
        "weightA": 30,
        "weightB": 70,
    }
    row = evm.read("adapter", made)
    assert (row["name"], row["creator"], row["rank"], row["depth"], row["versionCount"]) == (
        "",
        account("carol"),
        24,
        1,
        0,
    )
    assert [event.name for event in receipt.events] == ["AdapterComposed"]
    assert evm.read("history", made, 0, 9) == []
    waiting = Reverted("NotYetCertified", {"adapterId": made})
    assert refusal_of(evm, "latest", made) == waiting
    assert refusal_of(evm, "publishVersion", made, weights_cid("x"), sender="carol") == waiting
    assert refusal_of(evm, "composeAdapters", a, made, 50, 50) == waiting
    assert refusal_of(evm, "composeAdapters", made, a, 50, 50) == waiting

    evm.send("publishVersion", a, weights_cid("a3"))
    commit(evm, commitment(1, updates=[update(made, "composed", accuracy_ppm=-5)]))
    first = evm.read("latest", made)
    assert (
        first["version"],
        first["parentId"],
        first["accuracy"],
        first["checkpoint"],
        first["creator"],
    ) == (
        1,
        a,
        -5,
        1,
        account("carol"),
    )
    assert evm.read("lineage", made)["versionA"] == 2

    evm.send("publishVersion", made, weights_cid("x"), sender="carol")
    assert evm.read("latest", made)["parentId"] == made


@pytest.mark.parametrize(
    ("weights", "refused"),
    [
        ((1, 99), False),
        ((99, 1), False),
        ((0, 100), True),
        ((100, 0), True),
        ((50, 49), True),
        ((50, 51), True),
        ((2**256 - 1, 101), True),
        ((101, 2**256 - 1), True),
    ],
)
def test_weights_of_a_composition_are_positive_and_sum_to_100(
    evm: Evm, weights: tuple[int, int], refused: bool
) -> None:
    a, b = create(evm, "a"), create(evm, "b")
    if refused:
        why = Reverted("WeightsMustSumTo100", {"weightA": weights[0], "weightB": weights[1]})
        assert refusal_of(evm, "composeAdapters", a, b, *weights) == why
    else:
        made = evm.send("composeAdapters", a, b, *weights).result
        row = evm.read("lineage", made)
        assert (row["weightA"], row["weightB"]) == weights


def test_what_cannot_be_composed_is_refused_with_the_facts(evm: Evm) -> None:
    a, b, other = create(evm, "a"), create(evm, "b"), create(evm, "c", base=OTHER_ID)
    refusals = [
        refusal_of(evm, "composeAdapters", a, a, 50, 50),
        refusal_of(evm, "composeAdapters", a, other, 50, 50),
        refusal_of(evm, "composeAdapters", a, ZERO, 50, 50),
        refusal_of(evm, "composeAdapters", ZERO, a, 50, 50),
    ]
    made = evm.send("composeAdapters", a, b, 50, 50).result
    assert [*refusals, refusal_of(evm, "composeAdapters", a, b, 50, 50)] == [
        Reverted("SelfComposition", {"adapterId": a}),
        Reverted("BaseModelsDiffer", {"baseModelA": BASE_ID, "baseModelB": OTHER_ID}),
        Reverted("UnknownAdapter", {"adapterId": ZERO}),
        Reverted("UnknownAdapter", {"adapterId": ZERO}),
        Reverted("AdapterExists", {"adapterId": made}),
    ]


def test_rank_adds_up_to_64_and_depth_to_16(evm: Evm) -> None:
    root = create(evm, "root", rank=20)
    top = create(evm, "top", rank=20)
    seen = []
    for number in range(1, 17):
        top = certified_composition(evm, top, root, number)
        row = evm.read("adapter", top)
        seen.append((row["rank"], row["depth"]))
    assert seen == [(40, 1), (60, 2)] + [(64, depth) for depth in range(3, 17)]
    assert refusal_of(evm, "composeAdapters", root, top, 50, 50) == Reverted(
        "DepthLimit", {"depth": 17, "max": 16}
    )


def test_a_base_model_is_registered_once_by_anyone(evm: Evm) -> None:
    new = digest_of("new base")
    evm.send("registerBaseModel", new, "big", "u" * 256, "MIT", 10, sender="carol")
    assert evm.read("baseModel", new) == {
        "id": new,
        "name": "big",
        "uri": "u" * 256,
        "licence": "MIT",
        "sizeBytes": 10,
        "registrar": account("carol"),
    }
    assert refusal_of(evm, "registerBaseModel", new, "big", "", "MIT", 10) == Reverted(
        "BaseModelExists", {"baseModelId": new}
    )
    assert [row["id"] for row in evm.read("baseModels", 1, 9)] == [OTHER_ID, new]
    assert evm.send("createAdapter", new, *GOOD[1:]).result


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((ZERO, "n", "", "MIT", 1), "ZeroBaseModelId"),
        ((BASE_ID, "n", "", "MIT", 1), "BaseModelExists"),
        ((digest_of("x"), "", "", "MIT", 1), "TextLength"),
        ((digest_of("x"), "n", "u" * 257, "MIT", 1), "TextLength"),
        ((digest_of("x"), "n", "", "", 1), "TextLength"),
        ((digest_of("x"), "n", "", "MIT", 0), "ZeroSize"),
    ],
)
def test_a_wrong_base_model_is_refused(evm: Evm, arguments: tuple[Any, ...], name: str) -> None:
    assert refusal_of(evm, "registerBaseModel", *arguments).name == name
    assert evm.read("baseModelCount") == 2


def test_genesis_base_models_are_read_as_if_they_had_been_registered(evm: Evm) -> None:
    expected = [
        {
            "id": model.base_model_id,
            "name": model.name,
            "uri": model.uri,
            "licence": model.licence,
            "sizeBytes": model.size_bytes,
            "registrar": model.registrar,
        }
        for model in (BASE, OTHER_BASE)
    ]
    assert evm.read("baseModels", 0, 9) == expected


def test_the_contract_names_its_version_and_its_interfaces(evm: Evm) -> None:
    from citrate_node.chain.adapter_factory import interface_id

    answers = [
        evm.read("supportsInterface", selector)
        for selector in (interface_id(), bytes.fromhex("01ffc9a7"), bytes.fromhex("ffffffff"))
    ]
    assert (evm.read("contractVersion"), evm.read("ACCURACY_UNKNOWN"), answers) == (
        1,
        ACCURACY_UNKNOWN_PPM,
        [True, True, False],
    )


def test_it_takes_no_ether_and_no_unknown_call(evm: Evm) -> None:
    payable = [entry["name"] for entry in ABI.entries if entry.get("stateMutability") == "payable"]
    assert payable == []
    assert not any(entry["type"] in ("receive", "fallback", "constructor") for entry in ABI.entries)
