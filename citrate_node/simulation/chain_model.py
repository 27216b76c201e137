"""A pretended chain: blocks at a fixed interval, and the contract's rules for checkpoints and compositions.

It takes exactly the next number with a valid certificate, once, as AdapterFactory.commitCheckpoint does, and
checks with the same function that the contract's tests are held against (certificate.check_certificate).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from ..protocol.certificate import Certificate, CertifiedUpdate, Validator, check_certificate
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS


@dataclass(frozen=True, slots=True)
class Commit:
    """One accepted checkpoint."""

    number: int
    record_hash: bytes
    block_number: int


@dataclass(frozen=True, slots=True)
class Composed:
    """A composition that somebody asked for."""

    adapter_id: bytes
    parent_a: bytes
    parent_b: bytes
    version_a: int
    version_b: int
    weight_a: int
    block_number: int


@dataclass
class ChainModel:
    """The contract's state, and what waits for the next block."""

    genesis_record_hash: bytes
    open_adapter: bytes = b""
    """The one adapter that is open to mentorship."""
    chain_id: int = 31337
    contract: bytes = ADAPTER_FACTORY_ADDRESS
    block_number: int = 0
    commits: list[Commit] = field(default_factory=list)
    record_hashes: dict[int, bytes] = field(default_factory=dict)
    """Number to record hash of every accepted checkpoint."""
    refusals: list[str] = field(default_factory=list)
    versions: dict[bytes, list[CertifiedUpdate]] = field(default_factory=dict)
    """Adapter id to its versions, oldest first; one that was created has its first from the start."""
    compositions: dict[bytes, Composed] = field(default_factory=dict)
    _pending: list[tuple[Certificate, tuple[Validator, ...]]] = field(default_factory=list)

    def send(self, certificate: Certificate, validators: tuple[Validator, ...]) -> None:
        """Put a transaction into the pool; the next block decides on it."""
        self._pending.append((certificate, validators))

    def create(self, adapter_id: bytes, version: CertifiedUpdate) -> None:
        """An adapter with its version 1."""
        self.versions[adapter_id] = [version]

    def compose(self, parent_a: bytes, parent_b: bytes, weight_a: int) -> Composed:
        """Ask for a composition of the latest versions, in the present block.

        Raises ValueError where the contract would revert: a parent without a version, weights out of range.
        """
        if not 1 <= weight_a <= 99 or parent_a == parent_b:
            raise ValueError("two different parents and two weights that sum to 100 are wanted")
        versions = [len(self.versions.get(parent, ())) for parent in (parent_a, parent_b)]
        if 0 in versions:
            raise ValueError("a parent has no version yet")
        name = b"".join((parent_a, parent_b, bytes([weight_a]), len(self.compositions).to_bytes(8, "big")))
        adapter_id = sha256(b"simulated composition" + name).digest()
        version_a, version_b = versions
        composed = Composed(adapter_id, parent_a, parent_b, version_a, version_b, weight_a, self.block_number)
        self.compositions[adapter_id] = composed
        self.versions[adapter_id] = []
        return composed

    def mine(self) -> list[Commit]:
        """One block: its accepted checkpoints, in order."""
        self.block_number += 1
        accepted = []
        pending, self._pending = self._pending, []
        for certificate, validators in pending:
            commitment = certificate.commitment
            last_hash = self.commits[-1].record_hash if self.commits else self.genesis_record_hash
            if commitment.number != len(self.commits) + 1 or commitment.parent_record_hash != last_hash:
                self.refusals.append(f"checkpoint {commitment.number} does not follow {len(self.commits)}")
                continue
            try:
                check_certificate(self.chain_id, self.contract, validators, certificate)
            except ValueError as error:
                self.refusals.append(str(error))
                continue
            closed = [
                update.adapter_id[:8].hex()
                for update in commitment.updates
                if update.adapter_id != self.open_adapter and self.versions.get(update.adapter_id) != []
            ]
            if closed:
                self.refusals.append(f"closed to mentorship: {', '.join(closed)}")
                continue
            for update in commitment.updates:
                self.versions.setdefault(update.adapter_id, []).append(update)
            commit = Commit(commitment.number, commitment.record_hash, self.block_number)
            self.commits.append(commit)
            self.record_hashes[commit.number] = commit.record_hash
            accepted.append(commit)
        return accepted
