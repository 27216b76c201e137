"""Reputation: how much a node's delta counts, from how much its deltas helped others. Integers in ppm.

A signal's score is the median of its evaluations, weighted by their evaluators' voice: reputation times
credibility. Liars of a minority of the voice move it no further than between two honest figures; and since an
evaluator's credibility follows how often it lay near the score, those who lie lose their voice even where
they once were the majority of the few who measured a signal. Scores become comparable by the median of the
positive ones of the same checkpoint: a score of that size is worth a half, twice that a whole. A negative
score keeps a delta out of the average; it costs reputation only where it lies far below the others, for near
an optimum honest deltas score a little below zero as often as above. Reputation moves part of the way towards
the worth at every checkpoint in which its node took part, faster down than up. docs/reputation.md says why.
Called by state_transition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from .encoding import Between, NodeKey
from .preset import ONE_PPM, Preset


@dataclass(frozen=True, slots=True)
class Reputation:
    """One row of the reputation table, which is ordered by node key."""

    node_key: NodeKey
    reputation_ppm: Annotated[int, Between(0, ONE_PPM)]
    """0 only after equivocation."""

    checkpoints_mentored: Annotated[int, Between(0, 2**63 - 1)]
    """In how many checkpoints a signal of this node was scored."""

    checkpoints_alike: Annotated[int, Between(0, 2**63 - 1)]
    """In how many of them its update was that of another mentor, whichever of the two was the copy."""

    credibility_ppm: Annotated[int, Between(0, ONE_PPM)]
    """How often its evaluations agreed with the score; what it mentors does not touch this."""

    @property
    def voice(self) -> int:
        """Weight of its evaluations and measurements, in units of 10^-12."""
        return self.reputation_ppm * self.credibility_ppm

    @property
    def alikeness(self) -> Fraction:
        """How likely its next update is another's, too: by the rule of succession (Laplace 1774)."""
        return Fraction(self.checkpoints_alike + 1, self.checkpoints_mentored + 2)


def weighted_median(values: Sequence[tuple[int, int]]) -> int | None:
    """The lower weighted median of (value, weight) pairs, None without positive weight.

    The smallest value at which at least half of the weight lies at or below: it is always one of the values,
    so no division is needed. Breakdown point: half of the weight.
    """
    ordered = sorted((value, weight) for value, weight in values if weight > 0)
    total = sum(weight for _, weight in ordered)
    running = 0
    for value, weight in ordered:
        running += weight
        if 2 * running >= total:
            return value
    return None


def worth_ppm(score_ppm: int, reference_ppm: int) -> int:
    """What a score is worth: 0 for none or harm, a half at the reference, a whole from twice that."""
    if score_ppm <= 0 or reference_ppm <= 0:
        return 0
    return min(ONE_PPM, score_ppm * (ONE_PPM // 2) // reference_ppm)


def reference_score(scores: Sequence[int]) -> int:
    """The lower median of the positive scores of a checkpoint, 0 where there is none."""
    positive = [score for score in scores if score > 0]
    return _lower_median(positive) if positive else 0


def harm_limit(preset: Preset, scores: Sequence[int]) -> int:
    """The score from which downwards a mentor loses reputation: negative, and an outlier of the checkpoint.

    The lower median of the scores less `preset.harm_deviations` times their median absolute deviation, and
    never above -1. As long as the dishonest are fewer than half, both medians are between honest figures.
    Source: the MAD rule for outliers, Hampel 1974, doi:10.1080/01621459.1974.10482962.
    """
    if not scores:
        return -1
    middle = _lower_median(scores)
    deviation = _lower_median([abs(score - middle) for score in scores])
    return min(-1, middle - preset.harm_deviations * deviation)


def target_ppm(score_ppm: int, reference_ppm: int, harm_limit_ppm: int) -> int | None:
    """Where a score moves its mentor's reputation: its worth, 0 for harm, None (stays) in between."""
    if score_ppm > 0:
        return worth_ppm(score_ppm, reference_ppm)
    return 0 if score_ppm <= harm_limit_ppm else None


def _lower_median(values: Sequence[int]) -> int:
    return sorted(values)[(len(values) - 1) // 2]


def moved(preset: Preset, reputation_ppm: int, target_ppm: int) -> int:
    """A reputation one step nearer to its target, never below the floor (in ppm, truncating)."""
    if target_ppm >= reputation_ppm:
        step = (target_ppm - reputation_ppm) * preset.reputation_gain_ppm // ONE_PPM
        return reputation_ppm + step
    step = (reputation_ppm - target_ppm) * preset.reputation_loss_ppm // ONE_PPM
    return max(preset.reputation_floor_ppm, reputation_ppm - step)


def agreements(reports: Sequence[tuple[bytes, int, int]], deviations: int) -> dict[bytes, tuple[int, int]]:
    """Evaluator's node key to (how many of its evaluations agree with the score, how many there are).

    reports: (evaluator, reported ppm, score ppm) over all signals of a checkpoint. An evaluation agrees when
    it lies within `deviations` times the median distance of all of them to their scores.
    """
    if not reports:
        return {}
    limit = deviations * _lower_median([abs(value - score) for _, value, score in reports])
    out: dict[bytes, tuple[int, int]] = {}
    for evaluator, value, score in reports:
        agreed, total = out.get(evaluator, (0, 0))
        out[evaluator] = (agreed + (abs(value - score) <= limit), total + 1)
    return out


def capped_shares(preset: Preset, raw: Sequence[int]) -> list[int]:
    """Raw weights with the part above `share_cap_ppm` of the final total cut off.

    The cap is never below an equal share (with 2 signals nobody can have less than a half). Iterates at most
    len(raw) times: each pass fixes the nodes that exceed the cap of what remains.
    """
    entries = [i for i, weight in enumerate(raw) if weight > 0]
    cap_ppm = max(preset.share_cap_ppm, -(-ONE_PPM // max(1, len(entries))))
    if cap_ppm >= ONE_PPM or len(entries) < 2:
        return list(raw)
    capped: set[int] = set()
    while True:
        free = sum(raw[i] for i in entries if i not in capped)
        room_ppm = ONE_PPM - cap_ppm * len(capped)
        if free <= 0 or room_ppm <= 0:
            break
        # with the capped ones at cap_ppm each, the free ones share room_ppm in proportion
        over = {i for i in entries if i not in capped and raw[i] * room_ppm > cap_ppm * free}
        if not over:
            break
        capped |= over
    if not capped:
        return list(raw)
    out = [0] * len(raw)
    free = sum(raw[i] for i in entries if i not in capped)
    room_ppm = max(0, ONE_PPM - cap_ppm * len(capped))
    for i in entries:
        out[i] = cap_ppm if i in capped else raw[i] * room_ppm // max(1, free)
    return out
