"""The loss of weights that a recording leads to, where the recording holds what is needed to measure it.

A simulation's options.json gives its task again, from the seed. A devnet's nodes keep their data to
themselves; but its base is mostly the embedded one, whose held-out texts everybody has. Called by
`citrate replay --set`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..protocol.adapter import AdapterWeights
from ..protocol.preset import Preset
from .options import ClusterOptions, synthetic_task
from .round_options import RoundsOptions
from .runs import OPTIONS_FILE
from .training_workload import TrainingOptions, TrainingWorkload
from .workload import Workload

Figures = dict[str, float]


@dataclass
class RecordedLoss:
    """Measures weights; each only once."""

    what: str
    """On which data."""
    measure: Callable[[AdapterWeights], Figures]
    _known: dict[bytes, Figures] = field(default_factory=dict)

    def __call__(self, weights: AdapterWeights) -> Figures:
        key = weights.digest()
        if key not in self._known:
            self._known[key] = self.measure(weights)
        return self._known[key]


def loss_of(folder: Path, preset: Preset, genesis: AdapterWeights) -> RecordedLoss | str:
    """How to measure a recording's weights, or the reason why that cannot be done.

    folder: a run's, or the recording's own. genesis: the weights before checkpoint 1, by which the task is
    known to be the right one.
    """
    for place in (folder, folder.parent):
        if (place / OPTIONS_FILE).is_file():
            return _of_simulation(place / OPTIONS_FILE, preset, genesis)
    return _of_embedded(genesis)


def _of_simulation(path: Path, preset: Preset, genesis: AdapterWeights) -> RecordedLoss | str:
    try:
        options = json.loads(path.read_text())
        workload = _workload(options, preset)
        nodes = range(int(options["nodes"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        return f"{path} does not give the task again: {error}"
    if workload.initial_weights() != genesis:
        return f"{path} is of another task than the recording"

    def measure(weights: AdapterWeights) -> Figures:
        return {"own": workload.loss_sum(weights, nodes) / workload.loss_unit / len(nodes)}

    return RecordedLoss("mean over all nodes, each on its own held-out data", measure)


def _workload(options: Mapping[str, Any], preset: Preset) -> Workload:
    if options.get("training"):
        training = TrainingOptions(**options["training"])
        return TrainingWorkload(options["seed"], options["nodes"], training)
    kind: Any = RoundsOptions if options.get("engine") == "rounds" else ClusterOptions
    names = ("nodes", "checkpoints", "seed", "spread", "width", "rate")
    known = {f.name for f in fields(kind)}
    made = kind(preset, **{name: options[name] for name in names if name in known and name in options})
    task: Workload = made.workload() if isinstance(made, RoundsOptions) else synthetic_task(made)
    return task


def _of_embedded(genesis: AdapterWeights) -> RecordedLoss | str:
    try:
        from ..training.base_model import EMBEDDED, BaseModel
        from ..training.data import domain_held_out, general_held_out
        from ..training.lora import LoraTrainer
        from ..training.settings import LoraSettings
        from ..training.summary import DOMAIN_SEQUENCES_MAX, GENERAL_SEQUENCES_MAX

        base = BaseModel.load(EMBEDDED)
    except ImportError as error:
        return f"losses need the extra `training` ({error.name} is not installed)"
    config = genesis.config
    if config.base_model_id != base.base_model_id:
        return f"the base model {config.base_model_id.hex()[:16]}… is not the embedded one"
    trainer = LoraTrainer(base, LoraSettings(config.rank, config.alpha, config.targets), threads=1)
    domains = domain_held_out(base, DOMAIN_SEQUENCES_MAX, 128)
    general = general_held_out(base, GENERAL_SEQUENCES_MAX, 128)

    def measure(weights: AdapterWeights) -> Figures:
        tensors = weights.tensors()
        by_domain = [trainer.loss(tensors, rows).loss for rows in domains.values()]
        return {
            "all": sum(by_domain) / len(by_domain),
            "worst": max(by_domain),
            "general": trainer.loss(tensors, general).loss,
        }

    return RecordedLoss("embedded held-out text: all domains, the worst domain, general text", measure)
