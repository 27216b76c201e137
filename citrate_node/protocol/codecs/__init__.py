"""The codecs by name, and the delta file. Pure; read base.py first."""

from __future__ import annotations

from .base import Codec
from .delta import (
    DeltaLimits,
    check_delta,
    decode_delta,
    delta_size_bytes_max,
    encode_delta,
    error_feedback,
    unwrap_payload,
)
from .int8 import Int8

__all__ = [
    "CODECS",
    "Codec",
    "DeltaLimits",
    "check_delta",
    "codec",
    "decode_delta",
    "delta_size_bytes_max",
    "encode_delta",
    "error_feedback",
    "unwrap_payload",
]

CODECS: dict[str, Codec] = {each.name: each for each in (Int8(),)}
"""Every codec that a preset may name."""


def codec(name: str) -> Codec:
    """The codec of this name; ValueError, with the names there are, for any other."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}, choose one of {', '.join(CODECS)}")
    return CODECS[name]
