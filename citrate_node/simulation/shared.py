"""Memories of the protocol's pure functions, shared by all nodes of a simulation.

Ten thousand nodes that follow one certificate would restore one state ten thousand times. The functions are
pure, so each is called once per argument and the immutable result is everybody's: the memory is here, in the
driver, and the protocol knows nothing of it. Called by cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from ..node.functions import Functions
from ..protocol.checkpoint import CheckpointRecord
from ..protocol.follow import follow
from ..protocol.gossip_validation import check_vote, open_message
from ..protocol.messages import MentorshipSignal, Message
from ..protocol.rejection import Rejection
from ..protocol.state import NetworkState
from ..protocol.state_transition import (
    Aggregation,
    CheckpointInputs,
    Outcome,
    aggregate,
    is_valid_delta,
    process_checkpoint,
)
from .checkers import SafetyViolation

Value = TypeVar("Value")

KEPT_MAX = 256
"""Results of one function that are kept: several checkpoints of a network that disagrees."""
VERDICTS_KEPT_MAX = 65_536
"""Checked messages and votes that are kept: two checkpoints of the largest committee."""


class Shared:
    """One per simulated network: the states of a network are told apart by their record hash alone."""

    def __init__(self, network_id: bytes) -> None:
        self._network_id = network_id
        self._aggregations: dict[Hashable, Aggregation] = {}
        self._outcomes: dict[Hashable, tuple[Outcome, Aggregation | None]] = {}
        self._states: dict[Hashable, NetworkState] = {}
        """Record hash to the state after it, as first computed."""
        self._followed: dict[Hashable, tuple[CheckpointRecord, NetworkState]] = {}
        self._valid_deltas: dict[Hashable, bool] = {}
        self._votes: dict[Hashable, Rejection | None] = {}
        self._opened: dict[Hashable, Message] = {}
        self.functions = Functions(
            aggregate=self.aggregate,
            process_checkpoint=self.process_checkpoint,
            follow=self.follow,
            is_valid_delta=self.is_valid_delta,
            check_vote=self.check_vote,
        )

    def aggregate(self, state: NetworkState, inputs: CheckpointInputs) -> Aggregation:
        key = (state.record_hash, inputs.key)
        return _remembered(self._aggregations, key, lambda: aggregate(state, inputs))

    def process_checkpoint(
        self, state: NetworkState, inputs: CheckpointInputs, aggregation: Aggregation | None
    ) -> Outcome:
        if inputs.compositions:
            return process_checkpoint(state, inputs, aggregation)
        measured = frozenset(m.id for m in inputs.measurements)
        # by identity of the aggregation, for a test may give some nodes a broken one; it is kept, so that
        # its identity is not used again
        key = (state.record_hash, inputs.key, measured, id(aggregation))
        outcome, _ = _remembered(
            self._outcomes, key, lambda: (process_checkpoint(state, inputs, aggregation), aggregation)
        )
        _remembered(self._states, outcome.record.hash, lambda: outcome.state)
        return outcome

    def follow(
        self, state: NetworkState, record_hash: bytes, record: bytes, state_file: bytes, weights: bytes
    ) -> tuple[CheckpointRecord, NetworkState]:
        """Restored from the files once; the state is then the object that others computed, if it is equal.

        Raises SafetyViolation where it is not: then late nodes and the others would go different ways.
        """

        def made() -> tuple[CheckpointRecord, NetworkState]:
            decoded, restored = follow(state, record_hash, record, state_file, weights)
            computed = self._states.get(record_hash, restored)
            if restored != computed:
                raise SafetyViolation(f"checkpoint {decoded.number} restored is not the one computed")
            return decoded, computed

        return _remembered(self._followed, (record_hash, record, state_file, weights), made)

    def is_valid_delta(self, state: NetworkState, signal: MentorshipSignal, data: bytes) -> bool:
        key = (state.record_hash, signal.delta_hash, signal.delta_size_bytes, data)
        return _remembered(self._valid_deltas, key, lambda: is_valid_delta(state, signal, data))

    def check_vote(
        self, state: NetworkState, chain_id: int, contract: bytes, vote: Message, record: CheckpointRecord
    ) -> None:
        def made() -> Rejection | None:
            try:
                check_vote(state, chain_id, contract, vote, record)
            except Rejection as rejection:
                return rejection
            return None

        key = (state.record_hash, vote.id, vote.signature)
        rejection = _remembered(self._votes, key, made, VERDICTS_KEPT_MAX)
        if rejection is not None:
            raise rejection

    def opened(self, message: Message) -> Message:
        """The message as its envelope's bytes give it, signature checked: once, however many receive it.

        Raises Rejection as a peer's gossip validator would.
        """
        key = (message.id, message.signature)
        return _remembered(
            self._opened,
            key,
            lambda: open_message(message.envelope, self._network_id),
            VERDICTS_KEPT_MAX,
        )


def _remembered(
    memory: dict[Hashable, Value], key: Hashable, made: Callable[[], Value], kept_max: int = KEPT_MAX
) -> Value:
    """The value of a key, made once; the oldest go where there are too many."""
    if key not in memory:
        memory[key] = made()
        if len(memory) > kept_max:
            del memory[next(iter(memory))]
    return memory[key]
