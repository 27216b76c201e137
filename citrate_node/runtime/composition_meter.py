"""Measures compositions on the own held-out data. Called by main_loop for MeasureComposition.

A node's training process holds factors of one shape, that of the network's adapter; a composition has another
rank, and maybe other modules. So each is measured by a process of its own shape, which ends with the answer:
compositions are rare, and memory for a second base model is not worth keeping.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..protocol.adapter import AdapterWeights
from ..training.settings import LoraSettings
from ..training.worker import TrainingWorker


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
            try:
                return await worker.measure(weights.tensors())
            finally:
                await worker.stop()
