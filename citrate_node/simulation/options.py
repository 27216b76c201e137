"""What a simulated network is made of: everything that a run depends on. Read by cluster and scenario."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..protocol.methods import moving_factor
from ..protocol.preset import Preset
from .synthetic import SyntheticTask


@dataclass(frozen=True)
class ClusterOptions:
    """Everything that a run depends on. Printed first, so that a run can be repeated."""

    preset: Preset
    nodes: int = 4
    seed: int = 0
    latency_ms: tuple[int, int] = (5, 120)
    loss_ppm: int = 0
    """Part of the messages, blobs and answers that never arrive."""
    duplicate_ppm: int = 0
    faults_end_ms: int | None = None
    """From then on nothing is lost: the liveness act."""
    sign_flippers: frozenset[int] = frozenset()
    """Mentors that announce the opposite of what they learned."""
    withholders: frozenset[int] = frozenset()
    """Mentors that announce a delta and never serve it."""
    equivocators: frozenset[int] = frozenset()
    """Mentors that announce three different signals to three parts of the network."""
    copiers: frozenset[int] = frozenset()
    """Mentors that announce somebody else's delta as soon as it is served."""
    forkers: frozenset[int] = frozenset()
    """Evaluators that say three different figures to three parts of the network."""
    liars: frozenset[int] = frozenset()
    """Evaluators that report the opposite of what they measured."""
    forgers: frozenset[int] = frozenset()
    """Proposers that put other weights into the record than the composition gives."""
    two_faced: frozenset[int] = frozenset()
    """Proposers that send another correct record, without measurements, to a part of the network."""
    boasters: frozenset[int] = frozenset()
    """Proposers whose record has no measurement but their own, of 99 %."""
    colluders: frozenset[int] = frozenset()
    """Evaluators that praise each other's deltas and slander all others."""
    repeaters: frozenset[int] = frozenset()
    """Mentors that announce in every checkpoint what they learned in their first one."""
    delta_attackers: tuple[tuple[int, str], ...] = ()
    """(node, name in attacks.ATTACKS): mentors that send something else than what they learned."""
    stakes: tuple[int, ...] = ()
    spread: float = 0.5
    training_ms: tuple[int, int] = (200, 1500)
    slow_nodes: frozenset[int] = frozenset()
    """Nodes that train for `slow_training_ms`: honest, and late."""
    slow_training_ms: tuple[int, int] = (20_000, 40_000)

    @cached_property
    def dishonest(self) -> frozenset[int]:
        """All nodes that deviate in any way."""
        groups = (self.sign_flippers, self.withholders, self.equivocators, self.copiers, self.forkers)
        more = (self.liars, self.forgers, self.two_faced, self.boasters, self.colluders, self.repeaters)
        return frozenset().union(*groups, *more, (node for node, _ in self.delta_attackers))

    @cached_property
    def delta_attack_of(self) -> dict[int, str]:
        """Node to the name of its attack, for those that send another delta."""
        return {**dict.fromkeys(self.sign_flippers, "sign_flip"), **dict(self.delta_attackers)}


def synthetic_task(options: ClusterOptions) -> SyntheticTask:
    """The synthetic task that these options ask for."""
    factor = moving_factor(options.preset.method, 1)
    return SyntheticTask(options.seed, options.nodes, spread=options.spread, factor=factor)
