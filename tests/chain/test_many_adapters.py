"""A chain with ten thousand adapters: what is read of it for one page, and that a kill loses none of them.

What it costs in time is measured by benchmarks/adapters_on_chain.py, which also fills the chain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from citrate_node.chain.contract_abi import factory_abi
from citrate_node.runtime import adapters as desks

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from adapters_on_chain import BASE, KEY, chain_with_desk, fill, named


def counting(desk: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the contract's views is asked from now on."""
    names = {factory_abi().selector(name): name for name in factory_abi().function_names()}
    asked: Counter[str] = Counter()
    call = desk.factory._rpc.call

    async def counted(contract: bytes, data: bytes, sender: bytes = bytes(20)) -> bytes:
        asked[names[data[:4]]] += 1
        answer: bytes = await call(contract, data, sender)
        return answer

    monkeypatch.setattr(desk.factory._rpc, "call", counted)
    return asked


async def check_pages(desk: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(desk, monkeypatch)
    rows, following = await desk.adapters(count - 70, 50)
    assert ([row.name for row in rows], following) == (
        [f"adapter {number}" for number in range(count - 70, count - 20)],
        count - 20,
    )
    assert asked == {"adapterCount": 1, "adapters": 1, "adapter": 50, "version": 50}
    asked.clear()
    rows, following = await desk.adapters(count - 20, 50)
    assert (len(rows), following) == (20, None)
    asked.clear()
    scanned = min(count, desks.SCAN_ROWS_MAX)
    rows, following = await desk.adapters(0, 50, bytes(31) + b"\1")
    assert (rows, following) == ([], scanned if scanned < count else None)
    assert asked["adapter"] == scanned
    asked.clear()
    rows, following = await desk.adapters(10, 7, BASE)
    assert ([row.name for row in rows], following) == ([f"adapter {n}" for n in range(10, 17)], 17)
    assert asked["version"] == 7


async def test_a_page_reads_what_it_shows_and_a_filter_looks_at_a_bounded_number(
    need_anvil: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "SCAN_ROWS_MAX", 60)
    async with chain_with_desk(tmp_path, 0.2) as (chain, desk):
        await fill(desk, chain.rpc_url, 100)
        await check_pages(desk, 100, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_ten_thousand_adapters_are_listed_by_pages_grow_and_survive_a_kill(
    need_anvil: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chain_with_desk(tmp_path) as (chain, desk):
        await fill(desk, chain.rpc_url, 10_000)
        receipt = await desk.factory.create_adapter(KEY, BASE, "one more", named("one more"), 8)
        published = await desk.factory.publish_version(KEY, receipt.adapter_id, named("its second"))
        assert published.version == 2
        assert [row.version for row in await desk.history(receipt.adapter_id, 0, 10)] == [1, 2]
        await chain.snapshot()
        restarts = chain.restarts
        assert chain.process_id is not None
        os.kill(chain.process_id, signal.SIGKILL)
        async with asyncio.timeout(60):
            while chain.restarts == restarts or chain.process_id is None:
                await asyncio.sleep(0.05)
        assert await desk.factory.adapter_count() == 10_001
        assert (await desk.adapter(receipt.adapter_id)).version_count == 2
        await desk.factory.create_adapter(KEY, BASE, "after the kill", named("after the kill"), 8)
        await check_pages(desk, 10_000, _shifted(desk, monkeypatch))


def _shifted(desk: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """check_pages counts from the end: let the two that came last not count."""
    count = desk.factory.adapter_count

    async def without_two() -> int:
        asked: int = await count()
        return asked - 2

    monkeypatch.setattr(desk.factory, "adapter_count", without_two)
    return monkeypatch
