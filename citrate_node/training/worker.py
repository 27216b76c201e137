"""A training process behind an asyncio facade: torch never blocks the node's loop, nor takes it down.

One request at a time, in order. The process ends when its pipe closes, that is, when this one is gone, even by
kill -9. If it dies, the request that ran raises ServiceError with the end of its log, and the next request
starts a new one. Called by runtime/.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training.settings import LoraSettings, Moving, TrainSettings
from citrate_node.training.wire import PREFIX, Frame, Groups, pack, sizes, unpack

NICENESS = 5
"""Training gives way to the node's network and loop on a busy machine."""
LOG_LINES = 20
STOP_SECONDS = 5.0
ONE_PPM = 1_000_000

Weights = Mapping[str, npt.NDArray[np.float32]]
Progress = Callable[[int, int, float], None]
"""Takes steps done, steps in all, loss of the last batch."""


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
        self._process: asyncio.subprocess.Process | None = None
        self._logger: asyncio.Task[None] | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._lock = asyncio.Lock()
        self._number = 0
        self.restarts = 0

    @property
    def process_id(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> WorkerFacts:
        """Load base and data. Raises ConfigError for a base or source that cannot be used."""
        async with self._lock:
            return await self._start()

    async def _start(self) -> WorkerFacts:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "citrate_node.training.worker_process",
            str(NICENESS),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._logger = asyncio.create_task(self._keep_log(self._process))
        header, _ = await self._exchange({"op": "start", **self._spec}, {}, None)
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

    async def stop(self) -> None:
        """Close the pipe, which ends the process; kill it if it does not end. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._logger is not None:
            await asyncio.gather(self._logger, return_exceptions=True)

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
        request = {"op": "train", "settings": dataclasses.asdict(settings), "moving": moving, "seed": seed}
        header, groups = await self._request(request, {"weights": dict(weights)}, on_step)
        return Trained(groups["weights"], **header)

    async def evaluate(
        self, parent: Weights, deltas: Mapping[bytes, Weights], *, scale: float
    ) -> dict[bytes, tuple[int, int]]:
        """Key to (improvement of the own held-out loss in ppm by parent + scale · delta, examples)."""
        groups: Groups = {key.hex(): dict(delta) for key, delta in deltas.items()}
        header, _ = await self._request(
            {"op": "evaluate", "scale": scale}, {"parent": dict(parent), **groups}, None
        )
        before = header["parent_loss"]
        return {
            bytes.fromhex(key): (improvement_ppm(before, loss), header["examples"])
            for key, loss in header["losses"].items()
        }

    async def measure(self, weights: Weights, *, on: str = "own") -> tuple[int, int]:
        """(improvement over the base model alone in ppm, examples), on "own" or "general" held-out text."""
        header, _ = await self._request({"op": "measure", "on": on}, {"weights": dict(weights)}, None)
        return improvement_ppm(header["base_loss"], header["loss"]), header["examples"]

    # ---------------------------------------------------------------- the pipe

    async def _request(
        self, request: dict[str, Any], groups: Groups, on_step: Progress | None
    ) -> tuple[dict[str, Any], Groups]:
        async with self._lock:
            if self.process_id is None:
                self.restarts += 1
                await self._start()
            return await self._exchange(request, groups, on_step)

    async def _exchange(
        self, request: dict[str, Any], groups: Groups, on_step: Progress | None
    ) -> tuple[dict[str, Any], Groups]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        self._number += 1
        number = self._number
        try:
            process.stdin.write(pack(Frame({"id": number, **request}, groups)))
            await process.stdin.drain()
            while True:
                frame = await self._next_frame(process)
                if frame.header["id"] != number:
                    continue  # the rest of a cancelled one
                if "progress" in frame.header:
                    if on_step is not None:
                        on_step(*frame.header["progress"])
                    continue
                if "error" in frame.header:
                    raise _error(frame.header)
                return frame.header["result"], frame.groups
        except asyncio.CancelledError:
            if self.process_id is not None:
                process.stdin.write(pack(Frame({"id": number, "op": "cancel", "cancel": number})))
            raise
        except (ConnectionError, asyncio.IncompleteReadError, ValueError) as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            last = "\n  ".join(self._log) or str(error)
            raise ServiceError(f"the training process ended with {process.returncode}\n  {last}") from None

    async def _next_frame(self, process: asyncio.subprocess.Process) -> Frame:
        assert process.stdout is not None
        header_bytes, body_bytes = sizes(await process.stdout.readexactly(PREFIX.size))
        header = await process.stdout.readexactly(header_bytes)
        body = await process.stdout.readexactly(body_bytes)
        return unpack(header, body)

    async def _keep_log(self, process: asyncio.subprocess.Process) -> None:
        """The last lines that the process printed, for the error text."""
        assert process.stderr is not None
        with contextlib.suppress(ValueError):
            while line := await process.stderr.readline():
                self._log.append(line.decode(errors="replace").rstrip()[:400])


def improvement_ppm(before: float, after: float) -> int:
    """(before - after) / before in parts per million, rounded to the nearest."""
    return round((before - after) / before * ONE_PPM)


def _error(header: dict[str, Any]) -> Exception:
    kind, message = header["error"], header["message"]
    if kind in ("ConfigError", "PresetError"):
        return ConfigError(message)
    return ServiceError(f"training: {message}")
