"""One private trio thread, driven from asyncio: calls cross both ways, cancellation and exceptions too.

py-libp2p is trio-native, the node is asyncio. Trio's guest mode on the asyncio loop was measured and left:
one slow asyncio callback froze the network for every peer. Here a busy asyncio loop delays only itself.
Called by libp2p_network.Libp2pNetwork, which owns exactly one of these while it runs.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

import trio

from citrate_node.network.settings import NetworkStopped

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Service(Protocol):
    """Runs until the event is set, and reports `started` when calls may begin."""

    def __call__(self, stop: trio.Event, /, *, task_status: Any) -> Awaitable[None]: ...


GOODBYE_SECONDS: Final = 8.0
"""How long a stopping service may take to part from its peers before it is cancelled."""


class TrioThread:
    """Runs `service` in `trio.run` in a thread of its own, from `start()` to `stop()`."""

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self._name = name
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._calls: trio.Nursery | None = None
        self._stop: trio.Event | None = None
        self._stop_wanted = False
        self._loop: asyncio.AbstractEventLoop
        self._started: asyncio.Future[None]
        self._finished: asyncio.Future[None]

    # asyncio side

    async def start(self) -> None:
        """Returns once the service has reported `started`; raises what it raised instead."""
        assert self._thread is None, "a TrioThread starts once"
        self._loop = asyncio.get_running_loop()
        self._started, self._finished = self._loop.create_future(), self._loop.create_future()
        for future in (self._started, self._finished):
            future.add_done_callback(_mark_retrieved)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        try:
            await asyncio.shield(self._started)
        except asyncio.CancelledError:
            await self.stop()
            raise
        except BaseException:
            await asyncio.wait({self._finished})
            self._thread.join()
            raise

    async def stop(self) -> None:
        """Let the service say goodbye, then join the thread. Idempotent; a dead service is no error here."""
        if self._thread is None:
            return
        self._stop_wanted = True  # seen by a trio side that has only begun to start
        self._wake(self._request_stop)
        await asyncio.wait({self._finished})
        self._thread.join()

    async def finished(self) -> None:
        """Returns when the service has ended in order; raises what killed it."""
        await asyncio.shield(self._finished)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._started.done() and not self._finished.done()

    async def call(
        self, function: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments
    ) -> Result:
        """Run an async function on the trio side and return or raise what it does.

        Cancelling the waiting asyncio task cancels the trio task and waits for its clean-up.
        """
        if not self.running:
            raise NetworkStopped("the network is not running")
        answer: asyncio.Future[Result] = self._loop.create_future()
        answer.add_done_callback(_mark_retrieved)
        scope = trio.CancelScope()

        async def task() -> None:
            settle: Callable[[], object] = partial(
                _reject, answer, NetworkStopped("the network stopped during the call")
            )
            try:
                with scope:
                    settle = partial(_resolve, answer, await function(*arguments))
            except Exception as error:
                settle = partial(_reject, answer, error)
            finally:
                self.post(settle)

        self._wake(self._spawn, task, answer)
        either: set[asyncio.Future[Any]] = {answer, self._finished}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._wake(scope.cancel)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            raise
        if not answer.done():
            raise NetworkStopped("the network stopped during the call")
        return answer.result()

    def run_soon(self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Run a short synchronous function on the trio side, some time soon; silently not, once stopped."""
        if self.running:
            self._wake(function, *arguments)

    # trio side

    def post(self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Run a short synchronous function on the asyncio loop, some time soon."""
        with contextlib.suppress(RuntimeError):  # the loop was closed without stop(): nobody is left to tell
            self._loop.call_soon_threadsafe(function, *arguments)

    async def to_asyncio(
        self, function: Callable[[*Arguments], Coroutine[Any, Any, Result]], *arguments: *Arguments
    ) -> Result:
        """Run a coroutine function on the asyncio loop; cancelling the trio task cancels it."""
        future = asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)
        done = trio.Event()
        future.add_done_callback(lambda _: self._wake(done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            trio.run(self._main)
        except BaseException as error:
            failure = _innermost(error)
        self.post(self._finish, failure)

    async def _main(self) -> None:
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        if self._stop_wanted:
            self._stop.set()
        with trio.CancelScope() as whole:
            async with trio.open_nursery() as outer:
                await outer.start(self._service, self._stop)
                async with trio.open_nursery() as calls:
                    self._calls = calls
                    self.post(_resolve, self._started, None)
                    await self._stop.wait()
                    calls.cancel_scope.cancel()  # pending calls end with NetworkStopped
                self._calls = None
                whole.deadline = trio.current_time() + GOODBYE_SECONDS

    def _request_stop(self) -> None:
        assert self._stop is not None
        self._stop.set()

    def _spawn(self, task: Callable[[], Awaitable[None]], answer: "asyncio.Future[Any]") -> None:
        if self._calls is None:
            self.post(_reject, answer, NetworkStopped("the network is stopping"))
            return
        self._calls.start_soon(task)

    def _wake(self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Run a function on the trio side from any thread, unless trio has ended."""
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function, *arguments)

    def _finish(self, failure: BaseException | None) -> None:
        stopped = failure or NetworkStopped("the network ended before it had started")
        _reject(self._started, stopped)
        if failure is None:
            _resolve(self._finished, None)
        else:
            _reject(self._finished, failure)


def _resolve(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _reject(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _mark_retrieved(future: "asyncio.Future[Any]") -> None:
    """Spare the log asyncio's complaint about an exception that nobody was left to look at."""
    if not future.cancelled():
        future.exception()


def _innermost(error: BaseException) -> BaseException:
    """A nursery wraps each failure in a group; a group of one says no more than its one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
