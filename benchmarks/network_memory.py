"""Memory of a node's network over time: does it grow while nodes talk and nothing else happens?

    python benchmarks/network_memory.py [--minutes 60] [--nodes 4] [--pause 0.5] [--json FILE]

Each node is a process of its own in a full mesh on loopback, publishes a message of 1 kB and asks every peer
a request of 1 kB every `--pause` seconds: far more than a devnet of four says. Resident memory is read from
/proc once a minute (sooner in short runs). The slope is the least-squares line through the second half of the
samples, since a young process grows into its caches (ids seen in the last ten minutes are kept, for one).
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "network"), str(ROOT / "benchmarks")]

TOPIC = "/citrate/benchmark/1"
MEBIBYTE = 1 << 20
GROWTH_LIMIT = 1.0
"""MiB an hour above which a node counts as growing: a GiB would take it six weeks."""


async def measure(nodes: int, minutes: float, pause_seconds: float) -> tuple[list[list[float]], int]:
    """Samples of (seconds since the start, MiB of each node), and how many messages were delivered."""
    import network_workers

    samples: list[list[float]] = []
    delivered = 0
    async with network_workers.Workers(TOPIC) as workers:
        known: list[str] = []
        for number in range(1, nodes + 1):
            known += await workers.start(number, list(known))
        await workers.ask(do="mesh", peers=nodes - 1)
        begun, step_seconds = time.monotonic(), min(60.0, minutes * 60 / 20)
        while (elapsed := time.monotonic() - begun) < minutes * 60 or not samples:
            samples.append([elapsed, *(size / MEBIBYTE for size in workers.resident_bytes())])
            talked = await workers.ask(
                do="talk", seconds=step_seconds, pause_seconds=pause_seconds, size_bytes=1_000
            )
            delivered += sum(answer["delivered"] for answer in talked)
            print(_line(samples[-1], delivered), flush=True)
        samples.append([time.monotonic() - begun, *(size / MEBIBYTE for size in workers.resident_bytes())])
    return samples, delivered


def _line(sample: list[float], delivered: int) -> str:
    sizes = "  ".join(f"{size:6.1f}" for size in sample[1:])
    return f"{sample[0] / 60:6.1f} min   MiB per node  {sizes}   delivered so far {delivered}"


def slope_per_hour(samples: list[list[float]], node: int) -> float:
    """MiB an hour of one node, by least squares over the second half."""
    half = samples[len(samples) // 2 :]
    times, sizes = [sample[0] / 3600 for sample in half], [sample[node + 1] for sample in half]
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((moment - middle) ** 2 for moment in times)
    if spread == 0:
        return 0.0
    return sum((t - middle) * (size - mean) for t, size in zip(times, sizes, strict=True)) / spread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two messages of a node")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    samples, delivered = asyncio.run(measure(options.nodes, options.minutes, options.pause))
    slopes = [slope_per_hour(samples, node) for node in range(options.nodes)]
    verdict = "steady" if max(slopes) <= GROWTH_LIMIT else "grows"
    print(
        f"after {samples[-1][0] / 60:.0f} minutes: {max(samples[-1][1:]):.1f} MiB at most; "
        f"growth in the second half {max(slopes):.2f} MiB an hour at most: {verdict}; {delivered} deliveries"
    )
    if options.json is not None:
        result = {
            "machine": platform.machine(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
            "minutes": samples[-1][0] / 60,
            "deliveries": delivered,
            "growth_limit_mebibytes_per_hour": GROWTH_LIMIT,
            "mebibytes_per_hour": slopes,
            "verdict": verdict,
            "samples_seconds_then_mebibytes_per_node": samples,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
