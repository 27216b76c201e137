"""Three formats that Citrate has published, so that what it commits can be recomputed here and the reverse.

Pure, integers only: Q16 numbers are whole multiples of 2**-16, little-endian where they are hashed. Called by
the command line (commitments of an adapter) and by bridges to Citrate's own aggregation; this network's own
average is in aggregation.py. The domain texts below are part of the formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .tensors import FormatError, Int64Array, round_half_away

Q16_BITS = 16

INT64_MAX = 2**63 - 1

COORDINATE_MAX = INT64_MAX // 2
"""Of a delta that enters the trimmed mean: beyond it one worker could fill the number range alone."""

BUCKETS_MAX = 1 << 20

_COMMITMENT_DOMAIN = b"nat-lora-commit-v1"
_DIGEST_DOMAIN = b"nat-aggregate-digest-v1"


def to_q16(values: npt.ArrayLike) -> Int64Array:
    """Float32 values as multiples of 2**-16, halves away from zero.

    Raises FormatError for NaN, infinity, and values whose multiple does not fit 64 bits: they would all be
    written as the same number.
    """
    exact = np.asarray(values, dtype=np.float32).astype(np.float64) * float(1 << Q16_BITS)
    if not np.isfinite(exact).all():
        raise FormatError("non_finite", "a value is NaN or infinity")
    if exact.size and np.abs(exact).max() >= 2.0**63:
        raise FormatError("too_large", "a value does not fit 64 bits in units of 2**-16")
    # from 2**51 on every float32 is whole already, and adding a half would no longer be exact
    fractional = np.abs(exact) < 2.0**51
    return np.where(fractional, round_half_away(np.where(fractional, exact, 0.0)), exact.astype(np.int64))


def lora_commitment(zone_tag: int, alpha: float, lora_a: npt.NDArray[Any], lora_b: npt.NDArray[Any]) -> str:
    """The digest of one module's factors, hex; the same whatever the order of the rank's atoms.

    zone_tag: 0 to 255. lora_a float32 (rank, dim_in), lora_b float32 (dim_out, rank). An atom is column k of
    B and row k of A; its blob is their Q16 integers. sha256 over the domain, the zone u8, rank, dim_out and
    dim_in u64, alpha in Q16, and each blob after its u32 length, in ascending order of their bytes.
    Raises FormatError for a zone, shapes or values that cannot be committed.
    """
    if not 0 <= zone_tag <= 255:
        raise FormatError("zone_tag", f"{zone_tag} does not fit a byte")
    if lora_a.ndim != 2 or lora_b.ndim != 2 or lora_a.shape[0] != lora_b.shape[1]:
        raise FormatError("tensor_shape", f"A {lora_a.shape} and B {lora_b.shape} have no common rank")
    rank, dim_in = lora_a.shape
    dim_out = lora_b.shape[0]
    atoms = np.concatenate([to_q16(lora_b).T, to_q16(lora_a)], axis=1).astype("<i8")
    digest = hashlib.sha256(_COMMITMENT_DOMAIN + bytes([zone_tag]))
    digest.update(_u64(rank) + _u64(dim_out) + _u64(dim_in) + to_q16([alpha]).astype("<i8").tobytes())
    for blob in sorted(atom.tobytes() for atom in atoms):
        digest.update(len(blob).to_bytes(4, "little") + blob)
    return digest.hexdigest()


def trimmed_mean(deltas: Mapping[str, Sequence[int]], trim: int, bucket_count: int, seed: bytes) -> list[int]:
    """The bucketed coordinate-wise trimmed mean of one round.

    deltas: worker id to its Q16 integers, all of one length. Each worker falls into a bucket by hash of seed
    and id; a bucket gives its mean; per coordinate the `trim` smallest and largest bucket means are dropped
    and the rest averaged. Every division truncates toward zero.
    Holds against `trim` dishonest workers, since each spoils at most one bucket. Cost: a sort per coordinate.
    Raises FormatError for no deltas, different lengths, a trim of 0 (it protects from nothing) or of half of
    the occupied buckets, more than 2**20 buckets, or a coordinate beyond half of the 64-bit range.
    Source: coordinate-wise trimmed mean, Yin et al. 2018, arXiv:1803.01498.
    """
    if not 1 <= bucket_count <= BUCKETS_MAX:
        raise FormatError("bucket_count", f"{bucket_count} buckets, must be 1 to {BUCKETS_MAX}")
    if trim < 1:
        raise FormatError("trim", "a trim of 0 drops nothing and protects from nothing")
    if len({len(delta) for delta in deltas.values()}) != 1:
        raise FormatError("dimension", "there must be deltas, all of one length")
    buckets: dict[int, list[Sequence[int]]] = {}
    for worker, delta in deltas.items():
        if any(abs(value) > COORDINATE_MAX for value in delta):
            raise FormatError("too_large", f"a coordinate of {worker!r} is beyond {COORDINATE_MAX}")
        buckets.setdefault(bucket_of(seed, worker, bucket_count), []).append(delta)
    if 2 * trim >= len(buckets):
        raise FormatError("trim", f"a trim of {trim} leaves nothing of {len(buckets)} occupied buckets")
    # Python integers: a sum of 64-bit numbers needs more than 64 bits
    means = [
        [_divide(sum(column), len(column)) for column in zip(*members, strict=True)]
        for members in buckets.values()
    ]
    kept = slice(trim, len(means) - trim)
    return [_divide(sum(sorted(column)[kept]), len(means) - 2 * trim) for column in zip(*means, strict=True)]


def bucket_of(seed: bytes, worker: str, bucket_count: int) -> int:
    """The bucket of a worker: eight bytes of sha256(seed, 0, id), little-endian, modulo the count."""
    digest = hashlib.sha256(seed + b"\x00" + worker.encode()).digest()
    return int.from_bytes(digest[:8], "little") % bucket_count


def round_digest(aggregate: Sequence[int], trim: int, bucket_count: int, seed: bytes) -> str:
    """What a round commits to, hex: the average and every number that led to it."""
    digest = hashlib.sha256(_DIGEST_DOMAIN + _u64(len(seed)) + seed)
    digest.update(_u64(trim) + _u64(bucket_count) + _u64(len(aggregate)))
    digest.update(np.array(aggregate, dtype="<i8").tobytes())
    return digest.hexdigest()


def compress_int8(raw: Sequence[int]) -> tuple[int, list[int]]:
    """One scale and an int8 per value: scale = ceil(max |raw| / 127), and 1 when all are zero.

    A value is raw / scale, rounded half away from zero, within -127 to 127. Error: at most half a scale.
    """
    scale = -(-max((abs(value) for value in raw), default=0) // 127) or 1
    magnitudes = [min((2 * abs(value) + scale) // (2 * scale), 127) for value in raw]
    return scale, [m if value >= 0 else -m for m, value in zip(magnitudes, raw, strict=True)]


def decompress_int8(scale: int, values: Sequence[int]) -> list[int]:
    """The Q16 integers that a compressed vector stands for."""
    return [scale * value for value in values]


def _divide(total: int, count: int) -> int:
    """Truncating, as in Rust and Solidity; Python's // rounds down."""
    return total // count if total >= 0 else -(-total // count)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")
