"""What simulated nodes train and measure: the one interface between the engine and a task.

Two tasks satisfy it: synthetic.SyntheticTask (exact, microseconds) and real LoRA training. Every call takes
the requests of many nodes at once, so that a task may train them in one batch and workers.py may split them
among processes. An answer depends on its own request alone, never on the others in the call nor on calls
before: so neither the size of a batch nor the number of processes changes a history. Called by cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..protocol.adapter import AdapterWeights
from ..protocol.tensors import Manifest

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Train the tensors of `manifest` on one node's own data, all others frozen."""

    node: int
    """Index of the node, from 0."""
    checkpoint: int
    """Target of the training, from 1: with the node, what a task may seed its order of examples by."""
    weights: AdapterWeights
    """Where training starts."""
    manifest: Manifest
    """The tensors that move, a subset of the weights'."""
    values: Values
    """Their values at the start, flat in manifest order."""
    shuffled: bool = False
    """On data whose order is destroyed, as a dishonest mentor's may be (attacks.py)."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one node's training gave."""

    values: Values
    """The moved tensors, float32 (manifest.count,)."""
    examples: int
    """Training examples, as the mentorship signal states them."""
    loss: float
    """On the node's own held-out data; shown to people, nothing depends on it."""


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Measure, on one node's held-out data, how much each scaled delta improves on the parent."""

    node: int
    checkpoint: int
    parent: AdapterWeights
    manifest: Manifest
    deltas: Mapping[bytes, Values]
    """Signal id to decoded delta, flat in manifest order."""
    scale: float
    """Part of the delta that is applied."""


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """Measure weights of any rank against the base model alone, on one node's held-out data."""

    node: int
    weights: AdapterWeights


Improvement = tuple[int, int]
"""(improvement of the loss in ppm, held-out examples)."""


class Workload(Protocol):
    """A task for a number of nodes, determined by a seed. Answers stand in the order of the requests."""

    @property
    def loss_unit(self) -> int:
        """How many units of `loss_sum` are a loss of 1."""

    def initial_weights(self) -> AdapterWeights:
        """The adapter before checkpoint 1: it changes nothing."""

    def train(self, requests: Sequence[TrainRequest]) -> list[TrainResult]:
        """Local training of many nodes."""

    def evaluate(self, requests: Sequence[EvaluateRequest]) -> list[dict[bytes, Improvement]]:
        """Per request, signal id to improvement on the parent."""

    def measure(self, requests: Sequence[MeasureRequest]) -> list[Improvement]:
        """Per request, improvement on the base model."""

    def losses(self, weights: AdapterWeights, nodes: Sequence[int]) -> list[int]:
        """Of each of these nodes the loss on its own held-out data, in whole `loss_unit`ths."""

    def loss_sum(self, weights: AdapterWeights, nodes: Sequence[int]) -> int:
        """The sum of `losses`. An integer, so that sums of shards add up to the same in any order."""

    def figures(self, weights: Sequence[AdapterWeights]) -> list[dict[str, float]]:
        """Per adapter, name to loss on held-out data that all nodes share; empty where there is none."""
