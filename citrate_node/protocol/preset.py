"""The numbers that every node of a network shares, with their reasons, checked once at load.

A preset is TOML (citrate_node/presets/); its digest is part of the network id, so two nodes with different
numbers are on different networks and never argue about a checkpoint. config.py finds and reads the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PresetError
from .aggregation import WEIGHT_SUM
from .codecs import codec
from .encoding import digest, encode
from .methods import METHODS
from .outer_step import RATE_BITS, OuterStep
from .rules import COORDINATE_RULES, MIXED, RULES

ONE_PPM = 1_000_000
"""A whole, in parts per million."""
RECORD_IDS_MAX = 750
"""Ids of 34 bytes in a record of 60,000, beside its other fields and what compositions may name."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Network-wide numbers. Every integer carries its unit at the end of its name."""

    name: str

    method: str
    """Which factors train in a checkpoint, and how they are averaged (methods.py)."""
    codec: str
    """How a delta is quantized (codecs/)."""

    aggregation_rule: str
    """What becomes of the deltas that helped (rules.py)."""
    dishonest_share_ppm: int
    """Part of the deltas in one average that a robust rule reckons with as dishonest; below a half."""
    outer_rate_ppm: int
    """Part of the average that moves the weights (outer_step.py); 1,000,000 is the average itself."""
    outer_momentum_ppm: int
    """Part of the outer momentum that stays from checkpoint to checkpoint; 0 is without momentum."""
    copy_cosine_ppm: int
    """Updates with at least this cosine are copies of one another, and count once (copies.py)."""
    accuracy_drop_ppm_max: int
    """A result measured worse than the one before by more than this is not promoted."""

    signal_deadline_blocks: int
    """Mentors may publish during these first blocks after the previous commit."""
    evaluation_deadline_blocks: int
    """Evaluations may be published until here; deltas are served from one block after the signal deadline."""
    measurement_deadline_blocks: int
    """Measurements of the candidate may be published until here; then proposals begin."""
    proposal_rotation_blocks: int
    """A proposer has this many blocks before the next one is drawn."""

    mentors_per_checkpoint: int
    """At most this many nodes announce in one checkpoint."""
    evaluators_per_signal: int
    """At most this many nodes measure each signal."""
    evaluations_per_node: int
    """At most this many signals are measured by one node, whatever the size of the network."""
    evaluations_min: int
    """A signal with fewer evaluations does not enter the average: nobody vouches for it."""
    committee_size: int
    """At most this many validators propose and vote."""
    newcomer_share_ppm: int
    """Part of the mentors' places drawn without regard to reputation, so that newcomers can earn some."""

    delta_size_bytes_max: int
    weights_size_bytes_max: int
    tensors_max: int
    rank_max: int
    checkpoint_window: int
    """Signals may target this many checkpoints beyond the current one."""
    proposals_per_node_max: int
    """Rounds of one proposer that are kept for one checkpoint."""
    omission_rounds: int
    """A proposal that leaves out a message is accepted once this many proposers came to the same set."""

    evaluation_scale_ppm: int
    """A delta is evaluated at this part of its size: full steps of honest nodes overshoot on others' data."""

    reputation_initial_ppm: int
    """Where a newcomer starts: low, so that whitewashing an identity costs weight."""
    reputation_floor_ppm: int
    """No registered node falls below this for being wrong; only equivocation goes to zero."""
    reputation_gain_ppm: int
    """Part of the way towards a better score that one checkpoint moves a reputation."""
    reputation_loss_ppm: int
    """The same towards a worse score: larger, trust is lost faster than it is won."""
    harm_deviations: int
    """A negative score costs reputation when it is this many median deviations below the median score; an
    evaluation costs credibility when it is this many median distances from the score."""
    credibility_initial_ppm: int
    """Where an evaluator starts. Credibility moves by reputation_gain_ppm and reputation_loss_ppm."""
    credibility_evaluations_min: int
    """Only signals with this many evaluations say who of them was near: fewer have no majority."""
    share_cap_ppm: int
    """No node has more than this share of one average (unless there are too few signals for it)."""
    examples_full: int
    """A signal trained on fewer examples than this weighs proportionally less."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "str" and (type(value) is not str or not value):
                raise PresetError(f"preset: {field.name} must be a text, is {value!r}")
            if field.type == "int" and (type(value) is not int or value < 0):
                raise PresetError(
                    f"preset {self.name}: {field.name} must be a whole number from 0, is {value!r}"
                )
        self._check_names()
        self._check_relations()

    def _check_names(self) -> None:
        if self.method not in METHODS:
            raise PresetError(
                f"preset {self.name}: method is {self.method!r}, must be one of {', '.join(sorted(METHODS))}"
            )
        if self.method == "stack":
            raise PresetError(
                f"preset {self.name}: method stack is floating point and gives machines different bytes; "
                "it is for composition and comparison, not for a network"
            )
        if self.aggregation_rule not in RULES:
            raise PresetError(
                f"preset {self.name}: aggregation_rule is {self.aggregation_rule!r}, must be one of "
                f"{', '.join(RULES)}"
            )
        if self.codec.startswith("topk") and self.aggregation_rule.removeprefix(MIXED) in COORDINATE_RULES:
            raise PresetError(
                f"preset {self.name}: aggregation_rule {self.aggregation_rule} does not go with codec "
                f"{self.codec}: where fewer than half have sent a value, the middle one is zero"
            )
        try:
            codec(self.codec)
        except (KeyError, ValueError) as error:
            raise PresetError(f"preset {self.name}: codec: {error}") from None

    def _check_relations(self) -> None:
        rules: list[tuple[bool, str]] = [
            (
                0 < self.signal_deadline_blocks < self.evaluation_deadline_blocks,
                "signal_deadline_blocks must lie between 0 and evaluation_deadline_blocks",
            ),
            (
                self.signal_deadline_blocks + 1 < self.evaluation_deadline_blocks,
                "evaluation_deadline_blocks must be at least 2 more than signal_deadline_blocks: "
                "deltas are served one block after it",
            ),
            (
                self.evaluation_deadline_blocks < self.measurement_deadline_blocks,
                "evaluation_deadline_blocks must lie before measurement_deadline_blocks",
            ),
            (self.proposal_rotation_blocks >= 1, "proposal_rotation_blocks must be at least 1"),
            (
                1 <= self.mentors_per_checkpoint <= WEIGHT_SUM // 64,
                f"mentors_per_checkpoint must lie between 1 and {WEIGHT_SUM // 64}: "
                f"weights are whole parts of {WEIGHT_SUM}",
            ),
            (
                1 <= self.evaluations_min <= self.evaluators_per_signal,
                "evaluations_min must lie between 1 and evaluators_per_signal",
            ),
            (
                self.evaluations_per_node >= 1,
                "evaluations_per_node must be at least 1",
            ),
            (
                1 <= self.committee_size <= 256,
                "committee_size must lie between 1 and 256 (the contract's bitmap)",
            ),
            (
                self.dishonest_share_ppm < ONE_PPM // 2,
                "dishonest_share_ppm must be below 500,000: no rule stands a dishonest majority",
            ),
            (
                0 < self.outer_rate_ppm <= 2 * ONE_PPM,
                "outer_rate_ppm must lie between 1 and 2,000,000",
            ),
            (self.outer_momentum_ppm < ONE_PPM, "outer_momentum_ppm must be below 1,000,000"),
            (
                ONE_PPM // 2 <= self.copy_cosine_ppm <= ONE_PPM,
                "copy_cosine_ppm must lie between 500,000 and 1,000,000",
            ),
            (
                self.accuracy_drop_ppm_max <= ONE_PPM,
                "accuracy_drop_ppm_max must be at most 1,000,000",
            ),
            (1 <= self.rank_max <= 64, "rank_max must lie between 1 and 64 (the contract's bound)"),
            (
                self._ids_in_record() <= RECORD_IDS_MAX,
                f"a record could name {self._ids_in_record()} messages, room is for {RECORD_IDS_MAX}: lower "
                "mentors_per_checkpoint, evaluators_per_signal or committee_size",
            ),
            (self.tensors_max >= 2, "tensors_max must be at least 2"),
            (0 < self.delta_size_bytes_max <= 2**34, "delta_size_bytes_max must lie between 1 and 2^34"),
            (0 < self.weights_size_bytes_max <= 2**36, "weights_size_bytes_max must lie between 1 and 2^36"),
            (1 <= self.checkpoint_window <= 16, "checkpoint_window must lie between 1 and 16"),
            (self.proposals_per_node_max >= 1, "proposals_per_node_max must be at least 1"),
            (self.omission_rounds >= 1, "omission_rounds must be at least 1"),
            (
                0 < self.evaluation_scale_ppm <= ONE_PPM,
                "evaluation_scale_ppm must lie between 1 and 1,000,000",
            ),
            (self.newcomer_share_ppm <= ONE_PPM, "newcomer_share_ppm must be at most 1,000,000"),
            (
                0 < self.reputation_floor_ppm <= self.reputation_initial_ppm <= ONE_PPM,
                "0 < reputation_floor_ppm <= reputation_initial_ppm <= 1,000,000 must hold",
            ),
            (
                0 < self.reputation_gain_ppm <= self.reputation_loss_ppm <= ONE_PPM,
                "0 < reputation_gain_ppm <= reputation_loss_ppm <= 1,000,000 must hold",
            ),
            (
                self.reputation_floor_ppm <= self.credibility_initial_ppm <= ONE_PPM,
                "credibility_initial_ppm must lie between reputation_floor_ppm and 1,000,000",
            ),
            (self.credibility_evaluations_min >= 3, "credibility_evaluations_min must be at least 3"),
            (1 <= self.harm_deviations <= 1000, "harm_deviations must lie between 1 and 1,000"),
            (0 < self.share_cap_ppm <= ONE_PPM, "share_cap_ppm must lie between 1 and 1,000,000"),
            (self.examples_full >= 1, "examples_full must be at least 1"),
        ]
        for holds, text in rules:
            if not holds:
                raise PresetError(f"preset {self.name}: {text}")

    def _ids_in_record(self) -> int:
        """The most ids that one record can name: per mentor a signal and its evaluations, or a proof of
        equivocation (two ids and their map, as long as three), and a measurement per committee member."""
        return self.mentors_per_checkpoint * max(3, 1 + self.evaluators_per_signal) + self.committee_size

    @property
    def outer_step(self) -> OuterStep:
        """The outer rate and momentum in units of 2**-16, toward zero; a rate is never less than one unit."""
        rate_q16 = (self.outer_rate_ppm << RATE_BITS) // ONE_PPM
        return OuterStep(max(1, rate_q16), (self.outer_momentum_ppm << RATE_BITS) // ONE_PPM)

    def digest(self) -> bytes:
        """Hash of all the numbers (32 bytes); part of the network id."""
        return digest("citrate/preset/1", encode(dataclasses.asdict(self)))


def preset_from(raw: Mapping[str, Any]) -> Preset:
    """A preset from a flat mapping. Raises PresetError naming an unknown, missing or impossible key."""
    names = {field.name for field in dataclasses.fields(Preset)}
    for key in raw:
        if key not in names:
            raise PresetError(f"preset: unknown key {key!r}")
    missing = sorted(names - set(raw))
    if missing:
        raise PresetError(f"preset {raw.get('name', '')}: missing {', '.join(missing)}")
    return Preset(**raw)
