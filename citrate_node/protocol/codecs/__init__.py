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
from .float32 import Plain
from .int4 import Int4
from .int8 import Int8
from .topk import TopK

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

CODECS: dict[str, Codec] = {
    each.name: each
    for each in (
        Plain(),
        Int8(),
        Int4(),
        TopK("topk", kept=64),  # 1.6 % of the values, 1/138 of the float32 bytes
        TopK("topk_1", kept=41),  # 1 %, 1/210
        TopK("topk_3", kept=128),  # 3.1 %, 1/71
        TopK("topk_12", kept=512),  # 12.5 %, 1/18
    )
}
"""Every codec that a preset may name."""


def codec(name: str) -> Codec:
    """The codec of this name; ValueError, with the names there are, for any other."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}, choose one of {', '.join(CODECS)}")
    return CODECS[name]
