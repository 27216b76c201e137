"""One node to be tested, and what it may hear in the small network: used by the tests of this room."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from small_network import CHAIN, identity, inputs, network, signed

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.node.state_machine import Node
from citrate_node.protocol.certificate import commitment_digest, sign_digest
from citrate_node.protocol.checkpoint import CheckpointRecord, commitment_of
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.messages import Message, Proposal, Vote
from citrate_node.protocol.rejection import Reason, Verdict
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import CheckpointInputs, Outcome, process_checkpoint
from citrate_node.protocol.tensors import weights_to_float32

A = TypeVar("A", bound=act.Action)


def node(number: int = 0, state: NetworkState | None = None, **options: object) -> Node:
    """Node `number`, checkpoint 1 opened in block 100."""
    return Node(identity(number), CHAIN, state or network(4), opened_block=100, **options)  # type: ignore[arg-type]


def of(kind: type[A], actions: list[act.Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def head(machine: Node, block: int) -> list[act.Action]:
    return machine.handle(ev.HeadAdvanced(block))


def tell(machine: Node, message: Message, peer: str = "peer") -> list[act.Action]:
    return machine.handle(ev.MessageReceived(message, peer))


def trained(machine: Node, step: float = 0.01) -> ev.TrainingFinished:
    """The end of the training that `machine` would have begun now."""
    state = machine.state
    before = weights_to_float32(state.weights.select(state.moving_manifest))
    after = before + np.float32(step)
    return ev.TrainingFinished(state.next_number, state.weights_content.digest, before, after, 64, 1.5)


NOTHING = CheckpointInputs(signals=())
"""A checkpoint in which nobody announced anything."""


def whole(state: NetworkState) -> tuple[list[Message], Outcome, dict[bytes, bytes]]:
    """All messages of a complete checkpoint, what it gives, and its deltas."""
    made = inputs(state)
    messages = [*made.signals, *made.evaluations, *made.measurements]
    return messages, process_checkpoint(state, made), dict(made.deltas)


def number_of(node_key: bytes) -> int:
    return next(i for i in range(100) if identity(i).node_key == node_key)


def proposal(state: NetworkState, record: CheckpointRecord, round_number: int = 0) -> Message:
    author = number_of(state.proposer(round_number))
    body = Proposal(
        state.network_id, identity(author).node_key, state.next_number, round_number, record.encode()
    )
    return signed(author, body)


def vote(state: NetworkState, number: int, record: CheckpointRecord, round_number: int) -> Message:
    digest = commitment_digest(CHAIN.chain_id, CHAIN.contract, commitment_of(record, round_number))
    signature = sign_digest(identity(number).account_key, digest)
    body = Vote(
        state.network_id, identity(number).node_key, state.next_number, round_number, record.hash, signature
    )
    return signed(number, body)


def give(machine: Node, data: bytes) -> list[act.Action]:
    return machine.handle(ev.DeltaFetched(content_id(data).digest, data, "peer"))


def fill(machine: Node, messages: list[Message], deltas: dict[bytes, bytes], block: int = 109) -> None:
    """Bring a node into the finality phase with these messages and all deltas, in good time."""
    for message in messages:
        tell(machine, message)
    head(machine, 103)
    for data in deltas.values():
        give(machine, data)
    head(machine, block)


def a_voter(state: NetworkState) -> int:
    """A node that is not the proposer of round 0."""
    return next(i for i in range(4) if identity(i).node_key != state.proposer(0))


def finish(machine: Node) -> list[act.Action]:
    """Take the node to checkpoint 2 over an empty record that the chain has committed in block 120."""
    state = machine.state
    outcome = process_checkpoint(state, NOTHING)
    tell(machine, proposal(state, outcome.record))
    actions = machine.handle(ev.CheckpointCommitted(1, outcome.record.hash, 120))
    assert of(act.Finalize, actions) != []
    return actions


def verdicts(actions: list[act.Action]) -> list[tuple[Verdict, Reason | None]]:
    """What the node thought of what it was told."""
    return [(report.verdict, report.reason) for report in of(act.ReportVerdict, actions)]


def rounds_of(state: NetworkState) -> dict[int, list[int]]:
    """Node number to the first rounds that are its turn."""
    rounds: dict[int, list[int]] = {}
    for round_number in range(60):
        rounds.setdefault(number_of(state.proposer(round_number)), []).append(round_number)
    return rounds
