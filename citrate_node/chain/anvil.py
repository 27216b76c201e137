"""One anvil process: where its binary is, how it is started, and when it answers.

Supervision, snapshots and restarts are devnet_chain.py's, which is the only caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import sys
import time
from pathlib import Path

from ..errors import ConfigError, ServiceError
from .rpc import Rpc

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 5.0
_WITH_PARENT = Path(__file__).with_name("with_parent.py")


def find_anvil() -> Path | None:
    """$CITRATE_ANVIL, else node_modules of the working folder or of the source tree, else the PATH.

    Raises ConfigError where $CITRATE_ANVIL names nothing that can be run.
    """
    named = os.environ.get("CITRATE_ANVIL")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigError(f"CITRATE_ANVIL is {named}, which is not a program that can be run")
        return Path(named)
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower(), platform.machine()
    )
    inside = f"node_modules/@foundry-rs/anvil-{sys.platform}-{machine}/bin/anvil"
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2]):
        if os.access(folder / inside, os.X_OK):
            return folder / inside
    found = shutil.which("anvil")
    return Path(found) if found else None


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class AnvilProcess:
    """A started anvil that answers on 127.0.0.1. Dies with this process, however this one ends."""

    def __init__(self, process: asyncio.subprocess.Process, rpc: Rpc) -> None:
        self._process = process
        self.rpc = rpc

    @classmethod
    async def start(
        cls, binary: Path, port: int, chain_id: int, log: Path, options: list[str]
    ) -> AnvilProcess:
        """Raises ServiceError where it ends at once or stays silent; the end of its log is in the message."""
        command = [
            *(sys.executable, "-S", "-E", str(_WITH_PARENT), str(os.getpid()), str(binary)),
            *(
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--chain-id",
                str(chain_id),
                "--hardfork",
                "cancun",
            ),
            *("--gas-limit", "60000000"),  # --init ignores that of genesis
            *("--accounts", "0"),  # the usual ones have keys that everybody knows
            "--prune-history",  # else old states fill the home folder: gigabytes a day
            "--no-cors",  # no web page may use the cheat methods of this port
            *("--slots-in-an-epoch", "6", "--quiet", *options),
        ]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        started = cls(process, Rpc(f"http://127.0.0.1:{port}"))
        try:
            await started._answers(log)
        except BaseException:
            await started.kill()
            raise
        return started

    async def _answers(self, log: Path) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT_SECONDS
        while True:
            code = self._process.returncode
            if code is not None:
                raise ServiceError(
                    f"the embedded chain ended with code {code} at its start: {_tail(log)}\n  see {log}"
                )
            try:
                await self.rpc.request("eth_chainId")
                return
            except ServiceError:
                if loop.time() > deadline:
                    raise ServiceError(
                        f"the embedded chain was silent for {START_TIMEOUT_SECONDS:.0f} s: {_tail(log)}\n"
                        f"  see {log}"
                    ) from None
            await asyncio.sleep(0.02)

    @property
    def process_id(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    async def run_clock(self, interval_s: int | None) -> None:
        """Lets time be the present again (`--timestamp` moves it), and blocks come every interval_s seconds.

        The clock is set a second ahead, so that no block is younger than one that was saved just before.
        """
        await self.rpc.request("evm_setTime", int(time.time()) + 1)
        if interval_s is not None:
            await self.rpc.request("evm_setIntervalMining", interval_s)

    async def dump_state(self) -> bytes:
        """The whole state, as gzip of JSON."""
        text: str = await self.rpc.request("anvil_dumpState")
        return bytes.fromhex(text.removeprefix("0x"))

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                    await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self.rpc.close()


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return " | ".join(lines[-3:]) or "it said nothing"
