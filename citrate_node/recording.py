"""A recording: everything that is needed to compute a network's checkpoints again, in one folder.

    network.cbor            chain id, genesis block, contract, preset, nodes, adapter, genesis record
    genesis.safetensors     the adapter's weights before checkpoint 1
    chain.jsonl             what the chain says: one line per committed checkpoint
    checkpoints/000001.cbor record and the envelopes of its inputs, canonical CBOR
    deltas/<digest>.delta   the delta files that they announce
    parents/<digest>.safetensors   weights that compositions of a checkpoint were made from

Files are named by number or content, so that several nodes may write the same recording: whoever comes first
writes, and all write the same bytes. Written by main_loop and devnet; read by replay.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from .errors import ConfigError
from .protocol.certificate import Validator
from .protocol.checkpoint import RECORD_SIZE_BYTES_MAX
from .protocol.composition_request import CompositionRequest
from .protocol.content_id import content_id
from .protocol.encoding import EncodingError, Hash32, Sized, decode, encode
from .protocol.messages import Message
from .protocol.preset import Preset, preset_from

RECORDING_VERSION = 1
FILE_SIZE_BYTES_MAX = 1 << 30


@dataclass(frozen=True, slots=True)
class RecordedNetwork:
    """What a network started from."""

    chain_id: int
    genesis_block_hash: Hash32
    contract: Annotated[bytes, Sized(20, 20)]
    preset: Preset
    nodes: tuple[Validator, ...]
    adapter_id: Hash32
    genesis_record_hash: Hash32
    genesis_weights_hash: Hash32


@dataclass(frozen=True, slots=True)
class RecordedCheckpoint:
    """One checkpoint as it was finalized."""

    record: bytes
    envelopes: tuple[bytes, ...]
    """Of every message that the record names, ascending by id."""


@dataclass(frozen=True, slots=True)
class ChainRow:
    """What the chain says of one checkpoint."""

    number: int
    record_hash: str
    weights_hash: str
    """Of the adapter's newest version after this checkpoint."""
    block: int
    tx: str
    gas_used: int


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """The whole file or none of it: temp file, fsync, rename, fsync of the folder.

    Without `durable` there is no fsync: whole after kill -9, but not after a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Recording:
    """A folder in the layout above. Nothing is read before it is asked for.

    durable: whether what was written outlasts a loss of power. A simulation can be run again, and would wait
    for the disk longer than it computes: 40 deltas a checkpoint are 80 fsyncs.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder
        self._durable = durable

    def _write(self, path: Path, data: bytes) -> None:
        write_atomically(path, data, durable=self._durable)

    def write_network(self, network: RecordedNetwork, weights: bytes) -> None:
        raw = {
            "version": RECORDING_VERSION,
            "chain_id": network.chain_id,
            "genesis_block_hash": network.genesis_block_hash,
            "contract": network.contract,
            "preset": asdict(network.preset),
            "nodes": [[n.node_key, n.account, n.stake] for n in network.nodes],
            "adapter_id": network.adapter_id,
            "genesis_record_hash": network.genesis_record_hash,
            "genesis_weights_hash": network.genesis_weights_hash,
        }
        self._write(self.folder / "genesis.safetensors", weights)
        self._write(self.folder / "network.cbor", encode(raw))

    def network(self) -> RecordedNetwork:
        """Raises ConfigError where the folder is no recording, or one of another version."""
        raw = self._read(self.folder / "network.cbor")
        try:
            if raw["version"] != RECORDING_VERSION:
                raise ConfigError(f"{self.folder} is a recording of version {raw['version']}, not 1")
            return RecordedNetwork(
                raw["chain_id"],
                raw["genesis_block_hash"],
                raw["contract"],
                preset_from(raw["preset"]),
                tuple(Validator(key, account, stake) for key, account, stake in raw["nodes"]),
                raw["adapter_id"],
                raw["genesis_record_hash"],
                raw["genesis_weights_hash"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.folder / 'network.cbor'} is damaged: {error}") from None

    def genesis_weights(self) -> bytes:
        return self._bytes(self.folder / "genesis.safetensors")

    def write_checkpoint(
        self,
        number: int,
        record: bytes,
        inputs: Iterable[Message],
        deltas: Mapping[bytes, bytes],
        compositions: Iterable[CompositionRequest] = (),
    ) -> None:
        """Deltas and parents first: a checkpoint file that is there is complete."""
        for digest, data in deltas.items():
            path = self._delta_path(digest)
            if not path.exists():
                self._write(path, data)
        for request in compositions:
            parents = (request.parent_a, request.parent_b)
            for digest, weights in zip(request.parent_hashes, parents, strict=True):
                path = self._parent_path(digest)
                if not path.exists():
                    self._write(path, weights.encode())
        envelopes = [m.envelope for m in sorted(inputs, key=lambda m: m.id)]
        path = self._checkpoint_path(number)
        if not path.exists():
            self._write(path, encode({"record": record, "envelopes": envelopes}))

    def checkpoint_numbers(self) -> list[int]:
        """Numbers of the recorded checkpoints, ascending."""
        return sorted(int(path.stem) for path in (self.folder / "checkpoints").glob("[0-9]*.cbor"))

    def checkpoint(self, number: int) -> RecordedCheckpoint:
        path = self._checkpoint_path(number)
        raw = self._read(path)
        if (
            not isinstance(raw, dict)
            or set(raw) != {"record", "envelopes"}
            or not isinstance(raw["record"], bytes)
            or len(raw["record"]) > RECORD_SIZE_BYTES_MAX
        ):
            raise ConfigError(f"{path} is damaged: it must hold a record and envelopes")
        return RecordedCheckpoint(raw["record"], tuple(raw["envelopes"]))

    def delta(self, digest: bytes) -> bytes:
        return self._bytes(self._delta_path(digest))

    def parent(self, digest: bytes) -> bytes:
        """Weights that a composition was made from."""
        return self._bytes(self._parent_path(digest))

    def add_chain_row(self, row: ChainRow) -> None:
        """Append what the chain says of a checkpoint, once per number."""
        if not self._durable:  # one writer, which says each number once
            with (self.folder / "chain.jsonl").open("a") as file:
                file.write(json.dumps(asdict(row), sort_keys=True) + "\n")
            return
        if any(known.number == row.number for known in self.chain_rows()):
            return
        lines = [json.dumps(asdict(known), sort_keys=True) for known in (*self.chain_rows(), row)]
        self._write(self.folder / "chain.jsonl", ("\n".join(lines) + "\n").encode())

    def chain_rows(self) -> Iterator[ChainRow]:
        path = self.folder / "chain.jsonl"
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            try:
                yield ChainRow(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{path} is damaged: {error}") from None

    def _checkpoint_path(self, number: int) -> Path:
        return self.folder / "checkpoints" / f"{number:06d}.cbor"

    def _delta_path(self, digest: bytes) -> Path:
        return self.folder / "deltas" / f"{digest.hex()}.delta"

    def _parent_path(self, digest: bytes) -> Path:
        return self.folder / "parents" / f"{digest.hex()}.safetensors"

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"the recording lacks {path}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None

    def _read(self, path: Path) -> Any:
        try:
            return decode(self._bytes(path), size_bytes_max=FILE_SIZE_BYTES_MAX)
        except EncodingError as error:
            raise ConfigError(f"{path} is damaged: {error}") from None


def find_recording(folder: Path) -> Recording:
    """The recording in a folder, or in the `recording` folder of a devnet. Raises ConfigError for neither."""
    for candidate in (folder, folder / "recording"):
        if (candidate / "network.cbor").is_file():
            return Recording(candidate)
    raise ConfigError(
        f"there is no recording in {folder}\n  give a devnet's folder, or one that holds network.cbor"
    )


def weights_digest(data: bytes) -> bytes:
    """Content digest of a weights file: what the chain calls weightsHash."""
    return content_id(data).digest
