"""`citrate doctor`: each thing that can be missing is named with what to do, and decides the exit code."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import socket
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from wallet_chain import wallet_chain

from citrate_node.cli.doctor import app
from citrate_node.errors import ConfigError
from citrate_node.runtime import checkup
from citrate_node.runtime.checkup import Check, State
from citrate_node.runtime.devnet_folder import DevnetChoices, DevnetFolder, free_ports
from citrate_node.runtime.folder_lock import FolderLock


def doctor(*options: str | Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    """(exit code, checks by name, the summary), without the base model, which takes seconds."""
    done = CliRunner().invoke(app, ["--json", "--base", "", *map(str, options)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    *checks, summary = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, {check["name"]: check for check in checks}, summary


def choices(**changes: Any) -> DevnetChoices:
    ports = free_ports(5)
    made = DevnetChoices(
        version=1,
        nodes=2,
        seed=1,
        preset="devnet",
        chain_id=40_000,
        rpc_url="",
        chain_port=ports[0],
        rpc_port=ports[1],
        page_port=ports[2],
        node_ports=tuple(ports[3:]),
        base_model="embedded",
        alpha=0.5,
        bytes_per_node=1,
        steps=1,
        batch_sequences=1,
        sequence_bytes=1,
        learning_rate=0.1,
        rank=8,
        lora_alpha=16,
        genesis_record_hash="0x00",
        genesis_timestamp=0,
        target_checkpoint=1,
        adapter_id="0x00",
    )
    return replace(made, **changes)


def devnet(folder: Path, **changes: Any) -> DevnetChoices:
    folder.mkdir()
    made = choices(**changes)
    DevnetFolder(folder).save(made)
    return made


def test_a_machine_on_which_these_tests_run_has_all_that_is_needed(tmp_path: Path) -> None:
    code, checks, summary = doctor("--dir", tmp_path)
    assert (code, summary["missing"]) == (0, 0)
    assert checks["torch"]["found"] == importlib.metadata.version("torch")
    assert {"python", "packages", "packages [training]", "gpu", "anvil", "node", "npm"} <= checks.keys()
    assert {"chromium", "disk", "open files", "ports"} <= checks.keys()
    assert sum(summary[state.value] for state in State) == len(checks)


def test_what_is_missing_is_named_for_people_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 20))
    done = CliRunner().invoke(app, ["--base", "", "--dir", str(tmp_path)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("missing")]
    assert lines[at].split()[:5] == ["missing", "disk", "0.0", "GiB", "free"]
    assert lines[at + 1].strip() == "→ free a gibibyte at least, or use another folder"
    assert "1 missing" in lines[-1]


def test_a_python_that_is_too_old_or_too_new_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {}
    for version in ((3, 10, 9), (3, 11, 0), (3, 13, 5), (3, 14, 0)):
        monkeypatch.setattr(sys, "version_info", version)
        states[version[:2]] = checkup.check_python().state
    assert states == {
        (3, 10): State.MISSING,
        (3, 11): State.OK,
        (3, 13): State.OK,
        (3, 14): State.MISSING,
    }


def test_packages_that_are_absent_or_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"a": "1.5", "torch": "2.14.0+cpu"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    lines = ["a>=2", "b", 'torch==2.13.0; extra == "training"', 'c; python_version < "3"']
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    core, training = checkup.check_packages(), checkup.check_packages("training")
    assert (core.state, core.found) == (State.MISSING, "a is 1.5, needed is >=2; b is not installed")
    assert (training.state, training.found) == (State.MISSING, "torch is 2.14.0+cpu, needed is ==2.13.0")
    installed |= {"a": "2.0", "b": "1", "torch": "2.13.0+cpu"}
    assert [checkup.check_packages(extra).state for extra in ("", "training")] == [State.OK, State.OK]
    del installed["torch"]
    assert checkup.check_torch().state is State.MISSING


def test_without_anvil_the_chain_in_python_will_do_and_without_both_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("citrate_node.chain.anvil.find_anvil", lambda: None)
    has_chain = True
    monkeypatch.setattr(checkup, "_has_package", lambda name: has_chain)

    def state(own_chain: bool) -> State:
        return next(checkup.check_chain_programs(own_chain)).state

    seen = [state(True)]
    has_chain = False
    assert [*seen, state(True), state(False)] == [State.NOTE, State.MISSING, State.NOTE]
    monkeypatch.undo()
    monkeypatch.setenv("CITRATE_ANVIL", str(tmp_path / "nothing"))
    check = next(checkup.check_chain_programs(True))
    assert (check.state, str(tmp_path) in check.found) == (State.MISSING, True)


def test_few_open_files_are_too_few_for_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limits in ((256, 4_096), (256, 256), (1_024, 1_024), (resource.RLIM_INFINITY,) * 2):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limits=limits: limits)
        check = checkup.check_open_files()
        found.append((check.state, check.advice))
    assert found == [
        (State.MISSING, "ulimit -n 1024"),
        (State.MISSING, "raise the hard limit, which is 256"),
        (State.OK, ""),
        (State.OK, ""),
    ]


def test_a_gpu_is_no_use_to_a_torch_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_output", lambda *command: "GPU 0: some card\n")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert checkup.check_gpu().state is State.NOTE
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cu130")
    assert checkup.check_gpu() == Check("gpu", State.OK, "GPU 0: some card")


def test_a_devnet_whose_port_is_taken_is_told_which(tmp_path: Path) -> None:
    made = devnet(tmp_path / "d")
    code, checks, _ = doctor("--dir", tmp_path / "d")
    assert (code, checks["ports"]["state"], checks["devnet"]["state"]) == (0, "ok", "ok")
    with socket.create_server(("127.0.0.1", made.rpc_port)):
        code, checks, _ = doctor("--dir", tmp_path / "d")
    assert (code, checks["ports"]["state"]) == (1, "missing")
    assert str(made.rpc_port) in checks["ports"]["found"]
    assert str(made.chain_port) not in checks["ports"]["found"]


def test_a_running_devnet_holds_its_own_ports_and_its_chain_is_asked(tmp_path: Path) -> None:
    made = devnet(tmp_path / "d")
    with FolderLock(tmp_path / "d", "a devnet"):
        code, checks, _ = doctor("--dir", tmp_path / "d")
    assert checks["ports"]["found"] == "5, held by the running devnet"
    assert (code, checks["chain"]["state"]) == (1, "missing")
    assert f"127.0.0.1:{made.rpc_port}" in checks["chain"]["found"]


@pytest.mark.parametrize("name", ["devnet.json", "node.toml"])
def test_a_damaged_configuration_is_named(tmp_path: Path, name: str) -> None:
    devnet(tmp_path / "d")
    place = tmp_path / "d" if name == "devnet.json" else tmp_path / "d" / "node-2"
    place.mkdir(exist_ok=True)
    (place / name).write_text("[node]\nnme = 1\n")
    code, checks, _ = doctor("--dir", tmp_path / "d")
    check = checks[name.removesuffix(".json")]
    assert (code, check["state"]) == (1, "missing")
    assert str(place / name) in check["found"]


def test_a_chain_is_reached_is_the_right_one_and_has_the_contract(tmp_path: Path) -> None:
    with wallet_chain(tmp_path) as chain:
        url = chain.rpc_url
        code, checks, _ = doctor("--dir", tmp_path / "none", "--rpc-url", url)
        assert (code, checks["chain"]["state"]) == (0, "ok")
        elsewhere = "0x00000000000000000000000000000000000000ff"
        code, checks, _ = doctor("--dir", tmp_path / "none", "--rpc-url", url, "--contract", elsewhere)
        assert (code, f"no contract at {elsewhere}" in checks["chain"]["found"]) == (1, True)
        devnet(tmp_path / "d", rpc_url=url, chain_id=1)
        code, checks, _ = doctor("--dir", tmp_path / "d")
        assert (code, "wanted is chain 1" in checks["chain"]["found"]) == (1, True)
    code, checks, _ = doctor("--dir", tmp_path / "none", "--rpc-url", url)
    assert (code, "cannot reach the chain" in checks["chain"]["found"]) == (1, True)


def test_the_base_model_is_the_released_one_and_another_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from citrate_node.training import base_model

    assert checkup.check_base("embedded") == Check(
        "base model", State.OK, f"embedded {checkup.EMBEDDED_BASE_ID}"
    )
    absent = checkup.check_base(str(tmp_path / "none"))
    assert (absent.state, str(tmp_path / "none") in absent.found) == (State.MISSING, True)

    class Changed:
        base_model_id = bytes(32)

    monkeypatch.setattr(base_model.BaseModel, "load", lambda name: Changed)
    assert checkup.check_base("embedded").state is State.MISSING
    monkeypatch.setattr(base_model.BaseModel, "load", _refuse)
    assert checkup.check_base("embedded").found == "no such base;  choose another"


def _refuse(name: str) -> None:
    raise ConfigError("no such base\n  choose another")
