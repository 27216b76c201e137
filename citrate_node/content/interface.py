"""What a content store promises, whichever one stands behind it, and the errors it may raise.

Two keep the promise: store.EmbeddedStore (files in a folder, the default) and kubo.KuboStore (a Kubo
daemon). The runtime and the command line hold a `ContentStore` and do not know which.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import ServiceError
from ..protocol.content_id import ContentId


class ContentMissing(ServiceError):
    """The store does not hold the whole content: fetch it from a peer, then ask again."""


class ContentDamaged(ContentMissing):
    """A block does not hash to its name. It was set aside, so the content now counts as missing."""


class ContentRefused(ServiceError):
    """What came is not what its name or the announced size says; nothing of it was kept."""


class StoreFull(ServiceError):
    """No room, on the disk or in the store's own budget. What a failed import wrote was removed again."""


class StoreBusy(ServiceError):
    """Another process writes to this store."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One content the store answers for, and until when."""

    content: ContentId

    pinned: bool
    """Kept until unpinned, whatever its checkpoint."""

    ephemeral_checkpoint: int | None
    """The checkpoint this content serves: it may go once that one is final. None: no such end."""

    def is_over(self, final_checkpoint: int | None) -> bool:
        """Whether a collection may take it: unpinned, and its checkpoint, if it has one, is final."""
        if self.pinned:
            return False
        if self.ephemeral_checkpoint is None:
            return True
        return final_checkpoint is not None and self.ephemeral_checkpoint <= final_checkpoint


def entry_after_put(old: Entry | None, content: ContentId, ephemeral_checkpoint: int | None) -> Entry:
    """What a store keeps once a content was stored (again): what was promised before still holds."""
    if ephemeral_checkpoint is None:
        return Entry(content, True, None)
    if old is None:
        return Entry(content, False, ephemeral_checkpoint)
    if old.ephemeral_checkpoint is None:
        return Entry(content, old.pinned, None if old.pinned else ephemeral_checkpoint)
    return Entry(content, old.pinned, max(old.ephemeral_checkpoint, ephemeral_checkpoint))


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection removed. Blocks that other contents share stay, and are not counted."""

    contents_removed: tuple[ContentId, ...]
    contents_kept: int
    blocks_removed: int
    bytes_freed: int


def missing(name: str) -> ContentMissing:
    """The error of a content or block that is not here."""
    return ContentMissing(
        f"{name} is not in this store, or not whole\n  fetch it from a peer, or import a CAR of it"
    )


class ContentStore(Protocol):
    """Keeps files under the names their bytes give them; every byte handed out was hashed first.

    `put` without a checkpoint pins. With one, the content stays until a collection is told that this
    checkpoint, or a later one, is final; pinned meanwhile, it stays longer.
    """

    async def put(self, data: bytes | Path, *, ephemeral_checkpoint: int | None = None) -> ContentId: ...

    async def get(self, content: ContentId) -> bytes: ...

    async def get_by_cid(self, cid: str, size_bytes_max: int) -> bytes: ...

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId: ...

    async def block(self, digest: bytes) -> bytes: ...

    def read(self, content: ContentId, offset: int = 0) -> AsyncIterator[bytes]: ...

    async def open_path(self, content: ContentId) -> Path | None: ...

    async def has(self, content: ContentId) -> bool: ...

    async def pin(self, content: ContentId) -> None: ...

    async def unpin(self, content: ContentId) -> None: ...

    async def pins(self) -> tuple[ContentId, ...]: ...

    async def ls(self) -> tuple[Entry, ...]: ...

    async def collect(self, final_checkpoint: int | None = None) -> CollectReport: ...

    def lease(self, content: ContentId) -> AbstractContextManager[None]: ...

    def ephemeral_checkpoint_of(self, content: ContentId) -> int | None: ...

    async def close(self) -> None: ...
