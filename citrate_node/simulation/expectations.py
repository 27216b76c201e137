"""What a scenario says that a pass is, and whether a run was one: the table [pass] of its file.

A run that does not pass is a result like any other; it is only never silent. Called by scenario_file.py
(which reads the table) and scenario.py (which asks at the end of a run).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

from ..errors import ConfigError
from ..protocol.preset import ONE_PPM
from .metrics import HONEST, CheckpointRow, NodeRow
from .summary import finality_ms


@dataclass(frozen=True)
class Expectations:
    """Each is asked for only where the file names it."""

    loss_below: float | None = None
    """The last loss is below this."""
    loss_ratio_max: float | None = None
    """The last loss, as a part of the loss before checkpoint 1, is at most this."""
    accuracy_ppm_min: int | None = None
    """Of the last checkpoint that measured one."""
    checkpoint_ms_max: int | None = None
    """The longest virtual time from one checkpoint to the next."""
    checkpoint_ms_min: int | None = None
    """The longest is at least this: something really stopped."""
    dishonest_weight_ppm_max: int | None = None
    """The dishonest nodes' part of all weight of the run."""
    dishonest_weight_to_share_max: float | None = None
    """The same, against their part of the nodes: 1 is what they had if nobody looked."""
    dishonest_reputation_below_honest: bool | None = None
    """The median reputation of the dishonest ends below that of the honest."""
    honest_floor: bool | None = None
    """No honest node ends at the floor of reputation."""
    withheld_min: int | None = None
    """Signals named as withheld, in all checkpoints together."""
    equivocations_min: int | None = None


def expectations(where: str, table: Mapping[str, Any]) -> Expectations:
    """Raises ConfigError naming the key that is unknown or of another type."""
    kinds = {f.name: str(f.type).split(" ")[0] for f in fields(Expectations)}
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(f"{where}: pass: unknown key {key!r}\n  known are {', '.join(kinds)}")
        allowed = {"float": (int, float), "int": (int,), "bool": (bool,)}[kinds[key]]
        if type(value) not in allowed:
            raise ConfigError(f"{where}: pass: {key} must be a {kinds[key]}, is {value!r}")
        if value is False:
            raise ConfigError(f"{where}: pass: {key} can be true or be left out")
    return Expectations(**table)


@dataclass
class Seen:
    """What a run has shown of its nodes so far, added up as it goes on."""

    weight: dict[str, int] = field(default_factory=dict)
    """Kind of node to the sum of its weight."""
    reputations: dict[str, list[int]] = field(default_factory=dict)
    """Kind of node to the reputations after the latest checkpoint."""
    nodes: int = 0

    def add(self, rows: Sequence[NodeRow]) -> None:
        if not rows:
            return
        self.nodes, self.reputations = len(rows), {}
        for row in rows:
            self.weight[row.kind] = self.weight.get(row.kind, 0) + row.weight_ppm
            self.reputations.setdefault(row.kind, []).append(row.reputation_ppm)

    @property
    def dishonest_weight_ppm(self) -> int:
        """Of all weight of the run; 0 where nothing had weight."""
        whole = sum(self.weight.values())
        return (whole - self.weight.get(HONEST, 0)) * ONE_PPM // whole if whole else 0

    @property
    def dishonest(self) -> list[int]:
        """Their reputations."""
        return [ppm for kind, all_of in self.reputations.items() if kind != HONEST for ppm in all_of]

    def figures(self) -> dict[str, float]:
        """For result.json: what the expectations are compared with."""
        out: dict[str, float] = {"dishonest_weight_ppm": self.dishonest_weight_ppm}
        honest, dishonest = self.reputations.get(HONEST, []), self.dishonest
        if honest:
            out |= {"honest_reputation_ppm": median(honest), "honest_reputation_least_ppm": min(honest)}
        if dishonest:
            out["dishonest_reputation_ppm"] = median(dishonest)
            share = len(dishonest) / self.nodes
            out["dishonest_weight_to_share"] = round(self.dishonest_weight_ppm / ONE_PPM / share, 4)
        return out


def failures(
    wanted: Expectations, history: Sequence[CheckpointRow], seen: Seen, loss_before: float, floor_ppm: int
) -> list[str]:
    """One sentence for each expectation that does not hold. loss_before: before checkpoint 1."""
    return [text for text in _judged(wanted, history, seen, loss_before, floor_ppm) if text]


def _judged(
    wanted: Expectations, history: Sequence[CheckpointRow], seen: Seen, loss_before: float, floor_ppm: int
) -> Iterable[str]:
    loss = history[-1].loss
    measured = [row.accuracy_ppm for row in history if row.promoted and row.accuracy_ppm is not None]
    figures = seen.figures()
    yield _over("loss", loss, wanted.loss_below, strictly=True)
    yield _over(
        "loss as a part of the first", loss / loss_before if loss_before else 0.0, wanted.loss_ratio_max
    )
    yield _under("accuracy in ppm", measured[-1] if measured else 0, wanted.accuracy_ppm_min)
    longest_ms = max(finality_ms(history), default=0)
    yield _over("longest checkpoint in ms", longest_ms, wanted.checkpoint_ms_max)
    yield _under("longest checkpoint in ms", longest_ms, wanted.checkpoint_ms_min)
    weight = figures["dishonest_weight_ppm"]
    yield _over("weight of the dishonest in ppm", weight, wanted.dishonest_weight_ppm_max)
    part = figures.get("dishonest_weight_to_share", 0.0)
    yield _over("weight of the dishonest against their share", part, wanted.dishonest_weight_to_share_max)
    honest, dishonest = figures.get("honest_reputation_ppm"), figures.get("dishonest_reputation_ppm")
    asked = wanted.dishonest_reputation_below_honest
    if asked and honest is not None and dishonest is not None and dishonest >= honest:
        yield f"median reputation of the dishonest is {dishonest:.0f} ppm, of the honest {honest:.0f}"
    least = figures.get("honest_reputation_least_ppm")
    if wanted.honest_floor and least is not None and least <= floor_ppm:
        yield f"an honest node ended with a reputation of {least:.0f} ppm, the floor is {floor_ppm}"
    yield _under("signals withheld", sum(row.withheld or 0 for row in history), wanted.withheld_min)
    equivocations = sum(row.equivocations or 0 for row in history)
    yield _under("equivocations", equivocations, wanted.equivocations_min)


def _over(name: str, found: float, limit: float | None, strictly: bool = False) -> str:
    if limit is None or found < limit or (found == limit and not strictly):
        return ""
    return f"{name} is {_text(found)}, a pass is {'below' if strictly else 'at most'} {_text(limit)}"


def _under(name: str, found: float, limit: float | None) -> str:
    return (
        ""
        if limit is None or found >= limit
        else f"{name}: {_text(found)}, a pass is at least {_text(limit)}"
    )


def _text(figure: float) -> str:
    return str(figure) if isinstance(figure, int) else f"{figure:.6g}"
