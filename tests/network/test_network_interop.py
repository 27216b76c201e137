"""Our nodes among others: py-libp2p as it is, which offers gossipsub 1.2 and signs address records."""

import asyncio

import pytest
from network_workers import Workers  # pytest puts this folder on the path

MESSAGES = 10


@pytest.mark.slow
async def test_gossip_passes_both_ways_between_our_nodes_and_stock_ones() -> None:
    """Two of each; the stock ones are connected only to ours, so what they hear of each other is relayed."""
    async with asyncio.timeout(60), Workers("/citrate/test/1") as workers:
        ours = await workers.start(1, [])
        await workers.start(2, ours)
        await asyncio.gather(*(workers.start(number, ours, bare=True) for number in (3, 4)))
        await workers.ask(do="mesh", peers=1)
        await asyncio.sleep(1.5)  # a heartbeat of the stock ones
        await workers.ask(do="publish", messages=MESSAGES, size_bytes=1_000, pause_seconds=0.02)
        reports = await workers.ask(do="report", expected=3 * MESSAGES, timeout_seconds=20)
    assert [len(report["delays_ms"]) for report in reports] == [3 * MESSAGES] * 4
    assert reports[0]["counters"].get("penalties", 0) == 0
