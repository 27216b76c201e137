"""Everything that `citrate train` is told, checked once: with the data and the base it decides the adapter.

Plain values without torch. Called by cli/train.py and training_run.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

from citrate_node.errors import ConfigError
from citrate_node.training.settings import LoraSettings

Variant = Literal["lora", "rslora", "dora"]
Quantization = Literal["none", "nf4"]
Dtype = Literal["float32", "bfloat16"]

VARIANTS: tuple[Variant, ...] = ("lora", "rslora", "dora")
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "nf4")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")

SQUARE_RANKS = (1, 4, 9, 16, 25, 36, 49, 64)
"""Ranks whose rank-stabilized scaling is a whole alpha over the rank."""


class NetworkRefusal(ConfigError):
    """The adapter would be a good one, and none that the network can average, compose and put on chain."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One training of one adapter by one person."""

    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)

    variant: Variant = "lora"

    quantization: Quantization = "none"
    """Of the frozen base: "nf4" is QLoRA, with double quantization of the block scales."""

    adapter_dtype: Dtype = "float32"
    """Of the factors while they learn. The file is float32 either way."""

    steps: int = 200
    """Optimizer steps at most; early stopping may end it before."""

    batch_sequences: int = 8

    sequence_tokens: int = 128

    learning_rate: float = 2e-3

    warmup_steps: int = 10

    weight_decay: float = 0.0

    gradient_norm_max: float = 1.0

    validate_every_steps: int = 20
    """The loss on the validation part decides which weights are kept, and when to stop."""

    patience: int = 5
    """Validations without an improvement after which training stops. 0: never stop early."""

    checkpoint_every_steps: int = 20

    recompute_activations: bool = False
    """Forget activations and compute them again in the backward pass: less memory, a third more time."""

    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_sequences", "validate_every_steps", "checkpoint_every_steps"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _require("sequence_tokens", self.sequence_tokens, self.sequence_tokens >= 8, "at least 8")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "positive")
        _require("gradient_norm_max", self.gradient_norm_max, self.gradient_norm_max > 0, "positive")
        for name in ("warmup_steps", "weight_decay", "patience", "seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("seed", self.seed, self.seed < 1 << 63, "below 2**63")
        for name, known in (
            ("variant", VARIANTS),
            ("quantization", QUANTIZATIONS),
            ("adapter_dtype", DTYPES),
        ):
            _require(name, getattr(self, name), getattr(self, name) in known, "one of " + ", ".join(known))

    def digest(self) -> str:
        """Hex sha256 over every setting: a checkpoint of another run is told by it."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1: linear warm-up, then half a cosine down to a tenth."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        rest = max(1, self.steps - self.warmup_steps)
        turned = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / rest))
        return self.learning_rate * (0.1 + 0.9 * turned)


def network_alpha(settings: RunSettings) -> int:
    """The whole alpha with which the same factors are plain LoRA: update = (alpha / rank) · B · A.

    rsLoRA scales by alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732): that is plain LoRA of alpha ·
    √rank, a whole number where the rank is a square. DoRA (Liu et al. 2024, arXiv:2402.09353) is no such
    thing at all. Raises NetworkRefusal where there is none, and says why.
    """
    rank, alpha = settings.lora.rank, settings.lora.alpha
    if settings.variant == "lora":
        return alpha
    if settings.variant == "rslora":
        root = math.isqrt(rank)
        if root * root == rank:
            return alpha * root
        raise NetworkRefusal(
            f"variant rslora: at rank {rank} it scales by {alpha}/√{rank}, which no whole alpha over the "
            f"rank equals, and the network's integers are exact\n"
            f"  take a rank of {', '.join(map(str, SQUARE_RANKS))}, or plain LoRA with "
            f"--alpha {round(alpha * math.sqrt(rank))}"
        )
    raise NetworkRefusal(
        "variant dora: it divides by the norm of base + update, so the average of two adapters is not the "
        "average of what they do, and the base's weights decide what the factors mean\n"
        "  take plain LoRA or rslora for the network; with --local-only the folder is for PEFT alone"
    )


def _require(name: str, value: object, holds: bool, limit: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}, it must be {limit}")
