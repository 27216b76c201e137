"""Each error of the contract reaches a caller by name and with its facts; wallet users learn what to do."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi import encode
from eth_hash.auto import keccak

from citrate_node.chain.contract_abi import artifact
from citrate_node.chain.rpc import ContractRefusal, _refusal
from citrate_node.runtime.adapters import _ADVICE, explained

ERRORS: list[dict[str, Any]] = [entry for entry in artifact()["abi"] if entry["type"] == "error"]
SAMPLES: dict[str, Any] = {"string": "name", "bytes32": b"\7" * 32, "address": "0x" + "08" * 20}

OF_CHECKPOINTS = {
    *("AlreadyCommitted", "NotNextCheckpoint", "ParentMismatch", "ZeroRecordHash", "ValidatorSetMismatch"),
    *("TooManyUpdates", "UpdatesNotAscending", "AccuracyMissing", "ClosedToMentorship", "SignerCount"),
    *("WrongSigner", "NoQuorum", "NextSetMismatch", "ValidatorCount", "ValidatorsNotAscending", "ZeroStake"),
    *("EquivocatorInSet", "ExclusionDue", "NotAValidator", "NotEquivocation", "AlreadyRecorded"),
}
"""Met by nodes, which know what to do without being told."""


def revert_data(entry: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    types = [item["type"] for item in entry["inputs"]]
    values = [SAMPLES.get(kind, 5) for kind in types]
    selector = keccak(f"{entry['name']}({','.join(types)})".encode())[:4]
    shown = [b"\x08" * 20 if kind == "address" else value for kind, value in zip(types, values, strict=True)]
    names = [item["name"] for item in entry["inputs"]]
    return selector + encode(types, values), dict(zip(names, shown, strict=True))


@pytest.mark.parametrize("entry", ERRORS, ids=lambda entry: str(entry["name"]))
@pytest.mark.parametrize("shape", ["text", "object"])
def test_an_error_is_decoded_however_a_node_wraps_it(entry: dict[str, Any], shape: str) -> None:
    data, facts = revert_data(entry)
    wrapped: Any = "0x" + data.hex() if shape == "text" else {"data": "0x" + data.hex()}
    refusal = _refusal("eth_call", {"code": 3, "message": "execution reverted", "data": wrapped})
    assert isinstance(refusal, ContractRefusal)
    assert (refusal.name, refusal.args_by_name) == (entry["name"], facts)
    assert str(refusal).startswith(f"the contract refused: {entry['name']}(")


def test_every_error_that_a_wallet_user_can_meet_says_what_to_do() -> None:
    names = {entry["name"] for entry in ERRORS}
    assert names >= OF_CHECKPOINTS
    assert names - OF_CHECKPOINTS == _ADVICE.keys()
    for name in _ADVICE:
        refusal = explained(ContractRefusal(name, {}, f"the contract refused: {name}()"))
        assert str(refusal) == f"the contract refused: {name}()\n  {_ADVICE[name]}"


def test_revert_data_that_nobody_knows_is_shown_raw() -> None:
    refusal = _refusal("eth_call", {"code": 3, "message": "x", "data": "0xdeadbeef01"})
    assert isinstance(refusal, ContractRefusal)
    assert (refusal.name, refusal.args_by_name) == ("UnknownError", {"data": bytes.fromhex("deadbeef01")})
