"""A node on py-libp2p as it is, on trio alone, with the commands of network_worker.py.

The other implementation in test_network_interop.py and benchmarks/network_gossip.py. Only the three settings
without which stock gossipsub is of no use are changed: heartbeat, spam limit, adaptive gossip.
"""

import json
import logging
import os
import sys
import time
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from network_worker import cpu_seconds, say


class BareWorker:
    """Answers the commands, as network_worker.Worker does."""

    def __init__(self, router: GossipSub, pubsub: Pubsub, topic: str) -> None:
        self._router = router
        self._pubsub = pubsub
        self._topic = topic
        self._delays_ms: list[float] = []
        self._cpu_seconds = 0.0

    async def receive(self, subscription: Any) -> None:
        async for message in subscription:
            if message.from_id != self._pubsub.my_id.to_bytes():
                published_ns = int.from_bytes(message.data[:8], "big")
                self._delays_ms.append((time.time_ns() - published_ns) / 1e6)

    async def mesh(self, peers: int) -> None:
        while len(self._router.mesh.get(self._topic, ())) < peers:
            await trio.sleep(0.02)
        say(event="meshed")

    async def measure(self) -> None:
        self._delays_ms.clear()
        self._cpu_seconds = cpu_seconds()
        say(event="measuring")

    async def publish(self, messages: int, size_bytes: int, pause_seconds: float) -> None:
        for _ in range(messages):
            await self._pubsub.publish(self._topic, time.time_ns().to_bytes(8, "big") + bytes(size_bytes - 8))
            await trio.sleep(pause_seconds)
        say(event="published")

    async def report(self, expected: int, timeout_seconds: float) -> None:
        with trio.move_on_after(timeout_seconds):
            while len(self._delays_ms) < expected:
                await trio.sleep(0.02)
        used = cpu_seconds() - self._cpu_seconds
        say(event="report", delays_ms=self._delays_ms, cpu_seconds=used)


async def main() -> None:
    options = json.loads(sys.argv[1])
    listen = Multiaddr("/ip4/127.0.0.1/tcp/0")
    host = new_host(key_pair=create_new_key_pair(bytes((options["number"],)) * 32), listen_addrs=[listen])
    router = GossipSub(
        [PROTOCOL_ID_V12, PROTOCOL_ID_V11],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        adaptive_gossip_enabled=False,
        max_messages_per_topic_per_second=200.0,
    )
    pubsub = Pubsub(host, router)
    async with host.run([listen]), background_trio_service(pubsub), background_trio_service(router):
        await pubsub.wait_until_ready()
        worker = BareWorker(router, pubsub, options["topic"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.receive, await pubsub.subscribe(options["topic"]))
            for address in options["peers"]:
                await host.connect(info_from_p2p_addr(Multiaddr(address)))
            say(event="ready", addresses=[str(address) for address in host.get_addrs()])
            commands, held = trio.lowlevel.FdStream(os.dup(0)), b""
            while piece := await commands.receive_some(65_536):
                held += piece
                while b"\n" in held:
                    line, _, held = held.partition(b"\n")
                    command = json.loads(line)
                    await getattr(worker, command.pop("do"))(**command)
            os._exit(0)  # its threads would not end by themselves


if __name__ == "__main__":
    logging.disable()
    trio.run(main)
