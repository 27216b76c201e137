"""Starts peer.mjs and talks to it: one JSON object a line. For the tests of this folder."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NODE = FOLDER / "node_modules" / ".bin" / "node"
"""Node 22, which comes as a package: js-libp2p 3 needs what older ones do not have."""


def why_not() -> str | None:
    """Why the peer cannot run here; None where it can."""
    if NODE.exists() and (FOLDER / "node_modules" / "libp2p").exists():
        return None
    if shutil.which("npm") is None:
        return "npm is not installed"
    return "its packages are not installed: run `make interop`"


class JsPeer:
    """One running peer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._asking = asyncio.Lock()
        self.peer_id = ""
        self.addresses: tuple[str, ...] = ()
        self.heard: list[dict[str, Any]] = []
        """Every gossip message that its validator was shown: `id` and `body`, or `error`."""

    async def listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            event = json.loads(line)
            if event["event"] == "message":
                self.heard.append(event)
            else:
                self._answers.put_nowait(event)

    async def ready(self) -> None:
        event = await asyncio.wait_for(self._answers.get(), 30)
        self.peer_id, self.addresses = event["peerId"], tuple(event["addresses"])

    async def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Its answer. AssertionError with its error."""
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")
            answer = await asyncio.wait_for(self._answers.get(), 30)
        assert "error" not in answer, answer["error"]
        return answer


@asynccontextmanager
async def js_peer(network_id: bytes, peers: tuple[str, ...]) -> AsyncIterator[JsPeer]:
    """A peer connected to these addresses; it ends with the block."""
    options = json.dumps({"networkId": network_id.hex(), "peers": peers})
    process = await asyncio.create_subprocess_exec(
        str(NODE),
        str(FOLDER / "peer.mjs"),
        options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    peer = JsPeer(process)
    listening = asyncio.create_task(peer.listen())
    try:
        await peer.ready()
        yield peer
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()
        listening.cancel()
