"""Compositions, from the chain's event to version 1, by many nodes under virtual time."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from citrate_node.config import load_preset
from citrate_node.node import actions as act
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.protocol.checkpoint import decode_record
from citrate_node.protocol.composition import compose
from citrate_node.protocol.composition_request import CompositionRequest
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.encoding import decode, encode
from citrate_node.protocol.rejection import Reason, Verdict
from citrate_node.recording import Recording
from citrate_node.replay import ReplayDifference, replay
from citrate_node.simulation.cluster import GENESIS_RECORD_HASH, Cluster, ClusterOptions
from citrate_node.simulation.scenario import _network
from citrate_node.simulation.synthetic import SyntheticTask

MINIMAL = load_preset("minimal")
WITHIN_MS = 120_000


def task_of(cluster: Cluster) -> SyntheticTask:
    assert isinstance(cluster.task, SyntheticTask)
    return cluster.task


def trained(cluster: Cluster, node: int) -> AdapterWeights:
    """What a node would make of the first weights by itself."""
    weights = cluster.genesis.weights
    manifest = cluster.genesis.moving_manifest
    start = np.zeros(manifest.count, dtype=np.float32)
    values = task_of(cluster).train_node(node, start, manifest)
    return weights.with_values(manifest, np.round(values.astype(np.float64) * 2**24).astype(np.int64))


def composed(cluster: Cluster, weight_a: int = 30) -> tuple[bytes, AdapterWeights]:
    """A composition of the network's adapter, at its latest version, with another; id and exact result."""
    parent = trained(cluster, 1)
    other = cluster.create_adapter("other", parent)
    own = cluster.chain.versions[cluster.genesis.adapter_id][-1]
    adapter_id = cluster.compose(cluster.genesis.adapter_id, other, weight_a)
    exact = compose(cluster.adapter_weights[own.weights_hash], parent, weight_a, 100 - weight_a)
    return adapter_id, exact.weights


def promotes(final: act.Finalize) -> bool:
    return decode_record(final.record).promoted


def measured(cluster: Cluster, weights: AdapterWeights) -> list[int]:
    return sorted(task_of(cluster).composed_improvement_ppm(i, weights)[0] for i in range(len(cluster.nodes)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_composition_gets_its_version_with_the_exact_bytes(seed: int) -> None:
    cluster = Cluster(ClusterOptions(MINIMAL, seed=seed))
    cluster.run_until(1, within_ms=WITHIN_MS)
    adapter_id, exact = composed(cluster)
    cluster.run_until(3, within_ms=WITHIN_MS)
    (version,) = cluster.chain.versions[adapter_id]
    assert version.weights_hash == content_id(exact.encode()).digest
    assert version.size_bytes == len(exact.encode())
    assert version.accuracy_ppm in measured(cluster, exact)[1:3], "the lower median of three or four"
    assert version.accuracy_ppm > 0
    promoted = [final.number for final in cluster.outcomes.values() if promotes(final)]
    assert len(promoted) >= 2, "mentorship went on beside it"
    assert len(cluster.chain.versions[cluster.genesis.adapter_id]) == 1 + len(promoted)
    assert [simulated.node.core.pending for simulated in cluster.nodes if simulated.node] == [{}] * 4
    assert cluster.chain.refusals == []


def test_the_same_composition_asked_for_twice_gets_both_its_versions() -> None:
    """Two accounts, two adapter ids, one set of bytes."""
    cluster = Cluster(ClusterOptions(MINIMAL, seed=4))
    other = cluster.create_adapter("other", trained(cluster, 1))
    ids = [cluster.compose(other, cluster.genesis.adapter_id, 50) for _ in range(2)]
    cluster.run_until(2, within_ms=WITHIN_MS)
    first, second = (cluster.chain.versions[i] for i in ids)
    assert [v.weights_hash for v in first] == [v.weights_hash for v in second]
    assert len(first) == 1


def test_a_composition_of_a_composition_is_composed() -> None:
    cluster = Cluster(ClusterOptions(MINIMAL, seed=5))
    adapter_id, exact = composed(cluster)
    cluster.run_until(2, within_ms=WITHIN_MS)
    third = trained(cluster, 2)
    again = cluster.compose(adapter_id, cluster.create_adapter("third", third), 80)
    cluster.run_until(4, within_ms=WITHIN_MS)
    (version,) = cluster.chain.versions[again]
    assert version.weights_hash == content_id(compose(exact, third, 80, 20).weights.encode()).digest
    assert compose(exact, third, 80, 20).weights.config.rank == 3 * task_of(cluster).rank


def rank_of(rank: int, seed: int) -> AdapterWeights:
    """First weights of a larger rank, with a B that is not zero."""
    weights = SyntheticTask(seed=seed, nodes=1, width=80, rank=rank).initial_weights()
    manifest = weights.manifest.subset("lora_B")
    return weights.with_values(manifest, np.arange(manifest.count, dtype=np.int64) * 4099 % 2**20)


def test_a_recompressed_composition_gets_its_version_where_a_quorum_has_the_same_bytes() -> None:
    cluster = Cluster(ClusterOptions(MINIMAL, seed=6))
    cluster.task = replace(task_of(cluster), width=80)
    ids = [cluster.create_adapter(f"rank {rank}", rank_of(rank, rank)) for rank in (40, 41)]
    adapter_id = cluster.compose(ids[0], ids[1], 50)
    cluster.run_for(1_000)
    requests = [s.node.core.pending[adapter_id] for s in cluster.nodes if s.node]
    assert {request.result.recompressed for request in requests} == {True}
    assert {request.result.weights.config.rank for request in requests} == {64}
    cluster.run_until(2, within_ms=WITHIN_MS)
    assert [v.weights_hash for v in cluster.chain.versions[adapter_id]] == [requests[0].content.digest]


def test_a_recompression_that_differs_between_machines_stays_without_a_version() -> None:
    """Half of the nodes compute other last bits: no bytes find a quorum, and the checkpoints go on."""
    cluster = Cluster(ClusterOptions(MINIMAL, seed=6))
    cluster.task = replace(task_of(cluster), width=80)
    ids = [cluster.create_adapter(f"rank {rank}", rank_of(rank, rank)) for rank in (40, 41)]
    adapter_id = cluster.compose(ids[0], ids[1], 50)
    cluster.run_for(1_000)
    for simulated in cluster.nodes[:2]:
        assert simulated.node is not None
        request = simulated.node.core.pending[adapter_id]
        weights = request.result.weights
        manifest = weights.manifest
        other = weights.with_values(manifest, weights.select(manifest) + 2**10)
        elsewhere = CompositionRequest(adapter_id, request.parent_a, request.parent_b, request.weight_a)
        elsewhere.__dict__["result"] = replace(request.result, weights=other)
        simulated.node.core.pending[adapter_id] = elsewhere
    cluster.run_until(3, within_ms=WITHIN_MS)
    assert cluster.chain.versions[adapter_id] == []
    assert len(cluster.chain.commits) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_a_forged_composition_is_refused_and_the_right_one_certified(seed: int) -> None:
    """Three of four proposers forge; the fourth's record is the one that is committed."""
    cluster = Cluster(ClusterOptions(MINIMAL, seed=seed, forgers=frozenset({0, 1, 2})))
    adapter_id, exact = composed(cluster)
    cluster.run_until(8, within_ms=8 * WITHIN_MS)  # an honest proposer's turn must come early enough in one
    assert [v.weights_hash for v in cluster.chain.versions[adapter_id]] == [content_id(exact.encode()).digest]
    refusals = [
        verdict
        for simulated in cluster.nodes
        for verdict in simulated.verdicts
        if verdict.reason is Reason.BAD_RECORD
    ]
    assert refusals
    assert {verdict.verdict for verdict in refusals} == {Verdict.REJECT}
    # in a round where nobody asks for a composition they forge the adapter's own weights
    details = {verdict.detail.removeprefix(f"{Reason.BAD_RECORD.value}: ") for verdict in refusals}
    assert {"differs in compositions"} <= details <= {"differs in compositions", "differs in weights_hash"}


def test_nobody_waits_for_a_composition_that_a_minority_knows() -> None:
    """Two of four have the parents: no quorum can measure it, and the checkpoints go on."""
    cluster = Cluster(ClusterOptions(MINIMAL, seed=7))
    adapter_id, _ = composed(cluster)
    for index in (2, 3):
        node = cluster.nodes[index].node
        assert node is not None
        node.composer.settled.add(adapter_id)
    cluster.run_until(3, within_ms=WITHIN_MS)
    assert cluster.chain.versions[adapter_id] == []
    assert [row.record_hash != GENESIS_RECORD_HASH for row in cluster.chain.commits] == [True] * 3


def test_a_composition_survives_loss_and_the_crash_of_every_node() -> None:
    options = ClusterOptions(MINIMAL, seed=8, loss_ppm=50_000, faults_end_ms=60_000)
    cluster = Cluster(options)
    adapter_id, exact = composed(cluster)
    for index in range(4):
        cluster.schedule(4_000 + 1_000 * index, lambda index=index: cluster.crash(index))  # type: ignore[misc]
        cluster.schedule(6_000 + 1_000 * index, lambda index=index: cluster.start(index))  # type: ignore[misc]
    cluster.run_until(8, within_ms=8 * WITHIN_MS)  # an honest proposer's turn must come early enough in one
    assert [v.weights_hash for v in cluster.chain.versions[adapter_id]] == [content_id(exact.encode()).digest]


def test_equal_seeds_give_equal_histories() -> None:
    hashes = []
    for _ in range(2):
        cluster = Cluster(ClusterOptions(MINIMAL, seed=9))
        composed(cluster)
        cluster.run_until(2, within_ms=WITHIN_MS)
        hashes.append(cluster.history_hash())
    assert hashes[0] == hashes[1]


# -------------------------------------------------------------------------------------------------- replay


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A recording with one composition, and the checkpoint that certified it."""
    cluster = Cluster(ClusterOptions(MINIMAL, seed=10))
    composed(cluster)
    cluster.run_until(2, within_ms=WITHIN_MS)
    recording = Recording(tmp_path_factory.mktemp("run") / "recording")
    recording.write_network(_network(cluster), cluster.genesis.weights.encode())
    for number, final in sorted(cluster.outcomes.items()):
        recording.write_checkpoint(number, final.record, final.inputs, final.deltas, final.compositions)
    numbers = [n for n in cluster.outcomes if decode_record(cluster.outcomes[n].record).compositions]
    (number,) = numbers
    return recording.folder, number


def test_a_recorded_composition_comes_out_the_same(recorded: tuple[Path, int]) -> None:
    assert [row.number for row in replay(Recording(recorded[0]))] == [1, 2]


def test_a_changed_parent_is_named(recorded: tuple[Path, int], tmp_path: Path) -> None:
    folder = copied(recorded[0], tmp_path)
    for path in sorted((folder / "parents").iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ReplayDifference, match=f"composition .*: a parent was {path.stem}, its file"):
            list(replay(Recording(folder)))
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weights_hash", bytes(32), "composition .*: weights_hash was 0000"),
        ("weight_a", 31, "composition .*: weights_hash was .*, computed again"),
        ("accuracy_ppm", 1, "compositions was 1 entries, computed again 1 entries"),
        ("measurements", [], "0 measurements are no quorum of the committee"),
    ],
)
def test_a_changed_composition_is_named(
    recorded: tuple[Path, int], tmp_path: Path, name: str, value: object, said: str
) -> None:
    folder, number = copied(recorded[0], tmp_path), recorded[1]
    path = folder / "checkpoints" / f"{number:06d}.cbor"
    raw = decode(path.read_bytes(), size_bytes_max=1 << 20)
    record = decode(raw["record"], size_bytes_max=1 << 20)
    record["compositions"] = [{**record["compositions"][0], name: value}]
    path.write_bytes(encode({**raw, "record": encode(record)}))
    with pytest.raises(ReplayDifference, match=rf"checkpoint {number}: .*{said}"):
        list(replay(Recording(folder)))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "recording"))
