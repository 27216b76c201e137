"""Copies among the deltas of one checkpoint: they count once, whoever announces them.

Pure, exact integers. A delta's bytes are served only when its phase has closed, so whoever announces the
same update in the same checkpoint was given it; together they are one voice. Bytes are easily made to differ
(another rounding, a scale, a little noise), so what is compared is the direction of the updates, through the
Gram matrix. Called by state_transition.
"""

from __future__ import annotations

from collections.abc import Sequence

from .gram import Gram


def copies(gram: Gram, order: Sequence[int], cosine_ppm_min: int) -> dict[int, int]:
    """Position of each copy to the position of the update that it repeats.

    order: all K positions; of updates alike the first one stays. An update is a copy when its cosine with one
    that stays is at least `cosine_ppm_min` (ppm). Measured on the embedded workload, honest pairs stayed
    below 850,000, copies had 1,000,000. Cost: K**2 comparisons.
    """
    kept: list[int] = []
    repeated: dict[int, int] = {}
    for position in order:
        original = next((k for k in kept if gram.cosine_ppm(position, k) >= cosine_ppm_min), None)
        if original is None:
            kept.append(position)
        else:
            repeated[position] = original
    return repeated
