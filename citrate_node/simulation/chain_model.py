"""A pretended chain: blocks at a fixed interval, and the contract's rule for a checkpoint, in Python.

It takes exactly the next number with a valid certificate, once, as AdapterFactory.commitCheckpoint does, and
checks with the same function that the contract's tests are held against (certificate.check_certificate).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol.certificate import Certificate, Validator, check_certificate
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS


@dataclass(frozen=True, slots=True)
class Commit:
    """One accepted checkpoint."""

    number: int
    record_hash: bytes
    block_number: int


@dataclass
class ChainModel:
    """The contract's state, and what waits for the next block."""

    genesis_record_hash: bytes
    chain_id: int = 31337
    contract: bytes = ADAPTER_FACTORY_ADDRESS
    block_number: int = 0
    commits: list[Commit] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    _pending: list[tuple[Certificate, tuple[Validator, ...]]] = field(default_factory=list)

    def send(self, certificate: Certificate, validators: tuple[Validator, ...]) -> None:
        """Put a transaction into the pool; the next block decides on it."""
        self._pending.append((certificate, validators))

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
            commit = Commit(commitment.number, commitment.record_hash, self.block_number)
            self.commits.append(commit)
            accepted.append(commit)
        return accepted
