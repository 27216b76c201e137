"""Which LoRA factor moves in which checkpoint, for each aggregation method.

Pure. mean(B) * mean(A) is not mean(B * A); a method decides how that is dealt with. Called by the mentor
(what to train) and by aggregation (what to average).
"""

from __future__ import annotations

from typing import Literal, get_args

from .tensors import Factor

Method = Literal["alternate", "freeze_a", "factor_mean", "stack"]

METHODS: tuple[Method, ...] = get_args(Method)


def moving_factor(method: str, checkpoint_number: int) -> Factor:
    """The factor that is trained, announced and averaged in a checkpoint.

    alternate: one factor at a time, so the average of that factor is the average of the products, at half
      the bytes. B goes first: it starts at zero, where A has no gradient. RoLoRA, Chen et al. 2025,
      arXiv:2502.01755.
    freeze_a: B only, A stays as drawn from a public seed; exact, half the bytes, less capacity. FFA-LoRA,
      Sun et al. 2024, arXiv:2403.12313.
    factor_mean: both, each averaged by itself; not the average of the products. FedIT, Zhang et al. 2023,
      arXiv:2305.05644.
    stack: both, the products averaged exactly and brought back to the rank (stack.py); floating point, so
      not for consensus. FLoRA, Wang et al. 2024, arXiv:2409.05976.

    checkpoint_number: counted from 1. Raises ValueError below 1, and for an unknown method.
    """
    if checkpoint_number < 1:
        raise ValueError(f"checkpoints are counted from 1, not {checkpoint_number}")
    match method:
        case "alternate":
            return "lora_B" if checkpoint_number % 2 == 1 else "lora_A"
        case "freeze_a":
            return "lora_B"
        case "factor_mean" | "stack":
            return "both"
    raise ValueError(f"unknown aggregation method {method!r}, choose one of {', '.join(METHODS)}")
