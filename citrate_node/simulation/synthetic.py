"""The synthetic task: adapters that can be trained in microseconds, with a known optimum.

Every node's held-out loss is the mean squared distance of the moving tensors to its own target; targets are a
common one plus a node's own share, so that the optimum of the whole is their mean. Losses are sums of
integers, elementwise float32 steps are the same everywhere: a run has one history on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from ..protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from ..protocol.tensors import Factor, Int64Array, Manifest, weights_from_float32, weights_to_float32
from .workload import EvaluateRequest, Improvement, MeasureRequest, TrainRequest, TrainResult, Values

LOSS_UNIT = 2**30
"""A squared distance is counted in 2^-30, so that sums are exact integers."""


@dataclass(frozen=True)
class SyntheticTask:
    """Targets of all nodes, from one seed.

    width: in_features and out_features of the one module. spread: size of a node's own share of its target,
    relative to the common one; 0 is IID.
    """

    seed: int
    nodes: int
    width: int = 12
    rank: int = 2
    spread: float = 0.5
    steps: int = 4
    learning_rate: float = 0.25
    examples: int = 64
    factor: Factor = "lora_B"
    """The tensors whose distance to the target is the loss: what the network's method moves first."""
    _targets: dict[tuple[int, bytes], Values] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def initial_weights(self) -> AdapterWeights:
        """A from the seed, B zero: as every adapter begins."""
        config = AdapterConfig(sha256(b"synthetic base model").digest(), self.rank, self.rank, ("linear",))
        a = self._uniform("initial", self.rank * self.width).reshape(self.rank, self.width)
        name = "base_model.model.linear.lora_{}.weight"
        b = np.zeros((self.width, self.rank), dtype=np.float32)
        return from_tensors(config, {name.format("A"): a, name.format("B"): b})

    def target(self, node: int, manifest: Manifest) -> Values:
        """Where a node's own data would have the tensors of `manifest`, float32 (manifest.count,)."""
        key = (node, manifest.hash)
        if key not in self._targets:
            own = self._uniform(f"own/{node}/{manifest.hash.hex()}", manifest.count)
            self._targets[key] = self.common(manifest) + np.float32(self.spread) * own
        return self._targets[key]

    def common(self, manifest: Manifest) -> Values:
        """What all targets share, float32 (manifest.count,)."""
        key = (-1, manifest.hash)
        if key not in self._targets:
            self._targets[key] = self._uniform(f"common/{manifest.hash.hex()}", manifest.count)
        return self._targets[key]

    # ---------------------------------------------------------------- simulation.workload.Workload

    @property
    def loss_unit(self) -> int:
        return LOSS_UNIT

    def train(self, requests: Sequence[TrainRequest]) -> list[TrainResult]:
        """Each by itself: a step is elementwise."""
        results = []
        for request in requests:
            values = self.train_node(request.node, request.values, request.manifest, request.shuffled)
            loss = self.node_loss(request.node, values, request.manifest)
            results.append(TrainResult(values, self.examples, loss / LOSS_UNIT))
        return results

    def evaluate(self, requests: Sequence[EvaluateRequest]) -> list[dict[bytes, Improvement]]:
        results = []
        for request in requests:
            values = weights_to_float32(request.parent.select(request.manifest))
            deltas, scale = request.deltas, request.scale
            results.append(self.improvements_ppm(request.node, values, request.manifest, deltas, scale))
        return results

    def measure(self, requests: Sequence[MeasureRequest]) -> list[Improvement]:
        """The network's own adapter by its distance to the target, a composition by that of its update."""
        results = []
        for request in requests:
            weights = request.weights
            if weights.config.rank != self.rank:
                results.append(self.composed_improvement_ppm(request.node, weights))
                continue
            manifest = weights.manifest.subset(self.factor)
            base = self._base_values(manifest)
            delta = weights_to_float32(weights.select(manifest)) - base
            results.append(self.improvements_ppm(request.node, base, manifest, {b"": delta}, 1.0)[b""])
        return results

    def losses(self, weights: AdapterWeights, nodes: Sequence[int]) -> list[int]:
        return [int(each) for each in self._losses(weights, nodes)]

    def loss_sum(self, weights: AdapterWeights, nodes: Sequence[int]) -> int:
        return int(np.sum(self._losses(weights, nodes)))

    def figures(self, weights: Sequence[AdapterWeights]) -> list[dict[str, float]]:
        """Nothing beside the nodes' own losses: here all data are somebody's."""
        return [{} for _ in weights]

    def _losses(self, weights: AdapterWeights, nodes: Sequence[int]) -> Int64Array:
        """Mean squared distance per value, rounded down for each node."""
        manifest = weights.manifest.subset(self.factor)
        targets = np.stack([self.target(node, manifest) for node in nodes])
        distance = weights_to_float32(weights.select(manifest)).astype(np.float64) - targets
        sums = np.sum(np.round(distance * distance * LOSS_UNIT).astype(np.int64), axis=1)
        means: Int64Array = sums // manifest.count
        return means

    # ---------------------------------------------------------------- one node

    def train_node(self, node: int, values: Values, manifest: Manifest, shuffled: bool = False) -> Values:
        """Gradient descent on the own loss; elementwise, so bit-identical everywhere.

        shuffled: towards a target whose values stand in another order.
        """
        target = self.target(node, manifest)
        if shuffled:
            target = np.roll(target, manifest.count // 2)
        moved = values.copy()
        for _ in range(self.steps):
            moved = moved + np.float32(self.learning_rate) * (target - moved)
        return moved

    def node_loss(self, node: int, values: Values, manifest: Manifest) -> int:
        """Sum of squared distances to the own target, in units of 2^-30."""
        distance = values.astype(np.float64) - self.target(node, manifest)
        return int(np.sum(np.round(distance * distance * LOSS_UNIT).astype(np.int64)))

    def improvements_ppm(
        self, node: int, values: Values, manifest: Manifest, deltas: Mapping[bytes, Values], scale: float
    ) -> dict[bytes, Improvement]:
        """Signal id to (improvement of the own loss in ppm, examples), as a real evaluator reports it."""
        before = self.node_loss(node, values, manifest)
        out = {}
        for signal_id, delta in deltas.items():
            after = self.node_loss(node, values + np.float32(scale) * delta, manifest)
            out[signal_id] = (ratio_ppm(before - after, before), self.examples)
        return out

    def composed_improvement_ppm(self, node: int, weights: AdapterWeights) -> tuple[int, int]:
        """Of an adapter of any rank over the base alone: how near its update comes to the own target."""
        initial = self.initial_weights()
        manifest = initial.manifest.subset("lora_B")
        target = initial.with_values(manifest, weights_from_float32(self.target(node, manifest)))
        wanted = _update(target)
        before = int(np.sum(wanted * wanted))
        left = wanted - _update(weights)
        return ratio_ppm(before - int(np.sum(left * left)), before), self.examples

    def global_loss(self, values: Values, manifest: Manifest) -> float:
        """Mean over all nodes of the mean squared distance: what mentorship is for."""
        total = sum(self.node_loss(node, values, manifest) for node in range(self.nodes))
        return total / LOSS_UNIT / self.nodes / manifest.count

    def _base_values(self, manifest: Manifest) -> Values:
        """The tensors of `manifest` as every adapter begins: B zero, A from the seed."""
        values = np.zeros(manifest.count, dtype=np.float32)
        if self.factor != "lora_B":
            initial = self.initial_weights()
            values = weights_to_float32(initial.select(initial.manifest.subset(self.factor)))
        return values

    def _uniform(self, name: str, count: int) -> Values:
        """float32 (count,) in [-1, 1), from the seed and a name alone (PCG64: the same on every machine)."""
        digest = sha256(f"{self.seed}/{name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
        return (generator.integers(-(2**15), 2**15, count) / 2**15).astype(np.float32)


def _update(weights: AdapterWeights) -> Int64Array:
    """(alpha / rank) · B · A of the one module, in units of 2^-20; exact, so the same on every machine."""
    tensors = weights.integers()
    name = "base_model.model.linear.lora_{}.weight"
    product = (tensors[name.format("B")] >> 9) @ (tensors[name.format("A")] >> 9)
    scaled: Int64Array = product * weights.config.alpha // weights.config.rank >> 10
    return scaled


def ratio_ppm(part: int, whole: int) -> int:
    """part / whole in ppm, toward zero; 0 where there is no whole."""
    if whole == 0:
        return 0
    size = abs(part) * 1_000_000 // abs(whole)
    return size if (part >= 0) == (whole > 0) else -size
