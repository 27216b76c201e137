"""How `citrate replay --set` shows what would have been: checkpoint by checkpoint, beside what was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from citrate_node.cli.output import print_json

if TYPE_CHECKING:
    from citrate_node.protocol.state_transition import Outcome
    from citrate_node.recording import Recording
    from citrate_node.simulation.metrics import NodeRow
    from citrate_node.simulation.recorded_loss import RecordedLoss
    from citrate_node.simulation.what_if import CheckpointBeside

EXACT = "each checkpoint by itself, from its recorded parent: exact"
CHAINED = (
    "chained: the recorded deltas, trained from and evaluated on the recorded parents, are not retrained"
)


@dataclass
class _Told:
    """What the summary counts."""

    checkpoints: int = 0
    same: int = 0
    taken_over: int = 0


def show_what_if(
    folder: Path, recording: Recording, settings: list[str], *, chained: bool, losses: bool, json_lines: bool
) -> None:
    """Raises ConfigError for a setting that cannot be, ReplayDifference for a recording that is not sound."""
    from citrate_node.simulation.what_if import changed_preset, what_if

    preset = changed_preset(recording.network().preset, settings, chained=chained)
    mode = CHAINED if chained else EXACT
    if not json_lines:
        typer.echo(f"what if {', '.join(settings)}\n{mode}")
    measure = _loss(folder, recording, json_lines) if losses else None
    told = _Told()
    for beside in what_if(recording, preset, chained=chained):
        told.checkpoints += 1
        told.same += beside.same_result
        told.taken_over += beside.figures_taken_over
        figures = _losses(beside, measure)
        if json_lines:
            print_json(_object(beside, figures))
        else:
            _print(beside, figures)
    _summary(told, settings, chained, mode, json_lines)


def _loss(folder: Path, recording: Recording, json_lines: bool) -> RecordedLoss | None:
    from citrate_node.replay import recorded_genesis
    from citrate_node.simulation.recorded_loss import loss_of

    found = loss_of(folder, recording.network().preset, recorded_genesis(recording).weights)
    if isinstance(found, str):
        typer.echo(f"losses are not compared: {found}", err=True)
        return None
    if not json_lines:
        typer.echo(f"loss: {found.what}")
    return found


def _losses(beside: CheckpointBeside, measure: RecordedLoss | None) -> dict[str, tuple[float, float]]:
    if measure is None:
        return {}
    was, other = (measure(o.aggregation.weights) for o in (beside.recorded, beside.other))
    return {name: (was[name], other[name]) for name in was}


def _print(beside: CheckpointBeside, losses: dict[str, tuple[float, float]]) -> None:
    typer.echo(f"checkpoint {beside.number}   {_result(beside)}{_promoted(beside)}")
    for name, (before, after) in losses.items():
        typer.echo(f"    loss, {name:<8} {before:.4f} -> {after:.4f}   ({after - before:+.4f})")
    same = 0
    for key, (was, other) in zip(beside.node_keys, beside.nodes, strict=True):
        if was == other:
            same += 1
            continue
        typer.echo(
            f"    node {key.hex()[:8]}   {_outcomes(was, other)}   "
            f"weight {was.weight_ppm / 1e4:.1f} % -> {other.weight_ppm / 1e4:.1f} %   "
            f"reputation {was.reputation_ppm / 1e6:.3f} -> {other.reputation_ppm / 1e6:.3f}"
        )
    if same and same < len(beside.nodes):
        typer.echo(f"    {same} other node{'s' if same > 1 else ''} as recorded")


def _result(beside: CheckpointBeside) -> str:
    if beside.same_result:
        return "the same average, bit for bit"
    if beside.recorded_step:
        part = f"{100 * beside.distance / beside.recorded_step:.1f} % of the recorded step"
        return f"another average, away by {part}"
    return f"another average: none was recorded, this one steps by {beside.other_step:.4g}"


def _promoted(beside: CheckpointBeside) -> str:
    was, other = (o.record.promoted for o in (beside.recorded, beside.other))
    if was == other:
        return "" if was else "   (not promoted)"
    return f"   promoted {'yes' if was else 'no'} -> {'yes' if other else 'no'}"


def _outcomes(was: NodeRow, other: NodeRow) -> str:
    first, second = (row.outcome.replace("_", " ") for row in (was, other))
    return first if first == second else f"{first} -> {second}"


def _object(beside: CheckpointBeside, losses: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        "type": "checkpoint",
        "number": beside.number,
        "same_result": beside.same_result,
        "distance": beside.distance,
        "recorded_step": beside.recorded_step,
        "other_step": beside.other_step,
        "recorded": _side(beside.recorded),
        "other": _side(beside.other),
        "figures_taken_over": beside.figures_taken_over,
        "losses": {name: {"recorded": a, "other": b} for name, (a, b) in losses.items()},
        "nodes": [
            {"node_key": key.hex(), "recorded": _node(was), "other": _node(other)}
            for key, (was, other) in zip(beside.node_keys, beside.nodes, strict=True)
        ],
    }


def _side(outcome: Outcome) -> dict[str, Any]:
    return {
        "average_hash": outcome.aggregation.content.digest.hex(),
        "weights_hash": outcome.record.weights_hash.hex(),
        "promoted": outcome.record.promoted,
    }


def _node(row: NodeRow) -> dict[str, Any]:
    return {
        "outcome": row.outcome,
        "score_ppm": row.score_ppm,
        "weight_ppm": row.weight_ppm,
        "reputation_ppm": row.reputation_ppm,
        "credibility_ppm": row.credibility_ppm,
    }


def _summary(told: _Told, settings: list[str], chained: bool, mode: str, json_lines: bool) -> None:
    if json_lines:
        print_json(
            {
                "type": "summary",
                "set": settings,
                "mode": "chained" if chained else "step",
                "checkpoints": told.checkpoints,
                "same_result": told.same,
                "figures_taken_over": told.taken_over,
                "note": mode,
            }
        )
        return
    typer.echo(f"{told.checkpoints - told.same} of {told.checkpoints} checkpoints would have another average")
    if told.taken_over:
        typer.echo(
            f"nobody measured those of {told.taken_over}: whether they become the adapter is decided by the "
            "figures measured of the recorded ones"
        )
