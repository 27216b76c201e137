"""Gossip among 64 hosts in a few processes, over so many checkpoints' worth of messages: is anything lost?

    python benchmarks/network_hosts.py [--hosts 64] [--processes 4] [--checkpoints 20] [--preset minimal]
        [--rate 2] [--json FILE]

Each host is a Libp2pNetwork with its own trio thread and port; it knows one earlier host and finds the others
by peer exchange. A checkpoint's worth is what the preset makes so many nodes say (minimal, 64 nodes:
8 signals, 24 evaluations, 16 measurements, a proposal and 16 votes), of such sizes, published
by hosts in turn at `--rate` messages a second. As in a network that waits for its own phases, the next
checkpoint begins when everything of the last has arrived or 30 s have passed; delivered is the share of
(message, host) pairs that arrived by then. 20 checkpoints end within 20 * (messages / rate + 30) seconds.
Hosts that share a process share its interpreter: latency is that of the processes, not of 64 machines.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from citrate_node.config import load_preset  # noqa: E402
from citrate_node.protocol.preset import Preset  # noqa: E402

TOPIC = "/citrate/benchmark/1"
MEBIBYTE = 1 << 20
PATIENCE_SECONDS = 30.0
MESH_SECONDS_MAX = 120.0


def message_sizes(preset: Preset, hosts: int) -> list[int]:
    """Bytes of each message of one checkpoint of so many nodes, in the order in which they are said."""
    mentors, committee = min(preset.mentors_per_checkpoint, hosts), min(preset.committee_size, hosts)
    evaluations = min(
        mentors * min(preset.evaluators_per_signal, hosts - 1), hosts * preset.evaluations_per_node
    )
    proposal = 700 + 34 * (mentors + evaluations + committee)  # a record names each input by its id
    return [500] * mentors + [330] * evaluations + [380] * committee + [proposal] + [360] * committee


async def no_answer(peer_id: str, payload: bytes) -> bytes:
    return b""


async def be_hosts(first: int, count: int, known: list[str]) -> None:
    """Run `count` hosts; commands are lines of JSON: publish (host, size_bytes), report."""
    from citrate_node.network.libp2p_network import Libp2pNetwork
    from citrate_node.network.settings import NetworkConfig

    delays_ms: list[float] = []
    hosts: list[Libp2pNetwork] = []

    async def receive(host: Libp2pNetwork) -> None:
        while True:
            message = await host.inbox.get()
            delays_ms.append((time.time_ns() - int.from_bytes(message.data[:8], "big")) / 1e6)

    tasks = []
    for number in range(first, first + count):
        config = NetworkConfig(
            identity_seed=number.to_bytes(32, "big"),
            peers=tuple(known[-1:]),
            connections_wanted=8,
            connections_per_ip_max=256,
        )
        host = Libp2pNetwork(
            config,
            validate=lambda topic, data: True,
            find_blob=lambda digest, size_bytes: None,
            answer=no_answer,
        )
        await host.start()
        await host.subscribe(TOPIC)
        known.append(host.addresses[0])
        hosts.append(host)
        tasks.append(asyncio.create_task(receive(host)))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    say(addresses=known[-count:])
    while line := await commands.readline():
        command = json.loads(line)
        if command["do"] == "publish":
            data = time.time_ns().to_bytes(8, "big") + os.urandom(command["size_bytes"] - 8)
            await hosts[command["host"]].publish(TOPIC, data)
        elif command["do"] == "count":
            mesh = [len(await host.mesh_peers(TOPIC)) for host in hosts]
            say(received=len(delays_ms), mesh_least=min(mesh))
        else:
            used = resource.getrusage(resource.RUSAGE_SELF)
            say(
                delays_ms=delays_ms,
                cpu_seconds=used.ru_utime + used.ru_stime,
                resident_mebibytes=resident_bytes() / MEBIBYTE,
                counters=[host.counters() for host in hosts],
            )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*(host.stop() for host in hosts))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class Group:
    """A process with some of the hosts."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.addresses: list[str] = []

    @classmethod
    async def start(cls, first: int, count: int, known: list[str]) -> "Group":
        hosts = json.dumps([first, count, known])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            "--be-hosts",
            hosts,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        group = cls(process)
        group.addresses = (await group.read())["addresses"]
        return group

    def tell(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer

    async def ask(self, do: str) -> dict[str, Any]:
        self.tell(do=do)
        return await self.read()

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 60)
        except TimeoutError:
            self._process.kill()


async def measure(
    hosts: int, processes: int, checkpoints: int, sizes_bytes: list[int], rate: float
) -> dict[str, float]:
    each = hosts // processes
    groups: list[Group] = []
    try:
        known: list[str] = []
        for number in range(processes):
            groups.append(await Group.start(1 + number * each, each, known[-1:]))
            known += groups[-1].addresses
        await _meshed(groups, min(3, hosts - 1))
        before = await _reports(groups)
        published, begun = 0, time.monotonic()
        for checkpoint in range(1, checkpoints + 1):
            started = time.monotonic()
            for position, size_bytes in enumerate(sizes_bytes):
                groups[published % processes].tell(
                    do="publish", host=published // processes % each, size_bytes=size_bytes
                )
                published += 1
                await asyncio.sleep(max(0.0, started + (position + 1) / rate - time.monotonic()))
            expected = published * (each * processes - 1)
            received = await _arrived(groups, expected)
            print(
                f"checkpoint {checkpoint:3}  {time.monotonic() - started:5.1f} s  "
                f"delivered {received / expected:.6f} so far",
                flush=True,
            )
        seconds = time.monotonic() - begun
        reports = await _reports(groups)
    finally:
        await asyncio.gather(*(group.end() for group in groups))
    delays = sorted(delay for report in reports for delay in report["delays_ms"])
    used = sum(report["cpu_seconds"] for report in reports) - sum(r["cpu_seconds"] for r in before)
    return {
        "messages": published,
        "seconds": seconds,
        "deliveries_expected": expected,
        "deliveries": len(delays),
        "delivered": len(delays) / expected,
        "p50_ms": statistics.median(delays),
        "p99_ms": delays[int(len(delays) * 0.99)],
        "longest_ms": delays[-1],
        "cpu_ms_per_delivery": 1000 * used / len(delays),
        "cores_busy": used / seconds,
        "mebibytes_per_host_before": _resident(before) / (each * processes),
        "mebibytes_per_host_after": _resident(reports) / (each * processes),
        "blocks": _counted(reports, "blocks"),
        "penalties": _counted(reports, "penalties"),
    }


async def _reports(groups: list[Group]) -> list[dict[str, Any]]:
    return [await group.ask("report") for group in groups]


async def _meshed(groups: list[Group], peers: int) -> None:
    """Wait until every host has so many mesh peers; TimeoutError where the hosts do not find each other."""
    async with asyncio.timeout(MESH_SECONDS_MAX):
        while min([(await group.ask("count"))["mesh_least"] for group in groups]) < peers:
            await asyncio.sleep(1)


async def _arrived(groups: list[Group], expected: int) -> int:
    """Wait for so many deliveries, or as long as patience lasts; how many there are."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        received = sum([(await group.ask("count"))["received"] for group in groups])
        if received >= expected or time.monotonic() >= patience:
            return received
        await asyncio.sleep(0.5)


def _resident(reports: list[dict[str, Any]]) -> float:
    return float(sum(report["resident_mebibytes"] for report in reports))


def _counted(reports: list[dict[str, Any]], name: str) -> int:
    return sum(counters.get(name, 0) for report in reports for counters in report["counters"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--preset", default="minimal", help="whose counts of messages a checkpoint has")
    parser.add_argument("--rate", type=float, default=2.0, help="messages a second, of all hosts together")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--be-hosts", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable()
    if options.be_hosts:
        asyncio.run(be_hosts(*json.loads(options.be_hosts)))
        return
    load_before = os.getloadavg()[0]
    sizes_bytes = message_sizes(load_preset(options.preset), options.hosts)
    figures = asyncio.run(
        measure(options.hosts, options.processes, options.checkpoints, sizes_bytes, options.rate)
    )
    print("  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if options.json is not None:
        result = {
            "machine": platform.machine(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
            "hosts": options.hosts,
            "processes": options.processes,
            "checkpoints": options.checkpoints,
            "preset": options.preset,
            "messages_per_checkpoint": len(sizes_bytes),
            "rate_per_second": options.rate,
            "figures": figures,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
