"""Real training as the task of a simulation: one history per seed, however requests are batched."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from citrate_node.config import load_preset
from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.protocol.composition import compose
from citrate_node.simulation.cluster import Cluster, ClusterOptions
from citrate_node.simulation.scenario import load_scenario
from citrate_node.simulation.training_workload import TrainingOptions, TrainingWorkload
from citrate_node.simulation.workload import EvaluateRequest, MeasureRequest, TrainRequest

pytest.importorskip("torch", reason="other Pythons are tested without torch (tools/test_pythons.sh)")

SMALL = TrainingOptions(
    rank=2, steps=2, batch_sequences=2, sequence_bytes=32, train_bytes=1024, held_out_bytes=256
)
NODES = 4


@pytest.fixture(scope="module")
def workload() -> TrainingWorkload:
    return TrainingWorkload(seed=5, nodes=NODES, options=SMALL)


@pytest.fixture(scope="module")
def first(workload: TrainingWorkload) -> AdapterWeights:
    return workload.initial_weights()


def _requests(first: AdapterWeights, checkpoint: int = 1) -> list[TrainRequest]:
    manifest = first.manifest.subset("lora_B")
    values = np.zeros(manifest.count, dtype=np.float32)
    return [TrainRequest(node, checkpoint, first, manifest, values) for node in range(NODES)]


def test_an_answer_does_not_depend_on_the_other_requests_nor_on_the_process(
    workload: TrainingWorkload, first: AdapterWeights
) -> None:
    together = workload.train(_requests(first))
    fresh: TrainingWorkload = pickle.loads(pickle.dumps(workload))
    for request, result in reversed(list(zip(_requests(first), together, strict=True))):
        (alone,) = fresh.train([request])
        assert np.array_equal(alone.values, result.values)
        assert (alone.examples, alone.loss) == (result.examples, result.loss)
    assert not np.array_equal(together[0].values, together[1].values)
    later = workload.train(_requests(first, checkpoint=2))
    assert not np.array_equal(later[0].values, together[0].values)  # another order of examples


def test_evaluations_of_one_batch_are_those_of_each_alone(
    workload: TrainingWorkload, first: AdapterWeights
) -> None:
    manifest = first.manifest.subset("lora_B")
    trained = workload.train(_requests(first))
    broken = np.full(manifest.count, np.inf, dtype=np.float32)
    # the same id for another delta in each request: an answer is about what its own request holds
    requests = [
        EvaluateRequest(node, 1, first, manifest, {b"a": trained[node - 1].values, b"b": broken}, 0.5)
        for node in range(NODES)
    ]
    together = workload.evaluate(requests)
    assert together == [workload.evaluate([request])[0] for request in requests]
    assert {answer[b"b"][0] for answer in together} == {-1_000_000}
    assert len({answer[b"a"][0] for answer in together}) == NODES
    assert [answer[b"a"][1] for answer in together] == [len(workload.data(n).held_out) for n in range(NODES)]


def test_a_measurement_takes_weights_of_any_rank_and_scale(
    workload: TrainingWorkload, first: AdapterWeights
) -> None:
    """Half an adapter and half of the same adapter, at twice the rank, are that adapter."""
    manifest = first.manifest.subset("lora_B")
    result = workload.train(_requests(first))[0]
    trained = first.with_values(manifest, np.round(result.values.astype(np.float64) * 2**24).astype(np.int64))
    doubled = compose(trained, trained, 50, 50).weights
    one, same, nothing = workload.measure(
        [MeasureRequest(0, trained), MeasureRequest(0, doubled), MeasureRequest(0, first)]
    )
    assert doubled.config.rank == 4
    assert same == pytest.approx(one, abs=2)
    assert nothing[0] == 0
    assert one[0] != 0


def test_loss_sums_of_shards_add_up(workload: TrainingWorkload, first: AdapterWeights) -> None:
    parts = workload.loss_sum(first, [0, 1]) + workload.loss_sum(first, [2, 3])
    assert parts == workload.loss_sum(first, range(NODES))


def test_data_is_not_iid_and_follows_from_the_seed(workload: TrainingWorkload) -> None:
    mixtures = [workload.data(node).mixture for node in range(NODES)]
    assert len({max(mixture, key=mixture.__getitem__) for mixture in mixtures}) > 1
    other = TrainingWorkload(seed=6, nodes=NODES, options=SMALL)
    assert other.data(0).mixture != mixtures[0]


def test_nodes_of_a_cluster_train_and_agree() -> None:
    """The whole protocol over real adapters: checkpoints finalize, and the loss falls."""
    options = ClusterOptions(load_preset("minimal"), nodes=NODES, seed=5)
    workload = TrainingWorkload(5, NODES, replace(TrainingOptions(), rank=2))
    cluster = Cluster(options, workload)
    before = workload.loss_sum(workload.initial_weights(), range(NODES))
    cluster.run_until(2, within_ms=600_000)
    node = cluster.nodes[0].node
    assert node is not None
    weights = node.state.weights
    assert workload.loss_sum(weights, range(NODES)) < before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('workload = "real"', "must be one of synthetic, training"),
        ("[training]\nrank = 4", "needs workload"),
        ('workload = "training"\n[training]\nrnak = 4', "unknown key 'rnak'"),
        ('workload = "training"\n[training]\nrank = "4"', "training.rank must be a int"),
    ],
)
def test_a_scenario_whose_training_cannot_be_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_scenario(path, 0)


def test_a_scenario_names_how_its_nodes_train(tmp_path: Path) -> None:
    path = tmp_path / "real.toml"
    path.write_text('workload = "training"\n[training]\nalpha = 1\nrank = 2\n')
    assert load_scenario(path, 0).training == TrainingOptions(alpha=1.0, rank=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"threads": 0}, "threads"),
        ({"source": "folder:texts"}, "{node}"),
        ({"train_bytes": 16}, "train_bytes"),
        ({"rank": 0}, "rank"),
        ({"steps": 0}, "steps"),
    ],
)
def test_options_that_cannot_be_are_named(change: dict[str, float | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)
