"""The blocks of the chain in Python, one line each: it is replayed from genesis at every start.

A line is written and synced before the block can be seen, so that a kill loses nothing that was answered. A
torn last line is cut off. Called by pyevm_rpc.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import ServiceError


@dataclass(frozen=True, slots=True)
class JournalBlock:
    """What is needed to make a block again, byte for byte."""

    timestamp: int
    transactions: tuple[bytes, ...]


class BlockJournal:
    """One file, one writer: the folder's lock is devnet_chain.py's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def replay(self) -> Iterator[JournalBlock]:
        """Every whole block, and then the file is open for more. Raises ServiceError on a damaged middle."""
        good = 0
        data = self._path.read_bytes() if self._path.exists() else b""
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                fields = json.loads(line)
                block = JournalBlock(
                    int(fields["timestamp"]), tuple(bytes.fromhex(text) for text in fields["transactions"])
                )
            except (ValueError, KeyError, TypeError):
                if number == len(lines) - 1:
                    break
                raise ServiceError(
                    f"block {number} of {self._path} is damaged, and blocks follow it\n"
                    "  start in a new folder; the old file stays for inspection"
                ) from None
            yield block
            good += len(line) + 1
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        self._file.truncate(good)
        self._file.seek(good)

    def append(self, block: JournalBlock) -> None:
        assert self._file is not None, "replay() first"
        fields = {"timestamp": block.timestamp, "transactions": [raw.hex() for raw in block.transactions]}
        self._file.write(json.dumps(fields).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
