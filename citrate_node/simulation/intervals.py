"""Means over seeds with their 95 % intervals. Called by report.py, plots.py and comparison.py.

Runs of different seeds are independent draws, and few: so Student's distribution, not the normal one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_STUDENT_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)
"""The 97.5 % quantile for 1 to 20 degrees of freedom; any statistics textbook's table."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and how far from it the 95 % interval reaches on either side; 0 for a single value."""

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is beyond what the draw of seeds explains; never with one seed."""
        return self.count > 1 and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval:
    """Of at least one finite value. A single one says nothing of its spread: its interval is the value."""
    count = len(values)
    mean = statistics.fmean(values)
    if count == 1:
        return Interval(mean, 0.0, 1)
    return Interval(mean, student_975(count - 1) * statistics.stdev(values) / math.sqrt(count), count)


def student_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution, to 1e-4.

    Beyond the table by the expansion of Cornish and Fisher in 1/degrees (Abramowitz and Stegun, 26.7.5).
    """
    if degrees <= len(_STUDENT_975):
        return _STUDENT_975[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
