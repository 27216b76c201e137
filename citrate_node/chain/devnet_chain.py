"""The embedded chain of a devnet: started, watched, saved, restarted.

The folder holds genesis.json, a lock, a log and a few generations of state. A kill of anvil, of this process
or of the machine costs at most the blocks since the last snapshot; nodes send again what was in them. A
snapshot comes every 5 s or, so that a large chain is not saving all the time, after 20 times what the last
one took: with ten thousand adapters (1.4 to 2.5 s each) that is up to 50 s. Where anvil cannot be had, the
chain in Python (pyevm_rpc.py) takes its place; it writes each block before it shows it. Called by
runtime/devnet.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, ServiceError
from .anvil import anvil_command, dump_state, find_anvil, run_clock
from .child_process import START_TIMEOUT_SECONDS, ChainProcess, port_is_free
from .state_files import StateFiles

SNAPSHOT_SECONDS = 5.0
SNAPSHOT_SHARE_MAX = 20
"""Saving takes at most one part in so many of the time: large states are saved less often."""
RESTART_SECONDS_MAX = 5.0
RESTARTS_MAX = 6
"""Restarts in a row without HEALTHY_SECONDS of life between them; then the chain has failed."""
HEALTHY_SECONDS = 30.0
PORT_FREE_TIMEOUT_SECONDS = 5.0
LOG_NAME = "chain.log"
JOURNAL_NAME = "blocks.jsonl"
REPLAY_TIMEOUT_SECONDS = 600.0
"""The Python program replays its blocks at every start: 0.6 ms for an empty one, 50 s for a day."""


class DevnetChain:
    """anvil with the network's genesis, on one port of 127.0.0.1."""

    def __init__(
        self,
        folder: Path,
        genesis: dict[str, Any],
        port: int,
        *,
        block_time_s: float = 1,
        snapshot_every_s: float = SNAPSHOT_SECONDS,
    ) -> None:
        if block_time_s <= 0:
            raise ConfigError(f"block time of {block_time_s} s must be positive")
        self._folder = folder
        self._genesis = genesis
        self._port = port
        self._block_time_s = block_time_s
        self._snapshot_every_s = snapshot_every_s
        self._chain_id: int = genesis["config"]["chainId"]
        self._states = StateFiles(folder)
        self._lock: IO[bytes] | None = None
        self._binary: Path | None = None
        """anvil; None where the chain in Python takes its place."""
        self._process: ChainProcess | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[ServiceError] | None = None
        self._saving = asyncio.Lock()
        self.restarts = 0
        """How often anvil died under this supervisor and was brought back."""

    @property
    def program(self) -> str:
        """What runs the chain: "anvil" or "python". Known after start()."""
        return "anvil" if self._binary is not None else "python"

    @property
    def rpc_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def process_id(self) -> int | None:
        """anvil's, or None while it is down."""
        return self._process.process_id if self._process else None

    async def start(self) -> None:
        """Raises ServiceError (no anvil, port or folder in use, no state that loads) or ConfigError."""
        self._binary = None if os.environ.get("CITRATE_CHAIN") == "python" else find_anvil()
        if self._binary is None and not python_chain_available():
            raise ServiceError(
                "anvil, the embedded chain, is not installed\n"
                "  run `npm ci` in the source folder, or set CITRATE_ANVIL, or join a chain with --rpc-url"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            self._keep_genesis()
            if not port_is_free(self._port):
                raise ServiceError(
                    f"port {self._port} of the embedded chain is in use by another program\n"
                    "  stop that program, or choose another port"
                )
            self._require_same_program()
            if self._binary is not None and self._states.never_saved():
                await self._make_first_state()
            self._process = await self._launch()
        except BaseException:
            self._lock.close()
            raise
        self._failed = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._supervise(), name="chain supervisor"),
            asyncio.create_task(self._save_regularly(), name="chain snapshots"),
        ]

    async def stop(self) -> None:
        """Saves, ends anvil, frees folder and port. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._process is not None:
            with contextlib.suppress(ServiceError):  # it may be dying too: the last generation stands
                await self.snapshot()
            await self._process.stop()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def wait_failed(self) -> ServiceError:
        """Returns only when the chain is down for good, with the reason."""
        assert self._failed is not None, "start() first"
        return await asyncio.shield(self._failed)

    async def snapshot(self) -> None:
        """Saves now. When it returns, everything mined so far survives a kill."""
        async with self._saving:
            process = self._process
            if process is None:
                raise ServiceError("the embedded chain is being restarted")
            if self._binary is None:
                return  # the Python program writes every block down before it shows it
            state = await dump_state(process.rpc)
            try:
                await asyncio.to_thread(self._states.save, state)
            except OSError as error:
                raise ServiceError(f"cannot save the chain in {self._folder}: {error.strerror}") from error

    async def pause(self) -> None:
        """No more blocks until `resume`: nodes that still load their models must not miss a phase.

        Nothing happens with the Python program, or with a block time that is no whole number of seconds. A
        chain that has to be restarted meanwhile makes blocks again.
        """
        await self._set_interval(0)

    async def resume(self) -> None:
        """Blocks again, at the usual interval."""
        await self._set_interval(int(self._block_time_s))

    async def _set_interval(self, seconds: int) -> None:
        process = self._process
        if process is not None and self._binary is not None and self._block_time_s == int(self._block_time_s):
            await process.rpc.request("evm_setIntervalMining", seconds)

    # ---------------------------------------------------------------- starting

    def _take_lock(self) -> IO[bytes]:
        lock = (self._folder / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ServiceError(
                f"another devnet runs its chain in {self._folder}\n  stop it with `citrate devnet stop`"
            ) from None
        return lock

    def _keep_genesis(self) -> None:
        path = self._folder / "genesis.json"
        text = json.dumps(self._genesis, indent=1, sort_keys=True)
        if not path.exists() or self._states.never_saved():
            path.write_text(text)
        elif path.read_text() != text:
            raise ConfigError(
                f"{self._folder} holds a chain with another genesis\n  use another folder, or remove this one"
            )

    async def _make_first_state(self) -> None:
        """--init and --load-state exclude each other: genesis is loaded once and saved."""
        options = ["--init", str(self._folder / "genesis.json"), "--no-mining"]
        process = await self._start_anvil(options)
        try:
            await asyncio.to_thread(self._states.save, await dump_state(process.rpc))
        finally:
            await process.stop()

    def _require_same_program(self) -> None:
        """A chain that one program made cannot be continued by the other: they keep different things."""
        if self._binary is not None and (self._folder / JOURNAL_NAME).exists():
            raise ServiceError(
                f"{self._folder} holds a chain of the Python program, and anvil is installed now\n"
                "  use a new folder, or set CITRATE_CHAIN=python to go on with it"
            )
        if self._binary is None and not self._states.never_saved():
            raise ServiceError(
                f"{self._folder} holds a chain of anvil, which is not installed any more\n"
                "  run `npm ci` in the source folder, or set CITRATE_ANVIL"
            )

    async def _launch(self) -> ChainProcess:
        """From the newest state that loads; damaged ones are set aside."""
        if self._binary is None:
            return await self._start_process(
                [
                    *(sys.executable, "-m", "citrate_node.chain.pyevm_rpc"),
                    *(str(self._folder), str(self._port), str(self._block_time_s)),
                ],
                REPLAY_TIMEOUT_SECONDS,
            )
        problem: ServiceError | None = None
        for generation in self._states.generations():
            plain = await asyncio.to_thread(self._states.unpack, generation)
            if plain is not None:
                try:
                    return await self._start_from(plain)
                except ServiceError as error:
                    problem = error
                    if not port_is_free(self._port):
                        raise
                finally:
                    plain.unlink(missing_ok=True)
            self._states.set_aside(generation)
        raise ServiceError(
            f"no saved state of the chain in {self._folder} can be loaded ({problem or 'all are damaged'})\n"
            "  start in a new folder; the old files stay for inspection"
        )

    async def _start_from(self, plain: Path) -> ChainProcess:
        """anvil makes a block 0 of its own before it loads a state, and may answer with that one as genesis.

        With the timestamp of ours it is the same block, so that the genesis hash survives restarts. The clock
        is put right afterwards, before the first block.
        """
        options = ["--load-state", str(plain), "--timestamp", str(int(self._genesis["timestamp"], 16))]
        whole_seconds = self._block_time_s == int(self._block_time_s)
        mining = ["--no-mining"] if whole_seconds else ["--block-time", str(self._block_time_s)]
        process = await self._start_anvil([*options, *mining])
        try:
            await run_clock(process.rpc, int(self._block_time_s) if whole_seconds else None)
        except BaseException:
            await process.kill()
            raise
        return process

    async def _start_anvil(self, options: list[str]) -> ChainProcess:
        assert self._binary is not None
        return await self._start_process(anvil_command(self._binary, self._port, self._chain_id, options))

    async def _start_process(
        self, command: list[str], timeout_s: float = START_TIMEOUT_SECONDS
    ) -> ChainProcess:
        deadline = time.monotonic() + PORT_FREE_TIMEOUT_SECONDS
        while not port_is_free(self._port) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)  # of the process that just ended
        return await ChainProcess.start(command, self._port, self._folder / LOG_NAME, timeout_s)

    # ---------------------------------------------------------------- running

    async def _supervise(self) -> None:
        failures = 0
        problem: Exception = ServiceError("it never ran")
        while True:
            began = time.monotonic()
            process = self._process
            if process is not None:
                code = await process.wait()
                self._process = None
                await process.kill()
                problem = ServiceError(f"the embedded chain ended with code {code}")
            failures = 1 if time.monotonic() - began > HEALTHY_SECONDS else failures + 1
            if failures > RESTARTS_MAX:
                self._give_up(problem)
                return
            await asyncio.sleep(min(RESTART_SECONDS_MAX, 0.1 * 2 ** (failures - 1)))
            try:
                async with self._saving:  # not while a save of the dead one ends
                    self._process = await self._launch()
                self.restarts += 1
            except (ServiceError, OSError) as error:
                problem = error

    def _give_up(self, problem: Exception) -> None:
        assert self._failed is not None
        if not self._failed.done():
            self._failed.set_result(
                ServiceError(
                    f"the embedded chain died {RESTARTS_MAX + 1} times in a row; last: {problem}\n"
                    f"  see {self._folder / LOG_NAME}"
                )
            )

    async def _save_regularly(self) -> None:
        pause = self._snapshot_every_s
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            with contextlib.suppress(ServiceError):  # down at the moment: the supervisor knows
                await self.snapshot()
            pause = max(self._snapshot_every_s, SNAPSHOT_SHARE_MAX * (time.monotonic() - began))


def python_chain_available() -> bool:
    """Whether py-evm is installed (the `test` extra brings it)."""
    return importlib.util.find_spec("eth") is not None
