"""What dishonest nodes really send: to whom they say something else than their node decided.

The node behind an adversary is an honest one, so it knows all that an attacker would. Pure functions of the
message and the receiver, so that a seed still determines a run. Called by cluster.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from ..node.state_machine import Node
from ..protocol.checkpoint import decode_record
from ..protocol.messages import Evaluation, Measurement, MentorshipSignal, Message, Proposal, sign_message
from ..protocol.state_transition import CheckpointInputs, process_checkpoint

if TYPE_CHECKING:
    from .options import ClusterOptions

MESSAGE_ATTACKS = {
    "withholding": ("withholders", "announces a delta and never serves it"),
    "equivocation": ("equivocators", "three different signals to three parts of the network"),
    "copying": ("copiers", "announces somebody else's delta as soon as it is served"),
    "stale": ("repeaters", "announces in every checkpoint what it learned in its first one"),
    "forking": ("forkers", "evaluates with three different figures for three parts of the network"),
    "lying": ("liars", "reports the opposite of what it measured"),
    "collusion": ("colluders", "praises the deltas of those who collude and slanders all others"),
    "forging": ("forgers", "proposes other weights than the signals give"),
    "two_faces": ("two_faced", "proposes another correct record, without measurements, to a part"),
    "boasting": ("boasters", "proposes a record with its own measurement alone, of 99 %"),
}
"""Name of an attack on messages to the group of ClusterOptions and what such a node does. Attacks on what a
mentor learned are in attacks.py."""
FACES = 3
"""Who contradicts himself says so many different things, to receivers by their number modulo this."""


def said_to(options: ClusterOptions, index: int, node: Node, message: Message, receiver: int) -> Message:
    """What node `index` sends to `receiver` where an honest one would send `message`."""
    body, face = message.body, receiver % FACES
    seed = node.core.identity.seed
    if isinstance(body, MentorshipSignal):
        if index in options.equivocators and face:
            return sign_message(seed, replace(body, examples=body.examples + face))
    elif isinstance(body, (Evaluation, Measurement)):
        if index in options.forkers and face:
            return sign_message(seed, replace(body, improvement_ppm=body.improvement_ppm + face))
        if index in options.boasters and isinstance(body, Measurement):
            return sign_message(seed, replace(body, improvement_ppm=990_000))
    elif isinstance(body, Proposal):
        if index in options.forgers:
            return _forged(seed, body)
        if index in options.two_faced and face == 1:
            return _unmeasured(seed, node, body)
        if index in options.boasters:
            return _boasting(seed, node, body)
    return message


def copy_of(node: Node, mentor: bytes, delta_hash: bytes) -> Message | None:
    """Another mentor's delta, announced as the own one; None where its signal is not known (any more)."""
    signal = node.core.pool.signals.get(mentor)
    if (
        signal is None
        or not isinstance(signal.body, MentorshipSignal)
        or signal.body.delta_hash != delta_hash
    ):
        return None
    return sign_message(node.core.identity.seed, replace(signal.body, author=node.node_key))


def _forged(seed: bytes, body: Proposal) -> Message:
    """The same proposal with other weights for its compositions, or for the adapter where it has none."""
    record = decode_record(body.record)
    if record.compositions:
        forged = tuple(
            replace(update, weights_hash=_other(update.weights_hash)) for update in record.compositions
        )
        record = replace(record, compositions=forged)
    else:
        record = replace(record, weights_hash=_other(record.weights_hash))
    return sign_message(seed, replace(body, record=record.encode()))


def _other(weights_hash: bytes) -> bytes:
    return sha256(weights_hash).digest()


def _unmeasured(seed: bytes, node: Node, body: Proposal) -> Message:
    """A second proposal for the round, as correct as the first: its record leaves out all measurements."""
    inputs = node.core.pool.inputs_of(decode_record(body.record))
    return _proposing(seed, node, body, replace(inputs, measurements=()))


def _boasting(seed: bytes, node: Node, body: Proposal) -> Message:
    """A correct record whose accuracy is the proposer's own word alone."""
    inputs = node.core.pool.inputs_of(decode_record(body.record))
    own = tuple(m for m in inputs.measurements if m.author == node.node_key)
    boasts = tuple(
        sign_message(seed, replace(m.body, improvement_ppm=990_000))
        for m in own
        if isinstance(m.body, Measurement)
    )
    return _proposing(seed, node, body, replace(inputs, measurements=boasts))


def _proposing(seed: bytes, node: Node, body: Proposal, inputs: CheckpointInputs) -> Message:
    outcome = process_checkpoint(node.state, inputs)
    return sign_message(seed, replace(body, record=outcome.record.encode()))
