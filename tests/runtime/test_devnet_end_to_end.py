"""The main job, for real: chain, four node processes, training, finality, a killed node, and the replay.

One devnet serves all tests of this file; it takes about a minute and a half.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from prometheus_client.parser import text_string_to_metric_families

from citrate_node.chain.anvil import find_anvil
from citrate_node.protocol.content_id import ContentId
from citrate_node.recording import Recording
from citrate_node.runtime.devnet_folder import free_ports

COMMAND = [sys.executable, "-m", "citrate_node.cli.main"]

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed: run `npm ci`"),
]


def run(*args: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=timeout)


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder: nodes, chain, supervisor."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@dataclass
class Run:
    folder: Path
    facts: list[dict[str, Any]]
    code: int
    metrics: str
    """The last that node 3 showed Prometheus."""

    def of(self, kind: str, what: str | None = None) -> list[dict[str, Any]]:
        return [f for f in self.facts if f["type"] == kind and (what is None or f.get("what") == what)]


@pytest.fixture(scope="module")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two checkpoints of four nodes; node 3 is killed in the middle of the second one.

    It comes back with metrics, which are read with every line from then on.
    """
    folder = tmp_path_factory.mktemp("devnet") / "d"
    process = subprocess.Popen(
        [*COMMAND, "devnet", "up", "--dir", str(folder), "--checkpoints", "2", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    facts, killed, metrics = [], False, ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            facts.append(json.loads(line))
            if facts[-1]["type"] == "checkpoint" and not killed:
                killed = True
                serve_metrics(folder / "node-3" / "node.toml")
                (victim,) = [pid for pid in processes_of(folder / "node-3") if pid != process.pid]
                os.kill(victim, signal.SIGKILL)
            metrics = scraped([f for f in facts if f.get("what") == "metrics"]) or metrics
        code = process.wait(30)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    return Run(folder, facts, code, metrics)


def serve_metrics(node_toml: Path) -> None:
    settings = tomllib.loads(node_toml.read_text())
    settings["node"]["metrics"] = str(free_ports(1)[0])
    node_toml.write_text(tomli_w.dumps(settings))


def scraped(served: list[dict[str, Any]]) -> str:
    """What the node shows Prometheus; nothing where it does not serve yet, or no more."""
    try:
        return httpx.get(served[-1]["address"]).text if served else ""
    except httpx.HTTPError:
        return ""


def test_every_line_is_json_and_the_last_is_the_summary(devnet: Run) -> None:
    assert devnet.code == 0
    summary = devnet.facts[-1]
    assert summary["type"] == "summary"
    assert set(summary["loss"]) == {"base", "isolated", "mentored"}
    assert all(set(row) == {"own", "all", "worst", "general"} for row in summary["loss"].values())
    assert [row["number"] for row in summary["checkpoints"]] == [1, 2]
    for row in summary["checkpoints"]:
        content = ContentId(bytes.fromhex(row["weights_hash"]), 400_000)
        assert row["cid"] == content.cid
        assert row["tx"].startswith("0x")
        assert 100_000 < row["gas_used"] < 200_000
        assert row["seconds_to_commit"] > 0


def test_mentorship_improves_on_the_base_model_on_every_domain_figure(devnet: Run) -> None:
    loss = devnet.facts[-1]["loss"]
    assert loss["mentored"]["own"] < loss["base"]["own"]
    assert loss["mentored"]["all"] < loss["base"]["all"]
    assert loss["mentored"]["worst"] < loss["base"]["worst"]
    assert loss["mentored"]["all"] < loss["isolated"]["all"], "sharing beats training alone on all domains"


def test_a_killed_node_comes_back_and_all_finalize(devnet: Run) -> None:
    died = devnet.of("node", "died")
    assert [(f["node"], f["code"], f["restart"]) for f in died] == [(3, -signal.SIGKILL, True)]
    second = devnet.of("checkpoint")[1]
    assert set(second["finalized_by"]) >= {1, 2, 4}
    assert second["signals"] >= 2


def test_nothing_is_left_running_or_half_written(devnet: Run) -> None:
    deadline = time.monotonic() + 10
    while processes_of(devnet.folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(devnet.folder) == []
    names = [path.name for path in devnet.folder.rglob("*") if path.is_file()]
    assert [name for name in names if name.endswith((".part", ".tmp"))] == []


def test_replay_computes_the_same_bytes_as_on_chain(devnet: Run) -> None:
    done = run("replay", devnet.folder, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert rows[-1] == {"type": "summary", "checkpoints": 2, "on_chain": 2, "same": True}
    committed = [row["weights_hash"] for row in devnet.facts[-1]["checkpoints"]]
    assert [row["weights_hash"] for row in rows[:-1]] == committed


def test_replay_names_the_first_difference_when_one_byte_of_a_delta_changes(
    devnet: Run, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(devnet.folder / "recording", tmp_path / "recording"))
    delta = sorted((copy / "deltas").iterdir())[0]
    data = bytearray(delta.read_bytes())
    data[len(data) // 2] ^= 1
    delta.write_bytes(bytes(data))
    done = run("replay", copy)
    assert done.returncode == 1
    assert f"was {delta.stem}" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_on_chain_are_a_peft_adapter_in_every_node_s_store(devnet: Run, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    cid = devnet.facts[-1]["checkpoints"][-1]["cid"]
    for number in (1, 2, 4):
        out = tmp_path / f"{number}.safetensors"
        done = run("content", "get", cid, "--out", out, "--store", devnet.folder / f"node-{number}")
        assert done.returncode == 0, done.stderr
        tensors = load_file(out)
        assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B"}


def test_deltas_are_pruned_from_the_stores_and_kept_in_the_recording(devnet: Run) -> None:
    for number in (1, 2, 4):
        done = run("content", "ls", "--store", devnet.folder / f"node-{number}", "--json")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        left = [row for row in rows if row["ephemeral_checkpoint"] is not None]
        assert all(row["ephemeral_checkpoint"] > 2 for row in left), "only of the checkpoint that was open"
    recording = Recording(devnet.folder / "recording")
    assert recording.checkpoint_numbers() == [1, 2]
    assert len(list((recording.folder / "deltas").iterdir())) >= 6


def test_status_and_stop_speak_about_a_devnet_that_is_not_running(devnet: Run) -> None:
    status = json.loads(run("devnet", "status", "--dir", devnet.folder, "--json").stdout)
    assert (status["running"], status["checkpoint"], status["nodes"]) == (False, 2, 4)
    stopped = run("devnet", "stop", "--dir", devnet.folder)
    assert stopped.returncode == 1
    assert "no devnet is running" in stopped.stderr


def node_toml(devnet: Run, tmp_path: Path) -> Path:
    """A copy of node 1, whose chain is no longer there."""
    folder = Path(shutil.copytree(devnet.folder / "node-1", tmp_path / "node-1"))
    return folder / "node.toml"


def test_an_unreachable_chain_is_named_with_what_to_do(devnet: Run, tmp_path: Path) -> None:
    done = run("node", "run", "--config", node_toml(devnet, tmp_path))
    assert done.returncode == 1
    assert "cannot reach the chain at http://127.0.0.1:" in done.stderr
    assert "citrate devnet up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_devnet_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run("devnet", "up", "--dir", tmp_path)
    assert done.returncode == 2
    assert "is not empty and holds no devnet" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_number_of_nodes_on_the_same_folder_is_refused(devnet: Run) -> None:
    done = run("devnet", "up", "--dir", devnet.folder, "--nodes", "5")
    assert done.returncode == 2
    assert "has 4 nodes" in done.stderr


def test_an_unknown_preset_and_base_model_are_named(tmp_path: Path) -> None:
    done = run("devnet", "up", "--dir", tmp_path / "a", "--preset", "mainnet")
    assert (done.returncode, "there is no preset 'mainnet'" in done.stderr) == (2, True)
    done = run("devnet", "up", "--dir", tmp_path / "b", "--base-model", str(tmp_path / "absent"))
    assert done.returncode in (1, 2)
    assert str(tmp_path / "absent") in done.stderr


def test_the_node_that_came_back_shows_prometheus_where_it_stands(devnet: Run) -> None:
    if not devnet.metrics:
        pytest.skip("node 3 was not back before the devnet had ended: a busy machine")
    shown = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(devnet.metrics)
        for sample in family.samples
    }
    assert shown["citrate_checkpoint",] in (1, 2)
    assert 0 < shown["citrate_reputation",] < 1
    assert shown["citrate_peers",] == 3
    assert shown["citrate_head_block",] > 0
    assert sum(value for (name, *_), value in shown.items() if name == "citrate_phase") == 1
    assert shown["citrate_messages_total", "", "accept"] > 0
    assert shown["citrate_bytes_total", "gossip", "received"] > 0
    assert shown["citrate_bytes_total", "gossip", "sent"] > 0
    assert ("citrate_training_seconds_total",) in shown
    assert shown["citrate_network_events_total", "messages_received"] > 0
    assert ("citrate_network_events_total", "blocks") not in shown
