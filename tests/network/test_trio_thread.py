"""The bridge between asyncio and trio: results, failures, cancellation, ends."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from citrate_node.network.settings import NetworkStopped
from citrate_node.network.trio_thread import TrioThread


async def idle(stop: trio.Event, *, task_status: Any) -> None:
    task_status.started()
    await stop.wait()


async def started(service: Callable[..., Awaitable[None]] = idle) -> TrioThread:
    thread = TrioThread(service, "test-trio")
    await thread.start()
    return thread


async def test_a_call_runs_on_the_trio_thread_and_brings_its_result_or_failure() -> None:
    async def where(mark: str) -> tuple[str, str]:
        await trio.lowlevel.checkpoint()
        return mark, threading.current_thread().name

    async def fail() -> None:
        raise KeyError("lost")

    thread = await started()
    assert await thread.call(where, "here") == ("here", "test-trio")
    with pytest.raises(KeyError, match="lost"):
        await thread.call(fail)
    await thread.stop()


async def test_cancelling_the_caller_cancels_the_trio_task_and_waits_for_its_clean_up() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep(60)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            steps.append("cleaned up")

    thread = await started()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await thread.call(work)
    assert steps == ["cleaned up"]
    await thread.stop()


async def test_a_call_that_finishes_while_it_is_cancelled_is_cancelled_all_the_same() -> None:
    thread = await started()
    for _ in range(50):
        task = asyncio.create_task(thread.call(trio.sleep, 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await thread.call(trio.sleep, 0) is None
    await thread.stop()


async def test_calls_under_way_when_it_stops_end_with_network_stopped() -> None:
    thread = await started()
    tasks = [asyncio.create_task(thread.call(trio.sleep, 60)) for _ in range(5)]
    await asyncio.sleep(0.05)
    await thread.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [NetworkStopped] * 5
    with pytest.raises(NetworkStopped):
        await thread.call(trio.sleep, 0)


async def test_a_service_that_dies_fails_the_calls_and_tells_why() -> None:
    async def die(stop: trio.Event, *, task_status: Any) -> None:
        task_status.started()
        await trio.sleep(0.05)
        raise ZeroDivisionError("service broke")

    thread = await started(die)
    with pytest.raises(NetworkStopped):
        await thread.call(trio.sleep, 60)
    with pytest.raises(ZeroDivisionError, match="service broke"):
        await thread.finished()
    await thread.stop()


async def test_a_service_that_cannot_start_raises_from_start() -> None:
    async def refuse(stop: trio.Event, *, task_status: Any) -> None:
        raise OSError("no port")

    thread = TrioThread(refuse, "test-trio")
    with pytest.raises(OSError, match="no port"):
        await thread.start()
    await thread.stop()
    assert "test-trio" not in {other.name for other in threading.enumerate()}


async def test_a_start_that_is_cancelled_leaves_no_thread() -> None:
    async def slow(stop: trio.Event, *, task_status: Any) -> None:
        await trio.sleep(0.2)
        task_status.started()
        await stop.wait()

    for pause in (0, 0.05):
        thread = TrioThread(slow, "test-trio")
        task = asyncio.create_task(thread.start())
        await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "test-trio" not in {other.name for other in threading.enumerate()}


async def test_trio_calls_asyncio_and_is_cancelled_there_too() -> None:
    cancelled = asyncio.Event()

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def wait_long(number: int) -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return number

    async def ask(number: int) -> tuple[int, bool]:
        answer = await thread.to_asyncio(double, number)
        with trio.move_on_after(0.05) as scope:
            await thread.to_asyncio(wait_long, number)
        return answer, scope.cancelled_caught

    thread = await started()
    assert await thread.call(ask, 21) == (42, True)
    await asyncio.wait_for(cancelled.wait(), 1)
    await thread.stop()


async def test_a_busy_asyncio_loop_does_not_hold_up_the_trio_side() -> None:
    """The reason for the thread: in guest mode a slow callback froze the network."""
    ticks: list[float] = []

    async def tick() -> None:
        for _ in range(20):
            await trio.sleep(0.005)
            ticks.append(trio.current_time())

    thread = await started()
    task = asyncio.create_task(thread.call(tick))
    await asyncio.sleep(0.01)
    release = threading.Event()
    threading.Timer(0.5, release.set).start()
    release.wait()  # blocks the loop, which is the point
    done_while_blocked = len(ticks)
    await task
    assert done_while_blocked == 20
    await thread.stop()
