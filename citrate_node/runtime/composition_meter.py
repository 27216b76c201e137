"""Measures compositions on the own held-out data. Called by main_loop for MeasureComposition.

A node's training process holds factors of one shape, that of the network's adapter; a composition has another
rank, and maybe other modules. So each is measured by a process of its own shape, which ends with the answer:
compositions are rare, and memory for a second base model is not worth keeping. It gets what time the others
leave: to start torch takes seconds, and a mentor on the same cores has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from ..protocol.adapter import AdapterWeights
from ..training.settings import LoraSettings
from ..training.worker import TrainingWorker

NICENESS = 19
SPAWN_POLL_SECONDS = 0.02


class CompositionMeter:
    """make_worker: a training process on this node's base and data, for factors of the given shape."""

    def __init__(self, make_worker: Callable[[LoraSettings], TrainingWorker]) -> None:
        self._make_worker = make_worker
        self._lock = asyncio.Lock()

    async def measure(self, weights: AdapterWeights) -> tuple[int, int]:
        """(improvement over the base model alone in ppm, held-out examples). Raises CitrateError."""
        config = weights.config
        async with self._lock:
            worker = self._make_worker(LoraSettings(config.rank, config.alpha, config.targets))
            measuring = asyncio.ensure_future(worker.measure(weights.tensors()))
            try:
                await _give_way(worker, measuring)
                return await measuring
            finally:
                measuring.cancel()
                await asyncio.gather(measuring, return_exceptions=True)
                await worker.stop()


async def _give_way(worker: TrainingWorker, measuring: asyncio.Future[tuple[int, int]]) -> None:
    """Lower the priority of the process as soon as there is one, before it loads anything."""
    while worker.process_id is None and not measuring.done():
        await asyncio.sleep(SPAWN_POLL_SECONDS)
    if worker.process_id is not None:
        with contextlib.suppress(OSError):  # it is gone already, and `measuring` says why
            os.setpriority(os.PRIO_PROCESS, worker.process_id, NICENESS)
