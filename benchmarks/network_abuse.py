"""What a hostile peer costs a node: CPU and memory per 10,000 messages, and what gets in before the cut.

    python benchmarks/network_abuse.py [--messages 10000] [--kinds malformed …] [--json FILE]

The node is a process of its own: network, gossip validator and state machine, as main_loop joins them,
without chain and training. Each kind of message (tests/network/hostile_world.py) comes twice: once with every
limit lifted, so that all messages are judged, and once with the default limits, until the peer is cut off.
The limit compared with is two Ed25519 checks a message, libp2p's and the envelope's, in the same process.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("tests/network", "tests", "benchmarks"))]

from mathematics_timing import as_json, compared, table  # noqa: E402

LIFTED = {
    "score_max": 1e15,
    "messages_per_second": 1_000_000,
    "bytes_per_second": 10**12,
    "origin_messages_per_second": 1_000_000,
    "origin_messages_burst": 10**9,
}
AT_ONCE = 100
"""Messages on their way: fewer than a send queue or an inbox holds, so that none is dropped unseen."""
COUNTED = ("messages_received", "messages_invalid", "messages_over_rate", "messages_refused")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def be_victim(is_lifted: bool) -> None:
    """Answer each line of the input with what the node has cost so far; end with the input."""
    from hostile_world import network, running_victim

    async with running_victim(network(4), **(LIFTED if is_lifted else {})) as victim:
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        print(json.dumps({"addresses": victim.network.addresses}), flush=True)
        while await commands.readline():
            counters = victim.network.counters()
            facts = {
                "seen": sum(counters.get(name, 0) for name in COUNTED),
                "waiting": victim.network.inbox.qsize(),
                "blocks": counters.get("blocks", 0),
                "cpu_seconds": cpu_seconds(),
                "resident_bytes": resident_bytes(),
                "held": victim.held,
                "stored_bytes": victim.stored_bytes,
            }
            print(json.dumps(facts), flush=True)


class VictimProcess:
    """A victim and the way to ask it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer

    async def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return await self.read()


async def attack(kind: str, messages: int, is_lifted: bool) -> dict[str, Any]:
    """Publish messages of a kind until so many were judged, or until the victim has cut us off."""
    from hostile_world import ATTACKS, HOSTILE, careless, network

    state = network(4)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--victim",
        "lifted" if is_lifted else "default",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    victim = VictimProcess(process)
    try:
        addresses = tuple((await victim.read())["addresses"])
        from citrate_node.protocol.topics import all_topics

        async with careless(HOSTILE, peers=addresses) as hostile:
            for topic in all_topics(state.network_id):
                await hostile.subscribe(topic)
            for topic in all_topics(state.network_id):
                while not await hostile.mesh_peers(topic):
                    await asyncio.sleep(0.02)
            await asyncio.sleep(1)
            return await _measure(kind, ATTACKS[kind](state), hostile, victim, messages)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 20)


async def _measure(
    kind: str, said: Any, hostile: Any, victim: VictimProcess, messages: int
) -> dict[str, Any]:
    before = await victim.ask()
    begun, sent = time.monotonic(), 0
    now = before
    while sent < messages and not now["blocks"] and time.monotonic() - begun < 300:
        for _ in range(min(AT_ONCE, messages - sent)):
            await hostile.publish(*next(said))
        sent += AT_ONCE
        patience = time.monotonic() + 5
        while True:
            now = await victim.ask()
            if now["blocks"] or (now["seen"] >= sent and not now["waiting"]) or time.monotonic() > patience:
                break
            await asyncio.sleep(0.005)
    return {
        "judged": now["seen"] - before["seen"],
        "seconds": time.monotonic() - begun,
        "cpu_seconds": now["cpu_seconds"] - before["cpu_seconds"],
        "grown_bytes": now["resident_bytes"] - before["resident_bytes"],
        "held": now["held"],
        "stored_bytes": now["stored_bytes"],
        "is_cut_off": bool(now["blocks"]),
    }


def two_checks_seconds() -> float:
    """CPU seconds of two Ed25519 checks of a message of 400 bytes."""
    from nacl.signing import SigningKey

    key = SigningKey(bytes(32))
    data = bytes(400)
    signature, verifier = key.sign(data).signature, key.verify_key
    begun, count = time.process_time(), 4_000
    for _ in range(count):
        verifier.verify(data, signature)
    return 2 * (time.process_time() - begun) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=10_000, help="of each kind; oversized: a tenth")
    parser.add_argument("--kinds", nargs="+", help="only these")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--victim", choices=("lifted", "default"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.victim:
        asyncio.run(be_victim(options.victim == "lifted"))
        return
    from hostile_world import ATTACKS

    load_before = os.getloadavg()[0]
    rows, figures = [], {}
    limit = two_checks_seconds()
    for kind in options.kinds or ATTACKS:
        messages = options.messages // 10 if kind == "oversized" else options.messages
        all_judged = asyncio.run(attack(kind, messages, is_lifted=True))
        until_cut = asyncio.run(attack(kind, messages, is_lifted=False))
        figures[kind] = {"every_limit_lifted": all_judged, "default_limits": until_cut}
        each = all_judged["cpu_seconds"] / max(1, all_judged["judged"])
        print(
            f"{kind:14} 10,000 cost {10_000 * each:6.1f} CPU s, "
            f"memory {all_judged['grown_bytes'] / 1e6:+6.1f} MB after {all_judged['judged']}, "
            f"held {all_judged['held']}, stored {all_judged['stored_bytes']} B;  "
            f"cut off after {until_cut['judged']} ({until_cut['cpu_seconds']:.2f} CPU s)"
            if until_cut["is_cut_off"]
            else f"{kind:14} NOT cut off after {until_cut['judged']}",
            flush=True,
        )
        name = f"{kind}: messages judged per CPU second"
        rows.append(compared(name, 1 / each, "1/s", "two Ed25519 checks alone", 1 / limit, 0.1))
    print(table(rows))
    if options.json is not None:
        result = {
            "machine": platform.machine(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
            "figures": figures,
            "rows": as_json(rows),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
