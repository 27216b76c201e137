"""The training task of a simulation: real LoRA on a base model, many nodes in one batch.

Satisfies workload.Workload. Every node's data, order of examples and first weights follow from the seed, and
an answer depends on its own request alone (training/batched.py: who shares a pass changes no bit). So a seed
gives one history on one machine, with any number of workers; another instruction set gives another, since
its float arithmetic rounds differently. Threads: `TrainingOptions.threads` is what torch is given, 1 by
default, and each worker process has as many. Called by scenario.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from ..protocol.tensors import Manifest
from ..training.base_model import EMBEDDED, BaseModel
from ..training.data import PAD, NodeData, Rows, domain_held_out, general_held_out, load_node_data
from ..training.initial import initial_weights
from ..training.settings import LoraSettings, TrainSettings
from ..training.worker import improvement_ppm
from .workload import EvaluateRequest, Improvement, MeasureRequest, TrainRequest, TrainResult, Values

if TYPE_CHECKING:
    from ..training.batched import BatchedTrainer

LOSS_UNIT = 2**20
"""A loss of 1 nat per token, in the units of `loss_sum`."""

NODES_CACHED_MAX = 4096
"""Nodes whose data stays in memory: about 40 KB each with the usual sizes."""

Tensors = dict[str, Values]


@dataclass(frozen=True)
class TrainingOptions:
    """What nodes learn from, and how. The defaults suit hundreds of nodes on one machine."""

    base: str = EMBEDDED
    """Base model: "embedded", a folder or a hub name."""
    source: str = ""
    """A node's data source with {node} in it, as in "folder:texts/{node}"; empty: the embedded domains."""
    alpha: float = 0.3
    """Of the Dirichlet draw that gives each node its mixture of the embedded domains; small is non-IID."""
    train_bytes: int = 4_096
    held_out_bytes: int = 2_048
    rank: int = 8
    steps: int = 4
    batch_sequences: int = 4
    sequence_bytes: int = 64
    learning_rate: float = 0.01
    learning_rate_lora_a: float = 0.0
    """Of lora_A where it moves; 0: the same as of lora_B."""
    figure_rows: int = 16
    """Examples of each domain, and four times as many of general text, in the figures that nodes share."""
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"training.alpha is {self.alpha}, it must be positive")
        if min(self.train_bytes, self.held_out_bytes) < self.sequence_bytes:
            raise ConfigError(
                "training.train_bytes and held_out_bytes must hold one example of sequence_bytes at least"
            )
        if self.threads < 1:
            raise ConfigError(f"training.threads is {self.threads}, it must be at least 1")
        if self.source and "{node}" not in self.source:
            raise ConfigError(
                f"training.source is {self.source!r}; write {{node}} where the node number belongs, "
                'such as "folder:texts/{node}"'
            )
        _ = self.lora, self.train  # raise ConfigError for what they refuse

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(rank=self.rank, alpha=2 * self.rank)

    @property
    def train(self) -> TrainSettings:
        return TrainSettings(
            steps=self.steps,
            batch_sequences=self.batch_sequences,
            sequence_bytes=self.sequence_bytes,
            learning_rate=self.learning_rate,
            learning_rate_lora_a=self.learning_rate_lora_a or None,
        )


def training_options(table: Mapping[str, Any], where: str) -> TrainingOptions:
    """Options from a TOML table; `where` begins the message of a ConfigError, which names the key."""
    defaults = asdict(TrainingOptions())
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in defaults:
            raise ConfigError(f"{where}: unknown key {key!r}\n  known are {', '.join(defaults)}")
        wanted = type(defaults[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ConfigError(f"{where}.{key} must be a {wanted.__name__}, is {value!r}")
        values[key] = value
    return TrainingOptions(**values)


@dataclass
class TrainingWorkload:
    """Real training for `nodes` nodes. May be pickled: a worker process loads the base for itself."""

    seed: int
    nodes: int
    options: TrainingOptions = field(default_factory=TrainingOptions)
    _data: dict[int, NodeData] = field(default_factory=dict, repr=False)
    _base: BaseModel | None = field(default=None, repr=False)
    _trainer: BatchedTrainer | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "nodes": self.nodes, "options": self.options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.seed, self.nodes, self.options = state["seed"], state["nodes"], state["options"]
        self._data, self._base, self._trainer = {}, None, None

    @property
    def loss_unit(self) -> int:
        return LOSS_UNIT

    @property
    def base(self) -> BaseModel:
        """The base model; its files are read once."""
        if self._base is None:
            self._base = BaseModel.load(self.options.base)
        return self._base

    def initial_weights(self) -> AdapterWeights:
        """A from the seed, B zero: the base model's own function."""
        lora = self.options.lora
        shapes = self.base.tensor_shapes(lora)
        targets = tuple(sorted({name.split(".")[-3] for name in shapes}))
        config = AdapterConfig(self.base.base_model_id, lora.rank, lora.alpha, targets)
        return from_tensors(config, initial_weights(shapes, b"simulation %d" % self.seed))

    def data(self, node: int) -> NodeData:
        """What a node has of its own."""
        if node not in self._data:
            options = self.options
            source = options.source.format(node=node) or (
                f"embedded:{node}/{self.nodes}?alpha={options.alpha}&bytes={options.train_bytes}"
                f"&held_out={options.held_out_bytes}&seed={self.seed}"
            )
            if len(self._data) >= NODES_CACHED_MAX:
                self._data.pop(next(iter(self._data)))
            self._data[node] = load_node_data(source, self.base, options.sequence_bytes)
        return self._data[node]

    def train(self, requests: Sequence[TrainRequest]) -> list[TrainResult]:
        """Local training, nodes of one moving factor in one batch; then each one's held-out loss."""
        from ..training.batched import TrainJob

        trainer = self._loaded()
        trained: list[Tensors] = [{} for _ in requests]
        for factor in sorted({_factor(request.manifest) for request in requests}):
            places = [i for i, request in enumerate(requests) if _factor(request.manifest) == factor]
            jobs = [
                TrainJob(
                    {**r.weights.tensors(), **_unflat(r.values, r.manifest)},
                    self._train_rows(r),
                    self._seed_of(r),
                )
                for r in (requests[i] for i in places)
            ]
            results = trainer.train(jobs, self.options.train, moving=factor)
            for place, result in zip(places, results, strict=True):
                trained[place] = result.weights
        losses = trainer.losses([(w, self._held_out(r.node)) for w, r in zip(trained, requests, strict=True)])
        return [
            TrainResult(_flat(weights, r.manifest), min(len(self.data(r.node).train), self._seen), loss.loss)
            for weights, r, loss in zip(trained, requests, losses, strict=True)
        ]

    def evaluate(self, requests: Sequence[EvaluateRequest]) -> list[dict[bytes, Improvement]]:
        """Own held-out loss of the parent and of the parent plus each scaled delta, all in one batch."""
        candidates: dict[tuple[bytes, bytes, float], Tensors] = {}
        pairs: list[tuple[Tensors | None, Rows]] = []
        asked: list[list[tuple[bytes, int | None]]] = []
        for request in requests:
            rows = self._held_out(request.node)
            parent_key = request.parent.digest()
            parent = candidates.setdefault((parent_key, b"", 0.0), request.parent.tensors())
            entries: list[tuple[bytes, int | None]] = [(b"", len(pairs))]
            pairs.append((parent, rows))
            for signal_id, delta in request.deltas.items():
                # several nodes measure the same delta: equal weights are made one object, to be held once
                key = (parent_key, sha256(delta.tobytes()).digest(), request.scale)
                if key not in candidates:
                    candidates[key] = _moved(parent, delta, request.manifest, request.scale)
                is_finite = all(np.isfinite(array).all() for array in candidates[key].values())
                entries.append((signal_id, len(pairs) if is_finite else None))
                if is_finite:
                    pairs.append((candidates[key], rows))
            asked.append(entries)
        losses = self._loaded().losses(pairs)
        answers: list[dict[bytes, Improvement]] = []
        for (_, first), *entries in asked:
            assert first is not None
            before = losses[first]
            answers.append(
                {
                    signal_id: (
                        improvement_ppm(before.loss, float("inf") if at is None else losses[at].loss),
                        before.examples,
                    )
                    for signal_id, at in entries
                }
            )
        return answers

    def measure(self, requests: Sequence[MeasureRequest]) -> list[Improvement]:
        """Held-out loss of the base alone and of the weights, of whatever rank and scale they are."""
        distinct: dict[bytes, Tensors] = {}
        pairs: list[tuple[Tensors | None, Rows]] = []
        scalings: list[float] = []
        base_at: dict[int, int] = {}
        places = []
        for request in requests:
            key = request.weights.digest()
            if key not in distinct:
                distinct[key] = request.weights.tensors()
            rows = self._held_out(request.node)
            scaling = request.weights.config.alpha / request.weights.config.rank
            if request.node not in base_at:
                base_at[request.node] = len(pairs)
                pairs.append((None, rows))
                scalings.append(scaling)
            places.append((base_at[request.node], len(pairs)))
            pairs.append((distinct[key], rows))
            scalings.append(scaling)
        losses = self._loaded().losses(pairs, scalings)
        return [
            (improvement_ppm(losses[base].loss, losses[own].loss), losses[own].examples)
            for base, own in places
        ]

    def losses(self, weights: AdapterWeights, nodes: Sequence[int]) -> list[int]:
        tensors = weights.tensors()
        losses = self._loaded().losses([(tensors, self._held_out(node)) for node in nodes])
        return [round(result.loss * LOSS_UNIT) for result in losses]

    def loss_sum(self, weights: AdapterWeights, nodes: Sequence[int]) -> int:
        return sum(self.losses(weights, nodes))

    def figures(self, weights: Sequence[AdapterWeights]) -> list[dict[str, float]]:
        """all: mean over the embedded domains. worst: of the worst domain. general: text that nobody learns
        from, where a rise is forgetting. In nats per token."""
        rows, width = self.options.figure_rows, self.options.sequence_bytes
        shared = [*domain_held_out(self.base, rows, width).values()]
        shared.append(general_held_out(self.base, 4 * rows, width))
        loaded = [each.tensors() for each in weights]
        losses = self._loaded().losses([(tensors, each) for tensors in loaded for each in shared])
        table = np.array([result.loss for result in losses]).reshape(len(loaded), -1)
        return [
            {"all": float(np.mean(row[:-1])), "worst": float(np.max(row[:-1])), "general": float(row[-1])}
            for row in table
        ]

    @property
    def _seen(self) -> int:
        """Examples of one local phase, where the node has as many."""
        return self.options.steps * self.options.batch_sequences

    def _train_rows(self, request: TrainRequest) -> Rows:
        rows = self.data(request.node).train
        return shuffled(rows, self._seed_of(request)) if request.shuffled else rows

    def _held_out(self, node: int) -> Rows:
        return self.data(node).held_out

    def _loaded(self) -> BatchedTrainer:
        if self._trainer is None:
            from ..training.batched import BatchedTrainer

            options = self.options
            self._trainer = BatchedTrainer(
                self.base, options.lora, threads=options.threads, device=options.device
            )
        return self._trainer

    def _seed_of(self, request: TrainRequest) -> int:
        """Of the order of examples: 63 bits of a hash over seed, node and checkpoint."""
        name = f"citrate/training/{self.seed}/{request.node}/{request.checkpoint}"
        return int.from_bytes(sha256(name.encode()).digest()[:8], "big") >> 1


def shuffled(rows: Rows, seed: int) -> Rows:
    """The same tokens of every example in another order: what follows what is no longer true."""
    generator = np.random.Generator(np.random.PCG64(seed))
    out = rows.copy()
    for row in out:
        filled = int((row != PAD).sum())
        row[:filled] = generator.permutation(row[:filled])
    return out


def _factor(manifest: Manifest) -> Any:
    """Which factor a manifest moves: a Moving of training/settings.py."""
    factors = {spec.factor for spec in manifest.specs}
    return factors.pop() if len(factors) == 1 else "both"


def _flat(tensors: Mapping[str, Values], manifest: Manifest) -> Values:
    return np.concatenate([tensors[spec.name].reshape(-1) for spec in manifest.specs])


def _unflat(values: Values, manifest: Manifest) -> Tensors:
    places = manifest.slices()
    return {s.name: values[places[s.name]].reshape(s.shape).astype(np.float32) for s in manifest.specs}


def _moved(parent: Tensors, delta: Values, manifest: Manifest, scale: float) -> Tensors:
    """parent + scale · delta; what a peer sent may leave the finite numbers, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            **parent,
            **{
                name: parent[name] + np.float32(scale) * array
                for name, array in _unflat(delta, manifest).items()
            },
        }
