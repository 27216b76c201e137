"""One run of a scenario (scenario_file.py) with a seed.

Every run writes the same small set of files (options.json, history.jsonl, metrics.parquet, recording/,
result.json), so that two runs can be compared and any can be replayed. Called by `citrate simulate` and
tests.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..protocol.preset import ONE_PPM
from ..recording import ChainRow, RecordedNetwork, Recording, write_atomically
from .cluster import GENESIS_RECORD_HASH, Cluster, synthetic_task
from .expectations import Expectations, Seen, failures
from .metrics import CheckpointRow, MetricsWriter, NodeRow, bytes_sent, kinds, node_rows
from .runs import OPTIONS_FILE, RESULT_FILE, forget_run
from .scenario_file import Churn, Scenario
from .scenario_file import load_scenario as load_scenario
from .training_workload import TrainingWorkload
from .workers import ProcessWorkload, RayWorkload, ShardedWorkload
from .workload import Workload


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
    loss_before = cluster.loss_of(cluster.genesis.weights)
    if scenario.churn is not None:
        start_churn(cluster, scenario.churn, random.Random(f"citrate/churn/{scenario.options.seed}"))
    for node, at_ms, until_ms in scenario.crashes:
        cluster.schedule(at_ms, lambda node=node: cluster.crash(node))  # type: ignore[misc]
        cluster.schedule(until_ms, lambda node=node: cluster.start(node))  # type: ignore[misc]
    for at_ms, until_ms, side in scenario.partitions:
        cluster.schedule(at_ms, lambda side=side: cluster.cut(side))  # type: ignore[misc]
        cluster.schedule(until_ms, cluster.heal)
    recording = Recording(out / "recording", durable=False) if out is not None else None
    if out is not None and recording is not None:
        write_atomically(out / OPTIONS_FILE, json.dumps(_options(scenario), indent=1).encode() + b"\n")
        recording.write_network(_network(cluster), cluster.genesis.weights.encode())
    with MetricsWriter(out) as metrics:
        seen = _run_checkpoints(scenario, cluster, recording, metrics, on_checkpoint)
    options, wanted = scenario.options, scenario.expectations
    faulty = scenario.crashes or scenario.partitions or scenario.churn or options.loss_ppm
    if not faulty and wanted == Expectations():  # a file that says what a pass is asks for the floor itself
        cluster.check_end()
    floor_ppm = options.preset.reputation_floor_ppm
    result = {
        "type": "result",
        "scenario": scenario.name,
        "variant": scenario.variant,
        "seed": scenario.options.seed,
        "checkpoints": scenario.checkpoints,
        "virtual_ms": cluster.now_ms,
        "history_hash": cluster.history_hash(),
        "loss": metrics.history[-1].loss if metrics.history else None,
        "loss_before": loss_before,
        "reputations": cluster.reputations(),
        "figures": seen.figures(),
        "failures": failures(wanted, metrics.history, seen, loss_before, floor_ppm),
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
) -> Seen:
    seen = Seen()
    kind_of = kinds(scenario.options)
    nodes = [(s.identity.node_key, kind) for s, kind in zip(cluster.nodes, kind_of, strict=True)]
    for number in range(1, scenario.checkpoints + 1):
        cluster.run_until(number, within_ms=scenario.within_ms)
        row = _row(cluster, number)
        node_rows = list(_node_rows(cluster, number, nodes))
        seen.add(node_rows)
        metrics.add(row, node_rows)
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
    return seen


def start_churn(cluster: Cluster, churn: Churn, drawn: random.Random) -> None:
    """Every period, until faults end, some nodes crash and come back. `drawn` is not the network's own
    chance, so that the same seed without churn is the same run otherwise."""
    count = cluster.options.nodes * churn.share_ppm // ONE_PPM

    def come_and_go() -> None:
        ends = cluster.options.faults_end_ms
        if ends is not None and cluster.now_ms + churn.down_ms >= ends:
            return
        for node in drawn.sample(range(cluster.options.nodes), count):
            if cluster.nodes[node].node is not None:
                cluster.crash(node)
                cluster.schedule(cluster.now_ms + churn.down_ms, partial(cluster.start, node))
        cluster.schedule(cluster.now_ms + churn.period_ms, come_and_go)

    cluster.schedule(churn.period_ms, come_and_go)


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
        "variant": scenario.variant,
        "source": scenario.source,
        "question": scenario.question,
        "checkpoints": scenario.checkpoints,
        "within_ms": scenario.within_ms,
        **raw,
        "crashes": scenario.crashes,
        "partitions": [(a, b, sorted(side)) for a, b, side in scenario.partitions],
        "churn": None if scenario.churn is None else dataclasses.asdict(scenario.churn),
        "pass": {k: v for k, v in dataclasses.asdict(scenario.expectations).items() if v is not None},
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
