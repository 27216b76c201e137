"""What must hold in every run. Checkers see what a person could see, never a node's private state.

Safety holds with any faults; progress once faults stop. A violation raises SafetyViolation or
ProgressViolation with the command's seed in the text, so that it can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..node.actions import Finalize
from ..protocol.checkpoint import decode_record
from ..protocol.composition_request import MeasuredComposition
from ..protocol.messages import Message
from ..protocol.preset import ONE_PPM
from ..protocol.state import NetworkState
from ..protocol.state_transition import CheckpointInputs, process_checkpoint


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
    commits: dict[int, bytes] = field(default_factory=dict)
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

    def on_commit(self, number: int, record_hash: bytes) -> None:
        """The chain takes every number once, in order."""
        if number in self.commits or number != len(self.commits) + 1:
            raise SafetyViolation(f"seed {self.seed}: commit {number} came after {len(self.commits)} commits")
        self.commits[number] = record_hash

    def on_computed(self, before: NetworkState, action: Finalize) -> None:
        """Replay: the protocol's own function, called anew, gives the record that the nodes agreed on."""
        again = process_checkpoint(before, _inputs(action))
        if again.record.encode() != action.record:
            raise SafetyViolation(
                f"seed {self.seed}: checkpoint {action.number} computed again has another record"
            )

    def on_end(self, state: NetworkState, honest: Iterable[bytes]) -> None:
        """After a run without faults: no honest node was punished down to the floor.

        honest: node keys. Where deltas could be lost, an honest mentor may look like one that withholds.
        """
        floor = state.preset.reputation_floor_ppm
        fallen = sorted(key[:4].hex() for key in honest if state.reputation_of(key) <= floor)
        if fallen:
            raise SafetyViolation(f"seed {self.seed}: honest nodes at the floor: {', '.join(fallen[:8])}")

    def on_vote(self, author: bytes, number: int, round_number: int, record_hash: bytes) -> None:
        """An honest node never votes for two records in one round, restarts included."""
        first = self.votes.setdefault((author, number, round_number), record_hash)
        if first != record_hash:
            raise SafetyViolation(
                f"seed {self.seed}: two votes by {author[:4].hex()} in round {round_number}"
            )


def _inputs(action: Finalize) -> CheckpointInputs:
    """What a finalized record was computed from, by the ids that it names."""
    record = decode_record(action.record)
    by_id = {message.id: message for message in action.inputs}

    def take(ids: Iterable[bytes]) -> tuple[Message, ...]:
        return tuple(by_id[i] for i in ids)

    requests = {request.adapter_id: request for request in action.compositions}
    return CheckpointInputs(
        signals=take(record.signals),
        evaluations=take(record.evaluations),
        measurements=take(record.measurements),
        withheld=take(record.withheld),
        equivocations=tuple((by_id[pair.first], by_id[pair.second]) for pair in record.equivocations),
        deltas=action.deltas,
        compositions=tuple(
            MeasuredComposition(requests[update.adapter_id], take(update.measurements))
            for update in record.compositions
        ),
    )
