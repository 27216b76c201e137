"""Nodes on loopback for the tests of this room: started on demand, stopped at the end of each test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from citrate_node.network.identity import peer_id_of
from citrate_node.network.libp2p_network import Libp2pNetwork
from citrate_node.network.settings import NetworkConfig


def accept_all(topic: str, data: bytes) -> bool:
    return True


def find_nothing(digest: bytes, size_bytes: int) -> None:
    return None


async def echo(peer_id: str, payload: bytes) -> bytes:
    return b"answer to " + payload


def build(number: int, **settings: Any) -> Libp2pNetwork:
    """A node whose identity follows from its number; callbacks may be given among the settings."""
    callbacks = {
        "validate": settings.pop("validate", accept_all),
        "find_blob": settings.pop("find_blob", find_nothing),
        "answer": settings.pop("answer", echo),
    }
    settings.setdefault("redial_ms", 200)
    return Libp2pNetwork(NetworkConfig(identity_seed=bytes((number,)) * 32, **settings), **callbacks)


StartNode = Callable[..., Awaitable[Libp2pNetwork]]


@pytest.fixture
async def start_node() -> AsyncIterator[StartNode]:
    """`await start_node(number, **settings)`; every node started is stopped after the test."""
    nodes: list[Libp2pNetwork] = []

    async def start(number: int, **settings: Any) -> Libp2pNetwork:
        nodes.append(build(number, **settings))
        await nodes[-1].start()
        return nodes[-1]

    yield start
    await asyncio.gather(*(node.stop() for node in nodes))


@pytest.fixture
def build_node() -> Callable[..., Libp2pNetwork]:
    """`build_node(number, **settings)`: a node that the test starts and stops itself."""
    return build


@pytest.fixture
def node_peer_id() -> Callable[[int], str]:
    """The peer id that `start_node(number)` will have, known before it starts."""
    from nacl.signing import SigningKey

    return lambda number: peer_id_of(bytes(SigningKey(bytes((number,)) * 32).verify_key))


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """`await until(condition)`: wait until it holds; it may be a plain or an async function."""

    async def wait(condition: Callable[[], Any], seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while True:
                holds = condition()
                if asyncio.iscoroutine(holds):
                    holds = await holds
                if holds:
                    return
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def meshed(until: Any) -> Callable[..., Awaitable[None]]:
    """`await meshed(node, topic, peers)`: wait until the node gossips the topic with so many peers."""

    async def wait(node: Libp2pNetwork, topic: str, peers: int = 1) -> None:
        async def is_meshed() -> bool:
            return len(await node.mesh_peers(topic)) >= peers

        await until(is_meshed)

    return wait


@pytest.fixture
def on_trio() -> Callable[..., Awaitable[Any]]:
    """`await on_trio(node, function)`: run an async function on a node's trio side, as its attacker may."""

    async def run(node: Libp2pNetwork, function: Callable[[], Awaitable[Any]]) -> Any:
        return await node._thread.call(function)

    return run


@pytest.fixture
def raw_stream(on_trio: Any) -> Callable[..., Awaitable[Any]]:
    """`await raw_stream(attacker, victim, protocol)`: a stream opened behind the facade's back.

    Its methods must be called on the attacker's trio side.
    """

    async def open_it(attacker: Libp2pNetwork, victim: Libp2pNetwork, protocol: str) -> Any:
        host = attacker._parts.host

        async def new_stream() -> Any:
            peers = host.get_network().connections
            peer = next(peer for peer in peers if str(peer) == victim.peer_id)
            return await host.new_stream(peer, [protocol])

        return await on_trio(attacker, new_stream)

    return open_it
