"""Scenarios: a TOML file that asks a question, and one run of it with a seed.

Every run writes the same small set of files (options.json, history.jsonl, metrics.parquet, recording/,
result.json), so that two runs can be compared and any can be replayed. Called by `citrate simulate` and
tests.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..config import load_preset, read_toml
from ..errors import ConfigError
from ..protocol.preset import ONE_PPM
from ..recording import ChainRow, RecordedNetwork, Recording, write_atomically
from .cluster import GENESIS_RECORD_HASH, Cluster, ClusterOptions, synthetic_task
from .metrics import CheckpointRow, MetricsWriter, NodeRow, bytes_sent, kinds, node_rows
from .runs import OPTIONS_FILE, RESULT_FILE, forget_run
from .training_workload import TrainingOptions, TrainingWorkload, training_options
from .workers import ProcessWorkload, RayWorkload, ShardedWorkload
from .workload import Workload

_KEYS: dict[str, Any] = {
    "question": "",
    "preset": "minimal",
    "nodes": 4,
    "checkpoints": 5,
    "within_ms": 600_000,
    "latency_ms": [5, 120],
    "loss_ppm": 0,
    "duplicate_ppm": 0,
    "faults_end_ms": -1,
    "spread": 0.5,
    "workload": "synthetic",
    "training": {},
    "sign_flippers": [],
    "withholders": [],
    "equivocators": [],
    "liars": [],
    "copiers": [],
    "forkers": [],
    "forgers": [],
    "two_faced": [],
    "boasters": [],
    "crashes": [],
    "partitions": [],
}
"""Key to default (training: see TrainingOptions); the type of the default is the type that is asked for."""
WORKLOADS = ("synthetic", "training")
_DISHONEST = (
    *("sign_flippers", "withholders", "equivocators", "liars", "copiers", "forkers"),
    *("forgers", "two_faced", "boasters"),
)
"""Keys that list node numbers; each is explained at ClusterOptions."""


@dataclass(frozen=True)
class Scenario:
    """One question and the world in which it is asked."""

    name: str
    question: str
    checkpoints: int
    within_ms: int
    options: ClusterOptions
    crashes: tuple[tuple[int, int, int], ...]
    """(node, crash at ms, restart at ms)."""
    partitions: tuple[tuple[int, int, frozenset[int]], ...]
    """(from ms, until ms, nodes on the one side)."""
    training: TrainingOptions | None = None
    """How nodes train real adapters; None where the task is the synthetic one."""
    source: str = ""
    """The file that it was read from, as it was given: for the command that repeats a run."""


def load_scenario(path: Path, seed: int) -> Scenario:
    """Raises ConfigError naming the key that is unknown, of another type or out of range."""
    raw = read_toml(path)
    values = {}
    for key in raw:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}\n  known are {', '.join(_KEYS)}")
    for key, default in _KEYS.items():
        value = raw.get(key, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise ConfigError(f"{path}: {key} must be a {type(default).__name__}, is {value!r}")
        values[key] = value
    nodes = values["nodes"]
    if not 2 <= nodes <= 10_000:
        raise ConfigError(f"{path}: nodes is {nodes}, must lie between 2 and 10,000")
    _check_ranges(path, values)
    for key in _DISHONEST:
        _check_nodes(path, key, values[key], nodes)
    for crash in _tables(path, "crashes", values["crashes"], ("node", "at_ms", "until_ms")):
        _check_nodes(path, "crashes", [crash["node"]], nodes)
    for cut in _tables(path, "partitions", values["partitions"], ("nodes", "at_ms", "until_ms")):
        _check_nodes(path, "partitions", cut["nodes"], nodes)
    dishonest: dict[str, Any] = {key: frozenset(values[key]) for key in _DISHONEST}
    options = ClusterOptions(
        preset=load_preset(values["preset"]),
        nodes=nodes,
        seed=seed,
        latency_ms=tuple(values["latency_ms"]),
        loss_ppm=values["loss_ppm"],
        duplicate_ppm=values["duplicate_ppm"],
        faults_end_ms=None if values["faults_end_ms"] < 0 else values["faults_end_ms"],
        spread=values["spread"],
        **dishonest,
    )
    return Scenario(
        path.stem,
        values["question"],
        values["checkpoints"],
        values["within_ms"],
        options,
        tuple((c["node"], c["at_ms"], c["until_ms"]) for c in values["crashes"]),
        tuple((p["at_ms"], p["until_ms"], frozenset(p["nodes"])) for p in values["partitions"]),
        _training(path, values["workload"], values["training"]),
        str(path),
    )


def _training(path: Path, workload: str, table: dict[str, Any]) -> TrainingOptions | None:
    """The table [training] where the workload is "training"; ConfigError where it stands without it."""
    if workload not in WORKLOADS:
        raise ConfigError(f"{path}: workload is {workload!r}, must be one of {', '.join(WORKLOADS)}")
    if workload == "training":
        return training_options(table, f"{path}: training")
    if table:
        raise ConfigError(f'{path}: a table [training] needs workload = "training"')
    return None


def _check_ranges(path: Path, values: dict[str, Any]) -> None:
    latency = values["latency_ms"]
    rules = [
        ("checkpoints", 1 <= values["checkpoints"] <= 100_000, "must lie between 1 and 100,000"),
        ("within_ms", values["within_ms"] >= 1, "must be at least 1"),
        ("loss_ppm", 0 <= values["loss_ppm"] < ONE_PPM, "must lie between 0 and 999,999"),
        ("duplicate_ppm", 0 <= values["duplicate_ppm"] <= ONE_PPM, "must lie between 0 and 1,000,000"),
        ("spread", 0.0 <= values["spread"] <= 100.0, "must lie between 0 and 100"),
        (
            "latency_ms",
            len(latency) == 2 and all(type(ms) is int for ms in latency) and 0 <= latency[0] <= latency[1],
            "must be two whole numbers, the least and the most",
        ),
    ]
    for name, holds, text in rules:
        if not holds:
            raise ConfigError(f"{path}: {name} {text}")


def _check_nodes(path: Path, key: str, numbers: Any, nodes: int) -> None:
    if not isinstance(numbers, list) or not all(type(i) is int and 0 <= i < nodes for i in numbers):
        raise ConfigError(f"{path}: {key} must be node numbers from 0 to {nodes - 1}")


def _tables(path: Path, key: str, rows: list[Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of `crashes` or `partitions`, each with exactly these keys and a time that runs forwards."""
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(names):
            raise ConfigError(f"{path}: each of {key} must have {', '.join(names)}")
        at_ms, until_ms = row["at_ms"], row["until_ms"]
        if type(at_ms) is not int or type(until_ms) is not int or not 0 <= at_ms < until_ms:
            raise ConfigError(f"{path}: {key}: at_ms must lie before until_ms")
    return rows


@contextmanager
def workload_of(scenario: Scenario, workers: int = 1, ray: str | None = None) -> Iterator[Workload]:
    """The scenario's task: in this process, in worker processes where there are more, or on Ray.

    workers: 1 or more processes; with `ray`, an address, so many actors, as many as there are cores where it
    is 1. Raises ConfigError or ServiceError (simulation/workers.py).
    """
    options, training = scenario.options, scenario.training
    make: Callable[[], Workload] = partial(synthetic_task, options)
    if training is not None:
        make = partial(TrainingWorkload, options.seed, options.nodes, training)
    if ray is None and workers == 1:
        yield make()
        return
    sharded: ShardedWorkload
    if ray is None:
        sharded = ProcessWorkload(make, workers)
    else:
        sharded = RayWorkload(make, ray, workers if workers > 1 else None)
    try:
        yield sharded
    finally:
        sharded.close()


def run_scenario(
    scenario: Scenario,
    out: Path | None,
    on_checkpoint: Callable[[dict[str, Any]], None],
    *,
    workers: int = 1,
    ray: str | None = None,
) -> dict[str, Any]:
    """Run it to its last checkpoint; the result that also stands in result.json, whatever computes it.

    Raises SafetyViolation or ProgressViolation (simulation/checkers.py) where the network failed.
    """
    with workload_of(scenario, workers, ray) as workload:
        return _run(scenario, workload, out, on_checkpoint)


def _run(
    scenario: Scenario,
    workload: Workload,
    out: Path | None,
    on_checkpoint: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    if out is not None:
        forget_run(out)
    cluster = Cluster(scenario.options, workload)
    for node, at_ms, until_ms in scenario.crashes:
        cluster.schedule(at_ms, lambda node=node: cluster.crash(node))  # type: ignore[misc]
        cluster.schedule(until_ms, lambda node=node: cluster.start(node))  # type: ignore[misc]
    for at_ms, until_ms, side in scenario.partitions:
        cluster.schedule(at_ms, lambda side=side: cluster.cut(side))  # type: ignore[misc]
        cluster.schedule(until_ms, cluster.heal)
    recording = Recording(out / "recording") if out is not None else None
    if out is not None and recording is not None:
        write_atomically(out / OPTIONS_FILE, json.dumps(_options(scenario), indent=1).encode() + b"\n")
        recording.write_network(_network(cluster), cluster.genesis.weights.encode())
    with MetricsWriter(out) as metrics:
        _run_checkpoints(scenario, cluster, recording, metrics, on_checkpoint)
    options = scenario.options
    if not (scenario.crashes or scenario.partitions or options.loss_ppm):
        cluster.check_end()
    result = {
        "type": "result",
        "scenario": scenario.name,
        "seed": scenario.options.seed,
        "checkpoints": scenario.checkpoints,
        "virtual_ms": cluster.now_ms,
        "history_hash": cluster.history_hash(),
        "loss": metrics.history[-1].loss if metrics.history else None,
        "reputations": cluster.reputations(),
    }
    if out is not None:
        write_atomically(out / RESULT_FILE, json.dumps(result, indent=1).encode() + b"\n")
    return result


def _run_checkpoints(
    scenario: Scenario,
    cluster: Cluster,
    recording: Recording | None,
    metrics: MetricsWriter,
    on_checkpoint: Callable[[dict[str, Any]], None],
) -> None:
    kind_of = kinds(scenario.options)
    nodes = [(s.identity.node_key, kind) for s, kind in zip(cluster.nodes, kind_of, strict=True)]
    for number in range(1, scenario.checkpoints + 1):
        cluster.run_until(number, within_ms=scenario.within_ms)
        row = _row(cluster, number)
        metrics.add(row, _node_rows(cluster, number, nodes))
        on_checkpoint(row.as_json())
        finalize = cluster.outcomes.get(number)
        if recording is not None and finalize is not None:
            recording.write_checkpoint(
                number, finalize.record, finalize.inputs, finalize.deltas, finalize.compositions
            )
            assert finalize.outcome is not None
            record = finalize.outcome.record
            recording.add_chain_row(
                ChainRow(number, record.hash.hex(), record.weights_hash.hex(), finalize.block_number, "", 0)
            )


def _row(cluster: Cluster, number: int) -> CheckpointRow:
    _, record_hash, loss = cluster.history[number - 1].split()
    finalize = cluster.outcomes.get(number)
    row = CheckpointRow(number, cluster.now_ms, record_hash, float(loss), bytes_sent(cluster.load))
    if finalize is None or finalize.outcome is None:
        return row
    record = finalize.outcome.record
    return dataclasses.replace(
        row,
        signals=len(record.signals),
        withheld=len(record.withheld),
        equivocations=len(record.equivocations),
        evaluations=len(record.evaluations),
        accuracy_ppm=record.accuracy_ppm,
        promoted=record.promoted,
    )


def _node_rows(cluster: Cluster, number: int, nodes: list[tuple[bytes, str]]) -> Iterator[NodeRow]:
    """Nothing where no running node computed this checkpoint and the one before it: they were fetched."""
    finalize = cluster.outcomes.get(number)
    if finalize is None or finalize.outcome is None:
        return
    before = cluster.outcomes.get(number - 1)
    state = cluster.genesis if before is None or before.outcome is None else before.outcome.state
    if state.number == number - 1:
        yield from node_rows(finalize.outcome, finalize.inputs, state.mentors, nodes)


def _options(scenario: Scenario) -> dict[str, Any]:
    raw = dataclasses.asdict(scenario.options)
    raw = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in raw.items()}
    return {
        "scenario": scenario.name,
        "source": scenario.source,
        "question": scenario.question,
        "checkpoints": scenario.checkpoints,
        "within_ms": scenario.within_ms,
        **raw,
        "crashes": scenario.crashes,
        "partitions": [(a, b, sorted(side)) for a, b, side in scenario.partitions],
        "training": None if scenario.training is None else dataclasses.asdict(scenario.training),
    }


def _network(cluster: Cluster) -> RecordedNetwork:
    return RecordedNetwork(
        cluster.chain.chain_id,
        cluster.genesis_block_hash,
        cluster.chain.contract,
        cluster.options.preset,
        cluster.genesis.nodes,
        cluster.genesis.adapter_id,
        GENESIS_RECORD_HASH,
        cluster.genesis.weights_content.digest,
    )
