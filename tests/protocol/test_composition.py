"""A composition is the weighted sum of two updates, in integers, whatever ranks, alphas and modules."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter

from citrate_node.protocol.adapter import (
    AdapterConfig,
    AdapterLimits,
    AdapterWeights,
    decode_adapter,
    factor_names,
    from_tensors,
    module_path,
)
from citrate_node.protocol.composition import compose
from citrate_node.protocol.tensors import FormatError

Q, V = "model.layers.0.q_proj", "model.layers.0.v_proj"


def updates(adapter: AdapterWeights) -> dict[str, np.ndarray]:
    """(alpha / rank) * B * A of every module, float64."""
    scale = adapter.config.alpha / adapter.config.rank
    tensors = adapter.tensors()
    paths = {module_path(name) for name in tensors}
    return {
        p: scale * tensors[factor_names(p)[1]].astype(float) @ tensors[factor_names(p)[0]].astype(float)
        for p in paths
    }


@settings(max_examples=50)
@given(
    seeds=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alphas=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    weight=st.integers(1, 99),
)
def test_composition_is_the_weighted_sum_of_updates(seeds, ranks, alphas, weight) -> None:
    first, second = (
        small_adapter(seed, rank=rank, alpha=alpha)
        for seed, rank, alpha in zip(seeds, ranks, alphas, strict=True)
    )
    result = compose(first, second, weight, 100 - weight)
    assert result.weights.config.rank == result.weights.config.alpha == sum(ranks)
    assert not result.recompressed
    a, b, c = updates(first), updates(second), updates(result.weights)
    for path in c:
        expected = (weight * a[path] + (100 - weight) * b[path]) / 100
        # B is rounded to the grid and, above 1, to float32; A is not touched
        name_a, name_b = factor_names(path)
        tensors = {name: np.abs(tensor.astype(float)) for name, tensor in result.weights.tensors().items()}
        bound = (2.0**-25 + tensors[name_b] * 2.0**-24) @ tensors[name_a]
        assert np.all(np.abs(c[path] - expected) <= bound + 1e-15)


@given(st.integers(1, 99), st.integers(1, 50))
def test_scaled_factors_are_the_exact_products_rounded_half_away(weight: int, alpha: int) -> None:
    first = small_adapter(1, rank=3, alpha=alpha)
    result = compose(first, small_adapter(2), weight, 100 - weight).weights
    name_a, name_b = factor_names(Q)
    before, after = first.integers()[name_b], result.integers()[name_b][:, :3]
    factor = Fraction(weight * alpha, 300)
    for value, scaled in zip(before.reshape(-1).tolist(), after.reshape(-1).tolist(), strict=True):
        exact = abs(value) * factor
        rounded = int(exact + Fraction(1, 2)) * (1 if value >= 0 else -1)
        assert scaled == int(np.float32(rounded / 2**24) * 2**24)
    assert np.array_equal(result.integers()[name_a][:3], first.integers()[name_a])


def test_composed_bytes_are_pinned() -> None:
    """Voters compute them again: another way to round would split the network."""
    result = compose(small_adapter(1, rank=3, alpha=7), small_adapter(2), 37, 63)
    assert hashlib.sha256(result.weights.encode()).hexdigest() == (
        "77d6e3c713bc33efde2557abc9c527d8730741fcd6898bd6e8534662acd4b4fb"
    )


def test_a_module_that_one_adapter_lacks_counts_as_zero_there() -> None:
    first = small_adapter(1, modules={Q: (5, 7)})
    second = small_adapter(2, rank=3, modules={V: (4, 7)})
    result = compose(first, second, 40, 60)
    assert result.weights.config.targets == ("q_proj", "v_proj")
    found = updates(result.weights)
    assert np.allclose(found[Q], 0.4 * updates(first)[Q], atol=1e-7)
    assert np.allclose(found[V], 0.6 * updates(second)[V], atol=1e-7)


def test_compositions_compose_again() -> None:
    a, b, c = (small_adapter(seed) for seed in (1, 2, 3))
    inner = compose(a, b, 50, 50).weights
    outer = compose(inner, c, 80, 20).weights
    assert outer.config.rank == 6
    for path, found in updates(outer).items():
        expected = 0.4 * updates(a)[path] + 0.4 * updates(b)[path] + 0.2 * updates(c)[path]
        assert np.allclose(found, expected, atol=1e-6)


def test_a_composed_file_is_an_adapter_file_like_any_other() -> None:
    weights = compose(small_adapter(1), small_adapter(2), 1, 99).weights
    assert decode_adapter(weights.encode(), AdapterLimits(1 << 20)) == weights


def test_beyond_the_rank_limit_the_composition_is_brought_back_and_says_how_far_it_is() -> None:
    modules = {Q: (30, 20)}
    first = small_adapter(1, rank=5, modules=modules)
    second = small_adapter(2, rank=6, modules=modules)
    exact = compose(first, second, 50, 50)
    brought_back = compose(first, second, 50, 50, rank_max=8)
    assert (exact.weights.config.rank, exact.recompressed) == (11, False)
    assert (brought_back.weights.config.rank, brought_back.recompressed) == (8, True)
    whole, found = updates(exact.weights)[Q], updates(brought_back.weights)[Q]
    lost = np.linalg.norm(whole - found) / np.linalg.norm(whole)
    least = np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[8:]) / np.linalg.norm(whole)
    assert brought_back.relative_error == pytest.approx(least, abs=1e-6)
    assert lost == pytest.approx(least, abs=1e-6)


def test_adapters_that_do_not_belong_together_are_refused_by_name() -> None:
    ours = small_adapter(modules={Q: (5, 7)})
    other_base = AdapterConfig(bytes(32), 2, 4, ("q_proj",))
    for other, weights, reason in [
        (from_tensors(other_base, ours.tensors()), (50, 50), "base_model_id"),
        (small_adapter(modules={Q: (6, 7)}), (50, 50), "tensor_shape"),
        (ours, (0, 100), "composition_weights"),
        (ours, (50, 51), "composition_weights"),
        (small_adapter(modules={Q: (5, 7)}, alpha=2**30 + 1), (1, 99), "composition_too_large"),
        (small_adapter(modules={Q: (5, 7)}, alpha=4000, scale=10), (1, 99), "composition_too_large"),
    ]:
        with pytest.raises(FormatError) as refused:
            compose(ours, other, *weights)
        assert refused.value.reason == reason


@pytest.mark.slow
def test_peft_concatenation_gives_the_same_product() -> None:
    """PEFT's add_weighted_adapter(combination_type="cat") on a real module, with unequal alphas and ranks."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")

    base = torch.nn.Sequential()
    base.add_module("q_proj", torch.nn.Linear(24, 32, bias=False))
    settings_of = [(4, 8, 1), (6, 3, 2)]
    ours = [small_adapter(s, rank=r, alpha=a, modules={"q_proj": (32, 24)}) for r, a, s in settings_of]
    model = None
    for name, adapter in zip("xy", ours, strict=True):
        config = peft.LoraConfig(
            r=adapter.config.rank, lora_alpha=adapter.config.alpha, target_modules=["q_proj"]
        )
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        tensors = {key: torch.from_numpy(value.copy()) for key, value in adapter.tensors().items()}
        loaded = peft.set_peft_model_state_dict(model, tensors, adapter_name=name)
        assert not loaded.unexpected_keys
    model.add_weighted_adapter(["x", "y"], [0.3, 0.7], "both", combination_type="cat")
    layer = model.base_model.model.q_proj
    theirs = layer.get_delta_weight("both").detach().double().numpy()
    found = updates(compose(*ours, 30, 70).weights)["q_proj"]
    assert np.linalg.norm(found - theirs) / np.linalg.norm(theirs) < 1e-6
