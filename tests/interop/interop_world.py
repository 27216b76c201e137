"""One whole checkpoint of a small network, and nodes that hold it: company for peers in other languages."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from small_network import CHAIN, identity, inputs, network, signed

from citrate_node.network.libp2p_network import Libp2pNetwork
from citrate_node.network.settings import BlobStatus, NetworkConfig
from citrate_node.protocol import catch_up
from citrate_node.protocol.certificate import commitment_digest, sign_digest
from citrate_node.protocol.checkpoint import CheckpointRecord, commitment_of
from citrate_node.protocol.messages import Message, Proposal, Vote
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import process_checkpoint
from citrate_node.protocol.topics import all_topics
from citrate_node.runtime.opened import OpenedMessages


@dataclasses.dataclass(frozen=True)
class World:
    """One whole checkpoint of four nodes: what they said, and what came out."""

    state: NetworkState
    messages: tuple[Message, ...]
    """Signals, evaluations, measurements, the proposal of round 0, and everybody's vote for it."""
    record: CheckpointRecord
    deltas: dict[bytes, bytes]


def whole_checkpoint() -> World:
    state = network(4)
    made = inputs(state)
    record = process_checkpoint(state, made).record
    number = next(i for i in range(4) if identity(i).node_key == state.proposer(0))
    body = Proposal(state.network_id, identity(number).node_key, 1, 0, record.encode())
    votes = []
    for i in range(4):
        digest = commitment_digest(CHAIN.chain_id, CHAIN.contract, commitment_of(record, 0))
        signature = sign_digest(identity(i).account_key, digest)
        vote = Vote(state.network_id, identity(i).node_key, 1, 0, record.hash, signature)
        votes.append(signed(i, vote))
    said = (*made.signals, *made.evaluations, *made.measurements, signed(number, body), *votes)
    return World(state, said, record, dict(made.deltas))


@asynccontextmanager
async def python_node(number: int, world: World) -> AsyncIterator[Libp2pNetwork]:
    """Node `number` of the network, holding the whole checkpoint; the first signal's delta is withheld."""
    withheld = world.record.signals[0]
    contents = {**world.deltas, world.record.hash: world.record.encode()}
    closed = {m.body.delta_hash for m in world.messages if m.id == withheld}  # type: ignore[union-attr]

    def find_blob(digest: bytes, size_bytes: int) -> bytes | BlobStatus | None:
        return BlobStatus.WITHHELD if digest in closed else contents.get(digest)

    async def answer(peer: str, payload: bytes) -> bytes:
        request = catch_up.parse_request(payload, world.state.network_id)
        if isinstance(request, catch_up.RecordRequest):
            is_here = request.record_hash == world.record.hash
            return catch_up.record_answer(world.record.encode() if is_here else b"")
        missing = [m.envelope for m in world.messages if m.id not in request.have]
        return catch_up.messages_answer(tuple(missing))

    config = NetworkConfig(identity_seed=identity(number).seed, connections_wanted=0)
    opened = OpenedMessages(world.state.network_id)
    opened.follow(world.state)
    node = Libp2pNetwork(
        config, validate=opened.validate, worth=opened.worth, find_blob=find_blob, answer=answer
    )
    async with node:
        for topic in all_topics(world.state.network_id):
            await node.subscribe(topic)
        yield node


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)
