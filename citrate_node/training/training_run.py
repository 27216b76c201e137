"""One training of one adapter, from data to a folder that `citrate adapter create` takes. Called by
cli/train.py.

The folder appears complete at the end; until then OUT holds the checkpoint alone (run_checkpoint.py), and
the same command goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training.adapter_model import AdapterModel
from citrate_node.training.architecture import Objective
from citrate_node.training.base_model import BaseModel
from citrate_node.training.examples import Dataset, Examples
from citrate_node.training.export import CONFIG_FILE, WEIGHTS_FILE
from citrate_node.training.export_run import export_run, start_weights
from citrate_node.training.provenance import DataFacts, Provenance, TrainingFacts
from citrate_node.training.run_checkpoint import (
    CHECKPOINT_FILE,
    Progress,
    drop_checkpoint,
    load_progress,
    load_tensors,
    save_checkpoint,
)
from citrate_node.training.run_settings import RunSettings, network_alpha

Notify = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run says of itself. Losses in nats per token."""

    folder: Path
    provenance: Provenance
    steps: int
    best_step: int
    stopped_early: bool
    resumed_at_step: int
    loss_train: float
    """Mean of the last quarter of the steps."""
    loss_validation_base: float
    loss_validation: float
    for_the_network: bool
    """Whether `citrate adapter create` takes it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that decides an adapter."""

    base: BaseModel
    dataset: Dataset
    objective: Objective
    settings: RunSettings
    out: Path
    start: Path | None = None
    """Folder of the adapter that this one goes on from; None: from the seed."""
    local_only: bool = False
    """Also where the network could not hold the result."""
    description: str = ""
    """Of the data, for people."""
    data_licence: str = "unknown"
    licence: str | None = None
    """Of the adapter; None: the base's."""

    def digest(self) -> str:
        """Hex name of this very run."""
        facts = [self.base.base_model_id.hex(), self.dataset.digest, self.objective, self.settings.digest()]
        return hashlib.sha256(json.dumps([*facts, self.started_from()]).encode()).hexdigest()

    def started_from(self) -> str | None:
        """Hex sha256 of the weights file that it goes on from."""
        if self.start is None:
            return None
        try:
            return hashlib.sha256((self.start / WEIGHTS_FILE).read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(f"cannot read {self.start / WEIGHTS_FILE}: {error.strerror}") from None


def check_run(run: Run, fresh: bool) -> Progress:
    """Refuse what would be refused after the work, and say where the run begins. Quick: no torch.

    Raises ConfigError for too little data, a finished or other run in `out`; NetworkRefusal for a variant
    that the network cannot hold, unless `local_only`.
    """
    settings, parts = run.settings, run.dataset
    if not run.local_only:
        network_alpha(settings)
        if run.objective == "labelled":
            raise ConfigError(
                "labels: the head that names them is trained whole and is no LoRA factor, so the network "
                "cannot average it\n"
                "  take --local-only for a folder for PEFT, or a causal base that writes the label"
            )
    wanted = {"to train on": parts.train, "to validate on": parts.validation, "held out": parts.held_out}
    if empty := [name for name, part in wanted.items() if len(part) == 0]:
        raise ConfigError(
            f"data source {parts.source} leaves no example {empty[0]} ({parts.report.summary()})\n"
            "  give more: some 40 passages of a few lines are the least"
        )
    if fresh:
        drop_checkpoint(run.out)
    elif (run.out / WEIGHTS_FILE).exists() or (run.out / CONFIG_FILE).exists():
        raise ConfigError(
            f"{run.out} holds an adapter already\n  give another --out, or --fresh to train it again"
        )
    found = load_progress(run.out)
    if found is not None and found.run != run.digest():
        raise ConfigError(
            f"{run.out}/{CHECKPOINT_FILE} is of a run with other settings, data or start\n"
            "  repeat its command to finish it, or begin again with --fresh"
        )
    return found or Progress(run.digest())


def train(
    run: Run,
    *,
    fresh: bool = False,
    device: str = "cpu",
    threads: int = 1,
    notify: Notify = lambda facts: None,
) -> RunResult:
    """Train, validate, and write the folder.

    notify gets one dictionary per event: {"type": "started" | "step" | "validated" | "finished", …}.
    What it raises ends the run, which can be gone on from. Raises ConfigError, or ServiceError where training
    diverged.
    """
    progress = check_run(run, fresh)
    resumed_at = progress.step
    model = AdapterModel(
        run.base, run.settings, run.objective, labels=run.dataset.labels, device=device, threads=threads
    )
    optimizer = model.optimizer()
    if run.start is not None:
        model.load({**model.weights(), **start_weights(run.start, run.base, run.settings)})
    best = load_tensors(run.out, model.parameters, optimizer) if resumed_at else None
    with model.without_adapter():
        base_loss = model.measure(run.dataset.validation).loss
    notify(
        {
            "type": "started",
            "step": resumed_at,
            "of": run.settings.steps,
            "train_examples": len(run.dataset.train),
            "validation_examples": len(run.dataset.validation),
            "held_out_examples": len(run.dataset.held_out),
            "parameters": sum(p.numel() for p in model.parameters.values()),
            "loss_validation_base": base_loss,
        }
    )
    best = _learn(run, model, optimizer, progress, best, notify)
    if best is not None:
        model.load({name: tensor.float().numpy() for name, tensor in best.items()})
    tail = progress.losses[-max(1, len(progress.losses) // 4) :]
    provenance = export_run(
        run.out, model, _training_facts(run, progress), run.dataset.labels, run.local_only, run.licence
    )
    drop_checkpoint(run.out)
    result = RunResult(
        run.out,
        provenance,
        progress.step,
        progress.best_step,
        progress.stopped_early,
        resumed_at,
        float(np.mean(tail)),
        base_loss,
        progress.best_loss if progress.best_loss is not None else math.nan,
        provenance.weights.cid is not None,
    )
    notify({"type": "finished", "folder": str(run.out), "weights_sha256": provenance.weights.sha256})
    return result


def _learn(
    run: Run, model: AdapterModel, optimizer: Any, progress: Progress, best: Any, notify: Notify
) -> dict[str, Any] | None:
    """The loop. Returns the weights of the best validation."""
    import torch

    settings, data = run.settings, run.dataset.train
    parameters = list(model.parameters.values())
    while progress.step < settings.steps and not progress.stopped_early:
        step = progress.step + 1
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        torch.manual_seed(_mixed(settings.seed, step))  # dropout draws from it
        model.model.train()
        loss = model.loss(_batch(data, settings, step), step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_norm_max)
        optimizer.step()
        optimizer.zero_grad()
        progress.step = step
        progress.losses.append(float(loss.detach()))
        if not math.isfinite(progress.losses[-1]):
            raise ServiceError(
                f"training diverged in step {step}: the loss is {progress.losses[-1]}\n"
                "  lower --learning-rate, or give --fresh with other settings"
            )
        notify({"type": "step", "step": step, "of": settings.steps, "loss": progress.losses[-1]})
        last = step == settings.steps
        if step % settings.validate_every_steps == 0 or last:
            best = _validate(run, model, progress, best, notify)
        if step % settings.checkpoint_every_steps == 0 and not last:
            save_checkpoint(run.out, progress, model.parameters, optimizer, best)
    return best  # type: ignore[no-any-return]  # torch is untyped here


def _validate(run: Run, model: AdapterModel, progress: Progress, best: Any, notify: Notify) -> Any:
    """Measure, keep the weights if they are the best so far, and see whether it is time to stop."""
    loss = model.measure(run.dataset.validation).loss
    progress.validations.append((progress.step, loss))
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_step = loss, progress.step
        best = {name: p.detach().cpu().clone() for name, p in model.parameters.items()}
    since = sum(step > progress.best_step for step, _ in progress.validations)
    progress.stopped_early = 0 < run.settings.patience <= since
    notify(
        {"type": "validated", "step": progress.step, "loss_validation": loss, "best_step": progress.best_step}
    )
    return best


def _batch(data: Examples, settings: RunSettings, step: int) -> Examples:
    """Examples of a step: shuffle after shuffle, so none comes twice before all did. Follows from seed and
    step.
    """
    size = min(settings.batch_sequences, len(data))
    first = (step - 1) * size
    places = []
    for number in range(first, first + size):
        epoch, place = divmod(number, len(data))
        places.append(_order(settings.seed, epoch, len(data))[place])
    return data.take(np.array(places))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Any:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def _mixed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:8], "little") >> 1


def _training_facts(run: Run, progress: Progress) -> TrainingFacts:
    import torch

    parts = run.dataset
    count = len(parts.train) + len(parts.validation) + len(parts.held_out)
    described = "; ".join(text for text in (run.description, parts.report.summary()) if text)
    settings = run.settings
    return TrainingFacts(
        method="local",
        data=(DataFacts(parts.digest, described, run.data_licence, count),),
        seed=str(settings.seed),
        steps=progress.best_step or progress.step,
        batch_sequences=settings.batch_sequences,
        sequence_tokens=parts.train.tokens.shape[1],
        learning_rate=settings.learning_rate,
        dropout=settings.lora.dropout,
        quantization=settings.quantization,
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        started_from=run.started_from(),
    )
