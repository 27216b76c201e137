"""The scene of the training measurements: non-IID nodes, the embedded base, the protocol's own integers.

Not a benchmark by itself. Nodes train in one batch (training/batched.py); what they learnt goes through the
protocol's codecs, error feedback, rules, outer step, scores and reputations, as on the network; messages,
signatures and time alone are left out. Imported by the scripts beside it, whose rows it keeps and summarizes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from citrate_node.protocol.aggregation import add_average
from citrate_node.protocol.codecs import Codec, codec, decode_delta, encode_delta, error_feedback
from citrate_node.protocol.codecs.delta import DeltaLimits
from citrate_node.protocol.methods import moving_factor
from citrate_node.protocol.outer_step import OuterStep
from citrate_node.protocol.rules import Deltas, rule
from citrate_node.protocol.stack import average_products
from citrate_node.protocol.tensors import Float32Array, Int64Array, Manifest, delta_from_grid
from citrate_node.training.base_model import BaseModel
from citrate_node.training.batched import BatchedTrainer, TrainJob
from citrate_node.training.batched_lora import Weights
from citrate_node.training.data import Rows, domain_held_out, general_held_out, load_node_data
from citrate_node.training.initial import initial_weights
from citrate_node.training.settings import LoraSettings, TrainSettings

FIGURES = ("own", "all", "worst", "general")
RESULTS = Path(__file__).parent / "results"
STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % factor of Student's t for a mean of n values (n - 1 degrees of freedom)."""

DELTA_LIMITS = DeltaLimits(1 << 30)
RANK = 8
OWN_ROWS, DOMAIN_ROWS, GENERAL_ROWS = 48, 24, 96


@dataclass(frozen=True)
class Setting:
    """How nodes train and how their deltas become a version."""

    method: str = "freeze_a"
    rate: float = 0.02
    rate_a: float | None = None
    codec: str = "float32"
    feedback: bool = True
    feedback_keep: float = 1.0
    """Part of the residual that is carried on: below 1 it decays."""
    rule: str = "mean"
    dishonest: int = 0
    """What the rule is told, f."""
    outer_rate: float = 1.0
    outer_momentum: float = 0.0
    steps: int = 8
    batch: int = 4
    sequence_bytes: int = 64

    def train_settings(self) -> TrainSettings:
        return TrainSettings(
            steps=self.steps,
            batch_sequences=self.batch,
            sequence_bytes=self.sequence_bytes,
            learning_rate=self.rate,
            learning_rate_lora_a=self.rate_a,
        )

    def outer(self) -> OuterStep:
        return OuterStep(round(self.outer_rate * 65536), round(self.outer_momentum * 65536))


@dataclass
class Network:
    """Nodes with data, and the adapter that they share."""

    trainer: BatchedTrainer
    seed: int
    train: list[Rows]
    held_out: list[Rows]
    domains: dict[str, Rows]
    general: Rows
    adapter: AdapterWeights
    residuals: dict[tuple[int, str], Float32Array] = field(default_factory=dict)
    momenta: dict[str, Int64Array] = field(default_factory=dict)
    signal_bytes: list[int] = field(default_factory=list)

    @classmethod
    def make(
        cls, trainer: BatchedTrainer, nodes: int, seed: int, alpha: float = 0.3, width: int = 64
    ) -> Network:
        """Everything from one seed: the nodes' mixtures and slices, and the first adapter."""
        base = trainer.base
        data = [
            load_node_data(
                f"embedded:{i}/{nodes}?alpha={alpha}&bytes=16384&held_out=8192&seed={seed}", base, width
            )
            for i in range(nodes)
        ]
        settings = trainer.settings
        targets = tuple(sorted({name.split(".")[-3] for name in trainer.shapes}))
        config = AdapterConfig(base.base_model_id, settings.rank, settings.alpha, targets)
        first = from_tensors(config, initial_weights(trainer.shapes, b"scene %d" % seed))
        return cls(
            trainer,
            seed,
            [each.train for each in data],
            [each.held_out for each in data],
            domain_held_out(base, DOMAIN_ROWS, width),
            general_held_out(base, GENERAL_ROWS, width),
            first,
        )

    def moving(self, setting: Setting, checkpoint: int) -> Manifest:
        return self.adapter.manifest.subset(moving_factor(setting.method, checkpoint))

    def learn(
        self, setting: Setting, checkpoint: int, starts: Sequence[Weights], data: Sequence[Rows] | None = None
    ) -> list[Weights]:
        """Every node's local phase from its own start."""
        jobs = [
            TrainJob(start, rows, 1_000_000 * self.seed + 1_000 * node + checkpoint)
            for node, (start, rows) in enumerate(zip(starts, data or self.train, strict=True))
        ]
        moving = moving_factor(setting.method, checkpoint)
        return [
            result.weights for result in self.trainer.train(jobs, setting.train_settings(), moving=moving)
        ]

    def deltas(
        self, setting: Setting, checkpoint: int, data: Sequence[Rows] | None = None
    ) -> list[Float32Array]:
        """What each node's training changed, flat in manifest order."""
        tensors = self.adapter.tensors()
        manifest = self.moving(setting, checkpoint)
        before = flat(tensors, manifest)
        trained = self.learn(setting, checkpoint, [tensors] * len(self.train), data)
        return [flat(weights, manifest) - before for weights in trained]

    def send(self, setting: Setting, checkpoint: int, deltas: Sequence[Float32Array]) -> list[bytes]:
        """The delta files, each with what its mentor's codec left out before."""
        chosen, manifest = codec(setting.codec), self.moving(setting, checkpoint)
        factor = moving_factor(setting.method, checkpoint)
        files = []
        for node, delta in enumerate(deltas):
            intended = delta
            if setting.feedback and (node, factor) in self.residuals:
                intended = delta + np.float32(setting.feedback_keep) * self.residuals[node, factor]
            data = encode_delta(chosen, manifest, intended)
            self.residuals[node, factor] = error_feedback(
                intended, decode_delta(data, chosen, manifest, DELTA_LIMITS)
            )
            files.append(data)
        self.signal_bytes += [len(data) for data in files]
        return files

    def combine(
        self, setting: Setting, checkpoint: int, files: Sequence[bytes], weights: Sequence[int]
    ) -> None:
        """The next version: the rule, the outer step, one division. Signals of weight 0 stay out."""
        chosen, manifest = codec(setting.codec), self.moving(setting, checkpoint)
        entries = [(w, data) for w, data in zip(weights, files, strict=True) if w > 0]
        if not entries:
            return
        if setting.method == "stack":
            self.adapter = self._stacked(entries, chosen, manifest)
            return
        deltas = Deltas(
            self.adapter,
            manifest,
            chosen,
            tuple(data for _, data in entries),
            tuple(w for w, _ in entries),
            setting.dishonest,
        )
        weighted, weight_bits = rule(setting.rule)(deltas)
        outer = setting.outer()
        if outer != OuterStep():
            factor = moving_factor(setting.method, checkpoint)
            momentum = self.momenta.get(factor, np.zeros(manifest.count, dtype=np.int64))
            weighted, self.momenta[factor] = outer.apply(weighted >> (weight_bits - 16), momentum)
            weight_bits = 16
        self.adapter = add_average(self.adapter, manifest, weighted, weight_bits)

    def _stacked(
        self, entries: Sequence[tuple[int, bytes]], chosen: Codec, manifest: Manifest
    ) -> AdapterWeights:
        """Whole updates averaged, brought back to the rank, and written with the adapter's own scale."""
        adapters = []
        parent = flat(self.adapter.tensors(), manifest)
        for weight, data in entries:
            moved = parent + delta_from_grid(decode_delta(data, chosen, manifest, DELTA_LIMITS))
            adapters.append((weight, from_tensors(self.adapter.config, unflat(moved, manifest))))
        config = self.adapter.config
        averaged, _ = average_products(adapters, config.rank)
        root = math.sqrt(config.alpha / config.rank)
        return from_tensors(config, {name: each / root for name, each in averaged.tensors().items()})

    def measure(self, weights: Sequence[Weights | None]) -> dict[str, float]:
        """The four losses of one set of weights per node; equal objects are measured once."""
        distinct = list({id(each): each for each in weights}.values())
        shared = [(each, rows) for each in distinct for rows in [*self.domains.values(), self.general]]
        own = [(each, rows[:OWN_ROWS]) for each, rows in zip(weights, self.held_out, strict=True)]
        losses = [result.loss for result in self.trainer.losses([*shared, *own])]
        table = np.array(losses[: len(shared)]).reshape(len(distinct), -1)
        by_domain = table[:, :-1].mean(axis=0)
        return {
            "own": float(np.mean(losses[len(shared) :])),
            "all": float(by_domain.mean()),
            "worst": float(by_domain.max()),
            "general": float(table[:, -1].mean()),
        }

    def mentored(self) -> dict[str, float]:
        return self.measure([self.adapter.tensors()] * len(self.train))


def run(network: Network, setting: Setting, checkpoints: int) -> dict[str, float]:
    """Honest nodes with equal weights: the losses of the last version."""
    for checkpoint in range(1, checkpoints + 1):
        files = network.send(setting, checkpoint, network.deltas(setting, checkpoint))
        network.combine(setting, checkpoint, files, [1] * len(files))
    return network.mentored()


def run_alone(network: Network, setting: Setting, checkpoints: int) -> dict[str, float]:
    """The control: the same training on the same data, each node by itself."""
    weights: list[Weights] = [network.adapter.tensors()] * len(network.train)
    method = "factor_mean" if setting.method == "stack" else setting.method
    for checkpoint in range(1, checkpoints + 1):
        weights = network.learn(replace(setting, method=method), checkpoint, weights)
    return network.measure(weights)


def flat(tensors: Weights, manifest: Manifest) -> Float32Array:
    return np.concatenate([tensors[spec.name].reshape(-1) for spec in manifest.specs])


def unflat(values: np.ndarray, manifest: Manifest) -> dict[str, Float32Array]:
    places = manifest.slices()
    return {s.name: values[places[s.name]].reshape(s.shape).astype(np.float32) for s in manifest.specs}


def make_trainer(threads: int = 1, device: str = "cpu") -> BatchedTrainer:
    return BatchedTrainer(
        BaseModel.load(), LoraSettings(rank=RANK, alpha=2 * RANK), threads=threads, device=device
    )


class Book:
    """Rows of a measurement in a JSON file: written after each, and not computed again when started anew."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() else []

    def has(self, **key: Any) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.path is not None:
            text = "[\n" + ",\n".join(json.dumps(each) for each in self.rows) + "\n]\n"
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(self.path)

    def of(self, **key: Any) -> list[dict[str, Any]]:
        return [row for row in self.rows if all(row.get(k) == v for k, v in key.items())]


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and half of the width of its 95 % interval by Student's t."""
    array = np.array(list(values), dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    half = STUDENT_95[len(array)] * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()), half


def cell(values: Iterable[float], digits: int = 3) -> str:
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def figures_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Cells of the four losses, mean and interval over the rows."""
    return [cell(row[figure] for row in rows) for figure in FIGURES]
