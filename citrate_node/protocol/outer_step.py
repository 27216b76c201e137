"""The outer step: a checkpoint's average applied with a learning rate and Nesterov momentum, in integers.

Pure. Off by default (rate 1, momentum 0 change nothing); called between weighted_sum and add_average by a
network whose preset sets other numbers. Source: DiLoCo, Douillard et al. 2023, arXiv:2311.08105, section 2,
where momentum 0.9 and rate 0.7 were best; an outer rate above 1 diverged on the embedded workload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .aggregation import WEIGHT_SUM_BITS
from .tensors import Int64Array, divide_toward_zero

RATE_BITS = 16
"""Rate and momentum are in units of 2**-16."""

MOMENTUM_MAX = 1 << 45
"""The momentum saturates here, at 8,192: no product below passes 63 bits, and no delta is above 127."""


@dataclass(frozen=True, slots=True)
class OuterStep:
    """How far, and with how much of the steps before, a checkpoint's average moves the weights."""

    rate_q16: int = 1 << RATE_BITS
    """Learning rate, above 0 and at most 2."""

    momentum_q16: int = 0
    """Part of the momentum that stays from step to step, from 0 to below 1."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_q16 <= 2 << RATE_BITS or not 0 <= self.momentum_q16 < 1 << RATE_BITS:
            raise ValueError(f"rate {self.rate_q16} or momentum {self.momentum_q16} out of range, in 2**-16")

    def apply(self, weighted: Int64Array, momentum: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The weighted sum to use instead, and the momentum for the next step of the same tensors.

        weighted: int64 (count,) in units of 2**-48, as weighted_sum gives it. momentum: int64 (count,) in
        units of 2**-32, zeros at the start. With average g: m' = mu * m + g, step = rate * (g + mu * m').
        Every product is divided once, toward zero.
        """
        average = divide_toward_zero(weighted, 1 << WEIGHT_SUM_BITS)
        after = _limited(self._scaled(momentum, self.momentum_q16) + average)
        step = _limited(average + self._scaled(after, self.momentum_q16))
        if self.momentum_q16 == 0 and self.rate_q16 == 1 << RATE_BITS:
            return weighted, after  # nothing to scale: keep the bits below a delta's unit
        return self._scaled(step, self.rate_q16) << WEIGHT_SUM_BITS, after

    @staticmethod
    def _scaled(values: Int64Array, factor_q16: int) -> Int64Array:
        return divide_toward_zero(values * factor_q16, 1 << RATE_BITS)


def _limited(values: Int64Array) -> Int64Array:
    return np.clip(values, -MOMENTUM_MAX, MOMENTUM_MAX)
