"""Dishonest nodes in whole networks: they cost themselves something, the others nothing but a little time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_network import MINIMAL

from citrate_node.node.actions import Action, Publish
from citrate_node.protocol.checkpoint import CheckpointRecord
from citrate_node.protocol.messages import Vote
from citrate_node.simulation.checkers import SafetyViolation
from citrate_node.simulation.cluster import Cluster, ClusterOptions

SEEDS = range(3)
BLOCKS_PER_CHECKPOINT = 16
"""An honest network takes 10; those who waste the turns of a proposer cost two rounds of 3."""


def cluster(**options: object) -> Cluster:
    return Cluster(ClusterOptions(MINIMAL, **options))  # type: ignore[arg-type]


def finalized(world: Cluster, checkpoints: int) -> Cluster:
    world.run_until(checkpoints, within_ms=400_000)
    return world


def records(world: Cluster) -> list[CheckpointRecord]:
    found = [world.outcomes[number].outcome for number in sorted(world.outcomes)]
    return [outcome.record for outcome in found if outcome is not None]


def assert_quick(world: Cluster) -> None:
    assert world.chain.block_number <= BLOCKS_PER_CHECKPOINT * len(world.chain.commits) + 10


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", ["forkers", "equivocators", "two_faced"])
def test_who_contradicts_himself_cannot_hold_up_the_others(what: str, seed: int) -> None:
    """Three figures, three signals, two records for three parts of the network."""
    world = finalized(cluster(nodes=7, seed=seed, **{what: frozenset({0, 1})}), 3)
    assert_quick(world)
    assert world.chain.refusals == []


def test_contradictions_through_a_network_that_loses_messages() -> None:
    bad = frozenset({0})
    for seed in SEEDS:
        world = cluster(nodes=7, seed=seed, loss_ppm=100_000, forkers=bad, equivocators=bad, two_faced=bad)
        finalized(world, 3)


def test_a_copier_earns_nothing() -> None:
    """It announces as soon as deltas are served, and by then nobody evaluates what is new; a node whose head
    lags may still do so, and then the copy is found by its direction."""
    for seed in SEEDS:
        world = finalized(cluster(nodes=7, seed=seed, spread=0.3, copiers=frozenset({2})), 4)
        copier = world.nodes[2].identity.node_key
        known = [a.outcome for a in world.outcomes.values() if a.outcome is not None]
        outcomes = [o for outcome in known for o in outcome.aggregation.outcomes]
        copies = [o for o in outcomes if o.mentor == copier]
        assert copies, "its signals are heard"
        assert all(o.weight == 0 and (o.evaluations == 0 or o.copy_of is not None) for o in copies)
        assert world.reputations()[2] <= MINIMAL.reputation_initial_ppm
        assert any(o.weight for o in outcomes)


def test_a_proposer_does_not_choose_the_accuracy() -> None:
    """Its own 99 % alone is refused; among the others' figures it moves no median."""
    for seed in SEEDS:
        boasting = finalized(cluster(nodes=7, seed=seed, spread=0.3, boasters=frozenset({0, 1})), 3)
        assert_quick(boasting)
        promoted = [record for record in records(boasting) if record.promoted]
        assert promoted
        assert max(record.accuracy_ppm for record in promoted) < 980_000
        assert min(len(record.measurements) for record in promoted) > 2


def test_a_network_larger_than_its_roles_goes_on() -> None:
    """24 nodes, a committee of 16, 8 mentors: the others follow, and fetch what they did not compute."""
    world = finalized(cluster(nodes=24, seed=1, spread=0.3), 3)
    state = world.nodes[0].node
    assert state is not None
    assert len(state.state.committee) == 16
    assert all(len(record.signals) <= 8 for record in records(world))
    assert all(len(record.measurements) <= 16 for record in records(world))
    assert_quick(world)


def test_stake_decides_and_a_small_committee_is_enough() -> None:
    """Three of five hold nearly all stake: the two others may be gone."""
    world = finalized(cluster(nodes=5, seed=3, stakes=(100, 100, 100, 1, 1)), 1)
    world.crash(3)
    world.crash(4)
    finalized(world, 3)


def test_a_node_that_joins_late_catches_up_and_takes_part() -> None:
    world = cluster(nodes=5, seed=8)
    world.crash(4)
    finalized(world, 3)
    assert world.nodes[4].saved is None, "it has never finalized anything"
    world.start(4)
    finalized(world, 6)
    late = world.nodes[4]
    key = late.identity.node_key
    assert late.node is not None
    votes = {number for author, number, _ in world.checkers.votes if author == key}
    assert votes, "it votes again"


def test_all_nodes_die_at_once_in_every_phase_and_go_on() -> None:
    """A power cut in each block of two checkpoints."""
    for moment in range(1, 22, 2):
        world = cluster(nodes=4, seed=moment)
        world.run_for(1_000 * moment + 400)
        for index in range(4):
            world.crash(index)
        world.run_for(2_000)
        for index in range(4):
            world.start(index)
        finalized(world, len(world.chain.commits) + 1)


class Amnesia(Cluster):
    """A broken disk: what was journaled is lost, and so are the messages."""

    def crash(self, index: int) -> None:
        super().crash(index)
        self.nodes[index].journal = {}
        self.nodes[index].messages = {}


def test_without_a_journal_the_checkers_would_see_two_votes() -> None:
    """The broken variant is caught within a few seeds: the checker, and the journal, are worth their keep."""
    caught = 0
    for seed in range(40):
        world = Amnesia(
            ClusterOptions(MINIMAL, nodes=4, seed=seed, loss_ppm=200_000, two_faced=frozenset({0}))
        )
        try:
            for turn in range(12):
                world.run_for(1_300 + 89 * seed)
                index = 1 + turn % 3
                world.crash(index)
                world.run_for(60)
                world.start(index)
        except SafetyViolation:
            caught += 1
    assert caught > 0


class Doubling(Cluster):
    """A broken node: it sends a second vote, for another record, after each one."""

    def _carry_out(self, simulated: object, action: Action) -> None:
        super()._carry_out(simulated, action)  # type: ignore[arg-type]
        if isinstance(action, Publish) and isinstance(action.message.body, Vote):
            body = action.message.body
            self.checkers.on_vote(body.author, body.checkpoint, body.round, bytes(32))


def test_a_node_that_votes_twice_is_caught_at_once() -> None:
    world = Doubling(ClusterOptions(MINIMAL, nodes=4, seed=2))
    with pytest.raises(SafetyViolation, match="seed 2: two votes by"):
        finalized(world, 1)


SCRIPT = """
from citrate_node.config import load_preset
from citrate_node.simulation.cluster import Cluster, ClusterOptions
bad = {name: frozenset({0, 3}) for name in ("forkers", "equivocators")}
world = Cluster(ClusterOptions(load_preset("minimal"), nodes=7, seed=4, loss_ppm=100_000, **bad))
world.run_until(2, within_ms=400_000)
print(world.history_hash(), world.now_ms)
"""


def test_the_order_of_sets_in_memory_decides_nothing() -> None:
    """Python draws a new order of byte strings for each process; histories stay the same."""
    root = Path(__file__).resolve().parents[2]
    printed = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.add(done.stdout)
    assert len(printed) == 1


def test_options_of_the_dishonest_do_not_overlap_with_honest_ones() -> None:
    """Without them a run is the one of an honest network, to the byte."""
    plain, same = cluster(nodes=4, seed=9), cluster(nodes=4, seed=9, forkers=frozenset(), copiers=frozenset())
    assert finalized(plain, 2).history_hash() == finalized(same, 2).history_hash()
    assert replace(plain.options, seed=1) != plain.options


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_three_hundred_worlds_of_faults_and_dishonesty(block: int) -> None:
    """Two acts: safety with everything at once, then progress when faults end. Less than a third is bad."""
    for seed in range(30 * block, 30 * block + 30):
        world = faulty_world(seed)
        world.run_for(60_000)
        reached = max(s.node.state.number for s in world.nodes if s.node)
        world.heal()
        for simulated in world.nodes:
            if simulated.node is None:
                world.start(simulated.index)
        finalized(world, reached + 2)


def faulty_world(seed: int) -> Cluster:
    """A network with dishonest nodes, loss, restarts and a cut, all from the seed."""
    nodes = 7 + seed % 6
    roles = ["sign_flippers", "withholders", "equivocators", "liars", "copiers", "forkers", "two_faced"]
    roles += ["boasters"]
    bad = {roles[seed % 8]: frozenset({0}), roles[(seed // 8 + 3) % 8]: frozenset({1})}
    world = cluster(
        nodes=nodes,
        seed=10_000 + seed,
        loss_ppm=(seed % 4) * 70_000,
        duplicate_ppm=(seed % 3) * 50_000,
        faults_end_ms=60_000,
        **bad,
    )
    for turn in range(8):
        index, at = 2 + (turn * 5 + seed) % (nodes - 2), 4_000 * turn + 137 * (seed % 29)
        world.schedule(at, lambda index=index: world.crash(index))  # type: ignore[misc]
        world.schedule(at + 2_500, lambda index=index: world.nodes[index].node or world.start(index))  # type: ignore[misc]
    side = frozenset(range(seed % 3 + 1))
    world.schedule(20_000, lambda: world.cut(side))
    world.schedule(38_000, world.heal)
    return world
