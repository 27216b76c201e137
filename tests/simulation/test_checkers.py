"""Each checker catches a protocol that is broken in the way that it looks for, and lets a right one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from small_network import MINIMAL

from citrate_node.node.actions import Action, Publish
from citrate_node.node.committer import Committer
from citrate_node.node.events import Event
from citrate_node.protocol.messages import Vote, sign_message
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import (
    Aggregation,
    CheckpointInputs,
    Outcome,
    aggregate,
    process_checkpoint,
)
from citrate_node.simulation import checkers
from citrate_node.simulation.chain_model import Commit
from citrate_node.simulation.checkers import ProgressViolation, SafetyViolation
from citrate_node.simulation.cluster import Cluster, ClusterOptions

Aggregate = Callable[[NetworkState, CheckpointInputs], Aggregation]


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


# ---------------------------------------------------------------- each broken protocol, one checker alone

CHECKERS = {
    "replay": "computed again",
    "agreement": "has another",
    "chain": "against the chain",
    "bounds": "out of bounds",
    "one commit per number": "commits",
    "floor": "at the floor",
    "one vote per round": "two votes",
    "progress": "checkpoints",
}
"""Name to what its complaint says; looked for in this order."""


def complaints(world: Cluster, checkpoints: int = 1) -> set[str]:
    """Names of the checkers that complain of a run; none of them stops it."""
    found: set[str] = set()

    def noted(check: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            try:
                check(*arguments)
            except SafetyViolation as violation:
                found.add(next(name for name, text in CHECKERS.items() if text in str(violation)))

        return call

    for name in ("on_finalize", "on_commit", "on_computed", "on_end", "on_vote"):
        setattr(world.checkers, name, noted(getattr(world.checkers, name)))
    try:
        world.run_until(checkpoints, within_ms=60_000)
    except ProgressViolation:
        found.add("progress")
    world.check_end()
    return found


def everywhere(patch: pytest.MonkeyPatch, world: Cluster, broken: Aggregate) -> Cluster:
    """The protocol itself is broken: the reference that replays computes the same."""

    def process(state: NetworkState, inputs: CheckpointInputs) -> Outcome:
        return process_checkpoint(state, inputs, broken(state, inputs))

    patch.setattr(checkers, "process_checkpoint", process)
    return with_aggregate(world, broken)


def with_outcome(world: Cluster, changed: Callable[[Outcome], Outcome]) -> Cluster:
    """Node 0 alone computes something else."""
    node = world.nodes[0].node
    assert node is not None
    right = node.core.functions.process_checkpoint
    node.core.functions = replace(
        node.core.functions, process_checkpoint=lambda *given: changed(right(*given))
    )
    return world


def honest_network() -> Cluster:
    return cluster(nodes=5, seed=3, spread=0.2)


def test_a_right_protocol_has_no_complaints() -> None:
    assert complaints(honest_network(), 3) == set()


def test_a_node_with_another_state_breaks_agreement_alone() -> None:
    def other_state(outcome: Outcome) -> Outcome:
        more = (*outcome.state.recent_weights, bytes(32))
        return replace(outcome, state=replace(outcome.state, recent_weights=more))

    assert complaints(with_outcome(honest_network(), other_state)) == {"agreement"}


def test_a_node_that_takes_another_record_for_final_than_the_chain_is_against_the_chain_alone() -> None:
    def other_record(outcome: Outcome) -> Outcome:
        return replace(outcome, state=replace(outcome.state, record_hash=bytes(32)))

    assert complaints(with_outcome(honest_network(), other_record)) == {"chain"}


def test_a_reputation_below_the_floor_is_out_of_bounds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = cluster(nodes=5, seed=3, spread=0.2, sign_flippers=frozenset({0}))
    flipper = world.nodes[0].identity.node_key

    def bottomless(state: NetworkState, inputs: CheckpointInputs) -> Aggregation:
        right = aggregate(state, inputs)
        rows = (replace(r, reputation_ppm=1) if r.node_key == flipper else r for r in right.reputations)
        return replace(right, reputations=tuple(rows))

    assert complaints(everywhere(monkeypatch, world, bottomless)) == {"bounds"}


def test_a_chain_that_takes_two_records_breaks_one_commit_per_number_alone() -> None:
    world = honest_network()
    mine = world.chain.mine
    world.chain.mine = lambda: [commit for commit in mine() for _ in range(2)]  # type: ignore[method-assign]
    assert complaints(world) == {"one commit per number"}


def test_nodes_that_agree_on_something_wrong_break_the_replay_alone() -> None:
    assert complaints(with_aggregate(honest_network(), generous)) == {"replay"}


def test_a_protocol_that_punishes_the_honest_breaks_the_floor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaints(everywhere(monkeypatch, honest_network(), unjust)) == {"floor"}


def test_a_node_that_votes_twice_breaks_one_vote_per_round_alone() -> None:
    world = honest_network()
    node = world.nodes[0].node
    assert node is not None
    right, seed = node.handle, node.core.identity.seed

    def twice(event: Event) -> list[Action]:
        actions = right(event)
        votes = [
            a.message.body for a in actions if isinstance(a, Publish) and isinstance(a.message.body, Vote)
        ]
        more = (sign_message(seed, replace(vote, record_hash=bytes(32))) for vote in votes)
        return [*actions, *(Publish(message) for message in more)]

    node.handle = twice  # type: ignore[method-assign]
    assert complaints(world) == {"one vote per round"}


def test_nodes_that_do_not_vote_break_progress_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Committer, "_consider", lambda committer, proposal: [])
    assert complaints(honest_network()) == {"progress"}


def test_safety_with_all_faults_on_and_liveness_once_they_are_off() -> None:
    """Loss, duplication, a cut that moves, restarts; then everybody is there, and two checkpoints further."""
    faults_end_ms = 40_000
    world = cluster(nodes=7, seed=8, loss_ppm=300_000, duplicate_ppm=100_000, faults_end_ms=faults_end_ms)
    for turn in range(8):
        world.cut(frozenset({turn % 7, (turn + 3) % 7, (turn + 4) % 7}))
        world.crash(turn % 7)
        world.run_for(4_000)
        world.start(turn % 7)
        world.run_for(1_000)
    assert world.now_ms == faults_end_ms
    world.heal()
    before = len(world.chain.commits)
    world.run_until(before + 2, within_ms=60_000)
    assert world.checkers.commits == world.chain.record_hashes
