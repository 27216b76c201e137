"""Files that survive a crash: blocks named by their digest, and the records of what a store keeps.

A file appears under its name only when its bytes are on the disk (temporary file, fsync, rename), and
a name counts as kept only after the folder was synced too. Used by block_store; the records also by
kubo, which has to remember the same things about a daemon's pins.
"""

import errno
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError, ServiceError
from ..protocol.content_id import LEAF_SIZE_BYTES, Bytes, ContentId, decode_cid
from .interface import Entry, StoreFull

_temporary_numbers = itertools.count()


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours: a full disk is a case of its own."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"the disk under {folder} is full\n"
                "  free some space, or let contents go with `citrate content unpin` and `citrate content gc`"
            ) from error
        raise ServiceError(
            f"the content store at {folder} cannot be used ({error.strerror or error})\n"
            "  check that the folder exists, belongs to this user and that its disk is healthy"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_temporary(folder: Path, data: Bytes) -> Path:
    """Write and sync a new file in `folder`, which means nothing until renamed; on failure none is left."""
    path = folder / f"{os.getpid()}-{next(_temporary_numbers)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def write_new_file(path: Path, parts: Iterable[Bytes]) -> None:
    """Write a file that appears only when complete and synced; ConfigError where one is there already."""
    if path.exists():
        raise ConfigError(f"{path} exists\n  name a file that does not, or remove this one first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_temporary_numbers)}")
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise ServiceError(
            f"cannot write {path} ({error.strerror})\n  check that its folder exists and has room"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_regular(path: Path, size_bytes_max: int) -> bytes | None:
    """The bytes of a file, None where there is none. A link, a folder or too long a file counts as none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > size_bytes_max:
            return None
        return file.read()


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be stored; ConfigError for a name that is no readable file (a pipe would never end)."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror})\n  name a file this user may read"
        ) from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError(f"{path} is not a regular file\n  name a file")
        yield file


def source_chunks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The bytes of an opened source, a few leaves at a time."""
    while True:
        try:
            chunk = file.read(4 * LEAF_SIZE_BYTES)
        except OSError as error:
            raise ServiceError(
                f"cannot read {path} ({error.strerror})\n  check the disk it lies on"
            ) from error
        if not chunk:
            return
        yield chunk


class BlockFolder:
    """Blocks as files `<hex digest>`; a name is never built from anything a peer sent but 32 bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: bytes) -> Path:
        return self.folder / digest.hex()

    def size_bytes(self, digest: bytes) -> int | None:
        """Length of the file, unchecked; None where there is none."""
        try:
            status = os.lstat(self.path(digest))
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, digest: bytes, size_bytes_max: int) -> bytes | None:
        """The bytes on the disk, which the caller hashes."""
        return read_regular(self.path(digest), size_bytes_max)

    def digests(self) -> Iterator[tuple[bytes, int]]:
        """(digest, length) of every block, names of another form left out."""
        with os.scandir(self.folder) as files:
            for file in files:
                if len(file.name) == 64 and set(file.name) <= set("0123456789abcdef"):
                    with suppress(FileNotFoundError):
                        yield bytes.fromhex(file.name), file.stat(follow_symlinks=False).st_size


class Records:
    """One small JSON file per content: `<hex of the binary CID>`, written last and removed first.

    A record that cannot be read still names its content, and is taken for a pin: losing a pin to a
    broken file would lose the content at the next collection.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder = folder
        self._temporary = temporary

    def load(self) -> tuple[dict[ContentId, Entry], list[tuple[int, bytes]]]:
        """All records, and (codec, digest) of those that are unreadable."""
        entries: dict[ContentId, Entry] = {}
        broken: list[tuple[int, bytes]] = []
        for path in sorted(self.folder.iterdir()):
            try:
                codec, digest = decode_cid(bytes.fromhex(path.name))
            except ValueError:
                continue  # not ours
            entry = _decode_record(digest, codec, read_regular(path, 4096) or b"")
            if entry is None:
                broken.append((codec, digest))
            else:
                entries[entry.content] = entry
        return entries, broken

    def write(self, entry: Entry) -> None:
        """Durable when this returns."""
        data = {
            "size_bytes": entry.content.size_bytes,
            "pinned": entry.pinned,
            "ephemeral_checkpoint": entry.ephemeral_checkpoint,
        }
        path = write_temporary(self._temporary, json.dumps(data).encode() + b"\n")
        os.replace(path, self._path(entry.content))
        sync_folder(self.folder)

    def remove(self, contents: tuple[ContentId, ...]) -> None:
        """Durable when this returns, so that blocks may be removed next."""
        for content in contents:
            self._path(content).unlink(missing_ok=True)
        if contents:
            sync_folder(self.folder)

    def _path(self, content: ContentId) -> Path:
        return self.folder / content.cid_bytes.hex()


def _decode_record(digest: bytes, codec: int, data: bytes) -> Entry | None:
    try:
        fields = json.loads(data)
        size, pinned, checkpoint = fields["size_bytes"], fields["pinned"], fields["ephemeral_checkpoint"]
        if type(size) is not int or type(pinned) is not bool or type(checkpoint) not in (int, type(None)):
            return None
        content = ContentId(digest, size)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return Entry(content, pinned, checkpoint) if content.codec == codec else None
