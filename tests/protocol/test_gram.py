"""The Gram matrix is that of the updates, whatever their gauge, and the same integers on every machine."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter, small_delta

from citrate_node.protocol import gram as gram_module
from citrate_node.protocol.adapter import AdapterWeights, factor_names, module_path
from citrate_node.protocol.codecs import codec, decode_delta, encode_delta
from citrate_node.protocol.codecs.delta import DeltaLimits
from citrate_node.protocol.exact_products import exact_product
from citrate_node.protocol.gram import Gram, gram_of_deltas, gram_of_products
from citrate_node.protocol.tensors import FormatError, Manifest

INT8 = codec("int8")
LIMITS = DeltaLimits(1 << 20)
MODULES = {"a.q_proj": (9, 12), "b.v_proj": (30, 12)}
Q = factor_names("a.q_proj")


def normalized(gram: Gram | np.ndarray) -> np.ndarray:
    """As float, each update divided by its norm: what a unit and a size do not change."""
    rows = np.array(gram.rows if isinstance(gram, Gram) else gram, dtype=float)
    norms = np.sqrt(np.diag(rows)).clip(1e-300)
    return rows / norms / norms[:, None]


def dense_updates(
    parent: AdapterWeights, manifest: Manifest, deltas: list[bytes]
) -> list[dict[str, np.ndarray]]:
    """(B + dB)(A + dA) - B A of every module, float64."""
    updates = []
    for data in deltas:
        values = parent.select(manifest) / 2.0**24 + decode_delta(data, INT8, manifest, LIMITS) / 2.0**32
        slices = manifest.slices()
        before = {name: tensor.astype(float) for name, tensor in parent.tensors().items()}
        after = before | {s.name: values[slices[s.name]].reshape(s.shape) for s in manifest.specs}
        paths = {module_path(name) for name in before}
        names = {path: factor_names(path) for path in paths}
        updates.append({p: after[b] @ after[a] - before[b] @ before[a] for p, (a, b) in names.items()})
    return updates


def dense_gram(updates: list[dict[str, np.ndarray]]) -> np.ndarray:
    flat = np.array([np.concatenate([u[path].reshape(-1) for path in sorted(u)]) for u in updates])
    return flat @ flat.T


def deltas_of(manifest: Manifest, count: int, scale: float = 0.02) -> list[bytes]:
    shared = small_delta(99, manifest.count, scale)
    return [
        encode_delta(INT8, manifest, (shared + small_delta(i, manifest.count, scale)) * np.float32(1 + i))
        for i in range(count)
    ]


@pytest.mark.parametrize("factor", ["lora_A", "lora_B", "both"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6), rank=st.integers(1, 4))
def test_matrix_is_that_of_the_dense_updates(factor, seed: int, count: int, rank: int) -> None:
    parent = small_adapter(seed, rank=rank, modules=MODULES)
    manifest = parent.manifest.subset(factor)
    deltas = deltas_of(manifest, count)
    expected = dense_gram(dense_updates(parent, manifest, deltas))
    found = gram_of_deltas(parent, manifest, deltas, INT8)
    assert np.allclose(normalized(found), normalized(expected), atol=3e-6 if factor == "both" else 3e-4)
    rows = np.array(found.rows, dtype=float)
    unit = rows[0, 0] / expected[0, 0]
    assert np.allclose(rows / unit, expected, rtol=1e-3, atol=1e-3 * expected[0, 0])
    assert found.rows == tuple(zip(*found.rows, strict=True))


def rounded_by_definition(rows: list[list[float]], bits: int) -> tuple[list[list[int]], int]:
    """To `bits` bits by the largest magnitude, halves to even; and the exponent of the unit."""
    largest = max(abs(value) for row in rows for value in row)
    exponent = math.frexp(largest)[1] - bits
    return [[round(Fraction(value) / Fraction(2) ** exponent) for value in row] for row in rows], exponent


def root_by_definition(still: list[list[int]]) -> tuple[list[list[int]], int]:
    """docs/protocol.md, steps 1 to 3, in Python numbers: L of A A', and its exponent."""
    atoms, unit = rounded_by_definition(still, 20)
    rank = len(atoms)
    rest = [
        [float(sum(a * b for a, b in zip(atoms[i], atoms[j], strict=True))) for j in range(rank)]
        for i in range(rank)
    ]
    start, root = [rest[k][k] for k in range(rank)], [[0.0] * rank for _ in range(rank)]
    for k in range(rank):
        pivot = rest[k][k]
        if pivot > 2.0**-40 * start[k]:
            for i in range(k, rank):
                root[i][k] = rest[i][k] / math.sqrt(pivot)
        for i in range(k, rank):
            for j in range(k, rank):
                rest[i][j] -= root[i][k] * root[j][k]
    integers, more = rounded_by_definition(root, 15)
    return [[min(value, 2**15 - 1) for value in row] for row in integers], unit + more


def gram_by_definition(parent: AdapterWeights, manifest: Manifest, deltas: list[bytes]) -> list[list[int]]:
    """docs/protocol.md, section 7, for one moving factor."""
    count, slices, parts = len(deltas), manifest.slices(), []
    decoded = [decode_delta(data, INT8, manifest, LIMITS) for data in deltas]
    for spec in manifest.specs:
        name_a, name_b = factor_names(module_path(spec.name))
        moves_b = spec.factor == "lora_B"
        still = parent.integers()[name_a] if moves_b else parent.integers()[name_b].T
        root, unit = root_by_definition(still.tolist())
        rank = len(root)
        reach = max(sum(abs(root[k][column]) for k in range(rank)) for column in range(rank))
        vectors, exponents = [], []
        for values in decoded:
            moved = values[slices[spec.name]].reshape(spec.shape)
            rows = (moved if moves_b else moved.T).tolist()
            bound = max(abs(value) for row in rows for value in row) * reach
            shift = max(bound.bit_length() - 13, 0)
            turned = [sum(row[k] * root[k][c] for k in range(rank)) for row in rows for c in range(rank)]
            vectors.append([max(min((x + 2**shift // 2) // 2**shift, 8191), -8191) for x in turned])
            exponents.append(unit + shift)
        parts.append(
            ([[sum(x * y for x, y in zip(u, v, strict=True)) for v in vectors] for u in vectors], exponents)
        )
    top = [max((e[i] for p, e in parts if p[i][i]), default=None) for i in range(count)]
    least = min((each for each in top if each is not None), default=0)
    total = [[0] * count for _ in range(count)]
    for products, exponents in parts:
        for i in range(count):
            for j in range(count):
                if products[i][i] and products[j][j]:
                    below = top[i] - exponents[i] + top[j] - exponents[j]
                    total[i][j] += products[i][j] >> below
    return [
        [value << (top[i] + top[j] - 2 * least) if value else 0 for j, value in enumerate(row)]
        for i, row in enumerate(total)
    ]


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), rank=st.integers(1, 4))
def test_matrix_is_the_documented_one(factor, seed: int, count: int, rank: int) -> None:
    parent = small_adapter(seed, rank=rank, modules=MODULES)
    manifest = parent.manifest.subset(factor)
    random = np.random.default_rng(seed)
    values = [random.standard_normal(manifest.count) * 10.0 ** random.uniform(-9, 1) for _ in range(count)]
    values[-1][: manifest.count // 2] = 0
    deltas = [encode_delta(INT8, manifest, each.clip(-126, 126).astype(np.float32)) for each in values]
    found = gram_of_deltas(parent, manifest, deltas, INT8)
    assert [list(row) for row in found.rows] == gram_by_definition(parent, manifest, deltas)


def test_a_factor_without_some_directions_gives_the_others_alone() -> None:
    """Two rows of A that are the same, one that is zero: no root of noise, and no division by it."""
    parent = small_adapter(rank=4, modules=MODULES)
    integers = {name: tensor.copy() for name, tensor in parent.integers().items()}
    for name, tensor in integers.items():
        if name.endswith("lora_A.weight"):
            tensor[1], tensor[2] = tensor[0], 0
    names = [spec.name for spec in parent.manifest.specs]
    parent = replace(parent, values=np.concatenate([integers[name].reshape(-1) for name in names]))
    manifest = parent.manifest.subset("lora_B")
    deltas = deltas_of(manifest, 4)
    expected = dense_gram(dense_updates(parent, manifest, deltas))
    assert np.allclose(
        normalized(gram_of_deltas(parent, manifest, deltas, INT8)), normalized(expected), atol=3e-4
    )


def invertible(random: np.random.Generator, size: int) -> np.ndarray:
    """A random matrix that stretches no direction more than four times as much as another."""
    left, right = (np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(2))
    return left * random.uniform(0.5, 2, size) @ right


def pairs_of(seed: int, count: int, rank: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Two modules of `count` integer pairs (B, A)."""
    random = np.random.default_rng(seed)
    return [
        [
            (random.integers(-(2**28), 2**28, (9, rank)), random.integers(-(2**30), 2**30, (rank, 12)))
            for _ in range(count)
        ]
        for _ in range(2)
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4))
def test_order_and_size_of_atoms_change_not_one_bit(seed: int, count: int, rank: int) -> None:
    """Permutations and powers of two are gauges that integers can follow exactly."""
    modules = pairs_of(seed, count, rank)
    random = np.random.default_rng(seed + 1)
    regauged = []
    for pairs in modules:
        changed = []
        for lora_b, lora_a in pairs:
            order = random.permutation(rank)
            up = 2 ** random.integers(0, 8, rank)
            changed.append((lora_b[:, order] * up, lora_a[order] * (2**8 // up)[:, None]))
        regauged.append(changed)
    scaled = [[(b, a * 2**8) for b, a in pairs] for pairs in modules]
    assert gram_of_products(regauged) == gram_of_products(scaled)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_any_gauge_gives_the_same_matrix_but_for_rounding(seed: int, rank: int) -> None:
    modules = pairs_of(seed, 4, rank)
    random = np.random.default_rng(seed + 1)
    regauged = []
    for pairs in modules:
        changed = []
        for lora_b, lora_a in pairs:
            gauge = invertible(random, rank)
            b = np.rint(lora_b @ gauge * 2.0**8).astype(np.int64)
            a = np.rint(np.linalg.solve(gauge, lora_a) * 2.0**8).astype(np.int64)
            changed.append((b, a))
        regauged.append(changed)
    first, second = gram_of_products(modules), gram_of_products(regauged)
    assert np.allclose(normalized(first), normalized(second), atol=2e-5)


def test_krum_on_factors_would_pick_the_attacker_and_on_updates_does_not() -> None:
    """Honest nodes learned one update in different gauges; the dishonest one is near the mean of factors."""
    random = np.random.default_rng(5)
    lora_b, lora_a = random.standard_normal((20, 8)), random.standard_normal((8, 15))
    pairs = []
    for _ in range(6):
        gauge = np.linalg.qr(random.standard_normal((8, 8)))[0]
        noise = 0.05 * random.standard_normal((8, 15))
        pairs.append((lora_b @ gauge, np.linalg.solve(gauge, lora_a) + noise))
    pairs.append((0.1 * random.standard_normal((20, 8)), 0.1 * random.standard_normal((8, 15))))
    integers = [(np.rint(b * 2**28).astype(np.int64), np.rint(a * 2**28).astype(np.int64)) for b, a in pairs]
    factors = np.array([np.concatenate([b.reshape(-1), a.reshape(-1)]) for b, a in pairs])
    on_factors = np.sort(((factors[:, None] - factors[None]) ** 2).sum(-1), axis=1)[:, 1:5].sum(axis=1)
    distances = gram_of_products([integers]).squared_distances()
    on_updates = [sum(sorted(row)[1:5]) for row in distances]
    assert np.argmin(on_factors) == 6
    assert np.argmax(on_updates) == 6


def test_an_enormous_update_does_not_blur_the_others() -> None:
    """Were all rounded to one unit, a single huge delta would make honest ones indistinguishable."""
    parent = small_adapter(rank=2, modules=MODULES)
    manifest = parent.manifest.subset("lora_B")
    honest = deltas_of(manifest, 4, scale=1e-5)
    huge = encode_delta(INT8, manifest, small_delta(7, manifest.count, 60.0))
    alone = normalized(gram_of_deltas(parent, manifest, honest, INT8))
    together = normalized(gram_of_deltas(parent, manifest, [*honest, huge], INT8))
    assert np.allclose(together[:4, :4], alone, atol=1e-6)


def test_updates_of_zero_have_no_products() -> None:
    parent = small_adapter(rank=2, modules=MODULES)
    for factor in ("lora_A", "lora_B", "both"):
        manifest = parent.manifest.subset(factor)
        zero = encode_delta(INT8, manifest, np.zeros(manifest.count, np.float32))
        some = deltas_of(manifest, 2)
        found = gram_of_deltas(parent, manifest, [some[0], zero, some[1]], INT8)
        assert found.rows[1] == (0, 0, 0)
        assert (found.rows[0][1], found.rows[2][1], found.norm(1)) == (0, 0, 0)
        assert found.cosine_ppm(0, 1) == 0
        assert gram_of_deltas(parent, manifest, [zero], INT8).rows == ((0,),)


def test_a_copy_has_a_cosine_of_one_and_its_negative_of_minus_one() -> None:
    parent = small_adapter(rank=2, modules=MODULES)
    manifest = parent.manifest.subset("lora_B")
    values = small_delta(1, manifest.count)
    files = [
        encode_delta(INT8, manifest, v) for v in (values, values, -values, small_delta(2, manifest.count))
    ]
    found = gram_of_deltas(parent, manifest, files, INT8)
    assert found.squared_distance(0, 1) == 0
    assert found.cosine_ppm(0, 1) >= 999_999
    assert found.cosine_ppm(0, 2) <= -999_999
    assert abs(found.cosine_ppm(0, 3)) < 500_000


def test_matrix_does_not_depend_on_how_much_is_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {f"m{i}.q_proj": (70, 40) for i in range(12)}
    parent = small_adapter(rank=4, modules=modules)
    for factor in ("lora_A", "lora_B", "both"):
        manifest = parent.manifest.subset(factor)
        deltas = deltas_of(manifest, 3)
        whole = gram_of_deltas(parent, manifest, deltas, INT8)
        monkeypatch.setattr(gram_module, "WINDOW_VALUES", 1)
        assert gram_of_deltas(parent, manifest, deltas, INT8) == whole
        monkeypatch.undo()


def test_matrix_of_large_tensors_is_summed_without_overflow() -> None:
    """Every value the largest there is: the sums reach what Cauchy and Schwarz allow."""
    parent = small_adapter(rank=2, modules={"q_proj": (900, 4)})
    manifest = parent.manifest.subset("lora_B")
    ones = np.full(manifest.count, 100.0, np.float32)
    deltas = [encode_delta(INT8, manifest, v) for v in (ones, -ones, ones / 2)]
    expected = normalized(dense_gram(dense_updates(parent, manifest, deltas)))
    assert np.allclose(normalized(gram_of_deltas(parent, manifest, deltas, INT8)), expected, atol=1e-5)


def test_products_within_a_run_are_exact() -> None:
    """float64 holds every sum of 2**13 products of 20 bits: the largest possible, and one less."""
    left = np.full((1, 20_000), 2.0**20)
    right = np.full((20_000, 1), 2.0**20 - 1)
    exact = Fraction(20_000 * 2**20 * (2**20 - 1))
    assert exact_product(left, right, 20)[0, 0] == exact


def test_deltas_that_do_not_belong_are_refused_by_name() -> None:
    parent = small_adapter(rank=2, modules=MODULES)
    manifest = parent.manifest.subset("lora_B")
    with pytest.raises(FormatError, match="other_manifest"):
        gram_of_deltas(parent, manifest, deltas_of(parent.manifest, 2), INT8)
    three = Manifest(parent.manifest.specs[:3])
    with pytest.raises(FormatError, match="manifest_subset"):
        gram_of_deltas(parent, three, deltas_of(three, 2), INT8)
