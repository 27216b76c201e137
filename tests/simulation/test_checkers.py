"""Each checker catches a protocol that is broken in the way that it looks for, and lets a right one pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_network import MINIMAL

from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import Aggregation, CheckpointInputs, aggregate
from citrate_node.simulation.chain_model import Commit
from citrate_node.simulation.checkers import ProgressViolation, SafetyViolation
from citrate_node.simulation.cluster import Cluster, ClusterOptions


def cluster(**options: object) -> Cluster:
    return Cluster(ClusterOptions(MINIMAL, **options))  # type: ignore[arg-type]


def with_aggregate(world: Cluster, broken: object) -> Cluster:
    """All nodes compute with another function: they agree with each other, and are wrong."""
    for simulated in world.nodes:
        assert simulated.node is not None
        core = simulated.node.core
        core.functions = replace(core.functions, aggregate=broken)  # type: ignore[arg-type]
    return world


def generous(state: NetworkState, inputs: CheckpointInputs) -> Aggregation:
    """One ppm more for everybody than the protocol gives."""
    right = aggregate(state, inputs)
    rows = tuple(replace(row, reputation_ppm=row.reputation_ppm + 1) for row in right.reputations)
    return replace(right, reputations=rows)


def unjust(state: NetworkState, inputs: CheckpointInputs) -> Aggregation:
    """Everybody falls to the floor."""
    right = aggregate(state, inputs)
    floor = state.preset.reputation_floor_ppm
    return replace(right, reputations=tuple(replace(r, reputation_ppm=floor) for r in right.reputations))


def test_a_right_protocol_passes_all_checkers() -> None:
    world = cluster(nodes=5, seed=3, spread=0.2)
    world.run_until(3, within_ms=100_000)
    world.check_end()
    assert world.checkers.commits == world.chain.record_hashes


def test_nodes_that_all_compute_the_same_wrong_thing_are_caught_by_the_replay() -> None:
    world = with_aggregate(cluster(nodes=4, seed=1), generous)
    with pytest.raises(SafetyViolation, match="seed 1: checkpoint 1 computed again has another record"):
        world.run_until(2, within_ms=100_000)


def test_reputation_that_punishes_the_honest_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_aggregate(cluster(nodes=4, seed=1), unjust)
    monkeypatch.setattr(world.checkers, "on_computed", lambda before, action: None)
    world.run_until(2, within_ms=100_000)
    with pytest.raises(SafetyViolation, match="seed 1: honest nodes at the floor"):
        world.check_end()


def test_a_chain_that_takes_a_number_twice_is_caught() -> None:
    world = cluster(nodes=4, seed=1)
    mine = world.chain.mine

    def twice() -> list[Commit]:
        return [commit for commit in mine() for _ in range(2)]

    world.chain.mine = twice  # type: ignore[method-assign]
    with pytest.raises(SafetyViolation, match="seed 1: commit 1 came after 1 commits"):
        world.run_until(1, within_ms=100_000)


def test_a_network_that_does_not_go_on_is_caught_and_two_acts_pass() -> None:
    """Safety with half of the nodes cut off: nothing is committed. Liveness when they are back."""
    world = cluster(nodes=6, seed=4)
    world.cut(frozenset({0, 1, 2}))
    with pytest.raises(ProgressViolation, match=r"seed 4: checkpoints \[0, 0, 0, 0, 0, 0\]"):
        world.run_until(1, within_ms=60_000)
    assert world.chain.commits == []
    world.heal()
    world.run_until(2, within_ms=100_000)


def test_a_follower_with_another_state_than_the_committee_is_caught() -> None:
    """The state restored from files must be the one that was computed."""
    world = cluster(nodes=40, seed=2)
    world.run_until(1, within_ms=100_000)
    done = world.outcomes[1]
    assert done.outcome is not None
    right = done.outcome.state
    world.shared._states[right.record_hash] = replace(right, recent_weights=right.recent_weights[:1])
    world.shared._followed.clear()
    with pytest.raises(SafetyViolation, match="checkpoint 1 restored is not the one computed"):
        world.shared.follow(world.genesis, right.record_hash, done.record, done.state_file, done.weights)


def test_who_has_no_part_in_a_checkpoint_sleeps_and_follows_its_certificate() -> None:
    world = cluster(nodes=60, seed=5)
    world.run_until(2, within_ms=200_000)
    roles = world.genesis.role_keys
    assert len(roles) < 60
    sleeper = next(s for s in world.nodes if s.identity.node_key not in roles)
    assert sleeper.node is not None
    assert sleeper.node.state.number >= 2
    assert sleeper.node.state is world.nodes[0].node.state  # type: ignore[union-attr]
    assert world.load.states > 0
    assert {s.node.state.record_hash for s in world.nodes if s.node and s.node.state.number == 2} <= {
        world.chain.record_hashes[2]
    }
