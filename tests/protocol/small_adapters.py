"""Small adapters for the tests of exact mathematics, made from a seed.

From whole numbers and products alone: the last bit of a normal distribution may differ between machines, and
some of what is made here is pinned by hash.
"""

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
    """modules: path to (out_features, in_features); values of standard deviation `scale`."""
    modules = modules or {"model.layers.0.q_proj": (5, 7), "model.layers.0.v_proj": (3, 7)}
    random = np.random.default_rng(seed)
    tensors = {}
    for path, (out_features, in_features) in modules.items():
        name_a, name_b = factor_names(path)
        tensors[name_a] = _uniform(random, (rank, in_features), scale)
        tensors[name_b] = _uniform(random, (out_features, rank), scale)
    targets = tuple(sorted({path.rsplit(".", 1)[-1] for path in modules}))
    return from_tensors(AdapterConfig(BASE_MODEL_ID, rank, alpha, targets), tensors)


def small_delta(seed: int, count: int, scale: float = 0.01) -> np.ndarray:
    """float32 (count,) of standard deviation `scale`."""
    return _uniform(np.random.default_rng(seed), (count,), scale)


def _uniform(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    width = 1.75 * scale / 2**20  # the standard deviation of a uniform distribution is its half width / 1.73
    return (random.integers(-(2**20), 2**20, shape) * width).astype(np.float32)
