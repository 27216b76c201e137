"""What a node must not forget: SQLite in WAL mode, one file per node, every write durable when it returns.

Signing journal, messages of open checkpoints, error-feedback residuals, where the last final checkpoint
stands, and how far the contract's events were followed. Big things (weights, deltas, records) are in the
content store; here are only their hashes. Called by main_loop and chain_events.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ServiceError
from ..protocol.certificate import Certificate, Validator
from ..protocol.checkpoint import commitment_of, decode_record
from ..protocol.content_id import ContentId, content_id
from ..protocol.encoding import decode, encode
from ..protocol.tensors import Factor

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE journal (slot TEXT PRIMARY KEY, digest BLOB NOT NULL, checkpoint INTEGER NOT NULL);
CREATE TABLE messages (id BLOB PRIMARY KEY, checkpoint INTEGER NOT NULL, envelope BLOB NOT NULL);
CREATE INDEX messages_by_checkpoint ON messages (checkpoint);
CREATE TABLE residuals (factor TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE checkpoints (
  number INTEGER PRIMARY KEY, block INTEGER NOT NULL, record BLOB NOT NULL, certificate BLOB NOT NULL,
  state_hash BLOB NOT NULL, state_size INTEGER NOT NULL,
  weights_hash BLOB NOT NULL, weights_size INTEGER NOT NULL
);
CREATE TABLE identity (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE followed (chain TEXT PRIMARY KEY, block INTEGER NOT NULL);
CREATE TABLE picked_up (digest BLOB, size INTEGER, held INTEGER NOT NULL, PRIMARY KEY (digest, size));
CREATE TABLE compositions (
  adapter BLOB PRIMARY KEY, block INTEGER NOT NULL, weight_a INTEGER NOT NULL,
  a_hash BLOB NOT NULL, a_size INTEGER NOT NULL, b_hash BLOB NOT NULL, b_size INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class FinalCheckpoint:
    """A checkpoint that is final here, and where its files are."""

    number: int
    block_number: int
    record: bytes
    certificate: bytes
    """See encode_certificate; empty where this node saw no quorum's votes."""
    state_file: ContentId
    weights: ContentId


@dataclass(frozen=True, slots=True)
class WaitingComposition:
    """A composition on chain without its version 1, and where its parents' weights are."""

    adapter_id: bytes
    block_number: int
    weight_a: int
    parent_a: ContentId
    parent_b: ContentId


def encode_certificate(certificate: Certificate | None, committee: tuple[Validator, ...]) -> bytes:
    """Round, signatures and committee as canonical CBOR; the commitment itself follows from the record."""
    if certificate is None:
        return b""
    signatures = [[account, signature] for account, signature in sorted(certificate.signatures.items())]
    seats = [[v.node_key, v.account, v.stake] for v in committee]
    return encode([certificate.commitment.round, signatures, seats])


def decode_certificate(record: bytes, data: bytes) -> tuple[Certificate, tuple[Validator, ...]] | None:
    """What encode_certificate kept, for the record it belongs to."""
    if not data:
        return None
    round_number, signatures, seats = decode(data, size_bytes_max=1 << 20)
    commitment = commitment_of(decode_record(record), round_number)
    validators = tuple(Validator(key, account, stake) for key, account, stake in seats)
    return Certificate(commitment, dict(signatures)), validators


class NodeDatabase:
    """The node's file. Raises ServiceError where it is another node's or network's, or of a newer version."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise ServiceError(
                    f"{path} has format {version}, this program writes {SCHEMA_VERSION}\n"
                    "  use the program that made it, or start in an empty folder"
                )
        except sqlite3.DatabaseError as error:
            raise ServiceError(f"cannot open {path}: {error}\n  move it away to start anew") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def bind(self, name: str, value: bytes) -> None:
        """Tie the file to a network or key at the first start; refuse another at later ones."""
        with self._lock:
            row = self._db.execute("SELECT value FROM identity WHERE name = ?", (name,)).fetchone()
            if row is None:
                self._db.execute("INSERT INTO identity VALUES (?, ?)", (name, value))
            elif row[0] != value:
                raise ServiceError(
                    f"this folder belongs to another {name} ({row[0][:8].hex()}, not {value[:8].hex()})\n"
                    "  give this node a folder of its own"
                )

    def add_journal(self, slot: str, digest: bytes) -> None:
        """Durable on return: only then may the signature leave."""
        checkpoint = int(slot.split("/")[1])
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO journal VALUES (?, ?, ?)", (slot, digest, checkpoint))

    def journal(self) -> dict[str, bytes]:
        with self._lock:
            return dict(self._db.execute("SELECT slot, digest FROM journal"))

    def add_message(self, message_id: bytes, checkpoint: int, envelope: bytes) -> None:
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO messages VALUES (?, ?, ?)", (message_id, checkpoint, envelope)
            )

    def messages(self) -> list[bytes]:
        """Envelopes of checkpoints that are not final, oldest first."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT envelope FROM messages ORDER BY rowid")]

    def set_residual(self, factor: Factor, values: npt.NDArray[np.float32]) -> None:
        data = values.astype("<f4").tobytes()
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO residuals VALUES (?, ?)", (factor, data))

    def residuals(self) -> dict[Factor, npt.NDArray[np.float32]]:
        with self._lock:
            rows = self._db.execute("SELECT factor, data FROM residuals").fetchall()
        return {factor: np.frombuffer(data, dtype="<f4").astype(np.float32) for factor, data in rows}

    def finalize(self, final: FinalCheckpoint) -> None:
        """One transaction: the checkpoint is final, and what only it needed is forgotten."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    final.number,
                    final.block_number,
                    final.record,
                    final.certificate,
                    final.state_file.digest,
                    final.state_file.size_bytes,
                    final.weights.digest,
                    final.weights.size_bytes,
                ),
            )
            self._db.execute("DELETE FROM messages WHERE checkpoint <= ?", (final.number,))
            self._db.execute("DELETE FROM journal WHERE checkpoint <= ?", (final.number,))
            self._db.execute("COMMIT")

    def followed_block(self) -> int | None:
        """The last block whose events were worked off, None before the first."""
        with self._lock:
            row = self._db.execute("SELECT block FROM followed").fetchone()
        return None if row is None else int(row[0])

    def follow(
        self,
        block: int,
        wanted: Iterable[ContentId] = (),
        compositions: Iterable[WaitingComposition] = (),
        settled: Iterable[bytes] = (),
    ) -> None:
        """One transaction: events up to this block are worked off, and this is what they ask for."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.execute("INSERT OR REPLACE INTO followed VALUES ('contract', ?)", (block,))
            for content in wanted:
                self._db.execute(
                    "INSERT OR IGNORE INTO picked_up VALUES (?, ?, 0)", (content.digest, content.size_bytes)
                )
            for c in compositions:
                a, b = c.parent_a, c.parent_b
                row = (
                    c.adapter_id,
                    c.block_number,
                    c.weight_a,
                    a.digest,
                    a.size_bytes,
                    b.digest,
                    b.size_bytes,
                )
                self._db.execute("INSERT OR IGNORE INTO compositions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            for adapter_id in settled:
                self._db.execute("DELETE FROM compositions WHERE adapter = ?", (adapter_id,))
            self._db.execute("COMMIT")

    def wanted(self) -> list[ContentId]:
        """Contents that the chain names and this node does not hold yet, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT digest, size FROM picked_up WHERE NOT held ORDER BY rowid"
            ).fetchall()
        return [ContentId(digest, size) for digest, size in rows]

    def picked_up_bytes(self) -> int:
        """Of all contents that the chain named and that are held."""
        with self._lock:
            row = self._db.execute("SELECT COALESCE(SUM(size), 0) FROM picked_up WHERE held").fetchone()
        return int(row[0])

    def set_held(self, content: ContentId) -> None:
        """The content is in the store, pinned."""
        with self._lock:
            self._db.execute(
                "UPDATE picked_up SET held = 1 WHERE digest = ? AND size = ?",
                (content.digest, content.size_bytes),
            )

    def compositions(self) -> list[WaitingComposition]:
        """Oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM compositions ORDER BY block, rowid").fetchall()
        return [
            WaitingComposition(adapter, block, weight_a, ContentId(ah, asize), ContentId(bh, bsize))
            for adapter, block, weight_a, ah, asize, bh, bsize in rows
        ]

    def final_checkpoints(self) -> list[FinalCheckpoint]:
        """All of them, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM checkpoints ORDER BY number").fetchall()
        return [
            FinalCheckpoint(number, block, record, certificate, ContentId(sh, ss), ContentId(wh, ws))
            for number, block, record, certificate, sh, ss, wh, ws in rows
        ]

    def by_record_hash(self, record_hash: bytes) -> FinalCheckpoint | None:
        """The final checkpoint whose record has this hash."""
        for final in reversed(self.final_checkpoints()):
            if content_id(final.record).digest == record_hash:
                return final
        return None
