"""Whole networks under virtual time: faults do not break agreement, and when they end the network goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_network import MINIMAL

from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import Aggregation, CheckpointInputs, aggregate
from citrate_node.simulation.checkers import ProgressViolation, SafetyViolation
from citrate_node.simulation.cluster import Cluster, ClusterOptions


def cluster(**options: object) -> Cluster:
    return Cluster(ClusterOptions(MINIMAL, **options))  # type: ignore[arg-type]


def finalized(world: Cluster, checkpoints: int, within_ms: int = 400_000) -> Cluster:
    world.run_until(checkpoints, within_ms=within_ms)
    return world


def losses(world: Cluster) -> list[float]:
    return [float(line.split()[2]) for line in world.history]


def test_honest_nodes_agree_and_the_loss_falls() -> None:
    world = finalized(cluster(nodes=5, seed=2, spread=0.3), 4)
    assert losses(world)[-1] < losses(world)[0]
    assert all(s.node is not None and s.node.state.number >= 4 for s in world.nodes)
    assert len(world.chain.commits) >= 4
    assert world.chain.refusals == []


def test_a_seed_determines_everything() -> None:
    first, again, other = (finalized(cluster(nodes=4, seed=s, loss_ppm=50_000), 3) for s in (5, 5, 6))
    assert first.history_hash() == again.history_hash()
    assert first.now_ms == again.now_ms
    assert first.history_hash() != other.history_hash()


@pytest.mark.parametrize("loss_ppm", [50_000, 150_000, 300_000])
@pytest.mark.parametrize("seed", range(4))
def test_a_lossy_network_still_finalizes(seed: int, loss_ppm: int) -> None:
    """Votes sent once would leave some of these stuck: everything is repeated until it is on chain."""
    finalized(cluster(nodes=4 + seed % 4, seed=seed, loss_ppm=loss_ppm, duplicate_ppm=50_000), 3)


def test_three_of_four_go_on_and_the_fourth_catches_up() -> None:
    world = finalized(cluster(nodes=4, seed=5), 1)
    world.crash(2)
    finalized(world, 3)
    world.start(2)
    finalized(world, 5)
    node = world.nodes[2].node
    assert node is not None
    assert node.state.number >= 5


def test_two_of_four_are_no_quorum_and_go_on_when_a_third_returns() -> None:
    world = finalized(cluster(nodes=4, seed=6), 1)
    world.crash(0)
    world.crash(1)
    before = len(world.chain.commits)
    world.run_for(120_000)
    assert len(world.chain.commits) == before
    world.start(0)
    finalized(world, before + 2)


@pytest.mark.parametrize("seed", range(8))
def test_restarts_at_any_moment_never_lead_to_two_signatures(seed: int) -> None:
    """kill -9 over and over: the checkers see every vote of every life."""
    world = cluster(nodes=4, seed=100 + seed, loss_ppm=50_000)
    for turn in range(10):
        world.run_for(700 + 137 * seed)
        world.crash((turn + seed) % 4)
        world.run_for(1_500)
        world.start((turn + seed) % 4)
    reached = max(s.node.state.number for s in world.nodes if s.node)
    finalized(world, reached + 2)


def test_a_minority_that_was_cut_off_comes_back_to_the_same_state() -> None:
    world = finalized(cluster(nodes=7, seed=3), 1)
    world.cut(frozenset({0, 1}))
    world.run_for(30_000)
    assert {s.node.state.number for s in world.nodes if s.node and s.index > 1} != {1}
    world.heal()
    finalized(world, len(world.chain.commits) + 1)


def test_a_network_cut_in_halves_waits_and_then_goes_on() -> None:
    world = finalized(cluster(nodes=6, seed=4), 1)
    world.cut(frozenset({0, 1, 2}))
    world.run_for(60_000)
    stood = len(world.chain.commits)
    world.run_for(60_000)
    assert len(world.chain.commits) == stood
    world.heal()
    finalized(world, stood + 2)


def test_an_equivocator_loses_all_reputation() -> None:
    world = finalized(cluster(nodes=6, seed=1, equivocators=frozenset({2})), 3)
    assert world.reputations()[2] == 0
    assert all(ppm > 0 for index, ppm in world.reputations().items() if index != 2)


def test_a_withholder_falls_to_the_floor_and_the_network_goes_on() -> None:
    world = finalized(cluster(nodes=6, seed=1, withholders=frozenset({1})), 5)
    assert world.reputations()[1] <= MINIMAL.reputation_floor_ppm * 3
    assert min(ppm for index, ppm in world.reputations().items() if index != 1) > world.reputations()[1]


def test_a_sign_flipper_ends_below_every_honest_node() -> None:
    world = finalized(cluster(nodes=8, seed=1, spread=0.2, sign_flippers=frozenset({0})), 4)
    honest = [ppm for index, ppm in world.reputations().items() if index != 0]
    assert world.reputations()[0] < min(honest)


def test_a_lying_evaluator_does_not_keep_the_loss_up() -> None:
    honest = finalized(cluster(nodes=6, seed=1, spread=0.2), 4)
    lied_to = finalized(cluster(nodes=6, seed=1, spread=0.2, liars=frozenset({3})), 4)
    assert losses(lied_to)[-1] < 2 * losses(honest)[-1]


def flooring(state: NetworkState, given: CheckpointInputs) -> Aggregation:
    """A broken protocol: an average one unit lower, as a flooring division gives for negative sums."""
    right = aggregate(state, given)
    values = right.weights.values.copy()
    moving = right.weights.places(state.moving_manifest)[0]
    if not right.changed:
        return right
    values[moving] -= (values[moving] < 0).astype(np.int64)
    from citrate_node.protocol.content_id import content_id

    weights = replace(right.weights, values=values)
    return replace(right, weights=weights, content=content_id(weights.encode()))


def test_nodes_that_round_another_way_are_no_quorum() -> None:
    """Two of four compute other bytes: neither half has two thirds, nothing is committed."""
    world = cluster(nodes=4, seed=1)
    for index in (0, 1):
        node = world.nodes[index].node
        assert node is not None
        node.core.functions = replace(node.core.functions, aggregate=flooring)
    with pytest.raises(ProgressViolation, match="seed 1"):
        finalized(world, 3, within_ms=120_000)
    assert all(s.node is None or s.node.state.number < 3 for s in world.nodes)


def test_a_node_that_rounds_another_way_follows_the_quorum() -> None:
    """One of four: the chain is the arbiter, the odd one takes the committed bytes."""
    world = cluster(nodes=4, seed=1)
    node = world.nodes[0].node
    assert node is not None
    node.core.functions = replace(node.core.functions, aggregate=flooring)
    finalized(world, 3)
    assert world.checkers.weights


def test_the_agreement_checker_sees_other_weights() -> None:
    world = finalized(cluster(nodes=4, seed=1), 1)
    action = world.outcomes[1]
    node = world.nodes[1].node
    assert node is not None
    with pytest.raises(SafetyViolation, match="another weights"):
        world.checkers.on_finalize(1, replace(action, weights=action.weights + b"x"), {}, node.state)


def test_the_chain_checker_sees_a_final_checkpoint_that_is_not_on_chain() -> None:
    world = finalized(cluster(nodes=4, seed=1), 1)
    node = world.nodes[1].node
    assert node is not None
    with pytest.raises(SafetyViolation, match="against the chain"):
        world.checkers.on_finalize(1, world.outcomes[1], {1: bytes(32)}, node.state)


def test_the_vote_checker_sees_a_second_vote_in_a_round() -> None:
    world = finalized(cluster(nodes=4, seed=1), 1)
    world.checkers.on_vote(b"author", 9, 0, b"one")
    with pytest.raises(SafetyViolation, match="two votes"):
        world.checkers.on_vote(b"author", 9, 0, b"two")


@pytest.mark.slow
def test_three_hundred_seeds_of_loss_and_restarts() -> None:
    for seed in range(300):
        world = cluster(nodes=4 + seed % 5, seed=1_000 + seed, loss_ppm=(seed % 4) * 80_000)
        for turn in range(6):
            world.run_for(900 + 71 * (seed % 13))
            world.crash((turn + seed) % 4)
            world.run_for(400 + 97 * (seed % 17))
            world.start((turn + seed) % 4)
        reached = max(s.node.state.number for s in world.nodes if s.node)
        finalized(world, reached + 1, within_ms=600_000)
