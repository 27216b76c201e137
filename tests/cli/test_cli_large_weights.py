"""Weights too large for a transaction, from a wallet user's command to the nodes: a real chain, the commands
themselves, and a node's follower with its fetcher, store and database. Only the peers are missing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_network import GENESIS_RECORD, identity
from wallet_chain import adapter
from wallet_user import User, saved

from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument
from citrate_node.cli import adapter as adapter_commands
from citrate_node.config import load_node_config, load_preset
from citrate_node.content.block_store import BlockStore
from citrate_node.content.gateway import Gateway
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ConfigError
from citrate_node.node import events as ev
from citrate_node.protocol.certificate import Validator
from citrate_node.protocol.composition import compose
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.state import NetworkState, genesis_state
from citrate_node.runtime.chain_events import ChainEvents
from citrate_node.runtime.database import NodeDatabase
from citrate_node.runtime.devnet_folder import DevnetFolder
from citrate_node.runtime.fetching import Fetcher
from citrate_node.runtime.wiring import _sources
from citrate_node.training.settings import ALL_LINEAR

NO_PEERS: Any = SimpleNamespace(connected_peers=lambda: ())


def state() -> NetworkState:
    """A network of four whose adapter is for the embedded base."""
    nodes = tuple(Validator(identity(i).node_key, identity(i).account, 1) for i in range(4))
    own = hashlib.sha256(b"the network's own adapter").digest()
    return genesis_state(load_preset("devnet"), bytes(32), nodes, own, adapter(0, 8), GENESIS_RECORD)


@dataclass
class NodeBeside:
    """A node's follower of the chain, as main_loop runs it."""

    store: EmbeddedStore
    database: NodeDatabase
    offered: list[ev.Event] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.02)

    def composed(self, adapter_id: str) -> list[ev.AdapterComposed]:
        wanted = bytes.fromhex(adapter_id[2:])
        events = [event for event in self.offered if isinstance(event, ev.AdapterComposed)]
        return [event for event in events if event.request.adapter_id == wanted]


@asynccontextmanager
async def node_beside(user: User, folder: Path, content_table: str) -> AsyncIterator[NodeBeside]:
    """content_table: what its node.toml says under [content]."""
    folder.mkdir()
    (folder / "node.toml").write_text(
        f'[node]\nname = "n"\npreset = "devnet"\n[chain]\nrpc_url = "{user.chain.rpc_url}"\n'
        f'adapter_id = "0x{"ab" * 32}"\n[content]\n{content_table}\n'
    )
    here = state()
    factory = await AdapterFactory.connect(user.chain.rpc_url)
    node = NodeBeside(EmbeddedStore(folder / "content"), NodeDatabase(folder / "node.db"))

    async def offer(event: ev.Event) -> None:
        node.offered.append(event)

    sources = _sources(load_node_config(folder / "node.toml"))
    follower = ChainEvents(
        chain=factory,
        database=node.database,
        store=node.store,
        fetcher=Fetcher(node.store, NO_PEERS, folder / "incoming", sources),
        first_block=1,
        state=lambda: here,
        pending=lambda: (),
        offer=offer,
        report=node.reports.append,
    )
    task = asyncio.create_task(follower.run())
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.store.close()
        node.database.close()
        await factory.close()


def test_large_adapters_of_a_wallet_are_picked_up_pinned_and_composed(user: User, tmp_path: Path) -> None:
    """The devnet's nodes read the store beside them, as their node.toml says."""
    files = [adapter(seed, 8, ALL_LINEAR) for seed in (21, 22)]
    made = [
        user.one("create", saved(tmp_path / str(i), file), "--name", f"large {i}")
        for i, file in enumerate(files)
    ]
    assert [(row["in_calldata"], row["size_bytes"] > 96 * 1024) for row in made] == [(False, True)] * 2
    composed = user.one("compose", made[0]["adapter_id"], made[1]["adapter_id"], "--weights", "70/30")
    contents = [content_id(file.encode()) for file in files]
    choices = replace(user.chain.choices, adapter_id="0x" + "ab" * 32)
    written = user.chain.devnet.write_node_config(choices, 1, user.chain.rpc_url)
    devnet_store = load_node_config(written).read_stores[0]

    async def follow() -> None:
        async with node_beside(user, tmp_path / "node", f'read_stores = ["{devnet_store}"]') as node:
            await node.until(lambda: bool(node.composed(composed["adapter_id"])))
            request = node.composed(composed["adapter_id"])[0].request
            expected = compose(files[0], files[1], 70, 30).weights
            assert request.content == content_id(expected.encode())
            assert set(contents) <= set(await node.store.pins())
            sources = {row["cid"]: row["from"] for row in node.reports if row["type"] == "weights"}
            assert {sources[content.cid] for content in contents} == {str(devnet_store)}

    asyncio.run(follow())


def test_nodes_elsewhere_find_large_weights_behind_a_gateway(user: User, tmp_path: Path) -> None:
    """And a wallet user pulls the same version from it; what the gateway changes is refused."""
    weights = adapter(23, 8, ALL_LINEAR)
    path, content = saved(tmp_path / "file", weights), content_id(weights.encode())
    made = user.one("create", path, "--name", "served", "--store", tmp_path / "mine")
    assert made["store"] == str(tmp_path / "mine")

    async def follow() -> None:
        async with EmbeddedStore(tmp_path / "mine", read_only=True) as store, Gateway(store) as gateway:
            async with node_beside(user, tmp_path / "node", f'gateways = ["{gateway.address}"]') as node:
                await node.until(
                    lambda: (
                        {"cid": content.cid, "from": gateway.address}.items()
                        <= {
                            k: v
                            for row in node.reports
                            if row.get("cid") == content.cid
                            for k, v in row.items()
                        }.items()
                    )
                )
                assert content in await node.store.pins()
            BlockStore(tmp_path / "empty").close()
            options = ("--store", tmp_path / "empty", "--gateway", gateway.address + "/")
            args = (made["adapter_id"], "--out", tmp_path / "pulled", *options)
            pulled = await asyncio.to_thread(user.one, "pull", *args)
            assert (pulled["from"], pulled["cid"]) == (gateway.address, content.cid)
            again = await asyncio.to_thread(
                user.one, "verify", tmp_path / "pulled", made["adapter_id"], *options
            )
            assert again["same"] is True

    asyncio.run(follow())
    assert (tmp_path / "pulled" / "adapter_model.safetensors").read_bytes() == weights.encode()


def test_weights_named_without_their_size_are_found_beside_the_node(user: User, tmp_path: Path) -> None:
    """Another client may write the bare CID of 36 bytes."""
    weights = adapter(24, 8, ALL_LINEAR)
    content = content_id(weights.encode())
    store = BlockStore(tmp_path / "beside")
    store.put(weights.encode())
    store.close()

    async def follow() -> None:
        factory = await AdapterFactory.connect(user.chain.rpc_url)
        named = cid_argument(content.digest, content.codec, 0)[:36]
        key = user.chain.devnet.founder_key()
        await factory.create_adapter(key, weights.config.base_model_id, "bare", named, 8)
        await factory.close()
        async with node_beside(user, tmp_path / "node", 'read_stores = ["../beside"]') as node:
            await node.until(lambda: any(row.get("cid") == content.cid for row in node.reports))
            assert content in await node.store.pins()

    asyncio.run(follow())


def test_large_weights_are_not_left_in_the_store_of_another_network(user: User, tmp_path: Path) -> None:
    """--rpc-url names this chain, --dir a devnet that is not the one behind it."""
    other = DevnetFolder(tmp_path / "other")
    other.folder.mkdir()
    other.save(replace(user.chain.choices, genesis_record_hash="77" * 32))
    path = saved(tmp_path / "file", adapter(25, 8, ALL_LINEAR))
    args = ("create", path, "--name", "x", "--dir", other.folder, "--rpc-url", user.chain.rpc_url, "--json")
    signing = (
        "--keystore",
        user.chain.wallets,
        "--wallet",
        "alice",
        "--password-file",
        user.chain.password_file,
    )
    error = user.run(adapter_commands.app, *args, *signing).exception
    assert isinstance(error, ConfigError)
    assert "is not the devnet in --dir" in str(error)
    assert not (other.folder / "content").exists()


@pytest.mark.parametrize("url", ["ipfs.io", "ftp://127.0.0.1/"])
def test_a_gateway_that_is_no_url_is_refused(user: User, tmp_path: Path, url: str) -> None:
    error = user.fails("pull", "0x" + "ab" * 32, "--out", tmp_path / "x", "--gateway", url)
    assert isinstance(error, ConfigError)
    assert "is no gateway" in str(error)
