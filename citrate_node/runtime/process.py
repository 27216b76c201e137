"""Runs an asyncio program as a process that ends well: on Ctrl-C, on SIGTERM, and when its parent is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

PARENT_POLL_SECONDS = 1.0


def run_until_signal(
    program: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, with_parent: bool = False
) -> None:
    """Run `program(stop)`; SIGINT and SIGTERM set `stop`, a second one ends the process at once.

    with_parent: also stop when the parent process has died, even by kill -9.
    Raises what the program raised; of a group of errors, the first that is not a cancellation.
    """
    try:
        asyncio.run(_run(program, with_parent))
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _run(program: Callable[[asyncio.Event], Coroutine[Any, Any, None]], with_parent: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    watch = asyncio.create_task(_watch_parent(stop)) if with_parent else None
    work = asyncio.create_task(program(stop))
    stopped = asyncio.create_task(stop.wait())
    try:
        # a program that is still starting does not look at `stop`; give it a moment, then cancel it
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=STOP_SECONDS)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
        if not work.cancelled():
            work.result()
    finally:
        for task in (watch, stopped):
            if task is not None:
                task.cancel()


STOP_SECONDS = 15.0


async def _watch_parent(stop: asyncio.Event) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_POLL_SECONDS)
    stop.set()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
        if not isinstance(error, asyncio.CancelledError):
            return error
    return group
