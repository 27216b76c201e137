"""Nodes that keep their contents in a daemon: the runtime's wiring over a stand-in, a devnet over js-ipfs.

js-ipfs is not Kubo; what it does differently is listed in tests/content/test_kubo_js_ipfs.py.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from js_ipfs import needs_package, running_js_ipfs

from citrate_node.chain.anvil import find_anvil
from citrate_node.config import load_node_config
from citrate_node.content.interface import ContentMissing
from citrate_node.content.opening import daemon_of, open_store, owner_of
from citrate_node.content.sources import FolderSource
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.network.settings import BlobStatus
from citrate_node.protocol.content_id import content_id
from citrate_node.runtime.devnet_admin import prepare
from citrate_node.runtime.devnet_folder import DevnetChoices, DevnetFolder
from citrate_node.runtime.wiring import _Door

sys.path.insert(0, str(Path(__file__).parents[1] / "content"))
from fake_kubo import running_fake_kubo

WEIGHTS = b"weights" * 200_000


async def test_a_node_on_a_daemon_serves_peers_and_lets_deltas_go(tmp_path: Path) -> None:
    async with running_fake_kubo(tmp_path / "daemon") as fake:
        store = open_store(tmp_path / "node" / "content", fake.url, owner_of(bytes(32)))
        weights = await store.put(WEIGHTS)
        delta = await store.put(b"delta", ephemeral_checkpoint=1)
        door = _Door(store, asyncio.get_running_loop())
        path = await asyncio.to_thread(door.find_blob, weights.digest, weights.size_bytes)
        assert isinstance(path, Path)
        assert path.read_bytes() == WEIGHTS
        assert await asyncio.to_thread(door.find_blob, delta.digest, 5) is BlobStatus.BUSY
        assert await asyncio.to_thread(door.find_blob, bytes(32), 5) is None
        assert set(fake.holdings) == {f"/citrate/node-{'0' * 16}/{c.cid}" for c in (weights, delta)}
        await store.collect(1)
        assert set(fake.holdings) == {f"/citrate/node-{'0' * 16}/{weights.cid}"}
        await store.close()
        # what other commands do beside the node, or after it: read without holding anything
        source = FolderSource(tmp_path / "node" / "content")
        assert await source.get(weights) == WEIGHTS
        assert await source.resolve(weights.cid, 1 << 21) == weights
        with pytest.raises(ContentMissing):
            await source.get(content_id(b"unknown"))
        again = open_store(tmp_path / "node" / "content", fake.url, owner_of(bytes(32)))
        assert [entry.content for entry in await again.ls()] == [weights]
        await again.close()


async def test_a_peer_s_request_while_the_daemon_fails_is_answered_busy_and_not_absent(
    tmp_path: Path,
) -> None:
    async with running_fake_kubo(tmp_path / "daemon") as fake:
        store = open_store(tmp_path / "content", fake.url, "node-1")
        weights = await store.put(b"weights")
        fake.answers["block/get"] = [web.Response(body=bytes((2 << 20) + 1))]
        door = _Door(store, asyncio.get_running_loop())
        found = await asyncio.to_thread(door.find_blob, weights.digest, weights.size_bytes)
        assert found is BlobStatus.BUSY
        await store.close()


async def test_a_folder_of_one_kind_is_not_opened_as_the_other(tmp_path: Path) -> None:
    async with running_fake_kubo(tmp_path / "daemon") as fake:
        store = open_store(tmp_path / "a", fake.url, "node-1")
        await store.close()
        assert daemon_of(tmp_path / "a") == (fake.url, "node-1")
        with pytest.raises(ConfigError, match="kept by the Kubo daemon at http"):
            open_store(tmp_path / "a", "", "node-1")
        async with EmbeddedStore(tmp_path / "b") as embedded:
            await embedded.put(b"x")
        with pytest.raises(ConfigError, match="embedded store with contents of its own"):
            open_store(tmp_path / "b", fake.url, "node-1")
        (tmp_path / "a" / "kubo.json").write_text("{")
        with pytest.raises(ConfigError, match="is damaged"):
            open_store(tmp_path / "a", fake.url, "node-1")


async def test_a_daemon_that_is_not_there_is_named_to_readers_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a", "http://127.0.0.1:1", "node-1")
    await store.close()
    with pytest.raises(ServiceError, match=r"cannot reach Kubo at http://127\.0\.0\.1:1"):
        await FolderSource(tmp_path / "a").get(content_id(b"x"))


def prepared(folder: Path, ipfs_url: str) -> tuple[DevnetFolder, DevnetChoices]:
    return prepare(
        folder,
        nodes=2,
        checkpoints=1,
        preset="minimal",
        seed=1,
        base_model="embedded",
        rpc_url="",
        ipfs_url=ipfs_url,
    )


def test_a_devnet_keeps_to_the_daemon_it_began_with(tmp_path: Path) -> None:
    prepared(tmp_path / "a", "http://127.0.0.1:5001")
    folder, choices = prepared(tmp_path / "a", "")
    config = load_node_config(
        folder.write_node_config(replace(choices, adapter_id="0x" + "ab" * 32), 1, "http://c")
    )
    assert (choices.ipfs_url, config.ipfs_url) == ("http://127.0.0.1:5001",) * 2
    assert prepared(tmp_path / "a", "http://127.0.0.1:5002")[1].ipfs_url == "http://127.0.0.1:5002"


def test_a_devnet_that_began_without_a_daemon_goes_on_without(tmp_path: Path) -> None:
    """Also one that an older program began, whose folder says nothing of daemons."""
    folder, _ = prepared(tmp_path / "a", "")
    folder.update(adapter_id="0x" + "ab" * 32)
    fields = json.loads((tmp_path / "a" / "devnet.json").read_text())
    assert fields.pop("ipfs_url") == ""
    (tmp_path / "a" / "devnet.json").write_text(json.dumps(fields))
    assert prepared(tmp_path / "a", "")[1].ipfs_url == ""
    with pytest.raises(ConfigError, match="keep their contents in stores of their own"):
        prepared(tmp_path / "a", "http://127.0.0.1:5001")


@pytest.mark.slow
@pytest.mark.timeout(280)
@needs_package("js-ipfs", ".bin/jsipfs")
@pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed: run `npm ci`")
def test_a_devnet_runs_wholly_on_a_daemon_of_other_people(tmp_path: Path) -> None:
    """No block file lies in any node's folder; what the chain names is read back from the daemon."""
    with running_js_ipfs(tmp_path / "js-ipfs") as url:
        folder = tmp_path / "d"
        command = [sys.executable, "-m", "citrate_node.cli.main", "devnet", "up", "--dir", str(folder)]
        done = subprocess.run(
            [*command, "--checkpoints", "2", "--page-port", "0", "--ipfs-url", url, "--json"],
            capture_output=True,
            text=True,
            timeout=270,
        )
        facts = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, done.stderr + done.stdout[-2000:]
        rows = facts[-1]["checkpoints"]
        assert [row["number"] for row in rows] == [1, 2]
        assert all(set(row["finalized_by"]) == {1, 2, 3, 4} for row in rows)
        assert list(folder.glob("node-*/content/blocks/*")) == []

        async def read_back() -> list[bytes]:
            source = FolderSource(folder / "node-2" / "content")
            return [await source.get(await source.resolve(row["cid"], 1 << 24)) for row in rows]

        hashes = [content_id(data).digest.hex() for data in asyncio.run(read_back())]
        assert hashes == [row["weights_hash"] for row in rows]
