"""Follows the contract's events: picks up weights that the chain names, and brings compositions to the node.

Weights in calldata are stored. Weights named by CID are fetched in the background, from the operator's
sources or from peers, and pinned: so every version on chain can be had from any node. A composition goes to
the node once both parents are here. How far the chain was followed, what is still wanted and which
compositions wait is in the database: a killed node goes on where it was. Started by main_loop as one of its
tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..chain.contract_types import AdapterComposed, AdapterRow, ContractEvent, Head, VersionAdded, VersionRow
from ..content.interface import ContentStore
from ..errors import ServiceError
from ..node import events as ev
from ..protocol.adapter import AdapterLimits, decode_adapter
from ..protocol.composition_request import COMPOSITIONS_MAX, CompositionRequest, check_composition
from ..protocol.content_id import ContentId, cid_text
from ..protocol.rejection import Rejection
from ..protocol.state import NetworkState
from ..protocol.tensors import FormatError
from .database import NodeDatabase, WaitingComposition

POLL_SECONDS = 0.5
BLOCKS_AT_ONCE = 2_000
REREAD_BLOCKS = 256
"""Read again after a pause: a chain that came back from a snapshot has made these blocks anew."""
RETRIES_MAX = 12
RETRY_SECONDS_MAX = 60.0
PICKED_UP_BYTES_MAX = 4 << 30
"""Room for weights of other adapters: naming large ones costs their author next to nothing."""


class Chain(Protocol):
    """What is read of AdapterFactory."""

    async def head(self) -> Head: ...

    async def events(self, from_block: int, to_block: int) -> list[ContractEvent]: ...

    async def adapter(self, adapter_id: bytes) -> AdapterRow: ...

    async def version(self, adapter_id: bytes, number: int) -> VersionRow: ...


class Fetches(Protocol):
    """What is asked of Fetcher."""

    async def fetch_weights(self, content: ContentId) -> tuple[bytes | None, str | None]: ...

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId | None: ...


@dataclass
class _Attempts:
    """How often a content was asked for in vain, and when (loop time) it may be asked for again."""

    count: int = 0
    next_at: float = 0.0


@dataclass
class _Found:
    """What some blocks ask for."""

    wanted: list[ContentId] = field(default_factory=list)
    held: list[ContentId] = field(default_factory=list)
    compositions: list[WaitingComposition] = field(default_factory=list)
    settled: list[bytes] = field(default_factory=list)


class ChainEvents:
    """One node's follower.

    state: the node's newest state. pending: adapter ids of the compositions that the node has already.
    offer: takes an event for the node. first_block: where a new database begins.
    """

    def __init__(
        self,
        *,
        chain: Chain,
        database: NodeDatabase,
        store: ContentStore,
        fetcher: Fetches,
        first_block: int,
        state: Callable[[], NetworkState],
        pending: Callable[[], Collection[bytes]],
        offer: Callable[[ev.Event], Awaitable[None]],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._chain = chain
        self._database = database
        self._store = store
        self._fetcher = fetcher
        self._first_block = first_block
        self._state = state
        self._pending = pending
        self._offer = offer
        self._report = report
        self._attempts: dict[ContentId, _Attempts] = {}
        self._offered_at: dict[bytes, int] = {}
        """Adapter id to the checkpoint at which it was last offered: once per checkpoint is enough."""
        self._position: int | None = None
        """Block up to which this run has followed; None while it must find its place again."""
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises nothing that a chain, a peer or a full disk can cause."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._gather())

    # ---------------------------------------------------------------- the chain

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_to_head()
                await self._offer_compositions()
            except ServiceError as error:
                if self._position is not None:
                    self._report({"type": "chain_events", "reason": str(error).split("\n")[0]})
                self._position = None
            await asyncio.sleep(POLL_SECONDS)

    async def _follow_to_head(self) -> None:
        head = (await self._chain.head()).number
        if self._position is None or head < self._position:
            stored = await asyncio.to_thread(self._database.followed_block)
            newest = self._first_block - 1 if stored is None else min(stored, head)
            self._position = max(self._first_block - 1, newest - REREAD_BLOCKS)
        for start in range(self._position + 1, head + 1, BLOCKS_AT_ONCE):
            end = min(start + BLOCKS_AT_ONCE - 1, head)
            found = _Found()
            for event in await self._chain.events(start, end):
                await self._take(event, found)
            await self._keep(end, found)
            self._position = end

    async def _keep(self, block: int, found: _Found) -> None:
        """What was found, and that it was; then the node is told what is settled."""
        database = self._database
        wanted = [*found.wanted, *found.held]
        await asyncio.to_thread(database.follow, block, wanted, found.compositions, found.settled)
        for content in found.held:
            await asyncio.to_thread(database.set_held, content)
        for adapter_id in found.settled:
            await self._offer(ev.CompositionSettled(adapter_id))
        if wanted:
            self._work.set()

    async def _take(self, event: ContractEvent, found: _Found) -> None:
        if isinstance(event, VersionAdded):
            await self._take_version(event, found)
        elif isinstance(event, AdapterComposed):
            await self._take_composition(event, found)

    async def _take_version(self, event: VersionAdded, found: _Found) -> None:
        if event.checkpoint:
            if event.adapter_id == self._state().adapter_id:
                return  # the network's own adapter: every node keeps its versions as it finalizes them
            found.settled.append(event.adapter_id)
        if event.weights is not None:
            # the hash was checked against what the contract recorded; at most 96 KiB, paid for by gas
            content = ContentId(event.weights_hash, len(event.weights))
            if not await self._store.has(content):
                await self._store.put(event.weights)
                self._report(_picked_up(content, "calldata"))
            found.held.append(content)
            return
        named = await self._named(event.weights_hash, event.codec, event.size_bytes)
        if named is not None:
            self._want(named, found)

    async def _take_composition(self, event: AdapterComposed, found: _Found) -> None:
        base = (await self._chain.adapter(event.adapter_id)).base_model_id
        if base != self._state().base_model_id:
            return  # nobody in this network can measure it
        parents = []
        for parent, number in ((event.parent_a, event.version_a), (event.parent_b, event.version_b)):
            row = await self._chain.version(parent, number)
            content = await self._named(row.weights_hash, row.codec, row.size_bytes)
            if content is None:
                return
            self._want(content, found)
            parents.append(content)
        found.compositions.append(
            WaitingComposition(event.adapter_id, event.block_number, event.weight_a, parents[0], parents[1])
        )

    def _want(self, content: ContentId, found: _Found) -> None:
        if content not in found.wanted and content not in found.held:
            found.wanted.append(content)

    async def _named(self, digest: bytes, codec: int, size_bytes: int) -> ContentId | None:
        """The content that the chain names; None, with a report, where it cannot be asked for."""
        limit = self._state().preset.weights_size_bytes_max
        content = ContentId(digest, size_bytes) if size_bytes <= limit else None
        if content is None:
            reason = f"{size_bytes} bytes, limit {limit}"
        elif size_bytes == 0:
            # a bare CID: peers are asked by digest and size, so only stores on this disk can help
            found = await self._fetcher.resolve(cid_text(codec, digest), limit)
            if found is not None:
                return found
            reason = "its size is not on chain, and it is in no store that this node reads"
        elif content.codec != codec:
            reason = f"{size_bytes} bytes have no root of codec {codec:#x}"
        else:
            return content
        self._report({"type": "weights_refused", "digest": digest.hex(), "reason": reason})
        return None

    # ---------------------------------------------------------------- contents

    async def _gather(self) -> None:
        """Fetch what is wanted, one after another, each again after a growing pause."""
        while True:
            self._work.clear()
            wanted = await asyncio.to_thread(self._database.wanted)
            for content in wanted:
                await self._gather_one(content)
            try:
                await asyncio.wait_for(self._work.wait(), POLL_SECONDS if wanted else None)
            except TimeoutError:
                continue

    async def _gather_one(self, content: ContentId) -> None:
        now = asyncio.get_running_loop().time()
        attempts = self._attempts.setdefault(content, _Attempts())
        if attempts.count >= RETRIES_MAX or now < attempts.next_at:
            return
        attempts.count += 1
        attempts.next_at = now + min(RETRY_SECONDS_MAX, POLL_SECONDS * 2**attempts.count)
        try:
            source = None
            if not await self._store.has(content):
                held = await asyncio.to_thread(self._database.picked_up_bytes)
                if held + content.size_bytes > PICKED_UP_BYTES_MAX:
                    raise ServiceError(f"{held} bytes of other adapters' weights are here already")
                data, source = await self._fetcher.fetch_weights(content)
                if data is None:
                    raise ServiceError("no source and no peer gave it")
                await self._store.put(data)
            await self._store.pin(content)
        except ServiceError as error:
            if attempts.count == RETRIES_MAX:
                reason = str(error).split("\n")[0]
                self._report(
                    {"type": "weights_unavailable", "digest": content.digest.hex(), "reason": reason}
                )
            return
        await asyncio.to_thread(self._database.set_held, content)
        del self._attempts[content]
        if source is not None:
            self._report(_picked_up(content, source))

    # ---------------------------------------------------------------- compositions

    async def _offer_compositions(self) -> None:
        """To the node what it does not have: oldest offer first, so that none is starved by others."""
        room = COMPOSITIONS_MAX - len(self._pending())
        number = self._state().next_number
        waiting = [
            composition
            for composition in await asyncio.to_thread(self._database.compositions)
            if composition.adapter_id not in self._pending()
            and self._offered_at.get(composition.adapter_id, -1) < number
        ]
        waiting.sort(key=lambda composition: self._offered_at.get(composition.adapter_id, -1))
        for composition in waiting:
            if room <= 0:
                break
            if not await self._store.has(composition.parent_a):
                continue
            if not await self._store.has(composition.parent_b):
                continue
            self._offered_at[composition.adapter_id] = number
            request = await self._request(composition)
            if request is not None:
                room -= 1
                await self._offer(ev.AdapterComposed(request))

    async def _request(self, composition: WaitingComposition) -> CompositionRequest | None:
        """The composition with its parents, computed; None, and forgotten, where that can never be."""
        first = await self._store.get(composition.parent_a)
        second = await self._store.get(composition.parent_b)
        state = self._state()
        preset = state.preset
        limits = AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max)

        def compute() -> CompositionRequest:
            request = CompositionRequest(
                composition.adapter_id,
                decode_adapter(first, limits),
                decode_adapter(second, limits),
                composition.weight_a,
            )
            check_composition(state, request)
            return request

        try:
            return await asyncio.to_thread(compute)
        except (FormatError, Rejection) as error:
            self._report(
                {"type": "composition", "adapter": composition.adapter_id[:8].hex(), "refused": str(error)}
            )
            assert self._position is not None
            settled = (composition.adapter_id,)
            await asyncio.to_thread(self._database.follow, self._position, (), (), settled)
            return None


def _picked_up(content: ContentId, source: str) -> dict[str, Any]:
    return {"type": "weights", "cid": content.cid, "bytes": content.size_bytes, "from": source}
