"""What the network does at a checkpoint. Start reading here.

`process_checkpoint(state, inputs) -> Outcome` is a pure function of signed messages and delta bytes: live
node, late node, simulation and replay all call it, there is no second implementation. Order and hardware
cannot matter: inputs are sorted by id, and everything after training is integer arithmetic.

Four steps: find the copies, score the signals by their evaluations, combine the deltas that helped by the
preset's rule with their mentors' reputation as weight, move the reputations. `aggregate` does these four; the
candidate it gives is what nodes measure against the base model, and `process_checkpoint` joins the
measurements into the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from .adapter import AdapterWeights
from .aggregation import WEIGHT_SUM_BITS, add_average, integer_weights, weighted_mean
from .certificate import validator_set_hash
from .checkpoint import CheckpointRecord, Equivocation
from .composition_request import CompositionRequest, MeasuredComposition, certified_compositions
from .content_id import ContentId, content_id
from .copies import copies
from .gossip_validation import check_equivocation, check_evaluation, check_message
from .gram import gram_of_deltas
from .messages import Evaluation, Measurement, MentorshipSignal, Message
from .outer_step import OuterStep
from .preset import ONE_PPM
from .rejection import Reason, reject
from .reputation import (
    Reputation,
    agreements,
    capped_shares,
    harm_limit,
    moved,
    reference_score,
    target_ppm,
    weighted_median,
)
from .roles import draw_committee
from .rules import Deltas, rule
from .state import NetworkState, reputations_root
from .tensors import FormatError, divide_toward_zero


@dataclass(frozen=True)
class CheckpointInputs:
    """The messages of one checkpoint, and the bytes of the deltas that they announce."""

    signals: tuple[Message, ...]
    """Valid signals whose delta is in `deltas`; at most one per mentor."""
    evaluations: tuple[Message, ...] = ()
    """At most one per evaluator and signal; evaluations of signals that are not here are refused."""
    measurements: tuple[Message, ...] = ()
    """Measurements of the very weights that these signals and evaluations give."""
    withheld: tuple[Message, ...] = ()
    """Valid signals whose bytes never appeared, or were not what the signal said."""
    equivocations: tuple[tuple[Message, Message], ...] = ()
    deltas: Mapping[bytes, bytes] = field(default_factory=dict)
    """Delta hash to delta file, for every signal in `signals`."""
    compositions: tuple[MeasuredComposition, ...] = ()
    """Compositions that get their version 1; they do not touch the network's own adapter."""

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Names the candidate that these inputs give (measurements do not change it)."""
        return (
            frozenset(m.id for m in self.signals),
            frozenset(m.id for m in self.evaluations),
            frozenset(m.id for m in self.withheld),
            frozenset(frozenset((a.id, b.id)) for a, b in self.equivocations),
        )


@dataclass(frozen=True, slots=True)
class SignalOutcome:
    """What became of one signal, and why: its mentor is told."""

    signal_id: bytes
    mentor: bytes
    score_ppm: int | None
    """Weighted median of its evaluations; None with fewer than preset.evaluations_min of them."""
    weight: int
    """Part of 2^16 with which it came before the rule; 0 where it did not enter."""
    evaluations: int
    copy_of: bytes | None = None
    """The signal whose update this one repeats. A copy has no weight, and counts as of no use."""


@dataclass(frozen=True)
class Aggregation:
    """The candidate result of a checkpoint, before it is measured."""

    weights: AdapterWeights
    content: ContentId
    reputations: tuple[Reputation, ...]
    outcomes: tuple[SignalOutcome, ...]
    """Ascending by signal id."""
    momentum: bytes = b""
    """Of the outer step after these weights, as in StateFile."""

    @property
    def changed(self) -> bool:
        """Whether any delta entered the average."""
        return any(outcome.weight for outcome in self.outcomes)


@dataclass(frozen=True)
class Outcome:
    """The state after a checkpoint, the record of it, and what became of each signal."""

    state: NetworkState
    record: CheckpointRecord
    aggregation: Aggregation
    compositions: tuple[CompositionRequest, ...] = ()
    """What the record's compositions were computed from, and with it their weights."""


def aggregate(state: NetworkState, inputs: CheckpointInputs) -> Aggregation:
    """Find copies, score, combine, move reputations.

    Raises Rejection where an input is not one that the state allows (a proposal named it wrongly).
    Cost: one pass over each delta, and K**2 per value for the Gram matrix; memory: one int64 accumulator and
    a window of a few MiB, not the deltas decoded (the coordinate rules: the same).
    """
    signals = _checked_signals(state, inputs)
    evaluations = _checked_evaluations(state, signals, inputs.evaluations)
    scores = {signal_id: _score(state, evaluations.get(signal_id, [])) for signal_id in signals}
    copied = _copies(state, signals, inputs)
    weights = _weights(state, signals, scores, copied)
    combined = _combined(
        state, [(weight, _delta(inputs, signals[i])) for i, weight in weights.items() if weight]
    )
    return Aggregation(
        weights=combined.weights,
        content=combined.content,
        reputations=_moved_reputations(state, signals, scores, evaluations, copied, inputs),
        outcomes=tuple(
            SignalOutcome(i, m.author, scores[i], weights[i], len(evaluations.get(i, [])), copied.get(i))
            for i, m in signals.items()
        ),
        momentum=combined.momentum,
    )


def process_checkpoint(
    state: NetworkState, inputs: CheckpointInputs, aggregation: Aggregation | None = None
) -> Outcome:
    """The state and the record that these inputs give.

    aggregation: what `aggregate(state, inputs)` gave, where the caller has it already.
    Raises Rejection (BAD_RECORD and the reasons of gossip_validation) on inputs that do not belong together.
    """
    candidate = aggregation if aggregation is not None else aggregate(state, inputs)
    measurements = _checked_measurements(state, candidate, inputs.measurements)
    accuracy = weighted_median(
        [(_measurement(m).improvement_ppm, state.voice_of(m.author)) for m in measurements]
    )
    gain = weighted_median(
        [
            (
                _measurement(m).improvement_ppm - _measurement(m).parent_improvement_ppm,
                state.voice_of(m.author),
            )
            for m in measurements
        ]
    )
    promoted = candidate.changed and gain is not None and gain >= -state.preset.accuracy_drop_ppm_max
    weights, content = (
        (candidate.weights, candidate.content) if promoted else (state.weights, state.weights_content)
    )
    committee = draw_committee(state.preset, state.record_hash, [node.stake for node in state.nodes])
    recent = tuple(dict.fromkeys((content.digest, *state.recent_weights)))[
        : state.preset.checkpoint_window + 1
    ]
    after = replace(
        state,
        number=state.next_number,
        record_hash=b"",  # known once the record is; nothing below depends on it
        weights=weights,
        weights_content=content,
        recent_weights=recent,
        reputations=candidate.reputations,
        committee_positions=committee,
        momentum=candidate.momentum if promoted else state.momentum,
    )
    record = CheckpointRecord(
        network_id=state.network_id,
        number=state.next_number,
        parent_record_hash=state.record_hash,
        adapter_id=state.adapter_id,
        signals=_ids(inputs.signals),
        withheld=_ids(inputs.withheld),
        equivocations=tuple(
            sorted(
                (Equivocation(*sorted((a.id, b.id))) for a, b in inputs.equivocations),
                key=lambda pair: pair.first,
            )
        ),
        evaluations=_ids(inputs.evaluations),
        measurements=_ids(measurements),
        weights_hash=content.digest,
        weights_size_bytes=content.size_bytes,
        promoted=promoted,
        accuracy_ppm=accuracy if promoted and accuracy is not None else 0,
        compositions=certified_compositions(state, inputs.compositions),
        reputations_root=reputations_root(candidate.reputations),
        state_root=after.file_content.digest,
        state_size_bytes=after.file_content.size_bytes,
        validator_set_hash=state.committee_hash,
        next_validator_set_hash=validator_set_hash([state.nodes[i] for i in committee]),
    )
    composed = tuple(composition.request for composition in inputs.compositions)
    return Outcome(replace(after, record_hash=record.hash), record, candidate, composed)


def is_valid_delta(state: NetworkState, signal: MentorshipSignal, data: bytes) -> bool:
    """Whether these are the bytes that the signal announced, in the right codec and for the right tensors."""
    if len(data) != signal.delta_size_bytes or content_id(data).digest != signal.delta_hash:
        return False
    try:
        state.decode_delta(data)
    except FormatError:
        return False
    return True


def _ids(messages: Iterable[Message]) -> tuple[bytes, ...]:
    return tuple(sorted(message.id for message in messages))


def _signal(message: Message) -> MentorshipSignal:
    assert isinstance(message.body, MentorshipSignal)
    return message.body


def _measurement(message: Message) -> Measurement:
    assert isinstance(message.body, Measurement)
    return message.body


def _checked_signals(state: NetworkState, inputs: CheckpointInputs) -> dict[bytes, Message]:
    """Signals by id, ascending. One per mentor, over signals, withheld and equivocations together."""
    spoken: set[bytes] = set()
    for first, second in inputs.equivocations:
        check_equivocation(first, second)
        check_message(state, second)
    pairs = [pair[0] for pair in inputs.equivocations]
    for message in (*inputs.signals, *inputs.withheld, *pairs):
        if not isinstance(message.body, MentorshipSignal):
            raise reject(Reason.BAD_RECORD, "a signal id names another kind of message")
        check_message(state, message)
        if message.author in spoken:
            raise reject(Reason.EQUIVOCATION, f"two signals by {message.author[:8].hex()}")
        spoken.add(message.author)
    for message in inputs.signals:
        data = inputs.deltas.get(_signal(message).delta_hash)
        if data is None or len(data) != _signal(message).delta_size_bytes:
            raise reject(Reason.DELTA_MISMATCH, f"no such bytes for signal {message.id[:8].hex()}")
    return {message.id: message for message in sorted(inputs.signals, key=lambda m: m.id)}


def _checked_evaluations(
    state: NetworkState, signals: Mapping[bytes, Message], messages: Iterable[Message]
) -> dict[bytes, list[Message]]:
    """Evaluations by signal id; each evaluator once per signal."""
    by_signal: dict[bytes, list[Message]] = {}
    seen: set[tuple[bytes, bytes]] = set()
    for message in sorted(messages, key=lambda m: m.id):
        body = message.body
        if not isinstance(body, Evaluation) or body.signal_id not in signals:
            raise reject(Reason.BAD_RECORD, "an evaluation of a signal that is not in the record")
        check_message(state, message)
        check_evaluation(state, message, signals[body.signal_id])
        if (body.author, body.signal_id) in seen:
            raise reject(Reason.EQUIVOCATION, f"two evaluations of a signal by {body.author[:8].hex()}")
        seen.add((body.author, body.signal_id))
        by_signal.setdefault(body.signal_id, []).append(message)
    return by_signal


def _checked_measurements(
    state: NetworkState, candidate: Aggregation, messages: Iterable[Message]
) -> tuple[Message, ...]:
    seen: set[bytes] = set()
    for message in messages:
        body = message.body
        if (
            not isinstance(body, Measurement)
            or body.adapter_id != state.adapter_id
            or body.weights_hash != candidate.content.digest
        ):
            raise reject(Reason.BAD_RECORD, "a measurement of other weights than the result")
        check_message(state, message)
        if body.author in seen:
            raise reject(Reason.EQUIVOCATION, f"two measurements by {body.author[:8].hex()}")
        seen.add(body.author)
    return tuple(messages)


def _score(state: NetworkState, evaluations: list[Message]) -> int | None:
    """The voice-weighted median of a signal's evaluations, None where too few vouch for it."""
    if len(evaluations) < state.preset.evaluations_min:
        return None
    pairs = []
    for message in evaluations:
        assert isinstance(message.body, Evaluation)
        pairs.append((message.body.improvement_ppm, state.voice_of(message.author)))
    return weighted_median(pairs)


def _delta(inputs: CheckpointInputs, message: Message) -> bytes:
    return inputs.deltas[_signal(message).delta_hash]


def _copies(
    state: NetworkState, signals: Mapping[bytes, Message], inputs: CheckpointInputs
) -> dict[bytes, bytes]:
    """Id of each copy to the id of the signal that it repeats.

    Of updates alike that one stays whose mentor was alike in the smaller part of its checkpoints, then the
    one of higher reputation: who repeats now this one, now that one is soon known by it, whoever had the luck
    of the first time. Of two that are always alike nobody can tell who repeats whom.
    """
    ids = list(signals)
    if len(ids) < 2:
        return {}
    deltas = [_delta(inputs, signals[i]) for i in ids]
    gram = gram_of_deltas(state.weights, state.moving_manifest, deltas, state.codec)
    rows = [state.reputations[state.position[signals[i].author]] for i in ids]
    order = sorted(range(len(ids)), key=lambda k: (rows[k].alikeness, -rows[k].reputation_ppm, k))
    found = copies(gram, order, state.preset.copy_cosine_ppm)
    return {ids[k]: ids[original] for k, original in found.items()}


@dataclass(frozen=True, slots=True)
class _Combined:
    weights: AdapterWeights
    content: ContentId
    momentum: bytes


def _combined(state: NetworkState, entries: list[tuple[int, bytes]]) -> _Combined:
    """The weights moved by what the preset's rule and outer step make of (weight, delta file) entries."""
    if not entries:
        return _Combined(state.weights, state.weights_content, state.momentum)
    preset, manifest = state.preset, state.moving_manifest
    if preset.aggregation_rule == "mean" and preset.outer_step == OuterStep():
        result = weighted_mean(state.weights, manifest, entries, state.codec)
        return _Combined(result, content_id(result.encode()), state.momentum)
    dishonest = len(entries) * preset.dishonest_share_ppm // ONE_PPM
    weights, files = zip(*entries, strict=True)
    given = Deltas(state.weights, manifest, state.codec, files, weights, dishonest)
    weighted, weight_bits = rule(preset.aggregation_rule)(given)
    momentum = state.momentum
    if preset.outer_step != OuterStep():
        weighted = divide_toward_zero(weighted, 1 << (weight_bits - WEIGHT_SUM_BITS))
        weight_bits = WEIGHT_SUM_BITS
        held = state.momentum_values()
        places = state.weights.places(manifest)
        moved_before = np.concatenate([held[place] for place in places])
        weighted, moved_after = preset.outer_step.apply(weighted, moved_before)
        if preset.outer_momentum_ppm:
            start = 0
            for place in places:
                stop = start + place.stop - place.start
                held[place] = moved_after[start:stop]
                start = stop
            momentum = held.astype("<i8").tobytes()
    result = add_average(state.weights, manifest, weighted, weight_bits)
    return _Combined(result, content_id(result.encode()), momentum)


def _weights(
    state: NetworkState,
    signals: Mapping[bytes, Message],
    scores: Mapping[bytes, int | None],
    copied: Mapping[bytes, bytes],
) -> dict[bytes, int]:
    """Whole parts of 2^16 per signal id: reputation, lowered by few examples, capped; 0 where not helpful."""
    preset = state.preset
    raw = []
    for signal_id, message in signals.items():
        score = scores[signal_id]
        examples = min(_signal(message).examples, preset.examples_full)
        helpful = score is not None and score > 0 and signal_id not in copied
        raw.append(state.reputation_of(message.author) * examples if helpful else 0)
    if not any(raw):
        return dict.fromkeys(signals, 0)
    return dict(zip(signals, integer_weights(capped_shares(preset, raw)), strict=True))


def _moved_reputations(
    state: NetworkState,
    signals: Mapping[bytes, Message],
    scores: Mapping[bytes, int | None],
    evaluations: Mapping[bytes, list[Message]],
    copied: Mapping[bytes, bytes],
    inputs: CheckpointInputs,
) -> tuple[Reputation, ...]:
    rows = list(state.reputations)
    known = {i: score for i, score in scores.items() if score is not None}
    originals = [score for i, score in known.items() if i not in copied]
    reference, harm = reference_score(originals), harm_limit(state.preset, originals)
    alike = set(copied) | set(copied.values())
    for signal_id, score in known.items():
        if reference == 0:
            break  # nothing helped anybody: that tells nothing about one mentor
        place = state.position[signals[signal_id].author]
        row = rows[place]
        target = 0 if signal_id in copied else target_ppm(score, reference, harm)
        after = row.reputation_ppm if target is None else moved(state.preset, row.reputation_ppm, target)
        rows[place] = replace(
            row,
            reputation_ppm=after,
            checkpoints_mentored=row.checkpoints_mentored + 1,
            checkpoints_alike=row.checkpoints_alike + (signal_id in alike),
        )
    for key, (agreed, total) in _agreements(state, scores, evaluations).items():
        place = state.position[key]
        row = rows[place]
        credibility = moved(state.preset, row.credibility_ppm, agreed * ONE_PPM // total)
        rows[place] = replace(row, credibility_ppm=credibility)
    for message in inputs.withheld:  # twice the loss: withholding is a choice, a bad delta may be bad luck
        place = state.position[message.author]
        row = rows[place]
        once = moved(state.preset, row.reputation_ppm, 0)
        rows[place] = replace(row, reputation_ppm=moved(state.preset, once, 0))
    for first, _ in inputs.equivocations:
        place = state.position[first.author]
        rows[place] = replace(rows[place], reputation_ppm=0)
    return tuple(rows)


def _agreements(
    state: NetworkState, scores: Mapping[bytes, int | None], evaluations: Mapping[bytes, list[Message]]
) -> dict[bytes, tuple[int, int]]:
    """Per evaluator, over the signals that enough of them measured (reputation.agreements)."""
    reports = []
    for signal_id, messages in evaluations.items():
        score = scores[signal_id]
        if score is None or len(messages) < state.preset.credibility_evaluations_min:
            continue
        for message in messages:
            assert isinstance(message.body, Evaluation)
            reports.append((message.author, message.body.improvement_ppm, score))
    return agreements(reports, state.preset.harm_deviations)
