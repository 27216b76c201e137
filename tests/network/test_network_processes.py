"""Gossip between four processes, as in a devnet."""

import asyncio

from network_workers import Workers  # pytest puts this folder on the path

MESSAGES = 10


async def test_four_processes_gossip_everything_to_everybody_through_one_known_address() -> None:
    async with asyncio.timeout(60), Workers("/citrate/test/1") as workers:
        first = await workers.start(1, [])
        await asyncio.gather(*(workers.start(number, first) for number in (2, 3, 4)))
        await workers.ask(do="mesh", peers=3)
        await workers.ask(do="publish", messages=MESSAGES, size_bytes=1_000, pause_seconds=0.02)
        expected = 3 * MESSAGES
        reports = await workers.ask(do="report", expected=expected, timeout_seconds=20)
    assert [len(report["delays_ms"]) for report in reports] == [expected] * 4
    assert workers.exit_codes == [0] * 4
