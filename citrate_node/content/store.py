"""The embedded content store for asyncio: block_store's functions, each run in a few threads of its own.

Hashing and disk work leave the event loop free, and a slow disk cannot take the threads of anybody
else. The runtime opens one per node and closes it last; whoever only needs blocking calls uses
`BlockStore`, which is also reachable as `EmbeddedStore.blocking`.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from ..errors import ServiceError
from ..protocol.content_id import ContentId
from .block_store import BlockStore, VerifyReport
from .interface import CollectReport, ContentStore, Entry

__all__ = ["BlockStore", "ContentStore", "EmbeddedStore"]

THREADS = 4
"""Enough to keep two cores hashing while others wait for the disk."""

P = ParamSpec("P")
R = TypeVar("R")


class EmbeddedStore:
    """A `ContentStore` in a folder. Opening is quick and blocking; every other call is awaited."""

    def __init__(
        self,
        folder: Path,
        *,
        read_only: bool = False,
        size_bytes_max: int = 64 << 30,
        disk_reserve_bytes: int = 64 << 20,
    ) -> None:
        self.blocking = BlockStore(
            folder, read_only=read_only, size_bytes_max=size_bytes_max, disk_reserve_bytes=disk_reserve_bytes
        )
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "content")

    async def put(self, data: bytes | Path, *, ephemeral_checkpoint: int | None = None) -> ContentId:
        """Store bytes or a file; cancelled, it stops at the next block and leaves nothing behind."""
        stop = threading.Event()
        try:
            return await self._run(
                self.blocking.put, data, ephemeral_checkpoint=ephemeral_checkpoint, stop=stop
            )
        finally:
            stop.set()

    async def get(self, content: ContentId) -> bytes:
        return await self._run(self.blocking.get, content)

    async def get_by_cid(self, cid: str, size_bytes_max: int) -> bytes:
        return await self._run(self.blocking.get_by_cid, cid, size_bytes_max)

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        return await self._run(self.blocking.resolve, cid, size_bytes_max)

    async def read(self, content: ContentId, offset: int = 0) -> AsyncIterator[bytes]:
        """The file from `offset` on, in pieces of at most one leaf; leased until the iteration ends."""
        with self.lease(content):
            reader = self.blocking.reader(content, offset)
            while (data := await self._run(reader.next_bytes)) is not None:
                yield bytes(data)

    async def block(self, digest: bytes) -> bytes:
        """One block of whatever content, hashed."""
        return await self._run(self.blocking.block, digest)

    async def open_path(self, content: ContentId) -> Path | None:
        return await self._run(self.blocking.open_path, content)

    async def has(self, content: ContentId) -> bool:
        return await self._run(self.blocking.has, content)

    async def pin(self, content: ContentId) -> None:
        await self._run(self.blocking.pin, content)

    async def unpin(self, content: ContentId) -> None:
        await self._run(self.blocking.unpin, content)

    async def pins(self) -> tuple[ContentId, ...]:
        return await self._run(self.blocking.pins)

    async def ls(self) -> tuple[Entry, ...]:
        return await self._run(self.blocking.entries)

    async def collect(self, final_checkpoint: int | None = None) -> CollectReport:
        return await self._run(self.blocking.collect, final_checkpoint)

    async def verify(self) -> VerifyReport:
        return await self._run(self.blocking.verify)

    def lease(self, content: ContentId) -> AbstractContextManager[None]:
        return self.blocking.lease(content)

    def ephemeral_checkpoint_of(self, content: ContentId) -> int | None:
        return self.blocking.ephemeral_checkpoint_of(content)

    async def close(self) -> None:
        """Wait for what was asked, then give the folder back. Harmless when repeated."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        self.blocking.close()

    async def __aenter__(self) -> "EmbeddedStore":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            future = self._threads.submit(function, *args, **kwargs)
        except RuntimeError as error:
            raise ServiceError(f"the content store at {self.blocking.path} is closed") from error
        return await asyncio.wrap_future(future)
