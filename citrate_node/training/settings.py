"""What a training run is told: which LoRA factors there are, and how long they learn.

Plain values without torch or numpy, so that the command line and the runtime may hold them.
Used by base_model.py, lora.py, worker.py and summary.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from citrate_node.errors import ConfigError

Moving = Literal["lora_A", "lora_B", "both"]
"""The factor that learns in a checkpoint; the other is frozen and is not sent."""

ALL_LINEAR = "all-linear"
RANK_MAX = 64
"""The network's own limit (protocol.adapter.AdapterLimits): a larger one could be trained, never shared."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Shape of an adapter: update = (alpha / rank) · lora_B · lora_A on every target."""

    rank: int = 8

    alpha: int = 16

    targets: str | tuple[str, ...] = ALL_LINEAR
    """"all-linear" (every linear layer but the output), or module names as PEFT matches them: by suffix.
    On the embedded base q_proj and v_proj alone show next to nothing."""

    dropout: float = 0.0
    """On the input of lora_A while training. Zero: short runs on little data gain nothing from it."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= RANK_MAX:
            raise ConfigError(f"rank is {self.rank}, it must lie between 1 and {RANK_MAX}")
        if self.alpha < 1:
            raise ConfigError(f"alpha is {self.alpha}, it must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}, it must lie in [0, 1)")
        if not self.targets or (isinstance(self.targets, str) and self.targets != ALL_LINEAR):
            raise ConfigError(f'targets is {self.targets!r}; give "{ALL_LINEAR}" or a tuple of module names')

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One local training phase, that is, what a mentor does within one checkpoint."""

    steps: int = 8

    batch_sequences: int = 8

    sequence_bytes: int = 128
    """Examples longer than this many tokens (bytes, for the embedded base) are cut in training."""

    learning_rate: float = 0.01

    learning_rate_lora_a: float | None = None
    """Of lora_A where it differs: A starts at its full size and B at zero, so they want other steps."""

    gradient_norm_max: float = 1.0
    """The gradient is scaled down to this norm: one odd batch must not throw an adapter away."""

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_sequences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.sequence_bytes < 2:
            raise ConfigError(f"sequence_bytes is {self.sequence_bytes}, it must be at least 2")
        rates = (self.learning_rate, self.learning_rate_lora_a or self.learning_rate, self.gradient_norm_max)
        if not all(0 < rate < float("inf") for rate in rates) or self.weight_decay < 0:
            raise ConfigError(
                "learning rates and gradient_norm_max must be positive, weight_decay not negative"
            )

    def rate_of(self, tensor_name: str) -> float:
        """Learning rate of a tensor, by its PEFT name."""
        if self.learning_rate_lora_a is not None and ".lora_A." in tensor_name:
            return self.learning_rate_lora_a
        return self.learning_rate
