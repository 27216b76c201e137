"""The compiled artifact: a predeploy of allowed size, with the storage layout that networks started with."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from factory_evm import ABI, BASE, GENESIS_RECORD, OTHER_BASE, VALIDATORS, Evm

from citrate_node.chain.genesis import factory_storage

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "contracts/artifacts/AdapterFactory.json"
PACKAGED = ROOT / "citrate_node/chain/artifacts/AdapterFactory.json"
ARTIFACT: dict[str, Any] = json.loads(COMMITTED.read_text())

FROZEN = [
    ("_lastCheckpoint", 0, 0, "t_uint64"),
    ("_exclusionDueFrom", 0, 8, "t_uint64"),
    ("_setHash", 1, 0, "t_bytes32"),
    ("_validators", 2, 0, "t_array(t_struct(Validator)_storage)dyn_storage"),
    ("_checkpoints", 3, 0, "t_mapping(t_uint64,t_struct(CheckpointRow)_storage)"),
    ("_baseModelIds", 4, 0, "t_array(t_bytes32)dyn_storage"),
    ("_baseModels", 5, 0, "t_mapping(t_bytes32,t_struct(BaseModelRow)_storage)"),
    ("_adapterIds", 6, 0, "t_array(t_bytes32)dyn_storage"),
    ("_adapters", 7, 0, "t_mapping(t_bytes32,t_struct(AdapterRow)_storage)"),
    ("_parents", 8, 0, "t_mapping(t_bytes32,t_struct(ParentsRow)_storage)"),
    ("_versions", 9, 0, "t_mapping(t_bytes32,t_mapping(t_uint256,t_struct(VersionRow)_storage))"),
    ("_publishers", 10, 0, "t_mapping(t_bytes32,t_mapping(t_uint256,t_address))"),
    ("_newOwners", 11, 0, "t_mapping(t_bytes32,t_address)"),
    ("_pendingOwners", 12, 0, "t_mapping(t_bytes32,t_address)"),
    ("_mentorshipEnds", 13, 0, "t_mapping(t_bytes32,t_uint64)"),
    ("_equivocations", 14, 0, "t_mapping(t_address,t_uint64)"),
]
"""Label, slot, offset, type. New variables go behind these; none of these may move."""

FROZEN_STRUCTS = {
    "Validator": [("nodeKey", 0, 0), ("account", 1, 0), ("stake", 1, 20)],
    "CheckpointRow": [
        *(("recordHash", 0, 0), ("blockNumber", 1, 0), ("timestamp", 1, 8)),
        *(("round", 1, 16), ("updates", 1, 20)),
    ],
    "BaseModelRow": [
        *(("registrar", 0, 0), ("sizeBytes", 0, 20), ("place", 0, 28)),
        *(("name", 1, 0), ("uri", 2, 0), ("licence", 3, 0)),
    ],
    "AdapterRow": [
        *(("creator", 0, 0), ("versionCount", 0, 20), ("baseModelPlace", 0, 24), ("rank", 0, 28)),
        *(("depth", 0, 29), ("weightA", 0, 30), ("mentorship", 0, 31), ("name", 1, 0)),
    ],
    "ParentsRow": [("a", 0, 0), ("b", 1, 0), ("versionA", 2, 0), ("versionB", 2, 4)],
    "VersionRow": [
        *(("weightsHash", 0, 0), ("checkpoint", 1, 0), ("sizeBytes", 1, 8)),
        *(("accuracyPpm", 1, 16), ("blockNumber", 1, 24), ("codec", 1, 30)),
    ],
}


def test_the_storage_layout_is_the_frozen_one() -> None:
    layout = ARTIFACT["storageLayout"]
    variables = [
        (entry["label"], int(entry["slot"]), entry["offset"], entry["type"]) for entry in layout["storage"]
    ]
    structs = {
        name.removeprefix("t_struct(").removesuffix(")_storage"): [
            (member["label"], int(member["slot"]), member["offset"]) for member in kind["members"]
        ]
        for name, kind in layout["types"].items()
        if name.startswith("t_struct(")
    }
    assert (variables, structs) == (FROZEN, FROZEN_STRUCTS)


def test_the_package_carries_the_same_artifact() -> None:
    assert PACKAGED.read_bytes() == COMMITTED.read_bytes()


def test_the_code_fits_and_is_for_cancun() -> None:
    size = len(ARTIFACT["runtimeBytecode"]) // 2 - 1
    settings = ARTIFACT["compiler"]["settings"]
    assert 0 < size < 24_576
    assert (settings["evmVersion"], ARTIFACT["compiler"]["version"].split("+")[0]) == ("cancun", "0.8.37")


def test_the_manual_says_when_each_error_is_met() -> None:
    """Every error stands, in backquotes, in the text of at least one function."""
    source = (ROOT / "contracts/src/IAdapterFactory.sol").read_text()
    errors = [entry["name"] for entry in ABI.entries if entry["type"] == "error"]
    assert [name for name in errors if f"`{name}`" not in source] == []


@pytest.mark.slow
def test_the_sources_compile_to_the_committed_artifact() -> None:
    npm = shutil.which("npm")
    if npm is None or not (ROOT / "node_modules/solc").exists():
        pytest.skip("the compiler is not installed: run `npm ci`")
    done = subprocess.run(
        [npm, "run", "--silent", "check"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_genesis_storage_is_exactly_what_the_chain_holds(evm: Evm) -> None:
    words = factory_storage(VALIDATORS, GENESIS_RECORD, [BASE, OTHER_BASE])
    held = {slot: evm.storage(int.from_bytes(slot, "big")).to_bytes(32, "big") for slot in words}
    assert held == words
