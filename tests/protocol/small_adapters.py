"""Small adapters for the tests of exact mathematics, made from a seed with numpy alone."""

from __future__ import annotations

import numpy as np

from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, factor_names, from_tensors

BASE_MODEL_ID = bytes(range(32))


def small_adapter(
    seed: int = 0,
    *,
    rank: int = 2,
    alpha: int = 4,
    modules: dict[str, tuple[int, int]] | None = None,
    scale: float = 0.1,
) -> AdapterWeights:
    """modules: path to (out_features, in_features); every value drawn from a normal distribution."""
    modules = modules or {"model.layers.0.q_proj": (5, 7), "model.layers.0.v_proj": (3, 7)}
    random = np.random.default_rng(seed)
    tensors = {}
    for path, (out_features, in_features) in modules.items():
        name_a, name_b = factor_names(path)
        tensors[name_a] = (random.standard_normal((rank, in_features)) * scale).astype(np.float32)
        tensors[name_b] = (random.standard_normal((out_features, rank)) * scale).astype(np.float32)
    targets = tuple(sorted({path.rsplit(".", 1)[-1] for path in modules}))
    return from_tensors(AdapterConfig(BASE_MODEL_ID, rank, alpha, targets), tensors)


def small_delta(seed: int, count: int, scale: float = 0.01) -> np.ndarray:
    """float32 (count,) drawn from a normal distribution."""
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)
