"""Fixtures: a fresh chain and a client of it for each test that asks."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chain_world import World, connected, running

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.chain.anvil import find_anvil
from citrate_node.chain.devnet_chain import DevnetChain


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def need_anvil() -> None:
    if find_anvil() is None:
        pytest.skip("anvil is not installed: run `npm ci`")


@pytest.fixture
async def chain(need_anvil: None, world: World, tmp_path: Path) -> AsyncIterator[DevnetChain]:
    async with running(tmp_path / "chain", world.genesis()) as made:
        yield made


@pytest.fixture
async def factory(chain: DevnetChain) -> AsyncIterator[AdapterFactory]:
    async with connected(chain) as made:
        yield made
