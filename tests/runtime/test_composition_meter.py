"""A composition is measured by a process of its own shape that gives way to everything, and ends."""

import asyncio
import os
from typing import Any

import pytest
from small_network import network

from citrate_node.errors import ServiceError
from citrate_node.runtime.composition_meter import NICENESS, CompositionMeter
from citrate_node.training.settings import LoraSettings

WEIGHTS = network().weights


class FakeWorker:
    """A process that only sleeps in the place of one that holds torch; `answer` is what measuring gives."""

    def __init__(self, settings: LoraSettings, answer: Any) -> None:
        self.settings = settings
        self.answer = answer
        self.process: asyncio.subprocess.Process | None = None
        self.niceness = 0

    @property
    def process_id(self) -> int | None:
        return self.process.pid if self.process is not None else None

    async def measure(self, weights: dict[str, Any]) -> tuple[int, int]:
        assert weights.keys() == WEIGHTS.tensors().keys()
        self.process = await asyncio.create_subprocess_exec("sleep", "60")
        async with asyncio.timeout(20):
            while self.niceness != NICENESS:
                await asyncio.sleep(0.01)
                self.niceness = os.getpriority(os.PRIO_PROCESS, self.process.pid)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.sleep(60)
        return self.answer  # type: ignore[no-any-return]

    async def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


def meter(answer: Any) -> tuple[CompositionMeter, list[FakeWorker]]:
    made: list[FakeWorker] = []

    def make_worker(settings: LoraSettings) -> Any:
        made.append(FakeWorker(settings, answer))
        return made[-1]

    return CompositionMeter(make_worker), made


def returncodes(made: list[FakeWorker]) -> list[int | None]:
    return [worker.process.returncode for worker in made if worker.process is not None]


async def test_a_process_of_its_own_shape_measures_at_the_lowest_priority_and_ends() -> None:
    measures, made = meter((700, 32))
    assert await measures.measure(WEIGHTS) == (700, 32)
    config = WEIGHTS.config
    assert [worker.settings for worker in made] == [LoraSettings(config.rank, config.alpha, config.targets)]
    assert [worker.niceness for worker in made] == [NICENESS]
    assert returncodes(made) == [-9]


async def test_a_measurement_that_fails_leaves_no_process() -> None:
    measures, made = meter(ServiceError("the process ended"))
    with pytest.raises(ServiceError, match="the process ended"):
        await measures.measure(WEIGHTS)
    assert returncodes(made) == [-9]


async def test_a_node_that_stops_leaves_no_process() -> None:
    measures, made = meter(None)
    task = asyncio.create_task(measures.measure(WEIGHTS))
    async with asyncio.timeout(20):
        while not made or made[0].niceness != NICENESS:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert returncodes(made) == [-9]
