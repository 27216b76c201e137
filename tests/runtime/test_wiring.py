"""A node that cannot take part says so before it starts anything."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from small_network import network

from citrate_node.config import load_node_config
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ConfigError
from citrate_node.network.settings import BlobStatus
from citrate_node.runtime.devnet_folder import free_ports
from citrate_node.runtime.wiring import _Door, _start_gateway, _start_worker

TOML = """
[node]
name = "n"
preset = "minimal"
[chain]
rpc_url = "http://127.0.0.1:9"
adapter_id = "0x{adapter}"
[training]
data = "{data}"
"""


async def test_another_base_model_than_the_adapter_s_is_refused_before_training_starts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(TOML.format(adapter="ab" * 32, data="embedded:0/4"))
    state = network(4)  # its adapter is for a synthetic base
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match=rf"the adapter is for {state.base_model_id.hex()}"):
            await _start_worker(load_node_config(path), state, stack, lambda fact: None)


async def test_a_gateway_serves_what_is_stored_and_not_what_is_withheld(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    path = tmp_path / "node.toml"
    path.write_text(TOML.format(adapter="ab" * 32, data="") + f"[content]\ngateway_port = {port}\n")
    facts: list[dict[str, object]] = []
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(EmbeddedStore(tmp_path / "content"))
        weights, delta = await store.put(b"weights"), await store.put(b"delta", ephemeral_checkpoint=1)
        config = load_node_config(path)
        await _start_gateway(config, store, lambda digest: digest != delta.digest, stack, facts.append)
        address = facts[0]["address"]
        async with httpx.AsyncClient() as client:
            served = await client.get(f"{address}/ipfs/{weights.cid}?format=raw")
            withheld = await client.get(f"{address}/ipfs/{delta.cid}?format=raw")
    assert (served.status_code, served.content) == (200, b"weights")
    assert withheld.status_code == 404


async def test_a_node_without_data_starts_no_training_process(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(TOML.format(adapter="ab" * 32, data=""))
    async with AsyncExitStack() as stack:
        assert await _start_worker(load_node_config(path), network(4), stack, lambda fact: None) is None


async def test_a_restarted_node_serves_no_delta_before_it_has_read_its_messages_back(tmp_path: Path) -> None:
    """Until then it does not know that its own delta is withheld. Weights are served from the start."""
    async with EmbeddedStore(tmp_path / "content") as store:
        weights, delta = await store.put(b"weights"), await store.put(b"delta", ephemeral_checkpoint=1)
        door = _Door(store, asyncio.get_running_loop())
        loop = SimpleNamespace(is_restored=False, withheld=frozenset())
        seen = []
        for step in ("starting", "reading back", "restored", "withheld"):
            if step == "reading back":
                door.open(loop)  # type: ignore[arg-type]
            elif step == "restored":
                loop.is_restored = True
            elif step == "withheld":
                loop.withheld = frozenset({delta.digest})
            served = await asyncio.to_thread(door.find_blob, weights.digest, weights.size_bytes)
            assert isinstance(served, Path)
            found = await asyncio.to_thread(door.find_blob, delta.digest, delta.size_bytes)
            seen.append("served" if isinstance(found, Path) else found)
    assert seen == [BlobStatus.BUSY, BlobStatus.BUSY, "served", BlobStatus.WITHHELD]
