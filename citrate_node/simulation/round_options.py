"""What a run of the rounds engine is made of, and what each of its checkpoints gives. See rounds.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..errors import ConfigError
from ..protocol.aggregation import WEIGHT_SUM
from ..protocol.methods import moving_factor
from ..protocol.preset import ONE_PPM, Preset
from .attacks import COLLECTIVE, HONEST, check_attack, kinds_of
from .metrics import NodeRow
from .round_nodes import ShardNodes
from .synthetic import SyntheticTask
from .training_workload import TrainingOptions, TrainingWorkload
from .workload import Workload

SHARING = ("mentorship", "equal", "alone")
METHODS = ("", "stack", "adaptive")
"""Beside the preset's own: products averaged exactly, and that only where the spread of the deltas asks for
it. Both are floating point: for comparison, not for a vote."""


@dataclass(frozen=True)
class RoundsOptions:
    """Everything that a run depends on."""

    preset: Preset
    nodes: int
    checkpoints: int
    seed: int = 0
    sharing: str = "mentorship"
    method: str = ""
    """"stack" or "adaptive" in place of the preset's method; with sharing "equal" alone."""
    spread_max: float = 0.05
    """adaptive: the relative error of averaging factors above which products are averaged."""
    error_feedback: bool = True
    attack: str = ""
    attack_share_ppm: int = 0
    """Part of the nodes that are dishonest."""
    mixture: Mapping[str, int] = field(default_factory=dict)
    """Attack to how many nodes do it, in place of one attack by a share of them."""
    evaluators_lie: bool = True
    """Whether the dishonest also praise each other's deltas and slander all others."""
    spread: float = 0.5
    """Synthetic task: size of a node's own share of its target; 0 is IID."""
    width: int = 12
    """Synthetic task: in_features and out_features."""
    rate: float = 0.25
    """Synthetic task: learning rate of a step; a small one takes many checkpoints to the optimum."""
    training: TrainingOptions | None = None
    """How nodes train real adapters; None: the synthetic task."""

    def __post_init__(self) -> None:
        for name in (self.attack, *self.mixture):
            check_attack(name)
        if self.mixture and (self.attack or sum(self.mixture.values()) >= self.nodes):
            raise ConfigError("mixture is in place of attack, and must leave some of the nodes honest")
        if not 2 <= self.nodes <= WEIGHT_SUM:
            raise ConfigError(
                f"nodes is {self.nodes}, must lie between 2 and {WEIGHT_SUM:,}, of which weights are parts"
            )
        if self.sharing not in SHARING:
            raise ConfigError(f"sharing is {self.sharing!r}, must be one of {', '.join(SHARING)}")
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}, must be empty or one of {', '.join(METHODS[1:])}")
        if self.method and self.sharing != "equal":
            raise ConfigError(f'method {self.method!r} needs sharing = "equal": it cannot be voted on')
        if not 0 <= self.attack_share_ppm < ONE_PPM:
            raise ConfigError(f"attack_share_ppm is {self.attack_share_ppm}, must be below 1,000,000")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate is {self.rate}, must be above 0 and at most 1")
        if self.sharing == "alone" and (self.attack or self.mixture):
            raise ConfigError('sharing = "alone" has nobody to attack')

    @property
    def is_collective(self) -> bool:
        """Whether some attacker must know what the others learnt."""
        return not COLLECTIVE.isdisjoint((self.attack, *self.mixture))

    @property
    def moving(self) -> str:
        """The method by which tensors move."""
        return "factor_mean" if self.method else self.preset.method

    def workload(self) -> Workload:
        """The task that these options ask for."""
        if self.training is not None:
            return TrainingWorkload(self.seed, self.nodes, self.training)
        factor = moving_factor(self.moving, 1)
        return SyntheticTask(
            self.seed,
            self.nodes,
            self.width,
            spread=self.spread,
            learning_rate=self.rate,
            factor=factor,
        )

    def shard(self) -> ShardNodes:
        """What a worker holds; picklable as a partial of this."""
        return ShardNodes(self.workload(), self.seed, self.kinds, self.error_feedback)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """By node number: "honest" or the attack."""
        if self.mixture:
            names = [name for name, count in sorted(self.mixture.items()) for _ in range(count)]
            spread = kinds_of(self.nodes, "dishonest", -(-len(names) * ONE_PPM // self.nodes))
            return tuple(HONEST if kind == HONEST else names.pop() for kind in spread)
        return kinds_of(self.nodes, self.attack, self.attack_share_ppm)


@dataclass(frozen=True)
class Round:
    """What a checkpoint gave."""

    number: int
    loss: float
    """Mean of the honest nodes' losses on their own held-out data."""
    worst_node: float
    figures: dict[str, float]
    """Losses on data that all share, and "product_error" where both factors moved."""
    weights_hash: str = ""
    """Empty where every node has weights of its own."""
    record_hash: str = ""
    """Empty where nothing is voted on."""
    sent_bytes: int = 0
    """Delta files announced in this checkpoint, each once."""
    promoted: bool = True
    accuracy_ppm: int = 0
    evaluations: int = 0
    nodes: tuple[NodeRow, ...] = ()
    """One row per node; empty where every node is by itself."""

    @property
    def dishonest_weight_ppm(self) -> int:
        """The dishonest nodes' part of the average."""
        return sum(each.weight_ppm for each in self.nodes if each.kind != HONEST)

    @property
    def gini_ppm(self) -> int:
        """Gini coefficient of the weights of all that announced: 0 where all are equal, towards a million
        where one has everything (Gini 1912, "Variabilità e mutabilità")."""
        weights = sorted(each.weight_ppm for each in self.nodes if each.signal_bytes)
        whole, count = sum(weights), len(weights)
        if not whole:
            return 0
        ranked = sum((2 * place - count + 1) * weight for place, weight in enumerate(weights))
        return ranked * ONE_PPM // (count * whole)

    @property
    def honest_excluded_ppm(self) -> int:
        """Part of the honest signals that did not enter the average."""
        sent = [each for each in self.nodes if each.kind == HONEST and each.signal_bytes]
        out = sum(each.weight_ppm == 0 for each in sent)
        return out * ONE_PPM // len(sent) if sent else 0
