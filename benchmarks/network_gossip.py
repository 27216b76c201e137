"""Gossip among 8 processes: latency and CPU per delivery, ours against bare py-libp2p with usable settings.

    python benchmarks/network_gossip.py [--nodes 8] [--messages 20] [--size 1000] [--rate 16] [--json FILE]

Both sides form a full mesh on loopback, every node publishes, every node receives everything. Bare means
py-libp2p as it is, with the three settings without which it is of no use (heartbeat, spam limit, adaptive
gossip) and gossipsub 1.2 and 1.1 offered, as its examples do; no facade, validator or second thread.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "network"), str(ROOT / "benchmarks")]

from mathematics_timing import as_json, compared, table  # noqa: E402

TOPIC = "/citrate/benchmark/1"


async def measure(kind: str, nodes: int, messages: int, size_bytes: int, rate: float) -> dict[str, float]:
    """Figures of one kind of node: milliseconds of latency, of CPU per delivery, and the share delivered."""
    import network_workers

    async with network_workers.Workers(TOPIC) as workers:
        known: list[str] = []
        for number in range(1, nodes + 1):
            known += await workers.start(number, list(known), bare=kind == "bare")
        await workers.ask(do="mesh", peers=nodes - 1)
        await asyncio.sleep(2)
        await workers.ask(do="measure")
        begun, pause = time.monotonic(), nodes / rate
        await workers.ask(do="publish", messages=messages, size_bytes=size_bytes, pause_seconds=pause)
        seconds = time.monotonic() - begun
        expected = (nodes - 1) * messages
        reports = await workers.ask(do="report", expected=expected, timeout_seconds=10)
    delays = sorted(delay for report in reports for delay in report["delays_ms"])
    return {
        "delivered": len(delays) / (expected * nodes),
        "p50_ms": statistics.median(delays),
        "p99_ms": delays[int(len(delays) * 0.99)],
        "cpu_ms": 1000 * sum(report["cpu_seconds"] for report in reports) / len(delays),
        "deliveries_per_second": len(delays) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--messages", type=int, default=20, help="published by each node")
    parser.add_argument("--size", type=int, default=1_000, help="bytes of a message")
    parser.add_argument("--rate", type=float, default=16.0, help="messages a second, of all nodes together")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]  # figures taken on a busy machine say so
    results = {}
    for kind in ("ours", "bare"):
        results[kind] = asyncio.run(
            measure(kind, options.nodes, options.messages, options.size, options.rate)
        )
        print(
            f"{kind:5} {options.nodes} nodes  {options.size} B  {options.rate:.0f} messages/s  "
            + "  ".join(f"{name} {value:.2f}" for name, value in results[kind].items()),
            flush=True,
        )
    per_cpu_second = {kind: 1000 / result["cpu_ms"] for kind, result in results.items()}
    row = compared(
        f"gossip, {options.nodes} processes, {options.size} B: deliveries per CPU second",
        per_cpu_second["ours"],
        "1/s",
        "py-libp2p 0.8.1 as it is, gossipsub 1.2, same mesh",
        per_cpu_second["bare"],
        2.0,
    )
    print(table([row]))
    if options.json is not None:
        result = {
            "machine": platform.machine(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
            "figures": results,
            "rows": as_json([row]),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
