"""A chain as a child process on 127.0.0.1: started, waited for until it answers, stopped.

It dies with this process, however this one ends (with_parent.py). Called by anvil.py and pyevm_rpc.py's side
of devnet_chain.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

from ..errors import ServiceError
from .rpc import Rpc

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 5.0
_WITH_PARENT = Path(__file__).with_name("with_parent.py")


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class ChainProcess:
    """A child that answers JSON-RPC."""

    def __init__(self, process: asyncio.subprocess.Process, rpc: Rpc) -> None:
        self._process = process
        self.rpc = rpc

    @classmethod
    async def start(
        cls, command: list[str], port: int, log: Path, timeout_s: float = START_TIMEOUT_SECONDS
    ) -> ChainProcess:
        """Raises ServiceError where it ends at once or stays silent; the end of its log is in the message."""
        # a child in Python must find this very package, wherever it was started from
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-E", str(_WITH_PARENT), str(os.getpid()), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": path},
            )
        started = cls(process, Rpc(f"http://127.0.0.1:{port}"))
        try:
            await started._answers(log, timeout_s)
        except BaseException:
            await started.kill()
            raise
        return started

    async def _answers(self, log: Path, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
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
                        f"the embedded chain was silent for {timeout_s:.0f} s: {_tail(log)}\n  see {log}"
                    ) from None
            await asyncio.sleep(0.02)

    @property
    def process_id(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self) -> None:
        """Asks it to end, then makes it."""
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
