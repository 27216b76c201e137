"""The embedded chain of a devnet: started, watched, saved, restarted.

The folder holds genesis.json, a lock, anvil's log and a few generations of state. A kill of anvil, of this
process or of the machine costs at most the blocks since the last snapshot; nodes send again what was in them.
Called by runtime/devnet.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import time
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, ServiceError
from .anvil import AnvilProcess, find_anvil, port_is_free
from .state_files import StateFiles

SNAPSHOT_SECONDS = 5.0
SNAPSHOT_SHARE_MAX = 20
"""Saving takes at most one part in so many of the time: large states are saved less often."""
RESTART_SECONDS_MAX = 5.0
RESTARTS_MAX = 6
"""Restarts in a row without HEALTHY_SECONDS of life between them; then the chain has failed."""
HEALTHY_SECONDS = 30.0
PORT_FREE_TIMEOUT_SECONDS = 5.0


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
        self._anvil: AnvilProcess | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[ServiceError] | None = None
        self._saving = asyncio.Lock()
        self.restarts = 0
        """How often anvil died under this supervisor and was brought back."""

    @property
    def rpc_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def process_id(self) -> int | None:
        """anvil's, or None while it is down."""
        return self._anvil.process_id if self._anvil else None

    async def start(self) -> None:
        """Raises ServiceError (no anvil, port or folder in use, no state that loads) or ConfigError."""
        self._binary = find_anvil()
        if self._binary is None:
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
            if self._states.never_saved():
                await self._make_first_state()
            self._anvil = await self._launch()
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
        if self._anvil is not None:
            with contextlib.suppress(ServiceError):  # it may be dying too: the last generation stands
                await self.snapshot()
            await self._anvil.stop()
            self._anvil = None
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
            anvil = self._anvil
            if anvil is None:
                raise ServiceError("the embedded chain is being restarted")
            state = await anvil.dump_state()
            try:
                await asyncio.to_thread(self._states.save, state)
            except OSError as error:
                raise ServiceError(f"cannot save the chain in {self._folder}: {error.strerror}") from error

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
        anvil = await self._start_anvil(options)
        try:
            await asyncio.to_thread(self._states.save, await anvil.dump_state())
        finally:
            await anvil.stop()

    async def _launch(self) -> AnvilProcess:
        """From the newest state that loads; damaged ones are set aside."""
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

    async def _start_from(self, plain: Path) -> AnvilProcess:
        """anvil makes a block 0 of its own before it loads a state, and may answer with that one as genesis.

        With the timestamp of ours it is the same block, so that the genesis hash survives restarts; the clock is
        put right afterwards, before the first block.
        """
        options = ["--load-state", str(plain), "--timestamp", str(int(self._genesis["timestamp"], 16))]
        whole_seconds = self._block_time_s == int(self._block_time_s)
        mining = ["--no-mining"] if whole_seconds else ["--block-time", str(self._block_time_s)]
        anvil = await self._start_anvil([*options, *mining])
        try:
            await anvil.run_clock(int(self._block_time_s) if whole_seconds else None)
        except BaseException:
            await anvil.kill()
            raise
        return anvil

    async def _start_anvil(self, options: list[str]) -> AnvilProcess:
        assert self._binary is not None
        deadline = time.monotonic() + PORT_FREE_TIMEOUT_SECONDS
        while not port_is_free(self._port) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)  # of the process that just ended
        return await AnvilProcess.start(
            self._binary, self._port, self._chain_id, self._folder / "anvil.log", options
        )

    # ---------------------------------------------------------------- running

    async def _supervise(self) -> None:
        failures = 0
        problem: Exception = ServiceError("it never ran")
        while True:
            began = time.monotonic()
            anvil = self._anvil
            if anvil is not None:
                code = await anvil.wait()
                self._anvil = None
                await anvil.kill()
                problem = ServiceError(f"the embedded chain ended with code {code}")
            failures = 1 if time.monotonic() - began > HEALTHY_SECONDS else failures + 1
            if failures > RESTARTS_MAX:
                self._give_up(problem)
                return
            await asyncio.sleep(min(RESTART_SECONDS_MAX, 0.1 * 2 ** (failures - 1)))
            try:
                async with self._saving:  # not while a save of the dead one ends
                    self._anvil = await self._launch()
                self.restarts += 1
            except (ServiceError, OSError) as error:
                problem = error

    def _give_up(self, problem: Exception) -> None:
        assert self._failed is not None
        if not self._failed.done():
            self._failed.set_result(
                ServiceError(
                    f"the embedded chain died {RESTARTS_MAX + 1} times in a row; last: {problem}\n"
                    f"  see {self._folder / 'anvil.log'}"
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
