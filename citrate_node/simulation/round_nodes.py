"""What a worker holds in the rounds engine: the nodes of one shard, with their data and their residuals.

One call per shard and round where nothing else is needed: the nodes train, attack, encode, and their deltas
are folded into one vector of integers before anything is sent. Integer sums do not depend on where they were
begun, so any number of shards gives the same bytes. Called by rounds.py, through workers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..protocol.adapter import AdapterWeights
from ..protocol.aggregation import weighted_sum
from ..protocol.codecs import codec, decode_delta, encode_delta, error_feedback
from ..protocol.codecs.delta import DeltaLimits
from ..protocol.tensors import Int64Array, Manifest, weights_from_float32, weights_to_float32
from .attacks import own_attack
from .workload import EvaluateRequest, Improvement, MeasureRequest, TrainRequest, Values, Workload

LIMITS = DeltaLimits(1 << 30)

SQUARES_EQUAL = 1e-12
"""Part of a square below which a difference of squares is nothing."""

VALUE_MAX = np.float32(126)
"""Below the limit of a delta's value, 127 (codecs/base.py)."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One local phase: what all nodes of a round start from."""

    checkpoint: int
    weights: AdapterWeights
    manifest: Manifest
    """The tensors that move."""
    codec: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What one node announced."""

    node: int
    size_bytes: int
    examples: int
    data: bytes | None
    """The delta file, where it was asked for."""


@dataclass
class ShardNodes:
    """The nodes of one shard. Everything follows from the seed; may be asked for any of its nodes."""

    workload: Workload
    seed: int
    kinds: tuple[str, ...]
    """By node number: "honest" or an attack."""
    feedback: bool = True
    _deltas: dict[int, tuple[Values, int]] = field(default_factory=dict, repr=False)
    _residuals: dict[tuple[int, bytes], Values] = field(default_factory=dict, repr=False)
    _own: dict[int, AdapterWeights] = field(default_factory=dict, repr=False)

    def round(self, phase: Phase, weights: Mapping[int, int]) -> tuple[list[Sent], Int64Array]:
        """Train, attack, encode and fold: node number to weight in, one vector of integers out.

        int64 (manifest.count,) in units of 2**-48 where all shards' weights sum to 2**16.
        """
        self.train(phase, list(weights))
        sent = self.send(phase, {}, keep=True)
        entries = ((weights[each.node], each.data or b"") for each in sent)
        folded, _ = weighted_sum(phase.manifest, entries, codec(phase.codec))
        return [Sent(each.node, each.size_bytes, each.examples, None) for each in sent], folded

    def train(self, phase: Phase, nodes: Sequence[int]) -> None:
        """What each node learns from its own data, kept here until `send`."""
        start = weights_to_float32(phase.weights.select(phase.manifest))
        requests = [
            TrainRequest(
                node,
                phase.checkpoint,
                phase.weights,
                phase.manifest,
                start,
                self.kinds[node] == "label_shuffle",
            )
            for node in nodes
        ]
        results = self.workload.train(requests)
        self._deltas = {
            node: (result.values - start, result.examples)
            for node, result in zip(nodes, results, strict=True)
        }

    def learnt(self) -> dict[int, Values]:
        """What the last training gave, float32 (manifest.count,) each."""
        return {node: delta for node, (delta, _) in self._deltas.items()}

    def send(self, phase: Phase, instead: Mapping[int, Values], keep: bool = False) -> list[Sent]:
        """Encode what each node announces, with what its codec left out before. instead: by a collective
        attack. keep: return the files too."""
        chosen, sent = codec(phase.codec), []
        for node, (learnt, examples) in self._deltas.items():
            if node in instead:
                intended = instead[node]
            else:
                intended = own_attack(self.kinds[node], learnt, self.seed, node, phase.checkpoint)
            key = (node, phase.manifest.hash)
            if self.feedback and key in self._residuals:
                intended = intended + self._residuals[key]
            # an attack may drive values to where the format ends
            intended = np.clip(intended, -VALUE_MAX, VALUE_MAX)
            data = encode_delta(chosen, phase.manifest, intended)
            if self.feedback:
                decoded = decode_delta(data, chosen, phase.manifest, LIMITS)
                self._residuals[key] = error_feedback(intended, decoded)
            sent.append(Sent(node, len(data), examples, data if keep else None))
        self._deltas = {}
        return sent

    def alone(self, phase: Phase, nodes: Sequence[int]) -> list[float]:
        """The control: each node goes on from its own weights. Its own held-out loss after the phase."""
        owned = [self._own.get(node, phase.weights) for node in nodes]
        starts = [weights_to_float32(each.select(phase.manifest)) for each in owned]
        results = self.workload.train(
            [
                TrainRequest(node, phase.checkpoint, each, phase.manifest, start)
                for node, each, start in zip(nodes, owned, starts, strict=True)
            ]
        )
        for node, each, result in zip(nodes, owned, results, strict=True):
            self._own[node] = each.with_values(phase.manifest, weights_from_float32(result.values))
        return [result.loss for result in results]

    def own_figures(self, nodes: Sequence[int]) -> list[dict[str, float]]:
        """Shared held-out losses of each node's own weights (after `alone`)."""
        return self.workload.figures([self._own[node] for node in nodes])

    def evaluate(self, requests: Sequence[EvaluateRequest]) -> list[dict[bytes, Improvement]]:
        return self.workload.evaluate(requests)

    def measure(self, requests: Sequence[MeasureRequest]) -> list[Improvement]:
        return self.workload.measure(requests)

    def losses(self, weights: AdapterWeights, nodes: Sequence[int]) -> list[int]:
        return self.workload.losses(weights, nodes)

    def figures(self, weights: Sequence[AdapterWeights]) -> list[dict[str, float]]:
        return self.workload.figures(weights)


def product_error(
    parent: tuple[Values, Values], products: Sequence[tuple[Values, Values]]
) -> tuple[float, float]:
    """Squares of ‖mean(BᵢAᵢ) − mean(B)·mean(A)‖ and of ‖mean(BᵢAᵢ) − B·A‖ for one module.

    parent, products: (B (out, r), A (r, in)) before the phase, and of each node after it. The first is what
    averaging the factors gets wrong, the second how far the exact average moves. From Gram matrices of the
    stacked factors, so that no matrix of the module's own size is formed.
    """
    count, rank = len(products), parent[0].shape[1]
    means = np.mean([b for b, _ in products], axis=0), np.mean([a for _, a in products], axis=0)
    tall = np.concatenate([*(b / count for b, _ in products), -means[0], -parent[0]], axis=1).astype(float)
    wide = np.concatenate([*(a for _, a in products), means[1], parent[1]], axis=0).astype(float)
    gram = (tall.T @ tall) * (wide @ wide.T)
    exact, averaged = slice(0, count * rank), slice(count * rank, (count + 1) * rank)
    before = slice((count + 1) * rank, None)

    def square(minus: slice) -> float:
        parts = gram[exact, exact].sum() + 2 * gram[exact, minus].sum() + gram[minus, minus].sum()
        # below this it is what float64 leaves of a difference of equal squares
        return float(parts) if parts > SQUARES_EQUAL * gram[exact, exact].sum() else 0.0

    return square(averaged), square(before)
