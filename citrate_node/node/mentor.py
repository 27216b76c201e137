"""The mentor's part: train, quantize with error feedback, announce."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..protocol.codecs import encode_delta, error_feedback
from ..protocol.content_id import content_id
from ..protocol.messages import MentorshipSignal
from ..protocol.methods import moving_factor
from ..protocol.schedule import Phase
from ..protocol.tensors import Factor, FormatError, weights_to_float32
from .actions import Action, Notice, StoreDelta, StoreResidual, Train
from .core import Core
from .events import TrainingFinished


@dataclass
class Mentor:
    """Own training for the open checkpoint. `enabled` is false on a node that has no local data."""

    core: Core
    enabled: bool = True
    residuals: dict[Factor, npt.NDArray[np.float32]] = field(default_factory=dict)
    training_for: int | None = None
    """Target of the training that runs now."""
    held: TrainingFinished | None = None
    """Training that ended too late for its target; its delta may join the next checkpoint."""

    def tick(self) -> list[Action]:
        """Start training once per checkpoint; repeat the own signal while the phase lasts."""
        core = self.core
        own = core.pool.signals.get(core.node_key)
        if own is not None:
            return core.repeat(own) if core.phase is Phase.SIGNAL else []
        if not self.enabled or core.phase is not Phase.SIGNAL or core.node_key not in core.state.mentors:
            return []
        number = core.state.next_number
        if self.held is not None:
            held, self.held = self.held, None
            # a machine this slow begins the next training at once, from weights one checkpoint older
            return [*self._announce(held), *self._train(number + 1)]
        if f"signal/{number}" in core.journal:
            return []
        return self._train(number)

    def _train(self, target: int) -> list[Action]:
        """Begin a training for a checkpoint, unless one runs."""
        if self.training_for is not None:
            return []
        self.training_for = target
        state = self.core.state
        manifest = state.weights.manifest.subset(moving_factor(state.preset.method, target))
        values = weights_to_float32(state.weights.select(manifest))
        return [Train(target, state.weights, state.weights_content.digest, manifest, values)]

    def on_training_finished(self, event: TrainingFinished) -> list[Action]:
        self.training_for = None
        core = self.core
        if event.target_checkpoint > core.state.next_number and core.phase is Phase.SIGNAL:
            return []  # begun ahead and done within one phase: fast enough again to train from the latest
        if event.target_checkpoint != core.state.next_number or core.phase is not Phase.SIGNAL:
            self.held = event  # trained too long; asks to join the next checkpoint
            return [Notice("late", {"target": event.target_checkpoint, "open": core.state.next_number})]
        return self._announce(event)

    def _announce(self, event: TrainingFinished) -> list[Action]:
        """Sign the signal of a finished training for the open checkpoint."""
        core = self.core
        state = core.state
        manifest = state.moving_manifest
        factor = moving_factor(state.preset.method, event.target_checkpoint)
        if factor != state.factor or event.parent_weights_hash not in state.recent_weights:
            return [Notice("dropped", {"reason": "trained another factor or from weights too old"})]
        if core.node_key in core.pool.signals or core.node_key in core.pool.equivocations:
            return [Notice("dropped", {"reason": "an earlier life of this node has announced already"})]
        intended = event.values - event.parent_values
        residual = self.residuals.get(state.factor)
        if residual is not None and residual.size == intended.size:
            intended = intended + residual
        try:
            data = encode_delta(state.codec, manifest, intended)
        except FormatError as error:
            return [Notice("dropped", {"reason": f"training gave numbers that cannot be sent: {error}"})]
        content = content_id(data)
        left = error_feedback(intended, state.decode_delta(data))
        signal = MentorshipSignal(
            network_id=state.network_id,
            author=core.node_key,
            adapter_id=state.adapter_id,
            base_model_id=state.base_model_id,
            target_checkpoint=state.next_number,
            parent_weights_hash=event.parent_weights_hash,
            codec=state.preset.codec,
            manifest_hash=manifest.hash,
            delta_hash=content.digest,
            delta_size_bytes=content.size_bytes,
            examples=event.examples,
        )
        said = core.say(f"signal/{state.next_number}", signal)
        if not said:
            return []
        core.pool.keep_delta(content.digest, data)
        self.residuals[state.factor] = left
        # the bytes are on disk before the world hears of them
        return [
            StoreDelta(content, data, state.next_number),
            StoreResidual(state.factor, left),
            *said,
            Notice(
                "announced",
                {
                    "delta_bytes": content.size_bytes,
                    "float32_bytes": 4 * manifest.count,
                    "examples": event.examples,
                    "loss": round(event.loss, 4),
                },
            ),
        ]
