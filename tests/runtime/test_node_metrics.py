"""Metrics: what is counted, what is read at each scrape, and who may scrape."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_network import CHAIN, delta, identity, network, signal

from citrate_node.config import load_node_config
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.node import events as ev
from citrate_node.node.state_machine import Node
from citrate_node.protocol.rejection import Reason, Verdict
from citrate_node.runtime.devnet_folder import free_ports
from citrate_node.runtime.metrics import MetricsServer, NodeMetrics

TOML = """
[node]
name = "n"
preset = "minimal"
metrics = "{metrics}"
[chain]
rpc_url = "http://127.0.0.1:9"
adapter_id = "0x{adapter}"
"""


def shown(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values by label name) to value, without the times at which counters were created."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_node_s_place_is_read_at_each_scrape() -> None:
    state = network(4)
    node = Node(identity(0), CHAIN, state, opened_block=100)
    counters = {"peers": 3, "gossip_bytes_received": 70, "blob_bytes_sent": 9, "blocks": 2}
    metrics = NodeMetrics()
    metrics.watch(lambda: node, lambda: counters)
    node.handle(ev.HeadAdvanced(104))
    node.handle(ev.MessageReceived(signal(state, 1, delta(state, 1)), "peer"))
    first = shown(metrics.text().decode())
    counters["peers"] = 1
    node.handle(ev.HeadAdvanced(105))
    second = shown(metrics.text().decode())
    expected = {
        ("citrate_checkpoint",): 0,
        ("citrate_head_block",): 104,
        ("citrate_peers",): 3,
        ("citrate_reputation",): 0.2,
        ("citrate_messages_held",): 1,
        ("citrate_bytes_total", "gossip", "received"): 70,
        ("citrate_bytes_total", "blob", "sent"): 9,
        ("citrate_bytes_total", "blob", "received"): 0,
        ("citrate_network_events_total", "blocks"): 2,
    }
    assert {name: first[name] for name in expected} == expected
    phases = {name[1]: value for name, value in first.items() if name[0] == "citrate_phase"}
    assert sorted(phases.values()) == [0] * (len(phases) - 1) + [1]
    assert phases[node.core.phase.value] == 1
    assert (second["citrate_peers",], second["citrate_head_block",]) == (1, 105)


def test_the_document_names_every_metric_with_its_labels() -> None:
    metrics = NodeMetrics()
    node = Node(identity(0), CHAIN, network(4), opened_block=100)
    metrics.watch(lambda: node, lambda: {"blocks": 1})
    metrics.count_verdict(Verdict.ACCEPT, None)
    served = {
        (sample.name, ", ".join(sorted(sample.labels)))
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| citrate_")]
    assert {(row[0].strip(), ", ".join(sorted(row[1].replace(",", " ").split()))) for row in rows} == served


def test_verdicts_and_training_are_counted_and_a_failed_run_counts_as_failed() -> None:
    metrics = NodeMetrics()
    before = shown(metrics.text().decode())
    metrics.count_verdict(Verdict.ACCEPT, None)
    metrics.count_verdict(Verdict.REJECT, Reason.NOT_DRAWN)
    metrics.count_verdict(Verdict.REJECT, Reason.NOT_DRAWN)
    with metrics.training():
        pass
    with pytest.raises(ServiceError), metrics.training():
        raise ServiceError("the worker died")
    after = shown(metrics.text().decode())
    assert before["citrate_messages_total", "", "reject"] == before["citrate_training_seconds_total",] == 0
    assert after["citrate_messages_total", "", "accept"] == 1
    assert after["citrate_messages_total", "author was not drawn for this role", "reject"] == 2
    assert after["citrate_training_seconds_total",] > 0
    assert (after["citrate_trainings_total", "done"], after["citrate_trainings_total", "failed"]) == (1, 1)


async def test_a_port_alone_is_served_on_loopback_and_a_taken_one_is_named() -> None:
    (port,) = free_ports(1)
    async with MetricsServer(NodeMetrics(), str(port)) as server, httpx.AsyncClient() as client:
        assert server.address == f"http://127.0.0.1:{port}/metrics"
        answer = await client.get(server.address)
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 404
        with pytest.raises(ServiceError, match=f"cannot be served at 127.0.0.1:{port}"):
            await MetricsServer(NodeMetrics(), f"127.0.0.1:{port}").__aenter__()
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert ("citrate_peers",) in shown(answer.text)
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(server.address)


@pytest.mark.parametrize("text", ["9464", "127.0.0.1:9464", "[::1]:9464", ""])
def test_an_address_of_metrics_is_a_port_or_a_host_and_a_port(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.toml").write_text(TOML.format(metrics=text, adapter="ab" * 32))
    assert load_node_config(tmp_path / "node.toml").metrics == text


@pytest.mark.parametrize("text", ["0", "65536", "localhost", ":9464", "host:", "-1"])
def test_anything_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.toml").write_text(TOML.format(metrics=text, adapter="ab" * 32))
    with pytest.raises(ConfigError, match=r"node\.metrics must be a port"):
        load_node_config(tmp_path / "node.toml")
