"""What simulated nodes have trained, evaluated and measured, and what dishonest ones make of the results.

The answers of a workload come in batches (tasks.py); each call gives a function that takes the answer once
its virtual time is over. Called by cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..node import actions as act
from ..node import events as ev
from .attacks import COLLECTIVE, HONEST, collective_attacks, own_attack
from .options import ClusterOptions
from .round_nodes import VALUE_MAX
from .tasks import Tasks
from .workload import EvaluateRequest, Improvement, MeasureRequest, TrainRequest, Values, Workload

PRAISE_PPM = 500_000
"""What colluders say of each other, and of all others with the opposite sign."""
TARGETS_KEPT = 2
"""Checkpoints whose honest deltas a collective attack remembers."""

Finished = Callable[[], ev.Event]


class Work:
    """One per simulated network. `workload` is asked for anew at every batch."""

    def __init__(self, options: ClusterOptions, workload: Callable[[], Workload]) -> None:
        self.options = options
        self.tasks = Tasks(workload)
        self._attacks = options.delta_attack_of
        self._spied = bool(COLLECTIVE.intersection(self._attacks.values()))
        self._learnt: dict[int, dict[int, Values]] = {}
        """Target to what its honest mentors learned, where somebody spies on them."""
        self._first: dict[int, Values] = {}
        """What those who repeat themselves learned first."""

    def training_ms(self, index: int) -> tuple[int, int]:
        """The least and the most virtual time that a node trains."""
        options = self.options
        if self._attacks.get(index) in COLLECTIVE:  # whoever takes from all waits until all are done
            done_ms = options.training_ms[1] + 2 * options.latency_ms[1]
            return done_ms, done_ms
        return options.slow_training_ms if index in options.slow_nodes else options.training_ms

    def train(self, index: int, action: act.Train) -> Finished:
        """What the node learned from its own data; of an attacker, what it sends in its place."""
        target, start = action.target_checkpoint, action.moving_values
        shuffled = self._attacks.get(index) == "label_shuffle"
        ticket = self.tasks.train.ask(
            TrainRequest(index, target, action.weights, action.manifest, start, shuffled)
        )

        def finished() -> ev.Event:
            result = self.tasks.train.take(ticket)
            values = self._sent(index, target, start, result.values)
            return ev.TrainingFinished(
                target, action.weights_hash, start, values, result.examples, result.loss
            )

        return finished

    def _sent(self, index: int, target: int, start: Values, values: Values) -> Values:
        attack = self._attacks.get(index)
        if attack is None and self._spied and index not in self.options.dishonest:
            self._learnt.setdefault(target, {})[index] = values - start
            self._learnt = {n: known for n, known in self._learnt.items() if n + TARGETS_KEPT > target}
        if index in self.options.repeaters:
            learnt = self._first.setdefault(index, values - start)
            return start + learnt if learnt.size == values.size else values
        if attack is None:
            return values
        instead = self._attacked(attack, index, target, values - start)
        # an attack may drive values to where the format ends
        return np.asarray(start + np.clip(instead, -VALUE_MAX, VALUE_MAX), dtype=np.float32)

    def _attacked(self, attack: str, index: int, target: int, learnt: Values) -> Values:
        """float32 like `learnt`: what it learned itself where a collective attack knows nobody's delta."""
        if attack not in COLLECTIVE:
            return own_attack(attack, learnt, self.options.seed, index, target)
        known = {n: v for n, v in self._learnt.get(target, {}).items() if v.size == learnt.size}
        if not known:
            return learnt
        attackers = [n for n, name in self._attacks.items() if name == attack]
        kinds = {**dict.fromkeys(known, HONEST), **dict.fromkeys(attackers, attack)}
        deltas = {**known, **dict.fromkeys(attackers, learnt)}
        by_number = [kinds.get(n, HONEST) for n in range(self.options.nodes)]
        return collective_attacks(by_number, deltas, self.options.seed, target)[index]

    def evaluate(self, index: int, action: act.Evaluate, mentor_of: Callable[[bytes], int]) -> Finished:
        """mentor_of: signal id to node number."""
        ticket = self.tasks.evaluate.ask(
            EvaluateRequest(
                index, action.checkpoint, action.parent, action.manifest, action.deltas, action.scale
            )
        )
        mentors = {i: mentor_of(i) for i in action.deltas} if index in self.options.colluders else {}

        def finished() -> ev.Event:
            improvements = self.tasks.evaluate.take(ticket)
            return ev.EvaluationFinished(action.checkpoint, self._said(index, improvements, mentors))

        return finished

    def _said(
        self, index: int, improvements: dict[bytes, Improvement], mentors: Mapping[bytes, int]
    ) -> dict[bytes, Improvement]:
        if index in self.options.colluders:
            friends = self.options.dishonest
            return {
                i: (PRAISE_PPM if mentors[i] in friends else -PRAISE_PPM, examples)
                for i, (_, examples) in improvements.items()
            }
        if index in self.options.liars:
            return {i: (-ppm, examples) for i, (ppm, examples) in improvements.items()}
        return improvements

    def measure(self, index: int, action: act.Measure | act.MeasureComposition) -> Finished:
        """Of a candidate for the network's own adapter, its parent on the same data too."""
        ticket = self.tasks.measure.ask(MeasureRequest(index, action.weights))
        parent = action.parent if isinstance(action, act.Measure) else None
        before = None if parent is None else self.tasks.measure.ask(MeasureRequest(index, parent))

        def finished() -> ev.Event:
            figure = self.tasks.measure.take(ticket)
            if isinstance(action, act.MeasureComposition):
                return ev.CompositionMeasured(action.weights_hash, *figure)
            assert before is not None
            return ev.MeasurementFinished(
                action.checkpoint, action.weights_hash, *figure, self.tasks.measure.take(before)[0]
            )

        return finished
