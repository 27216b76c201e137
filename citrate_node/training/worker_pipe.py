"""One life of a training process and the pipe to it, on the asyncio side. Called by worker.py alone.

One request at a time: a request that the caller gave up is told to stop, and the next one waits until it has.
So nothing piles up in the process, and its reading thread always sees the end of the pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import citrate_node
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training.wire import PREFIX, Frame, Groups, pack, sizes, unpack

Progress = Callable[[int, int, float], None]
"""Takes steps done, steps in all, loss of the last batch."""

NICENESS = 5
"""Training gives way to the node's network and loop on a busy machine."""

STOP_SECONDS = 5.0
_LOG_BYTES = 4_000  # the end of what the process printed, kept for the error text
_LOG_LINES_SHOWN = 12


class WorkerPipe:
    """A running training process. Made by `open`; useless once it has ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        self._process = process
        self._requests = process.stdin
        self._log = b""
        self._number = 0
        self._reply: asyncio.Future[Frame] | None = None
        self._on_progress: Progress | None = None
        self._doing = "start"
        self._closing = False
        self._tasks = (asyncio.create_task(self._keep_log()), asyncio.create_task(self._read()))

    @classmethod
    async def open(cls, threads: int) -> WorkerPipe:
        """Start the process. It imports torch only when it is asked to load a base."""
        root = str(Path(citrate_node.__file__).parent.parent)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads must not spin on cores that other nodes need
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "citrate_node.training.worker_process",
            str(NICENESS),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        return cls(process)

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._tasks[1].done()

    async def ask(
        self, request: dict[str, Any], groups: Groups, on_progress: Progress | None = None
    ) -> tuple[dict[str, Any], Groups]:
        """Send a request and wait for its result. A cancelled caller leaves at once; the process follows.

        Raises ConfigError and ServiceError as the process raised them, ServiceError where it ended.
        """
        while self._reply is not None and not self._reply.done():
            await asyncio.wait([self._reply])  # a request that was given up has not stopped yet
        if not self.alive:
            raise ServiceError(self._obituary())
        self._number += 1
        self._doing = request["op"]
        self._on_progress = on_progress
        reply = self._reply = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda done: done.exception())  # nobody may be left to look at it
        try:
            self._requests.write(pack(Frame({"id": self._number, **request}, groups)))
            with contextlib.suppress(ConnectionError):  # the reader finds out how it ended
                await self._requests.drain()
            frame = await asyncio.shield(reply)
        except asyncio.CancelledError:
            self._on_progress = None
            self._cancel()
            raise
        return frame.header["result"], frame.groups

    async def close(self) -> None:
        """Close the pipe, which ends the process; kill it where it does not end. Safe to call twice."""
        self._closing = True
        self._requests.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        finally:
            await asyncio.gather(*self._tasks)

    def kill(self) -> None:
        """End the process now; `close` is still owed."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _cancel(self) -> None:
        """Tell the process to give the present request up at its next step."""
        if self.alive:
            self._requests.write(pack(Frame({"op": "cancel", "cancel": self._number})))

    async def _read(self) -> None:
        try:
            while True:
                self._take(await self._next_frame())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (ValueError, KeyError) as error:  # its output is no longer ours
            self._log += f"\n{type(error).__name__}: {error}".encode()
            self.kill()
        await self._process.wait()
        await asyncio.wait([self._tasks[0]])
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ServiceError(self._obituary()))

    async def _next_frame(self) -> Frame:
        stream = self._process.stdout
        assert stream is not None
        header_bytes, body_bytes = sizes(await stream.readexactly(PREFIX.size))
        header = await stream.readexactly(header_bytes)
        return unpack(header, await stream.readexactly(body_bytes))

    def _take(self, frame: Frame) -> None:
        reply = self._reply
        if reply is None or reply.done() or frame.header["id"] != self._number:
            return
        if "progress" in frame.header:
            if self._on_progress is None:
                return
            try:
                self._on_progress(*frame.header["progress"])
            except Exception as error:  # the caller's own: it ends the request, not the reading
                reply.set_exception(error)
                self._cancel()
        elif "error" in frame.header:
            reply.set_exception(_error(frame.header))
        else:
            reply.set_result(frame)

    async def _keep_log(self) -> None:
        """Read what the process prints, always: a full pipe would stop it."""
        stream = self._process.stderr
        assert stream is not None
        while block := await stream.read(_LOG_BYTES):
            self._log = (self._log + block)[-_LOG_BYTES:]

    def _obituary(self) -> str:
        if self._closing:
            return f"the training worker was stopped (it was asked to {self._doing})"
        code = self._process.returncode
        how = (
            "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        )
        lines = self._log.decode(errors="replace").strip().splitlines()[-_LOG_LINES_SHOWN:]
        return "\n  ".join([f"the training process {how} (it was asked to {self._doing})", *lines])


def _error(header: dict[str, Any]) -> Exception:
    kind, message = header["error"], header["message"]
    if kind == "ConfigError":
        return ConfigError(message)
    if kind in ("ServiceError", "ValueError", "TrainingCancelled"):
        return ServiceError(f"training: {message or 'stopped'}")
    return ServiceError(f"training failed: {kind}: {message}\n{header['traceback']}")
