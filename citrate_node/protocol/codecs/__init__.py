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
        TopK("topk_1", kept=41, low_bits=6),  # 1 % of the values, 1/336 of the float32 bytes
        TopK("topk", kept=64, low_bits=5),  # 1.6 %, 1/233
        TopK("topk_3", kept=128, low_bits=4),  # 3.1 %, 1/134
        TopK("topk_8", kept=320, low_bits=3),  # 7.8 %, 1/66
        TopK("topk_12", kept=512, low_bits=2),  # 12.5 %, 1/47
        TopK("topk_48", kept=1966, low_bits=0, levels=2),  # 48 %, 1/16
    )
}
"""Every codec that a preset may name."""


def codec(name: str) -> Codec:
    """The codec of this name; ValueError, with the names there are, for any other."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}, choose one of {', '.join(CODECS)}")
    return CODECS[name]
