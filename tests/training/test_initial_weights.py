"""The adapter that every node starts from is the same bytes everywhere."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from citrate_node.training.initial import initial_weights

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def by_the_written_rule(name: str, shape: tuple[int, int], seed: bytes) -> list[float]:
    """The docstring's rule in plain Python integers, one value at a time."""
    stream = hashlib.shake_256(
        b"citrate-initial-weights-v1" + len(seed).to_bytes(8, "little") + seed + name.encode()
    ).digest(24 * shape[0] * shape[1])
    deviation = math.isqrt(2**80 // (3 * shape[1]))
    values = []
    for start in range(0, len(stream), 24):
        total = sum(int.from_bytes(stream[start + 2 * i : start + 2 * i + 2], "little") for i in range(12))
        scaled = (2 * total - 12 * 65535) * deviation
        magnitude = (abs(scaled) + 2**32) // 2**33
        values.append(math.copysign(magnitude, scaled) / 2**24)
    return values


def test_values_follow_the_written_rule() -> None:
    weights = initial_weights({A: (3, 50), B: (7, 3)}, b"seed")
    assert weights[A].ravel().tolist() == by_the_written_rule(A, (3, 50), b"seed")
    assert np.array_equal(weights[B], np.zeros((7, 3), dtype=np.float32))


def test_bytes_of_a_known_seed_never_change() -> None:
    """Every version that was ever created on chain refers to them."""
    weights = initial_weights({A: (8, 128), B: (128, 8)}, b"citrate")
    digest = hashlib.sha256(weights[A].tobytes()).hexdigest()
    assert digest == "5f6a479963351df867fa0c03536c349cfb106f7512d8067e7c0beca5e02fa106"
    assert weights[A].dtype == np.float32


def test_lora_a_is_gaussian_with_the_variance_of_peft() -> None:
    """Kaiming uniform with a = sqrt(5), PEFT's start, has variance 1 / (3 · in_features)."""
    values = initial_weights({A: (64, 512)}, b"s")[A].ravel() * math.sqrt(3 * 512)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1.0) < 0.02
    assert abs((values**3).mean()) < 0.05
    assert abs((values**4).mean() - 2.9) < 0.15  # twelve uniforms: 3 - 1.2 / 12


def test_another_seed_or_name_gives_other_values() -> None:
    other = A.replace("layers.0", "layers.1")
    weights = initial_weights({A: (4, 32), other: (4, 32)}, b"s")
    assert not np.array_equal(weights[A], weights[other])
    assert not np.array_equal(weights[A], initial_weights({A: (4, 32)}, b"t")[A])


def test_large_tensors_are_made_in_blocks_of_the_same_values() -> None:
    whole = initial_weights({A: (600, 512)}, b"s")[A]
    assert whole.ravel()[-5:].tolist() == by_the_written_rule(A, (600, 512), b"s")[-5:]


def test_a_tensor_that_is_no_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="neither lora_A nor lora_B"):
        initial_weights({"model.norm.weight": (4, 4)}, b"s")
