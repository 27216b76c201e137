"""Saved states of the embedded chain: generations of compressed files, the newest whole one wins.

anvil's own state file is not written atomically and breaks when it is killed at the wrong moment. Here a
state is written beside, synced and renamed; its gzip checksum tells a damaged one. Called by devnet_chain.py.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path

GENERATIONS_KEPT = 3
_NAME = re.compile(r"state-(\d{10})\.json\.gz")


class StateFiles:
    """The generations in one folder. Used by one process at a time: the folder's lock sees to that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def generations(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.folder.glob("state-*.json.gz") if _NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def never_saved(self) -> bool:
        """Whether no state was ever saved here, not even one that is damaged now."""
        return not any(self.folder.glob("state-*.json.gz*"))

    def save(self, compressed: bytes) -> Path:
        """Keeps a state (gzip of JSON). When it returns, the state survives a power cut."""
        newest = self.generations()[:1]
        number = 1 + (int(_NAME.fullmatch(newest[0].name)[1]) if newest else 0)  # type: ignore[index]
        path = self.folder / f"state-{number:010}.json.gz"
        _write_synced(path, compressed)
        for old in self.generations()[GENERATIONS_KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def unpack(self, generation: Path) -> Path | None:
        """The plain file that anvil loads, or None where this generation is damaged."""
        try:
            plain = gzip.decompress(generation.read_bytes())
        except (OSError, EOFError, zlib.error):
            return None
        path = self.folder / "load.json"
        path.write_bytes(plain)  # read once, right away: no need for it to survive anything
        return path

    def set_aside(self, generation: Path) -> None:
        """Out of the way of the next start, but kept for whoever wants to look."""
        generation.rename(generation.with_name(generation.name + ".damaged"))


def _write_synced(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
