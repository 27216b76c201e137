"""composeAdapters: two adapters and their weights in percent to one adapter, exact up to the rank limit.

Pure. Concatenation, B = [w1*s1*B1 | w2*s2*B2] and A = [A1; A2] with s = alpha / rank, is the weighted sum of
the two updates itself; it is computed in integers, so every node gets the same bytes. Called by the
composer of a node, by whoever verifies one, and by the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

from .adapter import AdapterConfig, AdapterWeights, factor_names, module_path
from .stack import recompress_modules
from .tensors import (
    WEIGHT_MAX,
    FormatError,
    Int64Array,
    Manifest,
    canonical_weights,
    weights_to_float32,
)

COMPOSED_RANK_MAX = 64
"""Beyond it a composition is brought back: composing again and again would grow without end."""

FACTOR_MAX = 1 << 30
"""Of the numerator and the denominator of w * s, so that the products below fit 64 bits."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed adapter, and how far it is from the exact one."""

    weights: AdapterWeights
    """alpha equals rank, so that its own scale is 1; composing it again needs no special case."""

    recompressed: bool
    """Whether the rank had to be brought back: then the bytes may differ between machines."""

    relative_error: float
    """Frobenius norm of what recompression left out, relative to the whole. Concatenation only rounds each
    value of B to the grid, by at most 2**-25, and has 0 here."""


def compose(
    first: AdapterWeights,
    second: AdapterWeights,
    weight_first: int,
    weight_second: int,
    rank_max: int = COMPOSED_RANK_MAX,
) -> Composition:
    """The adapter whose update is weight_first % of the first's and weight_second % of the second's.

    Weights are positive and sum to 100, as the contract demands. A module that only one adapter has keeps
    that one's share; ranks and alphas may differ.
    Raises FormatError for adapters of different base models, a module of different shapes, wrong weights, or
    a product that passes the limit of a weight.
    """
    if weight_first < 1 or weight_second < 1 or weight_first + weight_second != 100:
        raise FormatError("composition_weights", f"{weight_first} and {weight_second} must sum to 100")
    if first.config.base_model_id != second.config.base_model_id:
        raise FormatError("base_model_id", "adapters of different base models cannot be composed")
    parts = ((first, weight_first), (second, weight_second))
    rank = first.config.rank + second.config.rank
    targets = tuple(sorted({*first.config.targets, *second.config.targets}))
    joined = {
        name: np.concatenate(pieces, axis=0 if name.endswith(".lora_A.weight") else 1)
        for name, pieces in _pieces(parts).items()
    }
    if rank > rank_max:
        config = AdapterConfig(first.config.base_model_id, rank_max, rank_max, targets)
        stacks = {}
        for path in sorted({module_path(name) for name in joined}):
            name_a, name_b = factor_names(path)
            stacks[path] = (weights_to_float32(joined[name_b]), weights_to_float32(joined[name_a]))
        weights, error = recompress_modules(config, stacks)
        return Composition(weights, recompressed=True, relative_error=error)
    config = AdapterConfig(first.config.base_model_id, rank, rank, targets)
    manifest = Manifest.from_shapes({name: tensor.shape for name, tensor in joined.items()})
    values = np.concatenate([joined[spec.name].reshape(-1) for spec in manifest.specs])
    return Composition(AdapterWeights(config, manifest, values), recompressed=False, relative_error=0.0)


def _pieces(parts: tuple[tuple[AdapterWeights, int], ...]) -> dict[str, list[Int64Array]]:
    """For every tensor of either adapter one piece from each, scaled; zeros where an adapter has none."""
    tensors = [_scaled(adapter, weight) for adapter, weight in parts]
    ranks = [adapter.config.rank for adapter, _ in parts]
    pieces: dict[str, list[Int64Array]] = {}
    for path in sorted({module_path(name) for each in tensors for name in each}):
        name_a, name_b = factor_names(path)
        shapes = {(each[name_b].shape[0], each[name_a].shape[1]) for each in tensors if name_a in each}
        if len(shapes) != 1:
            raise FormatError("tensor_shape", f"{path} has the shapes {sorted(shapes)}")
        out_features, in_features = shapes.pop()
        for each, rank in zip(tensors, ranks, strict=True):
            empty_a = np.zeros((rank, in_features), dtype=np.int64)
            empty_b = np.zeros((out_features, rank), dtype=np.int64)
            pieces.setdefault(name_a, []).append(each.get(name_a, empty_a))
            pieces.setdefault(name_b, []).append(each.get(name_b, empty_b))
    return pieces


def _scaled(adapter: AdapterWeights, weight_percent: int) -> dict[str, Int64Array]:
    """The integer tensors, B times weight * alpha / (100 * rank), rounded half away from zero."""
    numerator, denominator = weight_percent * adapter.config.alpha, 100 * adapter.config.rank
    common = gcd(numerator, denominator)
    numerator, denominator = numerator // common, denominator // common
    if numerator >= FACTOR_MAX:
        raise FormatError("composition_too_large", f"alpha {adapter.config.alpha} cannot be scaled exactly")
    tensors = adapter.integers()
    for name, values in tensors.items():
        if name.endswith(".lora_B.weight"):
            magnitudes = (2 * np.abs(values) * numerator + denominator) // (2 * denominator)
            if magnitudes.size and magnitudes.max() > WEIGHT_MAX:
                raise FormatError("composition_too_large", f"{name} passes the limit of a weight when scaled")
            tensors[name] = canonical_weights(np.where(values < 0, -magnitudes, magnitudes))
    return tensors
