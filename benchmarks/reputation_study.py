"""What mentors and evaluators of each kind get over 200 checkpoints: the table of docs/reputation.md.

    python benchmarks/reputation_study.py [--seeds 3] [--checkpoints 200] [--json FILE] [--markdown FILE]

Twelve honest nodes and some of one other kind, in a task that ends (its optimum stands still, so that scores
come to scatter about zero) and in one that goes on (the optimum wanders). The control is twelve honest nodes
alone. The last rows repeat the colluding third without credibility.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from citrate_node.config import load_preset
from citrate_node.protocol.preset import Preset
from citrate_node.simulation.reputation_study import Kind, StudyOptions, StudyResult, study

HONEST: tuple[Kind, ...] = ("honest",) * 12
CASTS: dict[Kind, int] = {
    "newcomer": 2,
    "odd": 2,
    "free_rider": 2,
    "stale": 2,
    "copier": 2,
    "noise": 3,
    "sign_flipper": 5,
    "liar": 5,
    "colluder": 6,
    "whitewasher": 2,
    "drifter": 4,
}
"""Kind to how many of it join the honest twelve; six colluders are a third."""
WORLDS = {"ends": 0.0, "goes on": 0.3}
"""How far the optimum wanders in one checkpoint."""
LAST = 50
"""Checkpoints at the end over which shares and losses are averaged."""


@dataclass(frozen=True)
class Row:
    """One cast in one world, over all seeds. Reputations and shares in per cent."""

    kind: str
    count: int
    world: str
    honest_least: float
    honest_mean: float
    kind_mean: float
    kind_most: float
    credibility: float
    honest_share: float
    kind_share: float
    loss: float
    """Mean over the last checkpoints, as part of the loss at the start."""
    loss_of_honest_alone: float
    identities: int


def ran(
    preset: Preset, cast: tuple[Kind, ...], world: str, seeds: int, checkpoints: int
) -> list[StudyResult]:
    return [
        study(
            StudyOptions(
                cast,
                checkpoints=checkpoints,
                seed=seed,
                spread=0.5,
                moving_target=WORLDS[world],
                preset=preset,
            )
        )
        for seed in range(seeds)
    ]


def last_loss(results: list[StudyResult]) -> float:
    return statistics.fmean(loss for result in results for loss in result.losses[-LAST:])


def row(kind: Kind, label: str, world: str, results: list[StudyResult], control: float) -> Row:
    honest = [ppm / 1e4 for result in results for ppm in result.final("honest")]
    others = [ppm / 1e4 for result in results for ppm in result.final(kind)]
    credibility = [ppm / 1e4 for result in results for ppm in result.final_credibility(kind)]
    return Row(
        label,
        results[0].kinds.count(kind),
        world,
        min(honest),
        statistics.fmean(honest),
        statistics.fmean(others),
        max(others),
        statistics.fmean(credibility),
        statistics.fmean(result.mean_share_ppm("honest", LAST) for result in results) / 1e4,
        statistics.fmean(result.mean_share_ppm(kind, LAST) for result in results) / 1e4,
        last_loss(results),
        control,
        sum(sum(result.identities_used.values()) for result in results),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    preset = replace(
        load_preset("minimal"),
        evaluators_per_signal=8,
        evaluations_per_node=8,
        evaluation_scale_ppm=100_000,
    )  # these as the devnet preset has them
    deaf = replace(preset, credibility_evaluations_min=1000)
    rows: list[Row] = []
    for world in WORLDS:
        control = last_loss(ran(preset, HONEST, world, given.seeds, given.checkpoints))
        for kind, count in CASTS.items():
            results = ran(preset, HONEST + (kind,) * count, world, given.seeds, given.checkpoints)
            rows.append(row(kind, kind, world, results, control))
            print(markdown_row(rows[-1]), flush=True)
        cast: tuple[Kind, ...] = HONEST + ("colluder",) * CASTS["colluder"]
        results = ran(deaf, cast, world, given.seeds, given.checkpoints)
        rows.append(row("colluder", "colluder, no credibility", world, results, control))
        print(markdown_row(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps([vars(r) for r in rows], indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(rows, given.seeds, given.checkpoints))


def markdown_row(r: Row) -> str:
    return (
        f"| {r.kind} | {r.count} | {r.world} | {r.kind_mean:.0f} ({r.kind_most:.0f}) | {r.credibility:.0f} | "
        f"{r.honest_mean:.0f} ({r.honest_least:.0f}) | {r.kind_share:.1f} / {r.honest_share:.1f} | "
        f"{r.loss:.3f} / {r.loss_of_honest_alone:.3f} |"
    )


def markdown(rows: list[Row], seeds: int, checkpoints: int) -> str:
    head = (
        f"Twelve honest nodes and some of one kind, {checkpoints} checkpoints, {seeds} seeds. Reputation, "
        "credibility and share of the average in per cent; share and loss over the last "
        f"{LAST} checkpoints, the loss as part of the first one.\n\n"
        "| kind | nodes | task | its reputation (highest) | its credibility | honest reputation (lowest) | "
        "share per node, its / honest | loss / of the honest alone |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(markdown_row(r) for r in rows) + "\n"


if __name__ == "__main__":
    main()
