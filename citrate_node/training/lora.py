"""Trains and measures LoRA factors on a frozen base, with PEFT and torch. Weights go in and out as numpy.

A weights dictionary maps PEFT's saved tensor name to a float32 array: it is the content of an
adapter_model.safetensors. Imports torch, transformers and peft when a trainer is made, not before:
called by worker_process.py, summary.py, export.py and the benchmarks.
"""

from __future__ import annotations

import gc
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training import initial
from citrate_node.training.architecture import auto_class, objective_of
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import PAD, Rows
from citrate_node.training.initial import Tensors
from citrate_node.training.settings import ALL_LINEAR, LoraSettings, Moving, TrainSettings

EVALUATION_SEQUENCES = 32  # rows of one forward pass while measuring: more is no faster on a CPU
_IGNORED = -100  # torch's own mark for "no target here"


class TrainingCancelled(Exception):
    """The caller asked a running training or measurement to stop."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Weights after one local phase, and what it cost."""

    weights: Tensors
    """Every tensor of the adapter, the frozen factor included."""

    loss_before: float
    """Nats per token of the first batch, before anything was learnt."""

    loss_after: float
    """Nats per token, mean of the last quarter of the batches."""

    examples: int
    """Distinct examples that took part."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LossResult:
    """Mean cross entropy in nats per token (per byte, for the embedded base), and over how many examples."""

    loss: float
    examples: int


class LoraTrainer:
    """One base model in memory with one set of LoRA factors, which every call loads anew.

    Not for several threads: torch's modules hold the weights of the call that runs.
    """

    def __init__(self, base: BaseModel, settings: LoraSettings | None = None, threads: int = 1) -> None:
        self.base = base
        self.settings = settings or LoraSettings()
        with quick_import():
            import torch

            torch.set_num_threads(threads)
            self._model = _inject(load_base(base), peft_config(base, self.settings))
        self._parameters = {
            name.replace(".default.", "."): parameter
            for name, parameter in self._model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    @property
    def model(self) -> Any:
        """The PEFT model, holding the weights of the last call. For saving and for serving."""
        return self._model

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """PEFT tensor names and shapes, as injected."""
        return {name: tuple(p.shape) for name, p in sorted(self._parameters.items())}

    def initial_weights(self, seed: bytes) -> Tensors:
        """The adapter that a public seed stands for (initial.initial_weights)."""
        return initial.initial_weights(self.shapes, seed)

    def train(
        self,
        weights: Mapping[str, npt.NDArray[np.float32]],
        data: Rows,
        settings: TrainSettings,
        *,
        moving: Moving = "both",
        seed: int = 0,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> TrainResult:
        """Learn from `data` for some steps of AdamW, moving one factor or both.

        on_step receives (steps done, steps in all, loss of this batch); TrainingCancelled raised in it
        ends the run. The same arguments give the same bytes on one instruction set.
        Raises ValueError for weights that are not this adapter's or not finite, and when training itself
        leaves the finite numbers: such a delta must not reach the network.
        """
        import torch

        started = time.perf_counter()
        if len(data) == 0:
            raise ValueError("there is no example to train on")
        self.load(weights)
        learning = self._only_learning(moving)
        optimizer = torch.optim.AdamW(
            [{"params": [p], "lr": settings.rate_of(name)} for name, p in learning],
            weight_decay=settings.weight_decay,
        )
        batches = example_batches(len(data), settings, seed)
        torch.manual_seed(seed % (1 << 63))  # dropout draws from it
        rows = data[:, : settings.sequence_bytes]
        losses: list[float] = []
        self._model.train()
        for step, places in enumerate(batches, start=1):
            loss = self._loss(rows[places])
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in learning], settings.gradient_norm_max)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(f"training diverged in step {step}: lower the learning rate")
            if on_step is not None:
                on_step(step, settings.steps, losses[-1])
        trained = self.current()
        require_finite(trained, "trained weights")
        return TrainResult(
            weights=trained,
            loss_before=losses[0],
            loss_after=float(np.mean(losses[-max(1, len(losses) // 4) :])),
            examples=len(np.unique(np.concatenate(batches))),
            seconds=time.perf_counter() - started,
        )

    def loss(
        self,
        weights: Mapping[str, npt.NDArray[np.float32]] | None,
        data: Rows,
        *,
        sequences_max: int | None = None,
        on_batch: Callable[[], None] | None = None,
    ) -> LossResult:
        """Mean loss over the first `sequences_max` examples. weights None: the base model alone."""
        import torch

        rows = data if sequences_max is None else data[:sequences_max]
        if len(rows) == 0:
            raise ValueError("there is no example to measure on")
        self._model.eval()
        total = 0.0
        tokens = 0
        with torch.inference_mode(), self._applied(weights):
            for start in range(0, len(rows), EVALUATION_SEQUENCES):
                part = rows[start : start + EVALUATION_SEQUENCES]
                count = int(np.count_nonzero(part[:, 1:] != PAD))
                total += float(self._loss(part, "sum"))
                tokens += count
                if on_batch is not None:
                    on_batch()
        return LossResult(total / tokens, len(rows))

    def losses(
        self,
        candidates: Sequence[Mapping[str, npt.NDArray[np.float32]] | None],
        data: Rows,
        *,
        sequences_max: int | None = None,
        on_batch: Callable[[], None] | None = None,
    ) -> list[LossResult]:
        """Loss of many weights on the same examples."""
        return [self.loss(w, data, sequences_max=sequences_max, on_batch=on_batch) for w in candidates]

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Put weights into the model. Refuses another adapter's tensors, and numbers that are not finite."""
        import torch

        expected = self.shapes
        if weights.keys() != expected.keys():
            odd = sorted(weights.keys() ^ expected.keys())
            raise ValueError(
                f"these are not the tensors of this adapter: {len(odd)} differ, such as {odd[0]}"
            )
        for name, array in weights.items():
            if array.shape != expected[name]:
                raise ValueError(f"{name} has shape {array.shape}, this adapter wants {expected[name]}")
        require_finite(weights, "weights")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))

    def current(self) -> Tensors:
        """A copy of the weights that the model holds."""
        return {name: p.detach().numpy().copy() for name, p in sorted(self._parameters.items())}

    def _only_learning(self, moving: Moving) -> list[tuple[str, Any]]:
        learning: list[tuple[str, Any]] = []
        for name, parameter in sorted(self._parameters.items()):
            learns = moving == "both" or f".{moving}." in name
            parameter.requires_grad_(learns)
            parameter.grad = None
            if learns:
                learning.append((name, parameter))
        return learning

    @contextmanager
    def _applied(self, weights: Mapping[str, npt.NDArray[np.float32]] | None) -> Iterator[None]:
        if weights is None:
            with self._model.disable_adapter():
                yield
        else:
            self.load(weights)
            yield

    def _loss(self, rows: Rows, reduction: str = "mean") -> Any:
        """Cross entropy of every token after the first, given those before it."""
        import torch

        filled = torch.from_numpy(np.where(rows == PAD, 0, rows).astype(np.int64))
        targets = torch.from_numpy(np.where(rows == PAD, _IGNORED, rows)[:, 1:].astype(np.int64))
        # padding stands at the end alone, and attention looks back only: no mask is needed
        logits = self._model(input_ids=filled[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            targets.reshape(-1),
            ignore_index=_IGNORED,
            reduction=reduction,
        )


def load_base(base: BaseModel) -> Any:
    """The base as a frozen float32 transformers model. Safetensors only; no code from the directory runs."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.directory,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ServiceError(f"transformers cannot load base model {base.name}: {error}") from error
    model.requires_grad_(False)
    return model


def peft_config(base: BaseModel, settings: LoraSettings) -> Any:
    """The PEFT configuration of an adapter, for injection and for adapter_config.json."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets if settings.targets == ALL_LINEAR else list(settings.targets),
        task_type="CAUSAL_LM" if objective_of(base) == "causal" else None,  # PEFT has no type for masked
        base_model_name_or_path=str(base.directory),
    )


def lora_shapes_by_injection(base: BaseModel, settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """Tensor names and shapes of any model, by letting PEFT inject into an empty copy of it."""
    with quick_import():
        import torch
        from transformers import AutoConfig

        with torch.device("meta"):
            kind = auto_class(objective_of(base))
            empty = kind.from_config(AutoConfig.from_pretrained(base.directory, local_files_only=True))
            model = _inject(empty, peft_config(base, settings))
    return {
        name.replace(".default.", "."): (int(p.shape[0]), int(p.shape[1]))
        for name, p in sorted(model.named_parameters())
        if ".lora_A." in name or ".lora_B." in name
    }


def _inject(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # one of transformers, about PEFT's own code
            return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"PEFT cannot inject LoRA into this base: {error}") from error


def example_batches(count: int, settings: TrainSettings, seed: int) -> list[npt.NDArray[np.int64]]:
    """Places of the examples of every step: shuffle after shuffle, so none comes twice before all did."""
    generator = np.random.Generator(np.random.PCG64(seed))
    size = min(settings.batch_sequences, count)
    order = np.empty(0, dtype=np.int64)
    while len(order) < size * settings.steps:
        order = np.concatenate([order, generator.permutation(count)])
    return [order[step * size : (step + 1) * size] for step in range(settings.steps)]


def require_finite(weights: Mapping[str, npt.NDArray[np.float32]], what: str) -> None:
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{what}: {name} holds NaN or infinity")


@contextmanager
def quick_import() -> Iterator[None]:
    """Imports without garbage collection, which costs a quarter of the time among so many new objects."""
    # PEFT imports bitsandbytes where it is installed, and that tells everybody what it could not speed up
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
