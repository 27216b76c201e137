"""A network of a few nodes in memory, at checkpoint 1: keys, state, and messages that are valid in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import numpy as np

from citrate_node.config import load_preset
from citrate_node.node.core import ChainIdentity, Identity
from citrate_node.protocol.certificate import Validator
from citrate_node.protocol.codecs import encode_delta
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.identifiers import ADAPTER_FACTORY_ADDRESS, network_id
from citrate_node.protocol.messages import (
    Body,
    Evaluation,
    Measurement,
    MentorshipSignal,
    Message,
    sign_message,
)
from citrate_node.protocol.preset import Preset
from citrate_node.protocol.state import NetworkState, genesis_state
from citrate_node.protocol.state_transition import CheckpointInputs, aggregate
from citrate_node.simulation.synthetic import SyntheticTask

MINIMAL: Preset = load_preset("minimal")
CHAIN = ChainIdentity(31337, ADAPTER_FACTORY_ADDRESS)
GENESIS_RECORD = bytes(range(32))


def identity(number: int) -> Identity:
    """Fixed keys of node `number`."""
    return Identity(sha256(f"seed {number}".encode()).digest(), sha256(f"account {number}".encode()).digest())


def network(nodes: int = 4, preset: Preset = MINIMAL, **changes: object) -> NetworkState:
    """The state before checkpoint 1, all stakes equal."""
    if changes:
        preset = replace(preset, **changes)  # type: ignore[arg-type]
    validators = tuple(Validator(identity(i).node_key, identity(i).account, 1) for i in range(nodes))
    name = network_id(CHAIN.chain_id, bytes(32), CHAIN.contract, GENESIS_RECORD, preset.digest())
    weights = SyntheticTask(seed=1, nodes=nodes).initial_weights()
    return genesis_state(preset, name, validators, sha256(b"adapter").digest(), weights, GENESIS_RECORD)


def delta(state: NetworkState, seed: int, scale: float = 0.01) -> bytes:
    """A valid delta file of the open checkpoint, from whole numbers alone."""
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(-1000, 1000, state.moving_manifest.count)
    values = (drawn / 1000 * scale).astype(np.float32)
    return encode_delta(state.codec, state.moving_manifest, values)


def signal_body(state: NetworkState, number: int, data: bytes, **changes: object) -> MentorshipSignal:
    """What node `number` may announce in the open checkpoint."""
    content = content_id(data)
    body = MentorshipSignal(
        network_id=state.network_id,
        author=identity(number).node_key,
        adapter_id=state.adapter_id,
        base_model_id=state.base_model_id,
        target_checkpoint=state.next_number,
        parent_weights_hash=state.weights_content.digest,
        codec=state.preset.codec,
        manifest_hash=state.moving_manifest.hash,
        delta_hash=content.digest,
        delta_size_bytes=content.size_bytes,
        examples=64,
    )
    return replace(body, **changes)  # type: ignore[arg-type]


def signed(number: int, body: Body) -> Message:
    return sign_message(identity(number).seed, body)


def signal(state: NetworkState, number: int, data: bytes, **changes: object) -> Message:
    return signed(number, signal_body(state, number, data, **changes))


def evaluation(state: NetworkState, number: int, of: Message, improvement_ppm: int = 1000) -> Message:
    body = Evaluation(
        state.network_id, identity(number).node_key, state.next_number, of.id, improvement_ppm, 32
    )
    return signed(number, body)


def measurement(
    state: NetworkState, number: int, weights_hash: bytes, improvement_ppm: int = 500, parent_ppm: int = 0
) -> Message:
    key, adapter_id = identity(number).node_key, state.adapter_id
    body = Measurement(
        state.network_id, key, state.next_number, adapter_id, weights_hash, improvement_ppm, 32, parent_ppm
    )
    return signed(number, body)


def inputs(
    state: NetworkState, scores: Mapping[int, int] | None = None, *, measured: bool = True
) -> CheckpointInputs:
    """A whole checkpoint: every mentor announces, those who are drawn evaluate, the committee measures.

    scores: improvement in ppm that everybody reports for the signal of a node; 1000 where not named.
    """
    everybody = range(len(state.nodes))
    numbers = [i for i in everybody if identity(i).node_key in state.mentors]
    committee = [i for i in everybody if identity(i).node_key in state.committee_keys]
    data = {i: delta(state, i) for i in numbers}
    signals = {i: signal(state, i, data[i]) for i in numbers}
    evaluations = tuple(
        evaluation(state, evaluator, signals[i], (scores or {}).get(i, 1000))
        for i in numbers
        for evaluator in everybody
        if identity(evaluator).node_key in state.evaluators[identity(i).node_key]
    )
    made = CheckpointInputs(
        signals=tuple(signals.values()),
        evaluations=evaluations,
        deltas={content_id(d).digest: d for d in data.values()},
    )
    if not measured:
        return made
    result = aggregate(state, made).content.digest
    return replace(made, measurements=tuple(measurement(state, i, result, 500 + i) for i in committee))
