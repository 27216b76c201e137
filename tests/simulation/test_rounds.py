"""The rounds engine: what it computes is the protocol's own, and who computes it does not matter."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from citrate_node.config import load_preset
from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.protocol.aggregation import integer_weights, weighted_mean
from citrate_node.protocol.codecs import codec, encode_delta
from citrate_node.protocol.state_transition import CheckpointInputs, Outcome, process_checkpoint
from citrate_node.protocol.tensors import weights_to_float32
from citrate_node.simulation.attacks import (
    ATTACKS,
    COLLECTIVE,
    alie_z,
    collective_attacks,
    kinds_of,
    own_attack,
)
from citrate_node.simulation.metrics import NodeRow
from citrate_node.simulation.round_nodes import product_error
from citrate_node.simulation.round_options import Round, RoundsOptions
from citrate_node.simulation.round_tally import auc_ppm
from citrate_node.simulation.rounds import Here, Rounds, pool_of, relative_product_error
from citrate_node.simulation.workload import TrainRequest

PRESET = load_preset("minimal")


def options(**changes: object) -> RoundsOptions:
    made = RoundsOptions(replace(PRESET, mentors_per_checkpoint=12), nodes=12, checkpoints=4, seed=3)
    return replace(made, **changes)  # type: ignore[arg-type]


def rounds(chosen: RoundsOptions) -> tuple[Rounds, list[Round]]:
    engine = Rounds(chosen, Here(chosen.shard()))
    return engine, list(engine.checkpoints())


def test_equal_sharing_is_federated_averaging_with_the_protocol_s_integers() -> None:
    chosen = options(sharing="equal", error_feedback=False)
    task = chosen.workload()
    weights: AdapterWeights = task.initial_weights()
    int8 = codec("int8")
    for number in range(1, 5):
        manifest = weights.manifest.subset("lora_B")
        before = weights_to_float32(weights.select(manifest))
        trained = task.train([TrainRequest(i, number, weights, manifest, before) for i in range(12)])
        files = [encode_delta(int8, manifest, result.values - before) for result in trained]
        shares = integer_weights([1] * 12)
        weights = weighted_mean(weights, manifest, list(zip(shares, files, strict=True)), int8)
    engine, _ = rounds(chosen)
    assert engine.adapter.digest() == weights.digest()


def test_mentorship_makes_every_state_by_the_protocol_s_transition() -> None:
    seen: list[tuple[Outcome, CheckpointInputs]] = []
    chosen = options()
    engine = Rounds(chosen, Here(chosen.shard()), lambda number, o, i: seen.append((o, i)))
    state = engine.state
    assert state is not None
    for _ in engine.checkpoints():
        outcome, inputs = seen[-1]
        assert process_checkpoint(state, inputs).record.hash == outcome.record.hash
        state = outcome.state
    assert len(seen) == 4
    assert engine.adapter.digest() == state.weights.digest()


@pytest.mark.parametrize("sharing", ["mentorship", "equal", "alone"])
def test_what_is_learnt_lowers_the_loss(sharing: str) -> None:
    _, done = rounds(options(sharing=sharing, spread=0.1))
    assert done[-1].loss < loss_before(sharing) / 2
    assert all(after.loss <= before.loss for before, after in pairwise(done))


def loss_before(sharing: str) -> float:
    chosen = options(sharing=sharing, spread=0.1)
    return Rounds(chosen, Here(chosen.shard())).before().loss


@pytest.mark.parametrize(
    "changes",
    [{"sharing": "equal"}, {"sharing": "mentorship", "attack": "alie", "attack_share_ppm": 250_000}],
)
def test_the_history_is_the_same_with_several_workers(changes: dict[str, object]) -> None:
    chosen = options(**changes)
    here, _ = rounds(chosen)
    with pool_of(chosen, workers=3) as pool:
        spread = Rounds(chosen, pool)
        assert [r.weights_hash for r in spread.checkpoints()] == [line.split()[1] for line in here.history]
    assert spread.history_hash() == here.history_hash()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray`)")
def test_the_history_is_the_same_on_ray() -> None:
    chosen = options(sharing="equal")
    here, _ = rounds(chosen)
    with pool_of(chosen, workers=2, ray="local") as pool:
        spread = Rounds(chosen, pool)
        list(spread.checkpoints())
    assert spread.history_hash() == here.history_hash()


def test_a_shard_folds_its_nodes_to_the_sum_that_all_nodes_give() -> None:
    chosen = options(sharing="equal")
    whole, halves = rounds(chosen)[0], Rounds(chosen, TwoShards(chosen))
    list(halves.checkpoints())
    assert halves.adapter.digest() == whole.adapter.digest()


class TwoShards:
    """Two shards in this process."""

    shards = 2

    def __init__(self, chosen: RoundsOptions) -> None:
        self.each = [chosen.shard(), chosen.shard()]
        self.vectors = 0

    def ask(self, calls):  # type: ignore[no-untyped-def]
        assert len(calls) <= 2
        return {shard: getattr(self.each[shard], name)(*args) for shard, (name, args) in calls.items()}


@pytest.mark.parametrize("attack", ["sign_flip", "boosted_flip", "ipm", "label_shuffle"])
def test_reputation_keeps_harmful_deltas_out_of_the_average(attack: str) -> None:
    chosen = options(attack=attack, attack_share_ppm=250_000, checkpoints=3, evaluators_lie=False, spread=0.1)
    _, done = rounds(chosen)
    assert done[0].dishonest_weight_ppm == 0
    _, unguarded = rounds(replace(chosen, sharing="equal"))
    assert unguarded[0].dishonest_weight_ppm == pytest.approx(250_000, abs=50)
    assert done[-1].loss < unguarded[-1].loss


def test_attackers_among_themselves_have_nobody_to_copy() -> None:
    alone = options(
        attack="copier",
        attack_share_ppm=900_000,
        preset=replace(PRESET, mentors_per_checkpoint=1),
        checkpoints=6,
    )
    _, done = rounds(alone)
    senders = [row.kind for each in done for row in each.nodes if row.signal_bytes]
    assert len(senders) == 6
    assert "copier" in senders


def test_of_a_delta_and_its_copy_one_weighs_nothing() -> None:
    _, done = rounds(options(attack="copier", attack_share_ppm=250_000, checkpoints=1))
    copies = [row for row in done[0].nodes if row.outcome == "copy"]
    assert len(copies) == 3  # at first either of the two may be taken for the copy: nobody has a name yet
    assert all(row.weight_ppm == 0 for row in copies)


@pytest.mark.parametrize(("weights", "gini"), [((5, 5, 5), 0), ((0, 0, 9), 666_666), ((1, 2, 3), 222_222)])
def test_gini_of_the_weights(weights: tuple[int, ...], gini: int) -> None:
    rows = tuple(NodeRow(1, i, "honest", 0, 0, 0, w, "averaged", 9) for i, w in enumerate(weights))
    assert Round(1, 0.0, 0.0, {}, nodes=rows).gini_ppm == gini


def test_a_mixture_of_attacks_is_spread_over_the_nodes() -> None:
    chosen = options(mixture={"noise": 2, "copier": 1})
    assert sorted(kind for kind in chosen.kinds if kind != "honest") == ["copier", "noise", "noise"]
    _, done = rounds(chosen)
    assert sum(row.outcome == "copy" for row in done[0].nodes) == 1
    with pytest.raises(ConfigError, match="must leave some of the nodes honest"):
        options(mixture={"noise": 12})


def test_the_auc_counts_pairs_in_the_right_order() -> None:
    assert auc_ppm([3, 4], [1, 2]) == 1_000_000
    assert auc_ppm([1, 4], [2, 2]) == 500_000
    assert auc_ppm([2], [2, 1, 5]) == 500_000
    assert auc_ppm([], [1]) is None


def test_dishonest_nodes_stand_at_even_distances() -> None:
    assert kinds_of(8, "noise", 250_000) == ("honest",) * 3 + ("noise",) + ("honest",) * 3 + ("noise",)
    assert kinds_of(4, "", 500_000) == ("honest",) * 4


def test_each_attack_sends_what_it_is_named_after() -> None:
    delta = np.linspace(-1, 1, 50, dtype=np.float32)
    norm = float(np.linalg.norm(delta))
    sent = {name: own_attack(name, delta, 1, 2, 3) for name in ATTACKS if name not in COLLECTIVE}
    assert np.array_equal(sent["sign_flip"], -delta)
    assert np.array_equal(sent["boosted_flip"], -10 * delta)
    assert np.linalg.norm(sent["noise"]) == pytest.approx(norm, rel=1e-5)
    assert np.linalg.norm(sent["free_rider"]) == pytest.approx(norm / 100, rel=1e-4)
    assert np.array_equal(sent["drift"] - 0.5 * delta, own_attack("drift", delta, 1, 9, 8) - 0.5 * delta)
    assert not np.array_equal(sent["noise"], own_attack("noise", delta, 1, 2, 4))


def test_collective_attacks_know_the_honest_deltas() -> None:
    kinds = ("honest", "honest", "ipm", "honest")
    deltas = {i: np.full(4, value, dtype=np.float32) for i, value in enumerate((1, 2, 50, 3))}
    assert collective_attacks(kinds, deltas, 1, 1)[2].tolist() == [-2.0] * 4
    kinds = ("honest", "honest", "alie", "honest")
    found = collective_attacks(kinds, deltas, 1, 1)[2]
    expected = 2 - alie_z(4, 1) * np.std([1, 2, 3])
    assert found == pytest.approx([expected] * 4, rel=1e-6)
    kinds = ("honest", "honest", "copier", "honest")
    originals = set()
    for checkpoint in range(1, 20):
        copied = collective_attacks(kinds, deltas, 1, checkpoint)[2]
        original = round(float(copied.mean()))
        originals.add(original)
        assert np.linalg.norm(copied - original) == pytest.approx(0.02 * original, rel=1e-3)
    assert originals == {1, 2, 3}, "now one, now another"


def test_the_product_error_is_the_one_of_the_full_matrices() -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    draw = lambda *shape: generator.standard_normal(shape).astype(np.float32)  # noqa: E731
    parent, products = (draw(9, 3), draw(3, 7)), [(draw(9, 3), draw(3, 7)) for _ in range(5)]
    exact = np.mean([b @ a for b, a in products], axis=0)
    averaged = np.mean([b for b, _ in products], axis=0) @ np.mean([a for _, a in products], axis=0)
    wrong, step = product_error(parent, products)
    assert wrong == pytest.approx(float(((exact - averaged) ** 2).sum()), rel=1e-4)
    assert step == pytest.approx(float(((exact - parent[0] @ parent[1]) ** 2).sum()), rel=1e-4)


def test_nodes_that_agree_have_no_product_error() -> None:
    chosen = options(sharing="equal", preset=replace(PRESET, method="factor_mean"), spread=0.0)
    engine, done = rounds(chosen)
    assert done[0].figures["product_error"] == pytest.approx(0, abs=1e-3)
    assert relative_product_error(engine.adapter, [engine.adapter] * 3) == 0


def test_adaptive_stacks_only_where_the_deltas_disagree() -> None:
    chosen = options(sharing="equal", method="adaptive", checkpoints=2, spread=0.9)
    for spread_max, stacked in ((1e9, 0.0), (1e-9, 1.0)):
        _, done = rounds(replace(chosen, spread_max=spread_max))
        assert [each.figures["stacked"] for each in done] == [stacked] * 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attack": "bribe"}, "no attack 'bribe'"),
        ({"sharing": "some"}, "must be one of mentorship, equal, alone"),
        ({"method": "stack"}, 'needs sharing = "equal"'),
        ({"attack_share_ppm": 1_000_000}, "must be below 1,000,000"),
        ({"sharing": "alone", "attack": "ipm"}, "nobody to attack"),
        ({"nodes": 1}, "between 2 and 65,536"),
        ({"nodes": 65_537}, "of which weights are parts"),
        ({"rate": 0.0}, "above 0 and at most 1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        options(**changes)
