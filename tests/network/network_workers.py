"""Starts nodes in processes of their own and talks to them. For the test of processes and the benchmark."""

import asyncio
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FOLDER = Path(__file__).parent


class Workers:
    """`async with Workers(topic) as workers`: the processes end with the block."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._processes: list[asyncio.subprocess.Process] = []
        self.exit_codes: list[int] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.returncode is None and process.stdin is not None:
                process.stdin.close()  # which asks it to end
        for process in self._processes:
            try:
                self.exit_codes.append(await asyncio.wait_for(process.wait(), 15))
            except TimeoutError:
                process.kill()
                self.exit_codes.append(await process.wait())

    async def start(self, number: int, peers: list[str], *, bare: bool = False) -> list[str]:
        """Start one node, ours or py-libp2p as it is; its addresses."""
        worker = FOLDER / ("bare_worker.py" if bare else "network_worker.py")
        options = json.dumps({"number": number, "peers": peers, "topic": self._topic})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(worker),
            options,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            limit=1 << 24,
        )
        self._processes.append(process)
        addresses: list[str] = (await _hear(process))["addresses"]
        return addresses

    def resident_bytes(self) -> list[int]:
        """Memory of each node's process at this moment (Linux: /proc)."""
        return [_resident_bytes(process.pid) for process in self._processes]

    async def ask(self, **command: Any) -> list[dict[str, Any]]:
        """Give every node a command at once; their answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(command).encode() + b"\n")
        return list(await asyncio.gather(*map(_hear, self._processes)))


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _hear(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    event: dict[str, Any] = json.loads(await process.stdout.readline())
    return event
