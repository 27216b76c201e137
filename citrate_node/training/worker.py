"""A training process behind an asyncio facade: torch never blocks the node's loop, nor takes it down.

One request at a time, in order. The process ends when its pipe closes, that is, when this one is gone,
even by kill -9. If it dies, the request that ran raises ServiceError with the end of its log, and the
next request starts a new one. Free of torch. Called by runtime/.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from citrate_node.errors import CitrateError, ServiceError
from citrate_node.training.settings import LoraSettings, Moving, TrainSettings
from citrate_node.training.wire import Groups
from citrate_node.training.worker_pipe import Progress, WorkerPipe

ONE_PPM = 1_000_000

Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """Weights after one local phase. Losses in nats per token."""

    weights: dict[str, npt.NDArray[np.float32]]
    loss_before: float
    loss_after: float
    examples: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the worker found when it loaded base and data; part of every adapter's provenance."""

    base_model_id: bytes
    licence: str
    data_digest: bytes
    mixture: Mapping[str, float]
    train_examples: int
    held_out_examples: int
    shapes: Mapping[str, tuple[int, ...]]
    instruction_set: str
    """Training is bit-identical on one instruction set only."""
    torch_version: str


class TrainingWorker:
    """One base model and one node's data in a process of their own."""

    def __init__(
        self,
        base: str,
        lora: LoraSettings,
        data_source: str,
        *,
        sequence_bytes: int = 128,
        threads: int = 1,
    ) -> None:
        self._spec: dict[str, Any] = {
            "base": base,
            "lora": dataclasses.asdict(lora),
            "data_source": data_source,
            "sequence_bytes": sequence_bytes,
            "threads": threads,
        }
        self._pipe: WorkerPipe | None = None
        self._lock = asyncio.Lock()
        self._stopped = False
        self.starts = 0
        """Processes started so far: 1 for a worker that never died."""
        self.last_error: str | None = None
        """Why the last request failed, the end of a dead process's log included."""

    @property
    def process_id(self) -> int | None:
        return self._pipe.process_id if self._pipe is not None and self._pipe.alive else None

    async def start(self) -> WorkerFacts:
        """Load base and data. Raises ConfigError for a base or source that cannot be used."""
        async with self._lock:
            return await self._start()

    async def stop(self) -> None:
        """End the process; a request that runs fails with ServiceError. Safe to call twice."""
        self._stopped = True
        if self._pipe is not None:
            await self._pipe.close()

    async def train(
        self,
        weights: Weights,
        settings: TrainSettings,
        *,
        moving: Moving,
        seed: int,
        on_step: Progress | None = None,
    ) -> Trained:
        """One local phase from `weights` on the own training data. See lora.LoraTrainer.train."""
        request = {
            "op": "train",
            "settings": dataclasses.asdict(settings),
            "moving": moving,
            "seed": seed,
        }
        header, groups = await self._request(request, {"weights": dict(weights)}, on_step)
        return Trained(groups["weights"], **header)

    async def evaluate(
        self, parent: Weights, deltas: Mapping[bytes, Weights], *, scale: float
    ) -> dict[bytes, tuple[int, int]]:
        """Key to (improvement of the own held-out loss in ppm by parent + scale · delta, examples).

        deltas: the moving tensors alone, at full size. A delta that leads out of the finite numbers counts as
        the worst improvement; it cannot make the others' evaluation fail.
        """
        groups: Groups = {key.hex(): dict(delta) for key, delta in deltas.items()}
        header, _ = await self._request(
            {"op": "evaluate", "scale": scale}, {"parent": dict(parent), **groups}, None
        )
        before = header["parent_loss"]
        return {
            bytes.fromhex(key): (improvement_ppm(before, loss), header["examples"])
            for key, loss in header["losses"].items()
        }

    async def measure(self, weights: Weights, *, on: Literal["own", "general"] = "own") -> tuple[int, int]:
        """(improvement over the base model alone in ppm, examples), on own or on general held-out text."""
        header, _ = await self._request({"op": "measure", "on": on}, {"weights": dict(weights)}, None)
        return improvement_ppm(header["base_loss"], header["loss"]), header["examples"]

    async def _start(self) -> WorkerFacts:
        if self._stopped:
            raise ServiceError("the training worker was stopped; make a new one")
        if self._pipe is not None:
            await self._pipe.close()
        pipe = self._pipe = await WorkerPipe.open(self._spec["threads"])
        self.starts += 1
        try:
            if self._stopped:  # while the process was being made
                raise ServiceError("the training worker was stopped")
            header, _ = await pipe.ask({"op": "start", **self._spec}, {})
        except BaseException as error:  # a process without a base is of no use to the next request
            self.last_error = str(error)
            pipe.kill()
            await pipe.close()
            raise
        return WorkerFacts(
            bytes.fromhex(header["base_model_id"]),
            header["licence"],
            bytes.fromhex(header["data_digest"]),
            header["mixture"],
            header["train_examples"],
            header["held_out_examples"],
            {name: tuple(shape) for name, shape in header["shapes"].items()},
            header["instruction_set"],
            header["torch_version"],
        )

    async def _request(
        self, request: dict[str, Any], groups: Groups, on_step: Progress | None
    ) -> tuple[dict[str, Any], Groups]:
        async with self._lock:
            if self.process_id is None:
                await self._start()
            assert self._pipe is not None
            try:
                return await self._pipe.ask(request, groups, on_step)
            except CitrateError as error:
                self.last_error = str(error)
                raise


def improvement_ppm(before: float, after: float) -> int:
    """(before - after) / before in parts per million, rounded to the nearest, within ± 1,000,000.

    -1,000,000 stands for a loss that doubled, or worse, or is no number any more.
    """
    if not math.isfinite(after):
        return -ONE_PPM
    return max(-ONE_PPM, round((before - after) / before * ONE_PPM))
