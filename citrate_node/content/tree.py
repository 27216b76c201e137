"""Walks the tree of a content, block by block, and lets no byte through unchecked.

Pure: it says which block it wants next and takes that block; where blocks come from (a folder, a Kubo
daemon, a CAR) is the caller's affair. The size in the ContentId bounds everything before the first
block arrives: bytes, nodes and depth (protocol.content_id.expected_links).
"""

import hashlib
from dataclasses import dataclass

from ..errors import ConfigError
from ..protocol.content_id import (
    BLOCK_SIZE_BYTES_MAX,
    DAG_PB,
    RAW,
    Bytes,
    ContentId,
    cid_text,
    decode_node,
    expected_links,
    parse_cid,
    tree_depth,
)
from .interface import ContentRefused


@dataclass(frozen=True, slots=True)
class Wanted:
    """The next block of a walk, and all that is known of it beforehand."""

    digest: bytes
    size_bytes: int
    """Bytes of the file below it; of a leaf, its exact length."""
    depth: int
    """Levels of nodes above the leaves: 0 is a leaf."""
    start: int
    """Where in the file it begins."""
    tree_size_bytes: int | None
    """Bytes of all blocks below it and its own, as its parent says; None at the root."""

    @property
    def codec(self) -> int:
        return DAG_PB if self.depth else RAW

    @property
    def block_size_bytes_max(self) -> int:
        """Read no more than this to get the block."""
        return BLOCK_SIZE_BYTES_MAX if self.depth else self.size_bytes


class Walk:
    """Depth first, left to right, over the blocks that hold bytes [start, stop) of a file.

    The root is always wanted, also where the range is empty: it proves what the name says.
    """

    def __init__(self, content: ContentId, start: int = 0, stop: int | None = None) -> None:
        self._range = max(0, start), content.size_bytes if stop is None else min(stop, content.size_bytes)
        self._stack = [Wanted(content.digest, content.size_bytes, tree_depth(content.size_bytes), 0, None)]

    @property
    def wanted(self) -> Wanted | None:
        """The block to bring now; None when the walk is over."""
        return self._stack[-1] if self._stack else None

    def skip(self) -> None:
        """Leave the wanted block, and whatever is below it, unread."""
        self._stack.pop()

    def accept(self, block: Bytes, *, hashed: bool = False) -> Bytes:
        """Check the wanted block and step on; returns the file's bytes in it (of a node: none).

        Raises ValueError where the block has another hash, length or shape than it must; the walk then
        still wants it. `hashed` says that the caller compared the hash already.
        """
        wanted = self._stack[-1]
        if len(block) > wanted.block_size_bytes_max or (
            wanted.depth == 0 and len(block) != wanted.size_bytes
        ):
            raise ValueError(f"the block has {len(block)} bytes, not {wanted.size_bytes}")
        if not hashed and hashlib.sha256(block).digest() != wanted.digest:
            raise ValueError("the block does not hash to its name")
        start, stop = self._range
        if wanted.depth == 0:
            self._stack.pop()
            first, last = max(0, start - wanted.start), stop - wanted.start
            return block if first == 0 and last >= len(block) else memoryview(block)[first : max(first, last)]
        links = expected_links(bytes(block), wanted.size_bytes, wanted.depth, wanted.tree_size_bytes)
        self._stack.pop()
        end = wanted.start + wanted.size_bytes
        for link in reversed(links):
            end -= link.size_bytes
            if max(start, end) < min(stop, end + link.size_bytes):
                self._stack.append(
                    Wanted(link.digest, link.size_bytes, wanted.depth - 1, end, link.tree_size_bytes)
                )
        return b""


def asked_cid(cid: str) -> tuple[int, bytes]:
    """(codec, digest) of a CID that a person or a configuration named."""
    try:
        return parse_cid(cid)
    except ValueError as error:
        raise ConfigError(f"{cid!r} does not name a content: {error}") from error


def content_of_root(codec: int, digest: bytes, block: bytes, size_bytes_max: int) -> ContentId:
    """The content below a root block that was hashed already: its size is what the root states.

    ContentRefused above `size_bytes_max`, and where the block is no root of a file: an inner node, a
    directory, a tree of another profile.
    """
    name = cid_text(codec, digest)
    try:
        size_bytes = len(block) if codec == RAW else sum(link.size_bytes for link in decode_node(block))
        content = ContentId.from_cid(name, size_bytes)
    except ValueError as error:
        raise ContentRefused(
            f"{name} is not the root of a file: {error}\n  ask for the file's own CID"
        ) from error
    if size_bytes > size_bytes_max:
        raise ContentRefused(
            f"{name} has {size_bytes} bytes, the limit is {size_bytes_max}\n  raise the limit if you trust it"
        )
    return content


def foreign_tree(wanted: Wanted, error: ValueError) -> ContentRefused:
    """The error of a block that hashes to its name and still is no part of the content asked for."""
    return ContentRefused(
        f"{cid_text(wanted.codec, wanted.digest)}: {error}\n"
        "  ask for the file by the CID and size that an importer gives it"
    )
