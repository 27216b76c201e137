"""Phases of a checkpoint, counted in blocks since the commit before it. Pure arithmetic.

Checkpoint n opens in the block that committed n - 1 (for n = 1: the network's first block), which every
node reads from the same chain, so all agree on the phase up to how fast they hear of a block.
"""

from __future__ import annotations

from enum import Enum

from .preset import Preset


class Phase(Enum):
    """Where a checkpoint stands. Measuring is the first part of the finality phase."""

    SIGNAL = "signal"
    EVALUATION = "evaluation"
    MEASUREMENT = "measurement"
    FINALITY = "finality"


def phase(preset: Preset, elapsed_blocks: int) -> Phase:
    """Phase of a checkpoint `elapsed_blocks` after it opened."""
    if elapsed_blocks < preset.signal_deadline_blocks:
        return Phase.SIGNAL
    if elapsed_blocks < preset.evaluation_deadline_blocks:
        return Phase.EVALUATION
    if elapsed_blocks < preset.measurement_deadline_blocks:
        return Phase.MEASUREMENT
    return Phase.FINALITY


def serves_deltas(preset: Preset, elapsed_blocks: int) -> bool:
    """Whether deltas are handed out: one block after the signal phase, in which nodes merge what they hold.

    A signal first seen from then on may be of a copy, so nobody evaluates it (node/pool.py).
    """
    return elapsed_blocks > preset.signal_deadline_blocks


def round_of(preset: Preset, elapsed_blocks: int) -> int:
    """Which proposer's turn it is, from 0; only meaningful in the finality phase."""
    return max(0, elapsed_blocks - preset.measurement_deadline_blocks) // preset.proposal_rotation_blocks
