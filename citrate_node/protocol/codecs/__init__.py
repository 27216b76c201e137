"""The codecs, and the delta files they fill. Pure; read base.py first, then delta.py."""

from __future__ import annotations

from .base import Codec
from .delta import check_delta, decode_delta, encode_delta, error_feedback, unwrap_payload
from .registry import CODECS, codec

__all__ = [
    "CODECS",
    "Codec",
    "check_delta",
    "codec",
    "decode_delta",
    "encode_delta",
    "error_feedback",
    "unwrap_payload",
]
