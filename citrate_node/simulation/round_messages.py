"""The signed messages of a checkpoint in the rounds engine: what nodes would have said to one another.

Pure but for what `spread` computes. Called by rounds.py; the message engine (cluster.py) has real nodes that
send theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from ..node.core import Identity
from ..protocol.codecs import codec, decode_delta
from ..protocol.content_id import ContentId, content_id
from ..protocol.messages import Evaluation, Measurement, MentorshipSignal, Message, sign_message
from ..protocol.preset import ONE_PPM
from ..protocol.state import NetworkState
from ..protocol.state_transition import Aggregation, CheckpointInputs, aggregate
from ..protocol.tensors import delta_from_grid
from .attacks import HONEST
from .round_nodes import LIMITS, Phase, Sent
from .round_options import RoundsOptions
from .workload import EvaluateRequest, MeasureRequest, Values

LIE_PPM = 100_000
"""What a lying evaluator says of its friends' deltas, and the opposite of everybody else's."""


Spread = Callable[[str, Sequence[Any], Sequence[int]], list[Any]]
"""Method of a shard, requests and their nodes, to answers in the order of the requests."""


@dataclass
class Speakers:
    """The nodes of a run as authors of messages."""

    options: RoundsOptions
    spread: Spread

    def __post_init__(self) -> None:
        self.identities = [_identity(self.options.seed, i) for i in range(self.options.nodes)]
        self.place = {identity.node_key: i for i, identity in enumerate(self.identities)}

    def inputs(
        self, state: NetworkState, phase: Phase, sent: Sequence[Sent]
    ) -> tuple[CheckpointInputs, Aggregation]:
        """Everything that is said in a checkpoint, and the candidate that it gives."""
        signals, files, by_signal = [], {}, {}
        for each in sent:
            assert each.data is not None
            content = content_id(each.data)
            identity = self.identities[each.node]
            message = signal_of(state, identity, content, each.examples)
            signals.append(message)
            files[content.digest] = each.data
            by_signal[message.id] = each
        evaluations = self._evaluations(state, phase, by_signal)
        made = CheckpointInputs(signals=tuple(signals), evaluations=evaluations, deltas=files)
        candidate = aggregate(state, made)
        return replace(made, measurements=self._measurements(state, candidate)), candidate

    def _evaluations(
        self, state: NetworkState, phase: Phase, by_signal: Mapping[bytes, Sent]
    ) -> tuple[Message, ...]:
        """Each drawn evaluator on its own held-out data; the dishonest as they like."""
        asked: dict[int, dict[bytes, Values]] = {}
        liars: list[tuple[int, bytes]] = []
        for signal_id, each in by_signal.items():
            decoded = decode_delta(each.data or b"", codec(phase.codec), phase.manifest, LIMITS)
            values = delta_from_grid(decoded).astype(np.float32)
            for key in sorted(state.evaluators[self.identities[each.node].node_key]):
                evaluator = self.place[key]
                if self.options.evaluators_lie and self.options.kinds[evaluator] != HONEST:
                    liars.append((evaluator, signal_id))
                else:
                    asked.setdefault(evaluator, {})[signal_id] = values
        scale = state.preset.evaluation_scale_ppm / ONE_PPM
        requests = [
            EvaluateRequest(node, phase.checkpoint, phase.weights, phase.manifest, deltas, scale)
            for node, deltas in sorted(asked.items())
        ]
        found = self.spread("evaluate", requests, [request.node for request in requests])
        reports = [
            (request.node, signal_id, improvement, examples)
            for request, answer in zip(requests, found, strict=True)
            for signal_id, (improvement, examples) in answer.items()
        ]
        for node, signal_id in liars:
            friend = self.options.kinds[by_signal[signal_id].node] != HONEST
            reports.append((node, signal_id, LIE_PPM if friend else -LIE_PPM, state.preset.examples_full))
        return tuple(
            sign_message(
                self.identities[node].seed,
                Evaluation(
                    state.network_id,
                    self.identities[node].node_key,
                    state.next_number,
                    signal_id,
                    improvement,
                    examples,
                ),
            )
            for node, signal_id, improvement, examples in reports
        )

    def _measurements(self, state: NetworkState, candidate: Aggregation) -> tuple[Message, ...]:
        """By the honest of the committee: what dishonest ones may say here is another question."""
        members = sorted(self.place[key] for key in state.committee_keys)
        honest = [node for node in members if self.options.kinds[node] == HONEST]
        requests = [
            MeasureRequest(node, weights) for node in honest for weights in (candidate.weights, state.weights)
        ]
        found = self.spread("measure", requests, [request.node for request in requests])
        out = []
        for request, (improvement, examples), before in zip(
            requests[::2], found[::2], found[1::2], strict=True
        ):
            identity = self.identities[request.node]
            body = Measurement(
                state.network_id,
                identity.node_key,
                state.next_number,
                state.adapter_id,
                candidate.content.digest,
                improvement,
                examples,
                before[0],
            )
            out.append(sign_message(identity.seed, body))
        return tuple(out)


def signal_of(state: NetworkState, identity: Identity, content: ContentId, examples: int) -> Message:
    """A node's signed announcement of a delta that was trained from the state's weights."""
    body = MentorshipSignal(
        network_id=state.network_id,
        author=identity.node_key,
        adapter_id=state.adapter_id,
        base_model_id=state.base_model_id,
        target_checkpoint=state.next_number,
        parent_weights_hash=state.weights_content.digest,
        codec=state.preset.codec,
        manifest_hash=state.moving_manifest.hash,
        delta_hash=content.digest,
        delta_size_bytes=content.size_bytes,
        examples=examples,
    )
    return sign_message(identity.seed, body)


def _identity(seed: int, node: int) -> Identity:
    name = f"citrate rounds {seed} node {node}"
    return Identity(sha256(f"{name} seed".encode()).digest(), sha256(f"{name} account".encode()).digest())
