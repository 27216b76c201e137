"""What must hold in every run. Checkers see what a person could see, never a node's private state.

Safety holds with any faults; progress once faults stop. A violation raises SafetyViolation or
ProgressViolation with the command's seed in the text, so that it can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..node.actions import Finalize
from ..protocol.preset import ONE_PPM
from ..protocol.state import NetworkState


class SafetyViolation(AssertionError):
    """Two nodes, or a node and the chain, disagree."""


class ProgressViolation(AssertionError):
    """Nothing went wrong, and nothing went on."""


@dataclass
class Checkers:
    """Looks at every finalized checkpoint of every node."""

    seed: int
    records: dict[int, bytes] = field(default_factory=dict)
    weights: dict[int, bytes] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    votes: dict[tuple[bytes, int, int], bytes] = field(default_factory=dict)
    _bounded: set[bytes] = field(default_factory=set)
    """Record hashes of states whose reputations were looked at: nodes share them."""

    def on_finalize(
        self, node: int, action: Finalize, chain_hashes: dict[int, bytes], state: NetworkState
    ) -> None:
        """Agreement on record, state and weights, with the chain too; reputations within bounds."""
        for name, seen, value in (
            ("record", self.records, action.record),
            ("weights", self.weights, action.weights),
            ("state", self.states, action.state_file),
        ):
            first = seen.setdefault(action.number, value)
            if first != value:
                raise SafetyViolation(
                    f"seed {self.seed}: node {node} has another {name} for checkpoint {action.number}"
                )
        if chain_hashes.get(action.number) != state.record_hash:
            raise SafetyViolation(
                f"seed {self.seed}: node {node} finalized {action.number} against the chain"
            )
        if state.record_hash in self._bounded:
            return
        self._bounded.add(state.record_hash)
        for row in state.reputations:
            if not (
                row.reputation_ppm == 0 or state.preset.reputation_floor_ppm <= row.reputation_ppm <= ONE_PPM
            ):
                raise SafetyViolation(f"seed {self.seed}: reputation {row.reputation_ppm} is out of bounds")

    def on_vote(self, author: bytes, number: int, round_number: int, record_hash: bytes) -> None:
        """An honest node never votes for two records in one round, restarts included."""
        first = self.votes.setdefault((author, number, round_number), record_hash)
        if first != record_hash:
            raise SafetyViolation(
                f"seed {self.seed}: two votes by {author[:4].hex()} in round {round_number}"
            )
