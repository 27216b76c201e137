"""The folder of the embedded store: its parts, its one writer, its format and the room left in it.

    format        names this layout
    writer.lock   held by the one process that writes; readers may stand beside it
    incoming/     temporary files, wiped when a writer opens
    blocks/       one file per block, named by the hex of its sha256
    roots/        one record per content: size, pinned, checkpoint (written last, removed first)
    quarantine/   blocks that no longer hash to their name, until the next collection
    assembled/    whole files for senders that need a path, wiped when a writer opens

Used by block_store, and by kubo for its records and assembled files.
"""

import fcntl
import os
import shutil
from pathlib import Path

from ..errors import ConfigError, ServiceError
from ..protocol.content_id import ContentId
from .files import named_errors, read_regular, sync_folder, write_temporary
from .interface import StoreBusy, StoreFull

FORMAT = b"citrate content store 1\n"


class StoreFolder:
    """Opened for writing by one process, which keeps the lock until `close`; or for reading by any."""

    def __init__(self, path: Path, *, read_only: bool, disk_reserve_bytes: int) -> None:
        self.path = path
        self.read_only = read_only
        self.incoming = path / "incoming"
        self.blocks = path / "blocks"
        self.roots = path / "roots"
        self.quarantine = path / "quarantine"
        self.assembled = path / "assembled"
        self._disk_reserve_bytes = disk_reserve_bytes
        self._lock_file: int | None = None
        self._closed = False
        with named_errors(path):
            if not read_only:
                self._prepare()
            found = read_regular(path / "format", 100)
        if found is None:
            raise ConfigError(
                f"there is no content store at {path}\n"
                "  name a node's data folder with --store, or add a file there to make one"
            )
        if found != FORMAT:
            self.close()
            raise ServiceError(
                f"the content store at {path} has another format: {found!r}\n"
                "  another version of this program wrote it; use that one, or an empty folder"
            )

    def _prepare(self) -> None:
        for folder in (self.incoming, self.blocks, self.roots, self.quarantine, self.assembled):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(self.path / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock_file, 20, 0).decode(errors="replace") or "?"
            self.close()
            raise StoreBusy(
                f"the content store at {self.path} is in use by process {holder}\n"
                "  stop that node first; `cat`, `get`, `ls` and `export` work beside it"
            ) from error
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, str(os.getpid()).encode(), 0)
        for leftover in (*self.incoming.iterdir(), *self.assembled.iterdir()):
            leftover.unlink()
        if read_regular(self.path / "format", 100) is None:
            os.replace(write_temporary(self.incoming, FORMAT), self.path / "format")
            sync_folder(self.path)
            sync_folder(self.path.parent)

    def assembled_path(self, content: ContentId) -> Path:
        return self.assembled / content.cid_bytes.hex()

    def make_room_for_assembled(self, size_bytes: int, assembled_bytes_max: int) -> None:
        """Remove the oldest assembled files until one more fits into the budget; StoreFull on a full disk."""
        files = sorted((f.stat().st_mtime_ns, f.stat().st_size, f) for f in self.assembled.iterdir())
        excess = sum(size for _, size, _ in files) + size_bytes - assembled_bytes_max
        for _, size, file in files:
            if excess > 0:
                file.unlink()
                excess -= size
        self.require_disk(size_bytes)

    def require_open(self) -> None:
        if self._closed:
            raise ServiceError(f"the content store at {self.path} is closed")

    def require_writer(self) -> None:
        self.require_open()
        if self.read_only:
            raise ServiceError(f"the content store at {self.path} is open for reading only")

    def require_disk(self, size_bytes: int) -> None:
        """StoreFull unless that many bytes fit and the reserve stays free."""
        free = shutil.disk_usage(self.path).free
        if free < size_bytes + self._disk_reserve_bytes:
            raise StoreFull(
                f"{size_bytes} bytes do not fit: the disk under {self.path} has {free} bytes free, "
                f"of which {self._disk_reserve_bytes} stay reserved\n"
                "  free some space, or let contents go with `citrate content unpin` and `citrate content gc`"
            )

    def close(self) -> None:
        """Give the lock back. Harmless when repeated."""
        self._closed = True
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None
