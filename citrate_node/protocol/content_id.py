"""The name of a content: the CID that Kubo gives the same bytes, its size, and the tree behind it.

Pure. Profile `unixfs-v1-2025` (IPIP-499), fixed by the protocol: CIDv1, sha2-256, raw leaves of 1 MiB,
nodes of at most 1,024 links, balanced. A file of one leaf *is* that raw block, so up to 1 MiB its
digest is the sha256 of the file; anything larger is named by the dag-pb node at its root.

The size of a file fixes the shape of its tree: how many leaves, how deep, how many links in each node.
So a reader that knows (digest, size) can check every node against the one shape allowed, and a file
has exactly one name. Called wherever content is named: messages, the contract's `weightsHash`, the
content store, blobs between nodes, the gateway.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

LEAF_SIZE_BYTES: Final = 1 << 20
LINKS_MAX: Final = 1024
RAW: Final = 0x55
DAG_PB: Final = 0x70
BLOCK_SIZE_BYTES_MAX: Final = 2 << 20
"""No implementation passes a larger block on; ours never makes one above 1 MiB."""
SIZE_BYTES_MAX: Final = (1 << 63) - 1
"""The contract and the wire carry a size in 64 bits; one is kept free for signed readers."""

_CID_PREFIX: Final = {RAW: b"\x01\x55\x12\x20", DAG_PB: b"\x01\x70\x12\x20"}
_CID_TEXT_LENGTH: Final = 59
_UNIXFS_FILE: Final = 2

Bytes = bytes | bytearray | memoryview
BlockSink = Callable[[bytes, int, Bytes], None]
"""Receives (digest, codec, block) of each block, children before parents, once per place in the tree.

The block may be a view into the caller's buffer: it is valid only until the sink returns.
"""


@dataclass(frozen=True, slots=True, order=True)
class ContentId:
    """Names one file: the root of its tree and its length. The codec follows from the length."""

    digest: bytes
    """sha2-256 of the UnixFS root, 32 bytes: `weightsHash` on chain, `delta_hash` in a signal."""

    size_bytes: int
    """Length of the file, not of its tree."""

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise ValueError(f"a content digest has 32 bytes, not {len(self.digest)}")
        if not 0 <= self.size_bytes <= SIZE_BYTES_MAX:
            raise ValueError(f"a content size lies between 0 and 2^63 - 1, not {self.size_bytes}")

    @classmethod
    def from_cid(cls, text: str, size_bytes: int) -> "ContentId":
        """Join a CID with the size it was announced with; ValueError where the two cannot belong together."""
        codec, digest = parse_cid(text)
        content = cls(digest, size_bytes)
        if content.codec != codec:
            raise ValueError(
                f"{text} is {codec_name(codec)}, but {size_bytes} bytes make {codec_name(content.codec)}"
            )
        return content

    @property
    def codec(self) -> int:
        """RAW up to one leaf, DAG_PB above: a function of the size, so nobody can choose it."""
        return RAW if self.size_bytes <= LEAF_SIZE_BYTES else DAG_PB

    @property
    def cid_bytes(self) -> bytes:
        """The binary CIDv1, 36 bytes: `0x01 ‖ codec ‖ 0x12 0x20 ‖ digest`."""
        return encode_cid(self.codec, self.digest)

    @property
    def cid(self) -> str:
        """The CID as people and gateways write it: `bafkrei…` or `bafybei…`."""
        return cid_text(self.codec, self.digest)

    def __str__(self) -> str:
        return self.cid


@dataclass(frozen=True, slots=True)
class Link:
    """Points from a node of the tree to a child; also describes the root."""

    digest: bytes
    """sha2-256 of the child's block."""

    codec: int
    """RAW for a leaf, DAG_PB for a node."""

    size_bytes: int
    """Bytes of the file below this link (UnixFS `blocksizes`)."""

    tree_size_bytes: int
    """Bytes of all blocks below this link, the child's own included (dag-pb `Tsize`)."""


def codec_name(codec: int) -> str:
    """The multicodec name that specifications and other tools use."""
    return {RAW: "raw", DAG_PB: "dag-pb"}.get(codec, f"0x{codec:x}")


def encode_cid(codec: int, digest: bytes) -> bytes:
    """Binary CIDv1 of a sha2-256 digest; ValueError on any codec but RAW and DAG_PB."""
    if codec not in _CID_PREFIX:
        raise ValueError(f"codec {codec_name(codec)} is neither raw nor dag-pb")
    if len(digest) != 32:
        raise ValueError(f"a sha2-256 digest has 32 bytes, not {len(digest)}")
    return _CID_PREFIX[codec] + digest


def cid_text(codec: int, digest: bytes) -> str:
    """CIDv1 as text: multibase `b`, lower-case base32 without padding."""
    return "b" + base64.b32encode(encode_cid(codec, digest)).decode().lower().rstrip("=")


def decode_cid(data: bytes) -> tuple[int, bytes]:
    """(codec, digest) of a binary CIDv1 of 36 bytes; ValueError naming what is wrong."""
    if data[:1] != b"\x01":
        raise ValueError("not a CIDv1: the first byte is not 0x01")
    if len(data) != 36:
        raise ValueError(f"a binary CIDv1 of sha2-256 has 36 bytes, not {len(data)}")
    if data[2:4] != b"\x12\x20":
        raise ValueError("the hash is not sha2-256 of 32 bytes")
    if data[1] not in _CID_PREFIX:
        raise ValueError(f"codec {codec_name(data[1])} is neither raw nor dag-pb")
    return data[1], data[4:]


def parse_cid(text: str) -> tuple[int, bytes]:
    """(codec, digest) of a CIDv1 in lower-case base32, the only spelling accepted: one content, one name.

    Raises ValueError naming what is wrong: version 0, another multibase, codec or hash, stray characters
    (a path, a query), set bits after the last byte.
    """
    if text[:2] == "Qm":
        raise ValueError("CIDv0 (Qm…) is not accepted: convert it to CIDv1 in base32 (b…)")
    if text[:1] != "b":
        raise ValueError("a CID starts with 'b' (base32, lower case)")
    if len(text) != _CID_TEXT_LENGTH:
        raise ValueError(f"a CID of sha2-256 has {_CID_TEXT_LENGTH} characters, not {len(text)}")
    if not set(text) <= set("abcdefghijklmnopqrstuvwxyz234567"):
        raise ValueError("a CID holds only a-z and 2-7")
    codec, digest = decode_cid(base64.b32decode(text[1:].upper() + "======"))
    if cid_text(codec, digest) != text:  # two spare bits end the text; base64 ignores them, we do not
        raise ValueError("the CID has bits set after its last byte")
    return codec, digest


def content_id(data: Bytes) -> ContentId:
    """Name bytes that are already in memory."""
    importer = Importer()
    importer.update(data)
    return importer.finish()


class Importer:
    """Builds the tree of a file as its bytes stream by; at most one leaf and one node per level are held.

    `sink` receives every block. The widths are the profile's; others exist so that tests reach upper
    levels of the tree with few bytes: at the real widths a third level of nodes begins above 1 TiB, and
    an error there would stay unseen.
    """

    __slots__ = ("_leaf_size_bytes", "_levels", "_links_max", "_partial", "_sink", "_size_bytes", "root")

    def __init__(
        self,
        sink: BlockSink | None = None,
        *,
        leaf_size_bytes: int = LEAF_SIZE_BYTES,
        links_max: int = LINKS_MAX,
    ) -> None:
        if leaf_size_bytes < 1 or links_max < 2:
            raise ValueError("leaves hold at least one byte and nodes at least two links")
        self._sink = sink
        self._leaf_size_bytes = leaf_size_bytes
        self._links_max = links_max
        self._partial = bytearray()
        self._levels: list[list[Link]] = [[]]
        self._size_bytes = 0
        self.root: Link | None = None
        """The root, once finished; with other widths than the profile's only this tells its codec."""

    def update(self, data: Bytes) -> None:
        """Take the next bytes of the file. Whole leaves are hashed where they lie, without a copy."""
        if self.root is not None:
            raise ValueError("this importer is finished")
        view = memoryview(data).cast("B")
        self._size_bytes += len(view)
        start = 0
        if self._partial:
            start = min(self._leaf_size_bytes - len(self._partial), len(view))
            self._partial += view[:start]
            if len(self._partial) < self._leaf_size_bytes:
                return
            leaf, self._partial = self._partial, bytearray()
            self._add_leaf(leaf)
        while len(view) - start >= self._leaf_size_bytes:
            self._add_leaf(view[start : start + self._leaf_size_bytes])
            start += self._leaf_size_bytes
        self._partial += view[start:]

    def finish(self) -> ContentId:
        """Close the tree and name it. An empty file is one empty leaf."""
        if self.root is not None:
            raise ValueError("this importer is finished")
        if self._partial or self._size_bytes == 0:
            self._add_leaf(self._partial)
        level = 0
        # closing a level may fill the one above, and so open a further one: the end is looked for each time
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._close(level)
            level += 1
        self.root = self._levels[level][0]
        return ContentId(self.root.digest, self._size_bytes)

    def _add_leaf(self, block: Bytes) -> None:
        digest = hashlib.sha256(block).digest()
        if self._sink is not None:
            self._sink(digest, RAW, block)
        self._add_link(0, Link(digest, RAW, len(block), len(block)))

    def _add_link(self, level: int, link: Link) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(link)
        if len(self._levels[level]) == self._links_max:
            self._close(level)

    def _close(self, level: int) -> None:
        links, self._levels[level] = self._levels[level], []
        block = encode_node(links)
        digest = hashlib.sha256(block).digest()
        if self._sink is not None:
            self._sink(digest, DAG_PB, block)
        size_bytes = sum(link.size_bytes for link in links)
        tree_size_bytes = len(block) + sum(link.tree_size_bytes for link in links)
        self._add_link(level + 1, Link(digest, DAG_PB, size_bytes, tree_size_bytes))


def encode_node(links: Iterable[Link]) -> bytes:
    """The dag-pb block of a UnixFS file node: its links, then type, file size, the size under each link."""
    links = list(links)
    unixfs = bytearray(b"\x08\x02\x18" + _varint(sum(link.size_bytes for link in links)))
    block = bytearray()
    for link in links:
        body = (
            b"\x0a\x24"
            + encode_cid(link.codec, link.digest)
            + b"\x12\x00\x18"
            + _varint(link.tree_size_bytes)
        )
        block += b"\x12" + _varint(len(body)) + body
        unixfs += b"\x20" + _varint(link.size_bytes)
    return bytes(block + b"\x0a" + _varint(len(unixfs)) + unixfs)


def decode_node(block: bytes) -> tuple[Link, ...]:
    """The links of a dag-pb block, if it is a node such as `encode_node` writes; ValueError otherwise.

    Directories, inline data, link names, unknown fields and every second spelling of the same node are
    refused: the block must encode to itself again.
    """
    if len(block) > BLOCK_SIZE_BYTES_MAX:
        raise ValueError(f"a block of {len(block)} bytes is above the limit of {BLOCK_SIZE_BYTES_MAX}")
    heads: list[tuple[int, bytes, int]] = []
    unixfs = b""
    for field, value in _fields(block):
        if field == 2 and isinstance(value, bytes) and not unixfs:
            heads.append(_decode_link(value))
        elif field == 1 and isinstance(value, bytes) and not unixfs:
            unixfs = value
        else:
            raise ValueError(f"a node has no field {field} there")
    sizes = []
    for field, value in _fields(unixfs):
        if field == 1 and value != _UNIXFS_FILE:
            raise ValueError("the node is not a UnixFS file")
        if field == 4 and isinstance(value, int):
            sizes.append(value)
    if not heads or len(sizes) != len(heads):
        raise ValueError(f"the node has {len(heads)} links and {len(sizes)} block sizes")
    links = tuple(Link(d, c, size, tree) for (c, d, tree), size in zip(heads, sizes, strict=True))
    if encode_node(links) != block:
        raise ValueError("the node is not in its only allowed spelling")
    return links


def tree_depth(size_bytes: int, *, leaf_size_bytes: int = LEAF_SIZE_BYTES, links_max: int = LINKS_MAX) -> int:
    """Levels of nodes above the leaves of a file: 0 for one leaf, 1 up to 1 GiB, 2 up to 1 TiB."""
    depth, reach = 0, leaf_size_bytes
    while reach < size_bytes:
        depth, reach = depth + 1, reach * links_max
    return depth


def expected_links(
    block: bytes,
    size_bytes: int,
    depth: int,
    tree_size_bytes: int | None = None,
    *,
    leaf_size_bytes: int = LEAF_SIZE_BYTES,
    links_max: int = LINKS_MAX,
) -> tuple[Link, ...]:
    """The links of the node `depth` levels above the leaves, checked against the one shape allowed.

    The caller has compared the block's hash, and says what the parent says: the bytes of the file below
    it, and the bytes of its tree (None at the root, for a ContentId does not tell).
    Raises ValueError where a leaf is too short, a node too small, a size untrue: such a tree would give
    one file a second name. Who checks every node so need not import the file again.
    """
    links = decode_node(block)
    whole, rest = divmod(size_bytes, leaf_size_bytes * links_max ** (depth - 1))
    shape = [leaf_size_bytes * links_max ** (depth - 1)] * min(whole, links_max) + [rest] * (rest > 0)
    if whole > links_max or [link.size_bytes for link in links] != shape:
        raise ValueError(f"the node does not part {size_bytes} bytes as the profile does")
    if any(link.codec != (RAW if depth == 1 else DAG_PB) for link in links):
        raise ValueError("the node has leaves where nodes belong, or nodes where leaves belong")
    if depth == 1 and any(link.tree_size_bytes != link.size_bytes for link in links):
        raise ValueError("the node states another tree size for a leaf than its bytes")
    if tree_size_bytes not in (None, len(block) + sum(link.tree_size_bytes for link in links)):
        raise ValueError("the parent states another tree size than the node has")
    return links


def _decode_link(data: bytes) -> tuple[int, bytes, int]:
    codec, digest, tree_size_bytes = 0, b"", -1
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            codec, digest = decode_cid(value)
        elif field == 3 and isinstance(value, int):
            tree_size_bytes = value
        elif field != 2 or value != b"":
            raise ValueError("a link of a file has a hash, an empty name and a size")
    if not digest or tree_size_bytes < 0:
        raise ValueError("a link lacks its hash or its size")
    return codec, digest, tree_size_bytes


def _fields(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    """Protobuf fields of wire types 0 (integer) and 2 (bytes), in order; ValueError on anything else."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        value, position = _read_varint(data, position)
        if wire_type == 2:
            if value > len(data) - position:
                raise ValueError("a field reaches beyond its block")
            yield number, data[position : position + value]
            position += value
        elif wire_type == 0:
            yield number, value
        else:
            raise ValueError(f"wire type {wire_type} does not occur in a node")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 63, 7):
        if position >= len(data):
            raise ValueError("the block ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is longer than 63 bits")
