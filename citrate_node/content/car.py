"""CAR v1: a content as one stream of blocks, to carry it between stores, gateways and other tools.

Written depth first with no block twice. Read in any order: each block is hashed as it arrives, sizes
are refused before their bytes are read, and the content is recorded only when all of it is there.
Called by the command line, the gateway (its response format) and kubo (its upload format).
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from ..protocol.content_id import (
    BLOCK_SIZE_BYTES_MAX,
    Bytes,
    ContentId,
    cid_text,
    decode_cid,
    encode_cid,
)
from .block_store import BlockStore
from .interface import ContentMissing, ContentRefused
from .tree import Walk

_HEADER_START = b"\xa2\x65roots\x81\xd8\x2a"  # dag-cbor: a map with one root, a tagged CID ...
_HEADER_END = b"\x67version\x01"  # ... and the version
_CID_SIZE_BYTES = 36
_VERSION_2 = b"\xa1\x67version\x02"


def encode_header(root: bytes) -> bytes:
    """The beginning of a CAR with one root, given as a binary CID."""
    tagged = b"\x00" + root
    size = bytes([0x40 + len(tagged)]) if len(tagged) < 24 else bytes([0x58, len(tagged)])
    body = _HEADER_START + size + tagged + _HEADER_END
    return _length(len(body)) + body


def encode_section(codec: int, digest: bytes, block: Bytes) -> bytes:
    """One block of a CAR."""
    return _length(_CID_SIZE_BYTES + len(block)) + encode_cid(codec, digest) + bytes(block)


def export_car(store: BlockStore, content: ContentId) -> Iterator[bytes]:
    """The CAR of a content, piece by piece; every block was hashed. Leased until the iteration ends."""
    with store.lease(content):
        walk = Walk(content)
        sent: set[bytes] = set()
        yield encode_header(content.cid_bytes)
        while (wanted := walk.wanted) is not None:
            if wanted.depth == 0 and wanted.digest in sent:
                walk.skip()
                continue
            block, _ = store.fill(walk)
            if wanted.digest not in sent:
                sent.add(wanted.digest)
                yield encode_section(wanted.codec, wanted.digest, block)


def import_car(
    store: BlockStore,
    stream: BinaryIO,
    *,
    size_bytes_max: int,
    expected: str | None = None,
    ephemeral_checkpoint: int | None = None,
) -> ContentId:
    """Take a content in from a CAR of at most `size_bytes_max` file bytes, and keep it as `put` does.

    All or nothing: ContentRefused on a damaged, cut or oversized stream, on one that lacks a block, or
    whose root is not the CID `expected`. Blocks that do not belong to the root are not kept.
    """
    with store.importing(0) as blocks:
        codec, digest = read_header(stream)
        if expected is not None and cid_text(codec, digest) != expected:
            raise ContentRefused(
                f"the CAR holds {cid_text(codec, digest)}, not {expected}\n  fetch the right one"
            )
        room = size_bytes_max + size_bytes_max // 4096 + BLOCK_SIZE_BYTES_MAX  # the nodes above the leaves
        for block_codec, block_digest, block in read_sections(stream):
            room -= len(block)
            if room < 0:
                raise ContentRefused(f"the CAR holds more than {size_bytes_max} bytes\n  raise the limit")
            blocks.add(block_digest, block_codec, block)
        try:
            content = store.resolve(cid_text(codec, digest), size_bytes_max)
        except ContentMissing as error:
            raise ContentRefused(
                f"the CAR does not hold its root {cid_text(codec, digest)}\n  fetch it again"
            ) from error
        blocks.keep(content, ephemeral_checkpoint)
        return content


def read_header(stream: BinaryIO) -> tuple[int, bytes]:
    """(codec, digest) of the one root; ContentRefused for any other header."""
    length = _read_length(stream)
    if length is None or length > 4096:
        raise ContentRefused("this is not a CAR: it does not begin with a header")
    body = _read_exactly(stream, length, "in its header")
    if body == _VERSION_2:
        raise ContentRefused(
            "the CAR has version 2\n  convert it to version 1, for example with `car get-dag`"
        )
    start = _HEADER_START + b"\x58\x25\x00"
    root = body[len(start) : -len(_HEADER_END)]
    if body != start + root + _HEADER_END:
        raise ContentRefused("the CAR's header does not name exactly one root of version 1")
    try:
        return decode_cid(root)
    except ValueError as error:
        raise ContentRefused(f"the CAR's root is not a content of this network: {error}") from error


def read_sections(stream: BinaryIO) -> Iterator[tuple[int, bytes, bytes]]:
    """(codec, digest, block) of each section, hashed; ContentRefused naming the last good one."""
    last = "the header"
    while (length := _read_length(stream, f"after {last}")) is not None:
        if not _CID_SIZE_BYTES <= length <= _CID_SIZE_BYTES + BLOCK_SIZE_BYTES_MAX:
            raise ContentRefused(f"the CAR holds a block of {length} bytes after {last}: outside the limits")
        body = _read_exactly(stream, length, f"after {last}")
        block = body[_CID_SIZE_BYTES:]
        try:
            codec, digest = decode_cid(body[:_CID_SIZE_BYTES])
        except ValueError as error:
            raise ContentRefused(f"the CAR holds a foreign block after {last}: {error}") from error
        if hashlib.sha256(block).digest() != digest:
            raise ContentRefused(f"the CAR is damaged after {last}: the next block does not hash to its name")
        last = cid_text(codec, digest)
        yield codec, digest, block


def _length(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


def _read_length(stream: BinaryIO, where: str = "at its beginning") -> int | None:
    """The next length, None at the end of the stream."""
    value = 0
    for shift in range(0, 35, 7):
        byte = stream.read(1)
        if not byte:
            if shift == 0:
                return None
            raise ContentRefused(f"the CAR ends {where}\n  fetch it again")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ContentRefused(f"the CAR has an impossible length {where}")


def _read_exactly(stream: BinaryIO, length: int, where: str) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise ContentRefused(f"the CAR ends {where}\n  fetch it again")
    return data
