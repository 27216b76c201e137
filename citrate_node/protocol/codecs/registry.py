"""The codecs by name. Pure; called by whoever has only the name that a preset or a signal gives."""

from __future__ import annotations

from .base import Codec
from .int8 import Int8

CODECS: dict[str, Codec] = {each.name: each for each in (Int8(),)}
"""Every codec that a preset may name."""


def codec(name: str) -> Codec:
    """The codec of this name; ValueError, with the names there are, for any other."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}, choose one of {', '.join(CODECS)}")
    return CODECS[name]
