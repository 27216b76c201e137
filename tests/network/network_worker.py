"""One node in a process of its own: commands in, events out, one JSON object a line.

Started by test_network_processes.py and by benchmarks/network_gossip.py and network_memory.py with a JSON
configuration as its argument (number, peers, topic). Ends when its standard input does.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time
from typing import Any

from citrate_node.network.libp2p_network import Libp2pNetwork
from citrate_node.network.settings import NetworkConfig, PeerFailed


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Worker:
    """Answers the commands; each message carries the time of its publication in its first eight bytes."""

    def __init__(self, network: Libp2pNetwork, topic: str) -> None:
        self._network = network
        self._topic = topic
        self._delays_ms: list[float] = []
        self._cpu_seconds = 0.0

    async def receive(self) -> None:
        while True:
            message = await self._network.inbox.get()
            published_ns = int.from_bytes(message.data[:8], "big")
            self._delays_ms.append((time.time_ns() - published_ns) / 1e6)

    async def mesh(self, peers: int) -> None:
        """Wait until so many peers are in the mesh."""
        while len(await self._network.mesh_peers(self._topic)) < peers:
            await asyncio.sleep(0.02)
        say(event="meshed")

    async def measure(self) -> None:
        """Begin to measure."""
        self._delays_ms.clear()
        self._cpu_seconds = cpu_seconds()
        say(event="measuring")

    async def publish(self, messages: int, size_bytes: int, pause_seconds: float) -> None:
        for _ in range(messages):
            await self._network.publish(
                self._topic, time.time_ns().to_bytes(8, "big") + bytes(size_bytes - 8)
            )
            await asyncio.sleep(pause_seconds)
        say(event="published")

    async def talk(self, seconds: float, pause_seconds: float, size_bytes: int) -> None:
        """A node's ordinary day: publish, and ask each peer something, every `pause_seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            now = time.time_ns().to_bytes(8, "big")
            await self._network.publish(self._topic, now + bytes(size_bytes - 8))
            for peer in self._network.connected_peers():
                with contextlib.suppress(PeerFailed):
                    await self._network.request(peer, bytes(size_bytes))
            await asyncio.sleep(pause_seconds)
        delivered = len(self._delays_ms)
        self._delays_ms.clear()  # else the list of delays is the leak that is measured
        say(event="talked", delivered=delivered)

    async def report(self, expected: int, timeout_seconds: float) -> None:
        """What has arrived, once it is as much as expected or time is up."""
        deadline = time.monotonic() + timeout_seconds
        while len(self._delays_ms) < expected and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        say(
            event="report",
            delays_ms=self._delays_ms,
            cpu_seconds=cpu_seconds() - self._cpu_seconds,
            counters=self._network.counters(),
        )


async def echo(peer_id: str, payload: bytes) -> bytes:
    return payload


async def main() -> None:
    options = json.loads(sys.argv[1])
    config = NetworkConfig(identity_seed=bytes((options["number"],)) * 32, peers=tuple(options["peers"]))
    network = Libp2pNetwork(
        config,
        validate=lambda topic, data: len(data) >= 8,
        find_blob=lambda digest, size_bytes: None,
        answer=echo,
    )
    async with network:
        await network.subscribe(options["topic"])
        worker = Worker(network, options["topic"])
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        receiving = asyncio.create_task(worker.receive())
        say(event="ready", addresses=network.addresses)
        while line := await commands.readline():
            command = json.loads(line)
            await getattr(worker, command.pop("do"))(**command)
        receiving.cancel()


if __name__ == "__main__":
    asyncio.run(main())
