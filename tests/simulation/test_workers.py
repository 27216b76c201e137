"""One history, whatever computes it: one process, several, Ray."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_network import MINIMAL

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.simulation.cluster import Cluster, ClusterOptions, synthetic_task
from citrate_node.simulation.scenario import load_scenario, run_scenario
from citrate_node.simulation.tasks import Batch
from citrate_node.simulation.workers import ProcessWorkload

ROOT = Path(__file__).resolve().parents[2]
HONEST = ROOT / "simulations" / "honest.toml"
TRAINING = ROOT / "simulations" / "training.toml"
VECTORS = json.loads((ROOT / "tests" / "vectors" / "histories.json").read_text())


def history(path: Path, seed: int, **how: Any) -> str:
    return str(run_scenario(load_scenario(path, seed), None, lambda row: None, **how)["history_hash"])


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_a_scenario_and_a_seed_have_the_history_that_is_written_down(name: str) -> None:
    """The same on every machine and Python; a change of the protocol changes these, and says so."""
    for seed, expected in VECTORS[name].items():
        assert history(ROOT / "simulations" / f"{name}.toml", int(seed)) == expected


def test_two_and_three_workers_give_the_history_of_one() -> None:
    assert {history(HONEST, 1, workers=n) for n in (2, 3)} == {VECTORS["honest"]["1"]}


without_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray`)"
)


@pytest.mark.slow
@without_ray
def test_ray_gives_the_history_of_one_process() -> None:
    assert history(HONEST, 1, ray="local", workers=2) == VECTORS["honest"]["1"]


@pytest.mark.slow
def test_nodes_that_train_real_adapters_have_one_history_with_one_two_and_three_workers() -> None:
    pytest.importorskip("torch")
    assert len({history(TRAINING, 1, workers=n) for n in (1, 2, 3)}) == 1


@pytest.mark.slow
@without_ray
def test_nodes_that_train_real_adapters_have_the_same_history_on_ray() -> None:
    pytest.importorskip("torch")
    assert history(TRAINING, 1, ray="local", workers=2) == history(TRAINING, 1)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_its_option_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="Ray is not installed"):
        history(HONEST, 1, ray="local")


@pytest.mark.parametrize("workers", [0, 257])
def test_an_impossible_number_of_workers_is_refused_before_any_starts(workers: int) -> None:
    with pytest.raises(ConfigError, match=f"workers is {workers}, must lie between 1 and 256"):
        history(HONEST, 1, workers=workers)


def test_a_worker_that_dies_is_an_error_and_not_a_hang() -> None:
    options = ClusterOptions(MINIMAL, nodes=4, seed=1)
    workload = ProcessWorkload(partial(synthetic_task, options), 2)
    try:
        world = Cluster(options, workload)
        workload._processes[1].kill()
        with pytest.raises(ServiceError, match="a worker process ended"):
            world.run_until(2, within_ms=100_000)
    finally:
        workload.close()
    workload.close()


def test_an_error_in_a_worker_reaches_the_caller_by_its_text() -> None:
    workload = ProcessWorkload(partial(synthetic_task, ClusterOptions(MINIMAL)), 1)
    try:
        with pytest.raises(ServiceError, match="worker 0 failed: AttributeError"):
            workload.ask({0: ("no_such_method", ())})
        assert workload.loss_sum(workload.initial_weights(), range(4)) > 0
    finally:
        workload.close()


def test_the_first_answer_that_is_due_computes_all_that_wait() -> None:
    calls: list[list[int]] = []

    def double(requests: Any) -> list[int]:
        calls.append(list(requests))
        return [2 * request for request in requests]

    batch: Batch[int, int] = Batch(double)
    first, second = batch.ask(1), batch.ask(2)
    assert batch.take(second) == 4
    third = batch.ask(3)
    assert (batch.take(first), batch.take(third)) == (2, 6)
    assert calls == [[1, 2], [3]]
