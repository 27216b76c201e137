"""A delta file: which codec, for which tensors, and the encoded values.

Pure. The file is canonical CBOR, a map of four fields, so that any CBOR reader opens it; since everything
but the values is known beforehand, it is read by comparing, without parsing. Its sha256 is what a
mentorship signal announces. Called by mentor (encode, error feedback) and aggregation (decode).
"""

from __future__ import annotations

from dataclasses import dataclass

import cbor2
import numpy as np

from ..tensors import Float32Array, FormatError, Int64Array, Manifest, delta_from_grid
from .base import Codec

DELTA_VERSION = 1
"""Of the file and of the codecs in it; another meaning of the same bytes needs another number."""


@dataclass(frozen=True, slots=True)
class DeltaLimits:
    """What is refused before it is read. The number comes from the preset."""

    size_bytes_max: int
    """Of the whole file."""


def encode_delta(codec: Codec, manifest: Manifest, values: Float32Array) -> bytes:
    """The file of float32 (manifest.count,) values. FormatError when the codec refuses them."""
    if values.shape != (manifest.count,):
        raise FormatError("values_shape", f"{values.shape} values for {manifest.count}")
    return b"".join((*_head(codec, manifest), cbor2.dumps(codec.encode(values))))


def decode_delta(data: bytes, codec: Codec, manifest: Manifest, limits: DeltaLimits) -> Int64Array:
    """The values on the delta grid, int64 (manifest.count,) in units of 2**-32.

    Raises FormatError, by name, for a file that is too large, of another codec or other tensors than
    those asked for, or not canonical in any byte.
    """
    if len(data) > limits.size_bytes_max:
        raise FormatError("file_too_large", f"{len(data)} bytes, limit {limits.size_bytes_max}")
    return codec.decode(unwrap_payload(data, codec, manifest), manifest.count)


def check_delta(data: bytes, codec: Codec, manifest: Manifest) -> None:
    """FormatError where decode_delta would raise it, without the memory of the decoded values."""
    codec.check(unwrap_payload(data, codec, manifest), manifest.count)


def delta_size_bytes_max(codec: Codec, manifest: Manifest) -> int:
    """The longest file of these tensors, for limits and for the bill of a checkpoint."""
    payload = codec.size_bytes_max(manifest.count)
    return sum(map(len, _head(codec, manifest))) + len(_byte_string_head(payload)) + payload


def unwrap_payload(data: bytes, codec: Codec, manifest: Manifest) -> memoryview:
    """The encoded values within a file, not copied and not yet checked."""
    at = 0
    reasons = ("no_delta", "other_codec", "other_manifest", "other_version")
    for part, reason in zip(_head(codec, manifest), reasons, strict=True):
        if data[at : at + len(part)] != part:
            raise FormatError(reason, f"the delta is not one of codec {codec.name} for these tensors")
        at += len(part)
    rest = memoryview(data)[at:]
    size = codec.size_bytes_max(manifest.count)
    # the length of a byte string takes 1 to 5 bytes; only the shortest way to write it is canonical
    for prefix_size in (1, 2, 3, 5):
        length = len(rest) - prefix_size
        if 0 <= length <= size and bytes(rest[:prefix_size]) == _byte_string_head(length):
            return rest[prefix_size:]
    raise FormatError("payload_size", f"{len(rest)} bytes are no byte string of at most {size}")


def error_feedback(intended: Float32Array, decoded: Int64Array) -> Float32Array:
    """What the encoding lost: added to the next delta, so that nothing is lost for good.

    intended: float32 (count,), what the mentor wanted to send. decoded: int64 (count,), what its own file
    decodes to. Returns intended - decoded, float32 (count,).
    Source: error feedback, Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1.
    """
    return (intended.astype(np.float64) - delta_from_grid(decoded)).astype(np.float32)


def _head(codec: Codec, manifest: Manifest) -> tuple[bytes, bytes, bytes, bytes]:
    """The file up to the values, in the order of canonical keys: by length, then by letters."""
    return (
        b"\xa4",
        cbor2.dumps("codec") + cbor2.dumps(codec.name),
        cbor2.dumps("tensors") + cbor2.dumps(manifest.hash),
        cbor2.dumps("version") + cbor2.dumps(DELTA_VERSION) + cbor2.dumps("encoded_values"),
    )


def _byte_string_head(length: int) -> bytes:
    if length < 24:
        return bytes([0x40 + length])
    for size, initial in ((1, 0x58), (2, 0x59), (4, 0x5A)):
        if length < 1 << (8 * size):
            return bytes([initial]) + length.to_bytes(size, "big")
    raise FormatError("payload_size", f"{length} bytes, a file has at most 2**32")
