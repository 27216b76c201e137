"""What mentors of each kind get over many checkpoints, computed with the protocol's own transition.

No network and no time: every drawn mentor announces, every drawn evaluator measures, and process_checkpoint
makes the next state from the signed messages. So hundreds of checkpoints take seconds, and what is seen is
the reputation rule alone. Called by tests and by benchmarks/reputation_study.py, whose table
docs/reputation.md explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..config import load_preset
from ..node.core import Identity
from ..protocol.certificate import Validator
from ..protocol.codecs import encode_delta
from ..protocol.content_id import content_id
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS, network_id
from ..protocol.messages import Evaluation, Measurement, Message, sign_message
from ..protocol.preset import ONE_PPM, Preset
from ..protocol.state import genesis_state
from ..protocol.state_transition import CheckpointInputs, Outcome, aggregate, process_checkpoint
from ..protocol.tensors import weights_to_float32
from .round_messages import signal_of
from .synthetic import SyntheticTask
from .workload import Values

Kind = Literal[
    "honest",
    "odd",
    "newcomer",
    "free_rider",
    "stale",
    "copier",
    "sign_flipper",
    "noise",
    "liar",
    "colluder",
    "whitewasher",
    "drifter",
]
"""honest: trains on its own data.
odd: honest, with data four times as far from the others'.
newcomer: honest, silent for the first half.
free_rider: announces a tiny random delta.
stale: announces what somebody learned for the checkpoint before.
copier: announces, in the same checkpoint, what somebody has learned and given to it.
sign_flipper: announces the opposite of what it learned.
noise: random values of an honest size.
liar: an honest mentor that reports the opposite of every measurement.
colluder: flips its own delta, reports the best for other colluders and the worst for everybody else.
whitewasher: a sign flipper that takes its next identity as soon as the present one is at the floor; its
identities are registered from the start.
drifter: half of an honest step, and a small step in one secret direction that all drifters share.
"""

EXTREME_PPM = ONE_PPM
"""What a liar reports where it may choose: the delta removes the whole loss, or doubles it."""

FREE_RIDE = 0.01
"""Size of a free rider's values, as part of an honest delta's."""

DRIFT = 0.25
"""Size of a drifter's secret step, as part of its honest one."""


@dataclass(frozen=True)
class StudyOptions:
    """Everything that a study depends on."""

    kinds: tuple[Kind, ...]
    """One for each node, in order."""
    checkpoints: int = 200
    seed: int = 0
    spread: float = 1.0
    """Size of a node's own share of its target, relative to the common one: 0 is IID."""
    moving_target: float = 0.1
    """How far the common target wanders per checkpoint; 0 is a task that is soon done."""
    identities: int = 4
    """Of each whitewasher."""
    preset: Preset = field(default_factory=lambda: load_preset("minimal"))


@dataclass
class StudyResult:
    """Rows per checkpoint; kinds by position of the node."""

    kinds: tuple[Kind, ...]
    reputations_ppm: list[list[int]]
    """(checkpoints, nodes), after each; of a whitewasher, of its present identity."""
    credibilities_ppm: list[list[int]]
    """(checkpoints, nodes), after each."""
    shares_ppm: list[list[int]]
    """(checkpoints, nodes): part of the checkpoint's average; a row of zeros where there was none."""
    losses: list[float]
    """Mean loss of all nodes after each checkpoint, in units of the first."""
    secret: list[float]
    """Where the result has come in the drifters' secret direction, in lengths of that direction's step."""
    identities_used: dict[int, int]

    def final(self, kind: Kind) -> list[int]:
        """Reputations after the last checkpoint of the nodes of a kind, in ppm."""
        return [r for r, k in zip(self.reputations_ppm[-1], self.kinds, strict=True) if k == kind]

    def final_credibility(self, kind: Kind) -> list[int]:
        """The same of credibilities."""
        return [c for c, k in zip(self.credibilities_ppm[-1], self.kinds, strict=True) if k == kind]

    def mean_share_ppm(self, kind: Kind, last: int = 50) -> int:
        """Mean part of the averages of the last checkpoints, per node of a kind."""
        rows = [row for row in self.shares_ppm[-last:] if any(row)]
        picked = [row[i] for row in rows for i, k in enumerate(self.kinds) if k == kind]
        return sum(picked) // len(picked) if picked else 0


class _Study:
    def __init__(self, options: StudyOptions) -> None:
        self.options = options
        count = len(options.kinds)
        self.task = SyntheticTask(options.seed, count, width=8, spread=options.spread)
        self.random = np.random.Generator(np.random.PCG64(options.seed))
        self.identities = {
            i: [
                _identity(options.seed, i, k)
                for k in range(options.identities if kind == "whitewasher" else 1)
            ]
            for i, kind in enumerate(options.kinds)
        }
        self.used = dict.fromkeys(self.identities, 0)
        self.owner = {x.node_key: i for i, group in self.identities.items() for x in group}
        self.by_key = {x.node_key: x for group in self.identities.values() for x in group}
        validators = tuple(Validator(x.node_key, x.account, 1) for x in self.by_key.values())
        preset = replace(
            options.preset,
            mentors_per_checkpoint=max(len(validators), options.preset.mentors_per_checkpoint),
            committee_size=min(256, max(len(validators), options.preset.committee_size)),
        )
        name = network_id(1, bytes(32), ADAPTER_FACTORY_ADDRESS, bytes(32), preset.digest())
        adapter_id = sha256(b"studied adapter").digest()
        weights = self.task.initial_weights()
        self.state = genesis_state(preset, name, validators, adapter_id, weights, bytes(32))
        self.manifest = self.state.moving_manifest
        self.offset = np.zeros(self.manifest.count, dtype=np.float32)
        self.secret = self._drawn(1.0)
        self.before: dict[int, Values] = {}

    def _drawn(self, size: float) -> Values:
        drawn = self.random.integers(-1000, 1001, self.manifest.count) / 1000 * size
        return np.asarray(drawn, dtype=np.float32)

    def values(self) -> Values:
        return weights_to_float32(self.state.weights.select(self.manifest))

    def _trained(self, node: int) -> Values:
        """What the node learns. Its target wanders with everybody's; odd data lie four times as far out."""
        values = self.values() - self.offset
        if self.options.kinds[node] == "odd":
            common = self.task.common(self.manifest)
            target = common + np.float32(4) * (self.task.target(node, self.manifest) - common)
            return np.asarray((target - values) * np.float32(0.5), dtype=np.float32)
        learned: Values = self.task.train_node(node, values, self.manifest) - values
        return learned

    def _deltas(self) -> dict[int, Values]:
        kinds = self.options.kinds
        learned = {i: self._trained(i) for i in range(len(kinds))}
        honest = [i for i, kind in enumerate(kinds) if kind == "honest"]
        size = float(np.abs(learned[honest[0]]).mean()) * 2
        out: dict[int, Values] = {}
        for i, kind in enumerate(kinds):
            match kind:
                case "newcomer" if self.state.number < self.options.checkpoints // 2:
                    continue
                case "free_rider":
                    out[i] = self._drawn(size * FREE_RIDE)
                case "noise":
                    out[i] = self._drawn(size)
                case "stale":
                    friend = honest[self.random.integers(len(honest))]
                    out[i] = self.before.get(friend, learned[i])
                case "copier":
                    out[i] = learned[honest[self.random.integers(len(honest))]] * np.float32(1.1)
                case "sign_flipper" | "colluder" | "whitewasher":
                    out[i] = -learned[i]
                case "drifter":
                    step = self.secret * np.float32(DRIFT * np.abs(learned[i]).mean())
                    out[i] = learned[i] * np.float32(0.5) + step
                case _:
                    out[i] = learned[i]
        self.before = learned
        return out

    def _reported(self, evaluator: int, mentor: int, true_ppm: int) -> int:
        kind = self.options.kinds[evaluator]
        if kind == "liar":
            return -true_ppm
        if kind == "colluder":
            return EXTREME_PPM if self.options.kinds[mentor] == "colluder" else -EXTREME_PPM
        return true_ppm

    def _present(self, node: int) -> Identity:
        return self.identities[node][self.used[node]]

    def _inputs(self) -> CheckpointInputs:
        state = self.state
        files: dict[bytes, bytes] = {}
        values: dict[bytes, tuple[int, Values]] = {}
        signals: list[Message] = []
        for node, delta in self._deltas().items():
            identity = self._present(node)
            if identity.node_key not in state.mentors:
                continue
            data = encode_delta(state.codec, self.manifest, delta)
            content = content_id(data)
            message = signal_of(state, identity, content, self.task.examples)
            files[content.digest] = data
            values[message.id] = (node, delta)
            signals.append(message)
        evaluations = self._evaluations(values, {m.id: m.author for m in signals})
        made = CheckpointInputs(signals=tuple(signals), evaluations=evaluations, deltas=files)
        return replace(made, measurements=self._measurements(made))

    def _evaluations(
        self, values: Mapping[bytes, tuple[int, Values]], authors: Mapping[bytes, bytes]
    ) -> tuple[Message, ...]:
        state, at = self.state, self.values() - self.offset
        scale = state.preset.evaluation_scale_ppm / ONE_PPM
        out = []
        for signal_id, (mentor, delta) in values.items():
            for key in sorted(state.evaluators[authors[signal_id]]):
                evaluator = self.owner[key]
                if self._present(evaluator).node_key != key:
                    continue  # an identity that its owner does not use
                found = self.task.improvements_ppm(evaluator, at, self.manifest, {b"": delta}, scale)
                reported = self._reported(evaluator, mentor, found[b""][0])
                body = Evaluation(
                    state.network_id, key, state.next_number, signal_id, reported, self.task.examples
                )
                out.append(sign_message(self.by_key[key].seed, body))
        return tuple(out)

    def _measurements(self, made: CheckpointInputs) -> tuple[Message, ...]:
        """By the honest of the committee: what dishonest ones may report here is another question."""
        state = self.state
        candidate = aggregate(state, made)
        base = -self.offset
        values = weights_to_float32(candidate.weights.select(self.manifest)) - self.offset
        out = []
        for node, kind in enumerate(self.options.kinds):
            key = self._present(node).node_key
            if kind not in ("honest", "odd") or key not in state.committee_keys:
                continue
            moved = {b"": values - base, b"parent": self.values() - self.offset - base}
            found = self.task.improvements_ppm(node, base, self.manifest, moved, 1.0)
            body = Measurement(
                state.network_id,
                key,
                state.next_number,
                state.adapter_id,
                candidate.content.digest,
                found[b""][0],
                self.task.examples,
                found[b"parent"][0],
            )
            out.append(sign_message(self.by_key[key].seed, body))
        return tuple(out)

    def step(self) -> Outcome:
        outcome = process_checkpoint(self.state, self._inputs())
        self.state = outcome.state
        self.offset = self.offset + self._drawn(self.options.moving_target)
        for node, kind in enumerate(self.options.kinds):
            floor = self.state.preset.reputation_floor_ppm
            more = self.used[node] + 1 < len(self.identities[node])
            if kind == "whitewasher" and more and self.reputation(node) <= floor:
                self.used[node] += 1
        return outcome

    def reputation(self, node: int) -> int:
        return self.state.reputation_of(self._present(node).node_key)

    def credibility(self, node: int) -> int:
        place = self.state.position[self._present(node).node_key]
        return self.state.reputations[place].credibility_ppm

    def shares(self, outcome: Outcome) -> list[int]:
        row = [0] * len(self.options.kinds)
        for signal in outcome.aggregation.outcomes:
            row[self.owner[signal.mentor]] += signal.weight * ONE_PPM >> 16
        return row

    def drifted(self) -> float:
        direction: npt.NDArray[np.float64] = self.secret.astype(np.float64)
        away = self.values() - self.offset - self.task.common(self.manifest)
        return float(away @ direction / (direction @ direction))


def study(options: StudyOptions) -> StudyResult:
    """Run it; the same options give the same result everywhere."""
    world = _Study(options)
    first = world.task.global_loss(world.values(), world.manifest)
    result = StudyResult(options.kinds, [], [], [], [], [], {})
    for _ in range(options.checkpoints):
        outcome = world.step()
        result.reputations_ppm.append([world.reputation(i) for i in range(len(options.kinds))])
        result.credibilities_ppm.append([world.credibility(i) for i in range(len(options.kinds))])
        result.shares_ppm.append(world.shares(outcome))
        at = world.values() - world.offset
        result.losses.append(world.task.global_loss(at, world.manifest) / first)
        result.secret.append(world.drifted())
    result.identities_used = {i: n + 1 for i, n in world.used.items() if options.kinds[i] == "whitewasher"}
    return result


def _identity(seed: int, node: int, number: int) -> Identity:
    name = f"citrate study {seed} node {node} identity {number}"
    return Identity(sha256(f"{name} seed".encode()).digest(), sha256(f"{name} account".encode()).digest())
