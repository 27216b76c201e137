"""Sums of LoRA products brought back to a small rank, without ever forming the large matrix.

Pure, but floating point: the last bits differ between machines, so what comes out is proposed and compared
within a tolerance, never voted on by hash. Called by composition (above the rank limit), by the `stack`
method in simulations, and by benchmarks/stack_recompression.py.

A sum of w * B * A over K adapters is one product: the B side by side, (out, n), times the A one below the
other, (n, in), n = K * rank. Its best approximation of rank r follows from n x n matrices alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .adapter import AdapterConfig, AdapterWeights, factor_names, from_tensors, module_path
from .codecs.base import ranges
from .tensors import Float64Array, FormatError

RANDOM_WIDTH_MIN = 400
"""From this many stacked columns on, a random subspace is faster than the eigenvectors of n x n matrices."""

EIGENVALUE_MIN = 1e-12
"""Smaller eigenvalues of a Gram matrix, relative to the largest, are rounding noise."""

EIGENVALUE_NOISE = 1e-15
"""An eigenvalue is known to this part of the largest, so one that is computed as 0 may be that large."""

CHOLESKY_ERROR_MAX = 1e-9
"""How far the columns that a Cholesky factor makes of B may be from orthonormal."""

LOSS_MAX = 1e-6
"""If what is dropped could be more than this part of the product, QR is used instead of Gram matrices."""

ERROR_MIN = 1e-3
"""A Gram matrix holds squares, known to CHOLESKY_ERROR_MAX: an error below this part of the norm needs QR."""

ROWS = 256
"""Rows brought to float64 at a time, to be multiplied by something small."""

GRAM_BYTES = 2 << 20
"""Rows of a Gram matrix at a time, as float64: each part costs a copy of the triangle that is computed."""

OVERSAMPLING = 16
"""Columns of the random subspace beyond the rank."""

POWER_STEPS = 3
"""Multiplications by the product and its transpose that turn the subspace towards the largest directions."""

Path = Literal["gram", "qr", "random"]


@dataclass(frozen=True, slots=True)
class Recompressed:
    """The best approximation of a product by factors of a given rank, each carrying half of the size."""

    lora_a: Float64Array
    """(rank, in_features)"""

    lora_b: Float64Array
    """(out_features, rank)"""

    error: float
    """Frobenius norm of what was left out."""

    norm: float
    """Frobenius norm of the whole product."""

    path: Path
    """How it was computed."""

    @property
    def relative_error(self) -> float:
        """error / norm; 0 for a product of zeros."""
        return self.error / self.norm if self.norm else 0.0


def recompress(
    lora_b: npt.NDArray[Any], lora_a: npt.NDArray[Any], rank: int, path: Path | None = None
) -> Recompressed:
    """Factors of `rank` whose product is closest to lora_b @ lora_a.

    lora_b (out_features, n), lora_a (n, in_features), any float type. path: how, chosen by n if None.
    Error: that of the dense singular value decomposition; on the random path within a factor
    of 1 + 1e-5, and float32 rounding of the terms whose sum the product is, which shows where they cancel.
    Cost: O((out + in) * n**2 + n**3), on the random path O((out + in) * n * rank).
    Source: Gram matrices as in FLoRA's stacking, Wang et al. 2024, arXiv:2409.05976, section 3; the random
    subspace is Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4.
    """
    if lora_b.shape[1] != lora_a.shape[0]:
        raise FormatError("tensor_shape", f"B {lora_b.shape} and A {lora_a.shape} have no common rank")
    if not (np.isfinite(lora_b).all() and np.isfinite(lora_a).all()):
        raise FormatError("non_finite", "a factor holds NaN or infinity")
    if path is None:
        path = "random" if lora_b.shape[1] >= max(RANDOM_WIDTH_MIN, 4 * (rank + OVERSAMPLING)) else "gram"
    if path == "random":
        return _by_random_subspace(lora_b, lora_a, rank)
    result = _by_gram(lora_b, lora_a, rank) if path == "gram" else None
    return result or _by_qr(lora_b.astype(np.float64), lora_a.astype(np.float64), rank)


def average_products(
    entries: Sequence[tuple[int, AdapterWeights]], rank: int
) -> tuple[AdapterWeights, float]:
    """The weighted average of whole updates (alpha / rank) * B * A, as one adapter; and its relative error.

    entries: (weight, adapter), weights positive, adapters of one base model and the same modules. The result
    has alpha equal to its rank, so that its scale is 1.
    """
    total = sum(weight for weight, _ in entries)
    first = entries[0][1]
    for _, adapter in entries:
        if adapter.config.base_model_id != first.config.base_model_id:
            raise FormatError("base_model_id", "adapters of different base models have no average")
        if adapter.config.targets != first.config.targets:
            raise FormatError("targets", "adapters of different modules have no average")
    config = AdapterConfig(first.config.base_model_id, rank, rank, first.config.targets)
    scaled = [(weight / total * a.config.alpha / a.config.rank, a.tensors()) for weight, a in entries]
    stacks: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    for path in sorted({module_path(spec.name) for spec in first.manifest.specs}):
        name_a, name_b = factor_names(path)
        stacks[path] = (
            np.concatenate([scale * tensors[name_b].astype(np.float64) for scale, tensors in scaled], axis=1),
            np.concatenate([tensors[name_a] for _, tensors in scaled], axis=0),
        )
    return recompress_modules(config, stacks)


def recompress_modules(
    config: AdapterConfig, stacks: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
) -> tuple[AdapterWeights, float]:
    """Every module's stacked (B, A) brought to config.rank; the adapter and its relative error as a whole."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    error = norm = 0.0
    for path, (stacked_b, stacked_a) in stacks.items():
        name_a, name_b = factor_names(path)
        result = recompress(stacked_b, stacked_a, config.rank)
        tensors[name_a], tensors[name_b] = result.lora_a, result.lora_b
        error, norm = error + result.error**2, norm + result.norm**2
    return from_tensors(config, tensors), float(np.sqrt(error / norm)) if norm else 0.0


def _by_gram(lora_b: npt.NDArray[Any], lora_a: npt.NDArray[Any], rank: int) -> Recompressed | None:
    """None when the Gram matrix, whose condition is squared, cannot be trusted with this product."""
    gram_b, gram_a = _gram(lora_b), _gram(lora_a.T)
    # column k of B made as long as row k of A: (B R, R^-1 A) is the same adapter
    length_b, length_a = np.diag(gram_b), np.diag(gram_a)
    used = (length_b > 0) & (length_a > 0)
    up = np.where(used, (length_a / np.where(used, length_b, 1.0)) ** 0.25, 0.0)
    down = np.where(used, 1 / np.where(used, up, 1.0), 0.0)
    found = _core(gram_b * up * up[:, None], gram_a * down * down[:, None], rank)
    if found is None:
        return None
    onto, back, error, norm = found
    if 0 < error < ERROR_MIN * norm:
        return None
    left, right = _times(lora_b, up[:, None] * onto), _times(lora_a.T, (back * down).T)
    return _result(left, right.T, rank, error, norm, "gram")


def _gram(columns: npt.NDArray[Any]) -> Float64Array:
    """columns' @ columns in float64, some rows at a time, all in the same buffer."""
    count, width = columns.shape
    rows = min(max(GRAM_BYTES // (8 * max(width, 1)), 1), max(count, 1))
    order: Literal["C", "F"] = "C" if columns.flags.c_contiguous else "F"  # a transpose stays one
    total, buffer = np.zeros((width, width)), np.empty((rows, width), order=order)
    for start, stop in ranges(0, count, rows):
        part = buffer[: stop - start]
        part[...] = columns[start:stop]
        total += part.T @ part
    return total


def _times(columns: npt.NDArray[Any], small: Float64Array) -> Float64Array:
    """columns @ small in float64, some rows at a time."""
    product = np.empty((len(columns), small.shape[1]))
    for start, stop in ranges(0, len(columns), ROWS):
        product[start:stop] = columns[start:stop].astype(np.float64) @ small
    return product


def _core(
    gram_b: Float64Array, gram_a: Float64Array, rank: int
) -> tuple[Float64Array, Float64Array, float, float] | None:
    """(n, rank) and (rank, n) matrices that turn B and A into the factors wanted; error and norm.

    B = Q C with orthonormal Q and C' C its Gram matrix, so the product's singular values are those of C A.
    """
    try:
        # C by Cholesky takes a tenth of the time of eigenvectors; used where the condition allows it
        root = np.linalg.cholesky(gram_b).T
        squares, top = _largest(root @ gram_a @ root.T, rank)
        onto = np.linalg.solve(root, top)
        if np.abs(onto.T @ gram_b @ onto - np.eye(top.shape[1])).max() > CHOLESKY_ERROR_MAX:
            raise np.linalg.LinAlgError
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(gram_b)
        if values[-1] <= 0:
            return np.zeros((len(values), 0)), np.zeros((0, len(values))), 0.0, 0.0
        kept = values > EIGENVALUE_MIN * values[-1]
        basis, roots = vectors[:, kept], np.sqrt(values[kept])
        root = roots[:, None] * basis.T
        squares, top = _largest(root @ gram_a @ root.T, rank)
        onto = basis / roots @ top
        dropped = vectors[:, ~kept]
        carried = np.einsum("ij,ij->j", dropped, gram_a @ dropped)  # by A, in what B seems to lack
        lost = float(values[~kept].clip(EIGENVALUE_NOISE * values[-1]) @ carried)
        if lost > LOSS_MAX**2 * float(squares.sum()):
            return None
    half = squares[:rank] ** 0.25
    halves = np.divide(1.0, half, out=np.zeros_like(half), where=half > 0)
    error, norm = np.sqrt(squares[rank:].sum()), np.sqrt(squares.sum())
    return onto * half, (top * halves).T @ root, float(error), float(norm)


def _largest(matrix: Float64Array, rank: int) -> tuple[Float64Array, Float64Array]:
    """All eigenvalues of a symmetric matrix, descending, not below 0; and the first `rank` eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1].clip(0), vectors[:, ::-1][:, :rank]


def _by_qr(lora_b: Float64Array, lora_a: Float64Array, rank: int) -> Recompressed:
    basis_b, core_b = np.linalg.qr(lora_b)
    basis_a, core_a = np.linalg.qr(lora_a.T)
    left, singular, right = np.linalg.svd(core_b @ core_a.T, full_matrices=False)
    half = np.sqrt(singular[:rank])
    return _result(
        basis_b @ (left[:, :rank] * half),
        (half[:, None] * right[:rank]) @ basis_a.T,
        rank,
        float(np.linalg.norm(singular[rank:])),
        float(np.linalg.norm(singular)),
        "qr",
    )


def _by_random_subspace(lora_b: npt.NDArray[Any], lora_a: npt.NDArray[Any], rank: int) -> Recompressed:
    """The products with large matrices in float32, everything of the subspace's width in float64."""
    left, right = np.asarray(lora_b, dtype=np.float32), np.asarray(lora_a, dtype=np.float32)
    width = min(rank + OVERSAMPLING, *left.shape, right.shape[1])
    # a fixed seed: the same inputs give the same subspace everywhere
    start = np.random.default_rng(0).standard_normal((right.shape[1], width)).astype(np.float32)
    subspace = _orthonormal(left @ (right @ start))
    for _ in range(POWER_STEPS):
        across = _orthonormal(right.T @ (left.T @ subspace))
        subspace = _orthonormal(left @ (right @ across))
    projected = ((subspace.T @ left) @ right).astype(np.float64)
    inner, singular, outer = np.linalg.svd(projected, full_matrices=False)
    half = np.sqrt(singular[:rank])
    norm_squared = float(np.vdot((left.T @ left).astype(np.float64), (right @ right.T).astype(np.float64)))
    rest = max(norm_squared - float((singular[:rank] ** 2).sum()), 0.0)
    return _result(
        subspace.astype(np.float64) @ (inner[:, :rank] * half),
        half[:, None] * outer[:rank],
        rank,
        float(np.sqrt(rest)),
        float(np.sqrt(max(norm_squared, 0.0))),
        "random",
    )


def _orthonormal(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    basis: npt.NDArray[np.float32] = np.linalg.qr(columns)[0]
    return basis


def _result(
    left: Float64Array, right: Float64Array, rank: int, error: float, norm: float, path: Path
) -> Recompressed:
    """Filled up with zeros when the product has less than `rank`."""
    missing = rank - left.shape[1]
    if missing > 0:
        left = np.pad(left, ((0, 0), (0, missing)))
        right = np.pad(right, ((0, missing), (0, 0)))
    return Recompressed(right, left, error, norm, path)
