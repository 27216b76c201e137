"""What an embedded store keeps and why: pins, checkpoints, leases, imports under way, and collection.

One lock guards names appearing and vanishing; bytes are written, read and hashed outside it. A
collection holds it from mark to sweep, so writers wait that long and readers do not.
Used by block_store only.
"""

import concurrent.futures
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..protocol.content_id import BLOCK_SIZE_BYTES_MAX, Bytes, ContentId
from .files import BlockFolder, Records, sync_folder, write_temporary
from .interface import CollectReport, ContentRefused, Entry, StoreFull, entry_after_put, missing
from .store_folder import StoreFolder
from .tree import Walk


class Keeper:
    """The entries of one store, and the only code that lets a block appear or vanish."""

    def __init__(self, folder: StoreFolder, blocks: BlockFolder, size_bytes_max: int) -> None:
        self.folder = folder
        self.blocks = blocks
        self.records = Records(folder.roots, folder.incoming)
        self.size_bytes_max = size_bytes_max
        self.lock = threading.Lock()
        self.entries: dict[ContentId, Entry] = {}
        self.imports: set[BlockImport] = set()
        self.used_bytes = sum(size for _, size in blocks.digests())
        self._leases: Counter[ContentId] = Counter()

    def record(self, entry: Entry) -> None:
        """Write an entry, durably; the lock is held."""
        try:
            self.records.write(entry)
        except OSError:
            if entry.content not in self.entries:  # its blocks go now, so no trace of it may stay
                with suppress(OSError):
                    self.records.remove((entry.content,))
            raise
        self.entries[entry.content] = entry

    def set_pinned(self, content: ContentId, pinned: bool) -> None:
        """Pin what is wholly here, or unpin what is kept; ContentMissing otherwise."""
        with self.lock:
            old = self.entries.get(content)
            known = all(self.reach(content, set())) if pinned else old is not None
            if not known:
                raise missing(content.cid)
            self.record(Entry(content, pinned, old.ephemeral_checkpoint if old else None))

    @contextmanager
    def lease(self, content: ContentId) -> Iterator[None]:
        """While open, no collection removes what this content reaches. Leases nest and add up."""
        with self.lock:
            self._leases[content] += 1
        try:
            yield
        finally:
            with self.lock:
                self._leases[content] -= 1
                if not self._leases[content]:
                    del self._leases[content]

    def collect(self, final_checkpoint: int | None) -> CollectReport:
        """Remove what nothing keeps: records first, so that no crash leaves one without its blocks."""
        with self.lock:
            doomed = tuple(
                entry.content
                for entry in self.entries.values()
                if entry.is_over(final_checkpoint) and not self._leases[entry.content]
            )
            self.records.remove(doomed)
            for content in doomed:
                del self.entries[content]
                self.folder.assembled_path(content).unlink(missing_ok=True)
            for path in self.folder.quarantine.iterdir():
                path.unlink()
            present = dict(self.blocks.digests())
            before = self.used_bytes = sum(present.values())  # a damaged file may have changed its length
            removed = self.sweep(set(present))
            return CollectReport(doomed, len(self.entries), removed, before - self.used_bytes)

    def sweep(self, candidates: set[bytes]) -> int:
        """Remove those candidates that nothing reaches; the lock is held. Returns how many went."""
        marks: set[bytes] = set()
        for content in {*self.entries, *self._leases}:
            for _ in self.reach(content, marks):
                pass
        for running in self.imports:
            marks |= running.digests
        removed = 0
        for digest in candidates - marks:
            size_bytes = self.blocks.size_bytes(digest)
            if size_bytes is not None:
                self.blocks.path(digest).unlink()
                self.used_bytes -= size_bytes
                removed += 1
        return removed

    def reach(self, content: ContentId, marks: set[bytes]) -> Iterator[bool]:
        """Mark every digest below a content; yields, once for each, whether its block is here.

        A leaf is here when its file has the right length: its bytes are hashed when they are read.
        """
        walk = Walk(content)
        visited: set[tuple[bytes, int]] = set()
        while (wanted := walk.wanted) is not None:
            marks.add(wanted.digest)
            if (wanted.digest, wanted.depth) in visited:
                walk.skip()
                continue
            visited.add((wanted.digest, wanted.depth))
            if wanted.depth == 0:
                walk.skip()
                yield self.blocks.size_bytes(wanted.digest) == wanted.size_bytes
                continue
            try:
                walk.accept(self.blocks.read(wanted.digest, BLOCK_SIZE_BYTES_MAX) or b"")
            except ValueError:
                walk.skip()
                yield False

    def set_aside(self, digest: bytes) -> None:
        """Move a block that does not hash to its name away, unless a good one took its place meanwhile."""
        with self.lock:
            data = self.blocks.read(digest, BLOCK_SIZE_BYTES_MAX)
            if data is not None and hashlib.sha256(data).digest() != digest:
                os.replace(self.blocks.path(digest), self.folder.quarantine / digest.hex())
                self.used_bytes -= len(data)

    def require_room(self, size_bytes: int) -> None:
        """StoreFull unless that many bytes fit into the budget and onto the disk."""
        if self.used_bytes + size_bytes > self.size_bytes_max:
            raise StoreFull(
                f"the content store at {self.folder.path} holds {self.used_bytes} bytes; "
                f"{size_bytes} more pass its limit of {self.size_bytes_max}\n"
                "  unpin and collect contents (`citrate content gc`), or raise the limit"
            )
        self.folder.require_disk(size_bytes)


class BlockImport:
    """Blocks on their way in: safe from collections while it lasts, removed again unless kept."""

    def __init__(self, keeper: Keeper, stop: threading.Event | None) -> None:
        self._keeper = keeper
        self._stop = stop
        self.digests: set[bytes] = set()
        """Every block taken in, new or not."""
        self.fresh: set[bytes] = set()
        """Those this import wrote and nothing keeps yet."""

    def add(self, digest: bytes, codec: int, block: Bytes) -> None:
        """Store one block whose digest the caller computed from these very bytes (an Importer's sink)."""
        keeper = self._keeper
        if self._stop is not None and self._stop.is_set():
            raise concurrent.futures.CancelledError
        if len(block) > BLOCK_SIZE_BYTES_MAX:
            raise ContentRefused(
                f"a block of {len(block)} bytes is above the limit of {BLOCK_SIZE_BYTES_MAX}"
            )
        with keeper.lock:
            if digest in self.digests:
                return
            self.digests.add(digest)  # before looking: from here on no collection removes it
        present = keeper.blocks.read(digest, BLOCK_SIZE_BYTES_MAX)
        if present == bytes(block):  # comparing is cheaper than hashing, and finds damage as well
            return
        keeper.require_room(len(block))
        temporary = write_temporary(keeper.folder.incoming, block)
        with keeper.lock:
            replaced = keeper.blocks.size_bytes(digest)
            os.replace(temporary, keeper.blocks.path(digest))
            keeper.used_bytes += len(block) - (replaced or 0)
            if replaced is None:
                self.fresh.add(digest)

    def keep(self, content: ContentId, ephemeral_checkpoint: int | None = None) -> None:
        """Make the blocks durable, then record the content they make up; ContentRefused if they do not."""
        keeper = self._keeper
        sync_folder(keeper.folder.blocks)
        with keeper.lock:
            reached: set[bytes] = set()
            if not all(keeper.reach(content, reached)):
                raise ContentRefused(f"{content.cid}: blocks are missing\n  fetch it again from another peer")
            old = keeper.entries.get(content)
            keeper.record(entry_after_put(old, content, ephemeral_checkpoint))
            self.fresh -= reached
