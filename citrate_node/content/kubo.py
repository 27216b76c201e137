"""A content store on a Kubo daemon, behind the same interface as the embedded one.

The daemon is not trusted: names are computed here and another answer is refused, and every block it
returns is hashed. Contents go in as a CAR of our own blocks, so that no setting of the daemon can change
their CID; a daemon without `dag/import` gets `add` with every parameter that matters spelled out.

What is kept, and for which checkpoint, is remembered in a folder of ours. In the daemon a kept content has an
entry `/citrate/<owner>/<cid>` in its file system (`ipfs files ls /citrate`), which garbage collection
respects as it does a pin. Pins would not do: there is one for each content, so several nodes on one daemon,
or its operator, would lose theirs when one of us lets go. Used by the runtime in place of EmbeddedStore.
"""

import asyncio
import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from ..errors import ConfigError
from ..protocol.content_id import LEAF_SIZE_BYTES, RAW, Bytes, ContentId, Importer, cid_text
from .car import encode_header, encode_section
from .files import Records, named_errors, open_source, source_chunks, write_temporary
from .interface import (
    CollectReport,
    ContentDamaged,
    ContentMissing,
    ContentRefused,
    Entry,
    entry_after_put,
    missing,
)
from .kubo_rpc import Daemon, KuboRefused, KuboRpc
from .store_folder import StoreFolder
from .tree import Walk, asked_cid, content_of_root, foreign_tree

HOLDINGS = "/citrate"
"""Folder of all our nodes in a daemon's file system."""


class KuboStore:
    """A `ContentStore` on a daemon, remembering in `folder` what this node keeps there.

    `owner` tells this node from others on the same daemon: letters, digits, `-`.
    `block_timeout_ms` bounds the wait for one block, which the daemon may have to find among its peers.
    `repo_gc` lets `collect` run the daemon's own garbage collection; leave it off where others use it.
    """

    def __init__(
        self,
        daemon: Daemon | str,
        folder: Path,
        *,
        owner: str = "node",
        block_timeout_ms: int = 30_000,
        repo_gc: bool = False,
        assembled_bytes_max: int = 2 << 30,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", owner):
            raise ConfigError(f"owner {owner!r} must be 1 to 64 letters, digits or '-'")
        self._daemon: Daemon = KuboRpc(daemon) if isinstance(daemon, str) else daemon
        self._holdings = f"{HOLDINGS}/{owner}"
        self._has_holdings = False
        self._block_timeout_ms = block_timeout_ms
        self._repo_gc = repo_gc
        self._assembled_bytes_max = assembled_bytes_max
        self._folder = StoreFolder(folder, read_only=False, disk_reserve_bytes=0)
        self._records = Records(self._folder.roots, self._folder.incoming)
        self._entries, _ = self._records.load()  # an unreadable one lets nothing go: the daemon just keeps it
        self._leases: Counter[ContentId] = Counter()
        self._writing = asyncio.Lock()

    # the interface

    async def put(self, data: bytes | Path, *, ephemeral_checkpoint: int | None = None) -> ContentId:
        """Name the bytes here, send them, and refuse a daemon that names them otherwise."""
        self._folder.require_open()
        content = await asyncio.to_thread(_name, data)
        with self.lease(content):
            try:
                named = await self._daemon.import_car(lambda: _car(data, content))
            except KuboRefused as error:
                if not error.is_unknown_command:
                    raise
                named = await self._daemon.add(lambda: _file(data))
                if not named:
                    raise _named_otherwise(named, content) from error
            if set(named) - {content.cid}:
                raise _named_otherwise(named, content)
            async with self._writing:
                await self._hold(content)
                self._record(entry_after_put(self._entries.get(content), content, ephemeral_checkpoint))
        return content

    async def get(self, content: ContentId) -> bytes:
        return b"".join([data async for data in self.read(content)])

    async def get_by_cid(self, cid: str, size_bytes_max: int) -> bytes:
        return await self.get(await self.resolve(cid, size_bytes_max))

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        codec, digest = asked_cid(cid)
        return content_of_root(codec, digest, await self.block(digest), size_bytes_max)

    async def block(self, digest: bytes) -> bytes:
        """One block, hashed; the daemon finds it by its digest, whatever codec the name says."""
        data = await self._fetch(digest)
        if hashlib.sha256(data).digest() != digest:
            raise _damaged(digest)
        return data

    async def read(self, content: ContentId, offset: int = 0) -> AsyncIterator[bytes]:
        """The file from `offset` on, block by block, each checked before it is handed out."""
        if not 0 <= offset <= content.size_bytes:
            raise ValueError(f"offset {offset} lies outside a content of {content.size_bytes} bytes")
        with self.lease(content):
            walk = Walk(content, offset)
            while (wanted := walk.wanted) is not None:
                block = await self._fetch(wanted.digest)
                try:
                    data = await asyncio.to_thread(walk.accept, block)
                except ValueError as error:
                    if hashlib.sha256(block).digest() != wanted.digest:
                        raise _damaged(wanted.digest) from error
                    raise foreign_tree(wanted, error) from error
                if data:
                    yield bytes(data)

    async def open_path(self, content: ContentId) -> Path | None:
        """A file with the whole content, brought from the daemon and verified; None where it is not whole."""
        self._folder.require_open()
        path = self._folder.assembled_path(content)
        with named_errors(self._folder.path):
            if path.exists():
                os.utime(path)
                return path
            if content not in self._entries:
                return None
            self._folder.make_room_for_assembled(content.size_bytes, self._assembled_bytes_max)
            temporary = write_temporary(self._folder.incoming, b"")
            try:
                with open(temporary, "wb") as out:
                    async for part in self.read(content):
                        await asyncio.to_thread(out.write, part)
                os.replace(temporary, path)
                return path
            except ContentMissing:
                return None
            finally:
                temporary.unlink(missing_ok=True)

    async def has(self, content: ContentId) -> bool:
        """Whether this node keeps the content and the daemon still has it, as far as it can say."""
        self._folder.require_open()
        if content not in self._entries:
            return False
        try:
            found = await self._daemon.stat(self._path(content))
        except KuboRefused:
            return False
        return found.get("Local") is not False or not found.get("WithLocality")

    async def pin(self, content: ContentId) -> None:
        """Keep a content; the daemon brings what it lacks, block by block, and each is hashed here."""
        try:
            async for _ in self.read(content):
                pass
        except ContentMissing as error:
            raise missing(content.cid) from error
        async with self._writing:
            await self._hold(content)
            old = self._entries.get(content)
            self._record(Entry(content, True, old.ephemeral_checkpoint if old else None))

    async def unpin(self, content: ContentId) -> None:
        """Let a content go at the next collection; the daemon keeps it until then."""
        self._folder.require_open()
        async with self._writing:
            old = self._entries.get(content)
            if old is None:
                raise missing(content.cid)
            self._record(Entry(content, False, old.ephemeral_checkpoint))

    async def pins(self) -> tuple[ContentId, ...]:
        return tuple(entry.content for entry in await self.ls() if entry.pinned)

    async def ls(self) -> tuple[Entry, ...]:
        return tuple(self._entries[content] for content in sorted(self._entries))

    async def collect(self, final_checkpoint: int | None = None) -> CollectReport:
        """Let go in the daemon of what nothing keeps any more.

        The disk is freed when the daemon collects its garbage. Let go first, forgotten last: cut short,
        the next collection does it again.
        """
        self._folder.require_open()
        async with self._writing:
            doomed = tuple(
                entry.content
                for entry in self._entries.values()
                if entry.is_over(final_checkpoint) and not self._leases[entry.content]
            )
            for content in doomed:
                with contextlib.suppress(KuboRefused):  # someone removed it already
                    await self._daemon.remove(self._path(content))
                with named_errors(self._folder.path):
                    self._records.remove((content,))
                    self._folder.assembled_path(content).unlink(missing_ok=True)
                del self._entries[content]
            removed = await self._daemon.collect_garbage() if self._repo_gc else 0
            return CollectReport(doomed, len(self._entries), removed, 0)

    def lease(self, content: ContentId) -> AbstractContextManager[None]:
        """While open, no collection of this node lets the content go."""
        return self._lease(content)

    def ephemeral_checkpoint_of(self, content: ContentId) -> int | None:
        entry = self._entries.get(content)
        return entry.ephemeral_checkpoint if entry else None

    async def version(self) -> str:
        """What the daemon calls itself, for people to read."""
        return await self._daemon.version()

    async def close(self) -> None:
        self._folder.close()
        await self._daemon.close()

    async def __aenter__(self) -> "KuboStore":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # within

    @contextmanager
    def _lease(self, content: ContentId) -> Iterator[None]:
        self._leases[content] += 1
        try:
            yield
        finally:
            self._leases[content] -= 1
            if not self._leases[content]:
                del self._leases[content]

    def _path(self, content: ContentId) -> str:
        return f"{self._holdings}/{content.cid}"

    async def _hold(self, content: ContentId) -> None:
        """Enter the content in the daemon's file system; `_writing` is held. Harmless when repeated."""
        if not self._has_holdings:
            await self._daemon.make_folder(self._holdings)
            self._has_holdings = True
        try:
            await self._daemon.copy(f"/ipfs/{content.cid}", self._path(content), self._block_timeout_ms)
        except KuboRefused as refusal:
            try:
                await self._daemon.stat(self._path(content))  # there already: daemons word this differently
            except KuboRefused:
                self._has_holdings = False  # someone may have removed the folder
                raise refusal from None

    def _record(self, entry: Entry) -> None:
        with named_errors(self._folder.path):
            self._records.write(entry)
        self._entries[entry.content] = entry

    async def _fetch(self, digest: bytes) -> bytes:
        """A block as the daemon returns it, which the caller hashes."""
        self._folder.require_open()
        name = cid_text(RAW, digest)
        try:
            return await self._daemon.block(name, self._block_timeout_ms)
        except KuboRefused as error:
            raise missing(name) from error


def _name(data: bytes | Path) -> ContentId:
    importer = Importer()
    for chunk in _file(data):
        importer.update(chunk)
    return importer.finish()


def _file(data: bytes | Path) -> Iterator[bytes]:
    """The bytes to send, a few leaves at a time."""
    if isinstance(data, Path):
        with open_source(data) as file:
            yield from source_chunks(file, data)
        return
    for start in range(0, len(data), LEAF_SIZE_BYTES):
        yield data[start : start + LEAF_SIZE_BYTES]


def _car(data: bytes | Path, content: ContentId) -> Iterator[bytes]:
    """The CAR of a file, made while it is sent; refused where the file no longer has that name."""
    sections: list[bytes] = []
    sent: set[bytes] = set()

    def add(digest: bytes, codec: int, block: Bytes) -> None:
        if digest not in sent:
            sent.add(digest)
            sections.append(encode_section(codec, digest, block))

    importer = Importer(add)
    yield encode_header(content.cid_bytes)
    for chunk in _file(data):
        importer.update(chunk)
        yield from sections
        sections.clear()
    if importer.finish() != content:
        raise ContentRefused("the file changed while it was sent\n  store it once nothing writes to it")
    yield from sections


def _named_otherwise(named: tuple[str, ...], content: ContentId) -> ContentRefused:
    return ContentRefused(
        f"Kubo named the content {', '.join(named) or 'nothing'}, not {content.cid}\n"
        "  this daemon does not follow the profile unixfs-v1-2025: use one that has dag/import"
    )


def _damaged(digest: bytes) -> ContentDamaged:
    return ContentDamaged(
        f"Kubo returned other bytes for block {digest.hex()}\n"
        "  run `ipfs repo verify` on the daemon, and fetch the content again"
    )
