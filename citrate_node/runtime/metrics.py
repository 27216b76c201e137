"""What a running node shows Prometheus: where it stands, whom it hears, and what training costs.

Two kinds of figures: what has happened here is counted as it happens, and what the node and its network know
anyhow is read when somebody asks. A registry per node: several run in one process in tests.
Filled by main_loop, served by wiring where node.toml says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..errors import ServiceError
from ..node.state_machine import Node
from ..protocol.rejection import Reason, Verdict
from ..protocol.schedule import Phase

MILLION = 1_000_000


class NodeMetrics:
    """The figures of one node. `watch` says where to read those that are not counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._node: Callable[[], Node] | None = None
        self._network: Callable[[], dict[str, int]] = dict
        self._verdicts = Counter(
            "citrate_messages",
            "Messages judged by their state, by verdict and reason.",
            ("verdict", "reason"),
            registry=self.registry,
        )
        for verdict in (Verdict.ACCEPT, Verdict.IGNORE, Verdict.REJECT):
            self._verdicts.labels(verdict.value, "")  # so that a rate is 0 before the first, not absent
        self._training_seconds = Counter(
            "citrate_training_seconds",
            "Seconds spent in training runs, waiting for the training process included.",
            registry=self.registry,
        )
        self._trainings = Counter(
            "citrate_trainings", "Training runs by how they ended.", ("outcome",), registry=self.registry
        )
        for outcome in ("done", "failed"):
            self._trainings.labels(outcome)
        self.registry.register(self)

    def watch(self, node: Callable[[], Node], network: Callable[[], dict[str, int]]) -> None:
        """node: the running one. network: its counters, as `Libp2pNetwork.counters` gives them."""
        self._node, self._network = node, network

    def count_verdict(self, verdict: Verdict, reason: Reason | None) -> None:
        self._verdicts.labels(verdict.value, reason.value if reason is not None else "").inc()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Counts what happens inside as one training run."""
        begun, outcome = time.monotonic(), "failed"
        try:
            yield
            outcome = "done"
        finally:
            self._training_seconds.inc(time.monotonic() - begun)
            self._trainings.labels(outcome).inc()

    def text(self) -> bytes:
        """All figures, in Prometheus' own format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Read at each scrape. Called by the registry."""
        if self._node is not None:
            yield from _of_node(self._node())
        counters = dict(self._network())
        yield _gauge("citrate_peers", "Connected peers.", counters.pop("peers", 0))
        moved = CounterMetricFamily(
            "citrate_bytes", "Bytes moved, by kind and direction.", labels=("kind", "way")
        )
        moved.add_metric(("gossip", "received"), counters.pop("gossip_bytes_received", 0))
        moved.add_metric(("gossip", "sent"), counters.pop("gossip_bytes_sent", 0))
        moved.add_metric(("blob", "received"), counters.pop("blob_bytes_received", 0))
        moved.add_metric(("blob", "sent"), counters.pop("blob_bytes_sent", 0))
        yield moved
        events = CounterMetricFamily(
            "citrate_network_events", "What happened in the network, by name.", labels=("event",)
        )
        for name, count in sorted(counters.items()):
            events.add_metric((name,), count)
        yield events


def _of_node(node: Node) -> Iterator[Metric]:
    core, state = node.core, node.state
    yield _gauge("citrate_checkpoint", "Number of the last checkpoint that is final here.", state.number)
    yield _gauge("citrate_head_block", "Newest block of the chain that this node has seen.", core.head)
    yield _gauge("citrate_round", "Round of proposals in the open checkpoint.", core.round)
    phases = GaugeMetricFamily(
        "citrate_phase", "1 for the phase of the open checkpoint, 0 for the others.", labels=("phase",)
    )
    for phase in Phase:
        phases.add_metric((phase.value,), float(phase is core.phase))
    yield phases
    yield _gauge(
        "citrate_reputation",
        "This node's reputation, 0 to 1, after the last final checkpoint.",
        state.reputation_of(core.node_key) / MILLION,
    )
    yield _gauge("citrate_messages_held", "Messages of the open checkpoint held here.", len(core.pool.by_id))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


class MetricsServer:
    """`GET /metrics` on one address: `host:port`, or a port of loopback."""

    def __init__(self, metrics: NodeMetrics, address: str) -> None:
        self._metrics = metrics
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]") or "127.0.0.1", int(port)
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/metrics"

    async def __aenter__(self) -> Self:
        """Listen; ServiceError where the address cannot be had."""
        app = web.Application(client_max_size=1)
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ServiceError(
                f"metrics cannot be served at {self._host}:{self._port} ({error.strerror})\n"
                "  choose another port in node.metrics, or stop what uses this one"
            ) from error
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
