"""One node as a child process: started, listened to, restarted when it dies, ended when the devnet ends.

Its stdout is JSON lines (cli/node.py --json), its stderr a log file. It runs in a session of its own, so that
Ctrl-C reaches the devnet alone, and it ends by itself when the devnet is gone. Called by devnet.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LINE_BYTES_MAX = 1 << 20
STOP_SECONDS = 20.0
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 2.0, 30.0
HEALTHY_SECONDS = 60.0
"""A node that ran for so long did not fail to start."""
FAILURES_MAX = 5
"""Ends in a row without HEALTHY_SECONDS of life before them; then the node is given up."""


class NodeProcess:
    """Node `number`, from `start` to `stop`. on_fact gets each JSON object that the node prints."""

    def __init__(self, number: int, config: Path, on_fact: Callable[[int, dict[str, Any]], None]) -> None:
        self.number = number
        self.restarts = 0
        self.gave_up = False
        self._config = config
        self._on_fact = on_fact
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def process_id(self) -> int | None:
        """None while it is not running."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def log(self) -> Path:
        return self._config.parent / "node.log"

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after STOP_SECONDS."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                if process is None or process.returncode is None:
                    self._task.cancel()
                await self._task

    async def _keep_running(self) -> None:
        pause, failures = RESTART_SECONDS_MIN, 0
        while not self._stopping:
            began = time.monotonic()
            code = await self._run_once()
            if self._stopping:
                return
            if time.monotonic() - began > HEALTHY_SECONDS:
                pause, failures = RESTART_SECONDS_MIN, 0
            failures += 1
            # wrong configuration (2) does not become right by starting again
            self.gave_up = code == 2 or failures >= FAILURES_MAX
            fact = {"type": "died", "code": code, "restart": not self.gave_up, "reason": self.last_words()}
            self._on_fact(self.number, {**fact, "log": str(self.log)})
            if self.gave_up:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, RESTART_SECONDS_MAX)
            self.restarts += 1

    def last_words(self) -> str:
        """The last error that the node printed, without what came before it; empty where it printed none."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-20:]
        except OSError:
            return ""
        errors = [line for line in lines if line.startswith("citrate: ")]
        return errors[-1].removeprefix("citrate: ") if errors else ""

    async def _run_once(self) -> int:
        command = (sys.executable, "-m", "citrate_node.cli.main", "node", "run", "--json", "--with-parent")
        with self.log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *command,
                "--config",
                str(self._config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        try:
            assert process.stdout is not None
            while line := await process.stdout.readline():
                with contextlib.suppress(ValueError):
                    fact = json.loads(line)
                    if isinstance(fact, dict):
                        self._on_fact(self.number, fact)
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def peak_memory_bytes(process_id: int) -> int:
    """Peak resident memory of a process and its children (Linux: VmHWM); 0 where it cannot be read."""
    total = 0
    for each in (process_id, *_children(process_id)):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total


def _children(process_id: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process_id}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found += [int(text) for text in path.read_text().split()]
    return found
