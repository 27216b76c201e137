"""What the checkpoints of a rounds run add up to: weights, exclusions, how well a ranking tells who is who.

Called by rounds_scenario.py for result.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..protocol.preset import ONE_PPM
from .attacks import HONEST
from .metrics import NodeRow
from .round_options import Round

COPIER = "copier"


class Tally:
    """Rounds in, the figures of a result out."""

    def __init__(self) -> None:
        self._dishonest: list[int] = []
        self._excluded: list[int] = []
        self._ginis: list[int] = []
        self._scores: dict[int, list[int]] = {}
        self._last: tuple[NodeRow, ...] = ()

    def add(self, done: Round) -> None:
        """The next checkpoint."""
        self._dishonest.append(done.dishonest_weight_ppm)
        self._excluded.append(done.honest_excluded_ppm)
        self._ginis.append(done.gini_ppm)
        self._last = done.nodes
        for row in done.nodes:
            if row.score_ppm is not None:
                self._scores.setdefault(row.node, []).append(row.score_ppm)

    def figures(self) -> dict[str, Any]:
        """Lists have one entry per checkpoint. The AUCs are None where there are not both kinds of node."""
        reputations = {row.node: row.reputation_ppm for row in self._last}
        kinds = {row.node: row.kind for row in self._last}
        scores = {node: sum(each) / len(each) for node, each in self._scores.items()}
        honest = [node for node, kind in kinds.items() if kind == HONEST]
        others = [node for node, kind in kinds.items() if kind != HONEST]
        scored = [node for node in others if kinds[node] != COPIER]
        return {
            "dishonest_weight_ppm": self._dishonest,
            "gini_ppm": self._ginis,
            "dishonest_weight_mean_ppm": sum(self._dishonest) // len(self._dishonest),
            "honest_excluded_mean_ppm": sum(self._excluded) // len(self._excluded),
            "reputations": reputations,
            "auc_ppm_of_reputation": auc_ppm(
                [reputations[i] for i in honest], [reputations[i] for i in others]
            ),
            # a copy's score is its original's: copies are found by their direction (protocol/copies.py)
            "auc_ppm_of_mean_score": auc_ppm(
                [scores[i] for i in honest if i in scores], [scores[i] for i in scored if i in scores]
            ),
            "least_honest_reputation_ppm": min((reputations[i] for i in honest), default=None),
        }


def auc_ppm(above: Sequence[float], below: Sequence[float]) -> int | None:
    """Chance in ppm that one of the first ranks above one of the second, ties by half: the area under the
    ROC curve (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747). None where one side is empty."""
    if not above or not below:
        return None
    wins = sum(2 * (a > b) + (a == b) for a in above for b in below)
    return wins * ONE_PPM // (2 * len(above) * len(below))
