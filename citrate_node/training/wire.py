"""How a node and its training worker talk through a pipe: one JSON header, then raw float32 arrays.

No pickle: a frame is data and can run nothing. Used by worker.py (asyncio side) and
worker_process.py (blocking side) alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

PREFIX = struct.Struct("<4sIQ")
_MAGIC = b"ctw1"

Groups = dict[str, dict[str, npt.NDArray[np.float32]]]
"""Arrays of a frame: group (such as "weights") -> tensor name -> array."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message in either direction."""

    header: dict[str, Any]
    groups: Groups = field(default_factory=dict)


def pack(frame: Frame) -> bytes:
    """The bytes of a frame: magic, header length u32, body length u64, header, body."""
    index: list[list[Any]] = []
    parts: list[bytes] = []
    for group, tensors in frame.groups.items():
        index.append([group, [[name, list(array.shape)] for name, array in tensors.items()]])
        parts += [np.ascontiguousarray(array, dtype="<f4").tobytes() for array in tensors.values()]
    header = json.dumps({"header": frame.header, "arrays": index}).encode()
    body_bytes = sum(len(part) for part in parts)
    return b"".join([PREFIX.pack(_MAGIC, len(header), body_bytes), header, *parts])


def sizes(prefix: bytes) -> tuple[int, int]:
    """(header bytes, body bytes) that follow a prefix. Raises ValueError where it is none."""
    magic, header_bytes, body_bytes = PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise ValueError("the pipe to the training worker holds something that is not a frame")
    return int(header_bytes), int(body_bytes)


def unpack(header: bytes, body: bytes) -> Frame:
    """The frame behind a header and a body."""
    outline = json.loads(header)
    groups: Groups = {}
    offset = 0
    for group, tensors in outline["arrays"]:
        groups[group] = {}
        for name, shape in tensors:
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(body, dtype="<f4", count=count, offset=offset)
            groups[group][name] = array.reshape(shape).astype(np.float32)
            offset += 4 * count
    return Frame(outline["header"], groups)


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next frame of a blocking stream, or None at its end, even in the middle of a frame."""
    prefix = stream.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    header_bytes, body_bytes = sizes(prefix)
    header = stream.read(header_bytes)
    body = stream.read(body_bytes)
    if len(header) < header_bytes or len(body) < body_bytes:
        return None
    return unpack(header, body)


def write_frame(stream: BinaryIO, header: Mapping[str, Any], groups: Groups | None = None) -> None:
    """Write one frame to a blocking stream."""
    stream.write(pack(Frame(dict(header), groups or {})))
    stream.flush()
