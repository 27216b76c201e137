"""What a node lets go of when checkpoints become final, with real stores."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from citrate_node.content.store import EmbeddedStore
from citrate_node.node.actions import Finalize
from citrate_node.runtime.final_files import prune, store_final


def final(number: int, weights: bytes) -> Finalize:
    return Finalize(None, number, b"record %d" % number, b"state %d" % number, weights, number)


async def test_deltas_go_with_their_checkpoint_and_weights_some_checkpoints_later(tmp_path: Path) -> None:
    """Weights that no later checkpoint changed stay as long as the latest that names them; records stay."""
    async with EmbeddedStore(tmp_path / "content", disk_reserve_bytes=0) as store:
        first = await store.put(b"the adapter's version 1")

        for number in range(1, 8):
            delta = await store.put(b"delta %d" % number, ephemeral_checkpoint=number)
            pinned = await store.put(b"pinned delta %d" % number, ephemeral_checkpoint=number)
            await store.pin(pinned)
            later = await store.put(b"delta of the next %d" % number, ephemeral_checkpoint=number + 1)
            unchanged = number in (4, 5)  # not promoted: the version before stands
            _, weights = await store_final(
                store, final(number, b"weights %d" % (3 if unchanged else number)), 2
            )
            if number == 1:
                await store.pin(weights)
            await prune(store, number)
            assert not await store.has(delta)
            assert await store.has(pinned)
            assert await store.has(later)
        kept = {(await store.get(entry.content)) for entry in await store.ls()}
        assert kept == {
            b"the adapter's version 1",
            b"weights 1",  # pinned by its operator
            *(b"weights %d" % n for n in (6, 7)),
            *(b"state %d" % n for n in (6, 7)),
            *(b"record %d" % n for n in range(1, 8)),
            *(b"pinned delta %d" % n for n in range(1, 8)),
            b"delta of the next 7",
        }
        assert await store.has(first)


async def test_an_operator_may_keep_every_version(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "content", disk_reserve_bytes=0) as store:
        for number in range(1, 30):
            await store_final(store, final(number, b"weights %d" % number), 0)
            await prune(store, number)
        assert len(await store.pins()) == 3 * 29


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "content_pruning.py"
    spec = importlib.util.spec_from_file_location("content_pruning", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
async def test_the_disk_of_four_nodes_is_flat_over_a_hundred_checkpoints(tmp_path: Path) -> None:
    """But for the records, 2 kB each, of which the chain holds the hashes."""
    rows = await benchmark().run(tmp_path, 100)
    for number in range(4):
        by_checkpoint = [row[number] for row in rows]
        assert all(row.deltas == 0 for row in by_checkpoint)
        without_records = [row.disk_bytes - row.record_bytes for row in by_checkpoint[20:]]
        assert max(without_records) == min(without_records)
