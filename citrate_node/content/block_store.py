"""The embedded content store: blocks, records and pins in one folder, with plain blocking functions.

Thread-safe. Used by store.EmbeddedStore (asyncio), car, the command line and the tests. The layout of
the folder is described in store_folder; what is kept, and until when, is decided in keeping.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServiceError
from ..protocol.content_id import (
    BLOCK_SIZE_BYTES_MAX,
    RAW,
    Bytes,
    ContentId,
    Importer,
    cid_text,
)
from .files import BlockFolder, named_errors, open_source, source_chunks, write_temporary
from .interface import (
    CollectReport,
    ContentDamaged,
    ContentMissing,
    ContentRefused,
    Entry,
    missing,
)
from .keeping import BlockImport, Keeper
from .store_folder import StoreFolder
from .tree import Walk, asked_cid, content_of_root, foreign_tree


@dataclass(frozen=True, slots=True)
class Damage:
    """A content that cannot be read whole, and why."""

    cid: str
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a full reading of the store found."""

    contents: int
    bytes_read: int
    damaged: tuple[Damage, ...]


class BlockStore:
    """A folder of content-addressed files. Open it once for writing, and `read_only` beside that writer.

    `size_bytes_max` bounds all blocks together, `assembled_bytes_max` the whole files kept for senders;
    `disk_reserve_bytes` of the disk are left free for everything else the node writes.
    A reader in another process takes no lease: a content may be collected under it, and it then says so.
    """

    def __init__(
        self,
        folder: Path,
        *,
        read_only: bool = False,
        size_bytes_max: int = 64 << 30,
        disk_reserve_bytes: int = 64 << 20,
        assembled_bytes_max: int = 2 << 30,
    ) -> None:
        self.size_bytes_max = size_bytes_max
        self._assembled_bytes_max = assembled_bytes_max
        self._folder = StoreFolder(Path(folder), read_only=read_only, disk_reserve_bytes=disk_reserve_bytes)
        self._blocks = BlockFolder(self._folder.blocks)
        try:
            with named_errors(self.path):
                self._keeper = Keeper(self._folder, self._blocks, size_bytes_max)
                self._keeper.entries = self._load()
        except BaseException:
            self._folder.close()
            raise

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._folder.path

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks."""
        return self._keeper.used_bytes

    def close(self) -> None:
        """Give the folder back. Harmless when repeated."""
        self._folder.close()

    # writing

    def put(
        self,
        data: Bytes | Path,
        *,
        ephemeral_checkpoint: int | None = None,
        stop: threading.Event | None = None,
    ) -> ContentId:
        """Store bytes or a file and keep it: pinned, or until `ephemeral_checkpoint` is final.

        All or nothing: on any error, or once `stop` is set, what was written is removed again.
        """
        if not isinstance(data, Path):
            return self._put([data], memoryview(data).nbytes, ephemeral_checkpoint, stop)
        with open_source(data) as file:
            chunks = source_chunks(file, data)
            return self._put(chunks, os.fstat(file.fileno()).st_size, ephemeral_checkpoint, stop)

    def _put(
        self,
        chunks: Iterable[Bytes],
        size_bytes: int,
        ephemeral_checkpoint: int | None,
        stop: threading.Event | None,
    ) -> ContentId:
        with self.importing(size_bytes, stop=stop) as blocks:
            importer = Importer(blocks.add)
            for chunk in chunks:
                importer.update(chunk)
            content = importer.finish()
            if content.size_bytes != size_bytes:
                raise ContentRefused(
                    "the file changed while it was read\n  store it once nothing writes to it"
                )
            blocks.keep(content, ephemeral_checkpoint)
            return content

    @contextmanager
    def importing(self, size_bytes: int, *, stop: threading.Event | None = None) -> Iterator[BlockImport]:
        """Take in blocks, about `size_bytes` of them; those that no `keep` reaches are removed at the end."""
        self._folder.require_writer()
        keeper = self._keeper
        with named_errors(self.path):
            keeper.require_room(size_bytes)
            blocks = BlockImport(keeper, stop)
            with keeper.lock:
                keeper.imports.add(blocks)
            try:
                yield blocks
            finally:
                with keeper.lock:
                    keeper.imports.discard(blocks)
                    if blocks.fresh:
                        keeper.sweep(blocks.fresh)

    def pin(self, content: ContentId) -> None:
        """Keep a content until it is unpinned; ContentMissing unless all of it is here."""
        self._folder.require_writer()
        with named_errors(self.path):
            self._keeper.set_pinned(content, True)

    def unpin(self, content: ContentId) -> None:
        """Let a content go at the next collection or, if it serves a checkpoint, once that is final."""
        self._folder.require_writer()
        with named_errors(self.path):
            self._keeper.set_pinned(content, False)

    def collect(self, final_checkpoint: int | None = None) -> CollectReport:
        """Remove what nothing keeps: no pin, no lease, no running import, no checkpoint still open."""
        self._folder.require_writer()
        with named_errors(self.path):
            return self._keeper.collect(final_checkpoint)

    def lease(self, content: ContentId) -> AbstractContextManager[None]:
        """While open, no collection removes what this content reaches. Leases nest and add up."""
        return self._keeper.lease(content)

    # reading

    def get(self, content: ContentId) -> bytes:
        """The whole file, every block hashed. ContentMissing (or ContentDamaged) where it is not whole."""
        with self.lease(content):
            reader = self.reader(content)
            data = reader.next_bytes()
            if data is None or len(data) == content.size_bytes:
                return bytes(data or b"")
            whole = io.BytesIO()  # hands its buffer over without a second copy
            while data is not None:
                whole.write(data)
                data = reader.next_bytes()
            return whole.getvalue()

    def reader(self, content: ContentId, offset: int = 0) -> "Reader":
        """Read a file from an offset, a block at a time. The caller holds a lease meanwhile."""
        if not 0 <= offset <= content.size_bytes:
            raise ValueError(f"offset {offset} lies outside a content of {content.size_bytes} bytes")
        return Reader(self, Walk(content, offset))

    def get_by_cid(self, cid: str, size_bytes_max: int) -> bytes:
        """The whole file of a CID whose size nobody announced."""
        return self.get(self.resolve(cid, size_bytes_max))

    def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        """Join a CID with the size its root states, refusing one above `size_bytes_max`."""
        codec, digest = asked_cid(cid)
        return content_of_root(codec, digest, self.block(digest), size_bytes_max)

    def block(self, digest: bytes) -> bytes:
        """One block by its digest, hashed."""
        self._folder.require_open()
        with named_errors(self.path):
            data = self._blocks.read(digest, BLOCK_SIZE_BYTES_MAX)
            if data is None:
                raise missing(digest.hex())
            if hashlib.sha256(data).digest() != digest:
                if not self._folder.read_only:
                    self._keeper.set_aside(digest)
                raise ContentDamaged(
                    f"block {digest.hex()} does not hash to its name\n"
                    "  it counts as missing now; fetch its content again"
                )
            return data

    def fill(self, walk: Walk) -> tuple[bytes, Bytes]:
        """Bring a walk the block it wants; returns the block, and the file's bytes in it."""
        wanted = walk.wanted
        assert wanted is not None, "the walk is over"
        block = self.block(wanted.digest)
        try:
            return block, walk.accept(block, hashed=True)
        except ValueError as error:  # the block is what its name says, and still no part of this file
            raise foreign_tree(wanted, error) from error

    def open_path(self, content: ContentId) -> Path | None:
        """A path that holds the whole file, verified now; None where the content is not whole.

        One block is its own file. A larger content is put together under `assembled/`, at the cost of
        its size once more until the oldest make room; an open file stays readable whatever happens.
        """
        with self.lease(content), named_errors(self.path):
            try:
                if content.codec == RAW:
                    self.get(content)
                    return self._blocks.path(content.digest)
                self._folder.require_writer()
                path = self._folder.assembled_path(content)
                if path.exists():
                    os.utime(path)
                else:
                    self._assemble(content, path)
                return path
            except ContentMissing:
                return None

    def has(self, content: ContentId) -> bool:
        """Whether every block is here in its right length; nodes are hashed now, leaves when read."""
        self._folder.require_open()
        with named_errors(self.path):
            return all(self._keeper.reach(content, set()))

    def entries(self) -> tuple[Entry, ...]:
        """All contents this store answers for, in the order of their digests."""
        self._folder.require_open()
        with named_errors(self.path), self._keeper.lock:
            entries = self._load() if self._folder.read_only else self._keeper.entries
            return tuple(entries[content] for content in sorted(entries))

    def pins(self) -> tuple[ContentId, ...]:
        return tuple(entry.content for entry in self.entries() if entry.pinned)

    def ephemeral_checkpoint_of(self, content: ContentId) -> int | None:
        """The checkpoint a content serves; None where it serves none or is not kept here."""
        entry = self._keeper.entries.get(content)
        return entry.ephemeral_checkpoint if entry else None

    def verify(self) -> VerifyReport:
        """Read and hash everything kept; what is damaged is set aside and named."""
        damaged = []
        bytes_read = 0
        contents = [entry.content for entry in self.entries()]
        for content in contents:
            try:
                with self.lease(content):
                    reader = self.reader(content)
                    while (data := reader.next_bytes()) is not None:
                        bytes_read += len(data)
            except (ContentMissing, ContentRefused) as error:
                damaged.append(Damage(content.cid, str(error).splitlines()[0]))
        for codec, digest in self._keeper.records.load()[1]:
            damaged.append(Damage(cid_text(codec, digest), "its record is unreadable; it counts as a pin"))
        return VerifyReport(len(contents), bytes_read, tuple(damaged))

    # within

    def _load(self) -> dict[ContentId, Entry]:
        entries, broken = self._keeper.records.load()
        for codec, digest in broken:
            try:
                content = self.resolve(cid_text(codec, digest), self.size_bytes_max)
            except ServiceError:
                continue  # its root is gone too: nothing is left to protect, and verify names it
            entries[content] = Entry(content, True, None)
        return entries

    def _assemble(self, content: ContentId, path: Path) -> None:
        with self._keeper.lock:
            self._folder.make_room_for_assembled(content.size_bytes, self._assembled_bytes_max)
        temporary = write_temporary(self._folder.incoming, b"")
        try:
            reader = self.reader(content)
            with open(temporary, "wb") as out:
                while (data := reader.next_bytes()) is not None:
                    out.write(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class Reader:
    """A file from an offset on, a verified block at a time."""

    def __init__(self, store: BlockStore, walk: Walk) -> None:
        self._store = store
        self._walk = walk

    def next_bytes(self) -> Bytes | None:
        """The next bytes, at most one leaf of them; None at the end."""
        while self._walk.wanted is not None:
            _, data = self._store.fill(self._walk)
            if data:
                return data
        return None
