"""What if a network had had other numbers? Recorded signals, put through the protocol once more.

A recorded delta was trained from the recorded parent, and the evaluations are of that delta on that parent.
So there are two questions, and neither trains anything:

* step: every checkpoint by itself, from its recorded parent. Exact: the step that the same messages would
  have made under the other numbers.
* chained: the other result is carried on, and the next recorded deltas are added to it. Reputations and
  weights build up as they would have; but the mentors would have trained from the other parent and the
  evaluators measured there, which the recording cannot know.

In both, who had which role is taken from the recording (nobody else spoke), and so are the committee's
figures for a result that came out otherwise: nobody measured it. Compositions stay out. A number that would
have changed what was said or when cannot be asked about. Called by `citrate replay --set`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..protocol.adapter import AdapterWeights, module_path
from ..protocol.messages import Measurement, Message
from ..protocol.preset import Preset, preset_from
from ..protocol.rejection import Rejection
from ..protocol.state import NetworkState
from ..protocol.state_transition import Aggregation, CheckpointInputs, Outcome, aggregate, process_checkpoint
from ..recording import Recording
from ..replay import ReplayDifference, recorded_genesis, recorded_inputs, replay_inputs
from .metrics import HONEST, NodeRow, node_rows

_AT_GENESIS = ("reputation_initial_ppm", "credibility_initial_ppm")
SETTABLE = (
    *("aggregation_rule", "dishonest_share_ppm", "outer_rate_ppm", "outer_momentum_ppm"),
    *("copy_cosine_ppm", "accuracy_drop_ppm_max", "evaluations_min"),
    *("reputation_floor_ppm", "reputation_gain_ppm", "reputation_loss_ppm", "harm_deviations"),
    *("credibility_evaluations_min", "share_cap_ppm", "examples_full", *_AT_GENESIS),
)
"""Numbers of a preset that only say what is made of the messages."""
_WHY_NOT = {
    "name": "a name decides nothing",
    "method": "the recorded deltas are of the tensors that this method moves",
    "codec": "the recorded deltas are bytes of this codec",
    "evaluation_scale_ppm": "the recorded evaluations were measured at this scale",
    **dict.fromkeys(
        ("signal_deadline_blocks", "evaluation_deadline_blocks", "measurement_deadline_blocks"),
        "it would change which messages came in time",
    ),
    **dict.fromkeys(
        ("mentors_per_checkpoint", "evaluators_per_signal", "evaluations_per_node", "newcomer_share_ppm"),
        "it would change who spoke: whoever was not drawn said nothing",
    ),
}
"""Number to the reason why it cannot be set; of the others: they only bound messages, or order votes."""


@dataclass(frozen=True)
class _AsDrawn(NetworkState):
    """A state in which the roles of the open checkpoint are those of another."""

    drawn: NetworkState | None = None

    @property
    def mentors(self) -> frozenset[bytes]:
        assert self.drawn is not None
        return self.drawn.mentors

    @property
    def evaluators(self) -> dict[bytes, frozenset[bytes]]:
        assert self.drawn is not None
        return self.drawn.evaluators


@dataclass(frozen=True)
class CheckpointBeside:
    """One checkpoint as it was, and as it would have been."""

    number: int
    recorded: Outcome
    other: Outcome
    nodes: tuple[tuple[NodeRow, NodeRow], ...]
    """Per node, ascending by its key: as it was, as it would have been."""
    node_keys: tuple[bytes, ...]
    same_result: bool
    """Whether the average, before anybody measured it, is the same to the last bit."""
    distance: float
    """Frobenius norm of the difference of the two averages' updates, (alpha / rank) · B · A."""
    recorded_step: float
    """The same between the recorded average and its parent."""
    other_step: float
    figures_taken_over: bool
    """Whether the committee's figures of the recorded result stand in for those of another."""


def changed_preset(preset: Preset, settings: Sequence[str], *, chained: bool) -> Preset:
    """The preset with `name=value` settings. Raises ConfigError (PresetError) naming what cannot be set."""
    types = {field.name: str(field.type) for field in fields(Preset)}
    values: dict[str, Any] = asdict(preset)
    for setting in settings:
        name, sign, text = setting.partition("=")
        name = name.strip().replace(".", "_")
        if not sign:
            raise ConfigError(
                f"--set is {setting!r}\n  write a number of the preset and its value: name=value"
            )
        if name not in SETTABLE:
            known = f"what can be set: {', '.join(SETTABLE)}"
            if name not in types:
                raise ConfigError(f"a preset has no {name!r}\n  {known}")
            why = _WHY_NOT.get(name, "it bounds what may be said, and all of it was said")
            raise ConfigError(f"{name} cannot be set in a replay: {why}\n  {known}")
        if name in _AT_GENESIS and not chained:
            raise ConfigError(f"{name} acts before checkpoint 1 alone\n  ask with --chained")
        values[name] = text.strip() if types[name] == "str" else _whole(name, text)
    return preset_from(values)


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} must be a whole number, is {text!r}") from None


def what_if(recording: Recording, preset: Preset, *, chained: bool) -> Iterator[CheckpointBeside]:
    """Checkpoint after checkpoint under another preset (changed_preset).

    Raises ReplayDifference where the recording does not even give what it says under its own.
    """
    recorded = recorded_genesis(recording)
    carried: NetworkState = _genesis(recorded, preset)
    for number in recording.checkpoint_numbers():
        record, inputs = recorded_inputs(recording, recorded, number)
        was = replay_inputs(recorded, record, inputs)
        before = _as_drawn(carried if chained else recorded, recorded, preset)
        inputs = replace(inputs, compositions=())
        try:
            candidate = aggregate(before, inputs)
            taken_over = candidate.content != was.aggregation.content
            if taken_over:
                inputs = replace(inputs, measurements=_figures_for(candidate, inputs))
            other = process_checkpoint(before, inputs, candidate)
        except Rejection as rejection:
            raise ReplayDifference(f"checkpoint {number}: {rejection}") from None
        yield _beside(recorded, before, was, other, inputs, taken_over)
        recorded, carried = was.state, other.state


def _genesis(recorded: NetworkState, preset: Preset) -> NetworkState:
    rows = tuple(
        replace(
            row,
            reputation_ppm=preset.reputation_initial_ppm,
            credibility_ppm=preset.credibility_initial_ppm,
        )
        for row in recorded.reputations
    )
    return replace(recorded, preset=preset, reputations=rows)


def _as_drawn(state: NetworkState, recorded: NetworkState, preset: Preset) -> _AsDrawn:
    """`state` with the roles and parents of the recorded one, under another preset."""
    own = {field.name: getattr(state, field.name) for field in fields(NetworkState)}
    own |= {
        "preset": preset,
        "record_hash": recorded.record_hash,
        "recent_weights": recorded.recent_weights,
        "committee_positions": recorded.committee_positions,
    }
    return _AsDrawn(**own, drawn=recorded)


def _figures_for(candidate: Aggregation, inputs: CheckpointInputs) -> tuple[Message, ...]:
    """The committee's figures, as though they had been measured of this candidate."""
    figures = []
    for message in inputs.measurements:
        assert isinstance(message.body, Measurement)
        body = replace(message.body, weights_hash=candidate.content.digest)
        figures.append(replace(message, body=body))
    return tuple(figures)


def _beside(
    recorded: NetworkState,
    before: NetworkState,
    was: Outcome,
    other: Outcome,
    inputs: CheckpointInputs,
    taken_over: bool,
) -> CheckpointBeside:
    messages = [*inputs.signals, *inputs.withheld, *(m for pair in inputs.equivocations for m in pair)]
    nodes = [(node.node_key, HONEST) for node in recorded.nodes]  # a recording does not tell who lied
    rows = [node_rows(outcome, messages, recorded.mentors, nodes) for outcome in (was, other)]
    results = [outcome.aggregation.weights for outcome in (was, other)]
    return CheckpointBeside(
        number=was.record.number,
        recorded=was,
        other=other,
        nodes=tuple(zip(*rows, strict=True)),
        node_keys=tuple(key for key, _ in nodes),
        same_result=was.aggregation.content == other.aggregation.content,
        distance=update_distance(results[0], results[1]),
        recorded_step=update_distance(recorded.weights, results[0]),
        other_step=update_distance(before.weights, results[1]),
        figures_taken_over=taken_over,
    )


def update_distance(first: AdapterWeights, second: AdapterWeights) -> float:
    """Frobenius norm of the difference of two adapters' updates, of one shape; 0 where all values are equal.

    Factors alone mean nothing (B·R and R⁻¹·A are the same adapter), so the products are compared: through
    B1·A1 - B2·A2 = (B1 - B2)·A1 + B2·(A1 - A2), which loses no digits where the two are near, and Gram
    matrices of twice the rank, never the product itself.
    """
    scale = first.config.alpha / first.config.rank
    total = 0.0
    for (b1, a1), (b2, a2) in zip(_pairs(first), _pairs(second), strict=True):
        left, right = np.hstack([b1 - b2, b2]), np.vstack([a1, a1 - a2])
        total += float(np.sum((left.T @ left) * (right @ right.T)))
    return scale * float(np.sqrt(max(0.0, total)))


def _pairs(weights: AdapterWeights) -> list[tuple[Any, Any]]:
    """(B, A) of every module, float64, in the order of the modules' names."""
    modules: dict[str, dict[str, Any]] = {}
    tensors: Mapping[str, Any] = weights.tensors()
    for spec in weights.manifest.specs:
        modules.setdefault(module_path(spec.name), {})[spec.factor] = tensors[spec.name].astype(np.float64)
    return [(modules[name]["lora_B"], modules[name]["lora_A"]) for name in sorted(modules)]
