"""Builds one running node from its config: opens services, finds its place in the network, starts the loop.

Order: what can be wrong without a network first (config, keys, folder), then the chain, then the network,
then training, then the state: from the own database, else the adapter's first version, else the newest
checkpoint from peers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from ..chain.adapter_factory import AdapterFactory
from ..config import NodeConfig, load_preset
from ..content.interface import ContentMissing, ContentStore
from ..content.opening import open_store, owner_of
from ..content.sources import ContentSource, FolderSource, GatewaySource
from ..errors import ConfigError, ServiceError
from ..network.libp2p_network import Libp2pNetwork
from ..network.settings import BlobStatus, NetworkConfig
from ..node import events as ev
from ..node.core import ChainIdentity, Identity
from ..node.state_machine import Node
from ..protocol.adapter import AdapterLimits, decode_adapter
from ..protocol.certificate import Validator
from ..protocol.checkpoint import decode_record
from ..protocol.content_id import ContentId
from ..protocol.encoding import EncodingError
from ..protocol.gossip_validation import open_message
from ..protocol.identifiers import network_id
from ..protocol.messages import MentorshipSignal
from ..protocol.preset import Preset
from ..protocol.rejection import Rejection
from ..protocol.state import NetworkState, genesis_state, restore_state
from ..protocol.tensors import FormatError
from ..recording import Recording
from ..training.base_model import BaseModel
from ..training.settings import LoraSettings, TrainSettings
from ..training.worker import TrainingWorker
from .composition_meter import CompositionMeter
from .database import FinalCheckpoint, NodeDatabase
from .fetching import Fetcher
from .folder_lock import FolderLock
from .keys import read_identity
from .main_loop import MainLoop, Report
from .metrics import MetricsServer, NodeMetrics
from .opened import OpenedMessages

WAIT_FOR_PEERS_SECONDS = 60.0
WAIT_FOR_OPENING_SECONDS = 0.25
OPEN_SECONDS_MAX = 30.0
"""For a peer that wants a blob: how long this node looks for it in its store."""


async def run_node(config: NodeConfig, report: Report, stop: asyncio.Event) -> None:
    """Run a node until `stop`. Raises ConfigError or ServiceError that says what to do."""
    preset = load_preset(config.preset)
    identity = read_identity(config.node_seed_file, config.account_key_file, config.account_password_file)
    async with AsyncExitStack() as stack:
        stack.enter_context(FolderLock(config.folder, "a node"))
        database = NodeDatabase(config.folder / "node.db")
        stack.callback(database.close)
        store = open_store(config.folder / "content", config.ipfs_url, owner_of(identity.node_key))
        stack.push_async_callback(store.close)
        chain = await AdapterFactory.connect(config.rpc_url, config.contract)
        stack.push_async_callback(chain.close)
        place = await _Place.find(config, preset, identity, chain)
        database.bind("network", place.network_id)
        database.bind("node key", identity.node_key)
        opened = OpenedMessages(place.network_id)
        door = _Door(store, asyncio.get_running_loop())
        network = Libp2pNetwork(
            _network_config(config, preset, identity),
            validate=opened.validate,
            worth=opened.worth,
            find_blob=door.find_blob,
            answer=door.answer,
        )
        await network.start()
        stack.push_async_callback(network.stop)
        report({"type": "listening", "peer_id": network.peer_id, "addresses": list(network.addresses)})
        fetcher = Fetcher(store, network, config.folder / "incoming", _sources(config))
        state, opened_block = await _find_state(config, preset, place, chain, database, store, fetcher)
        worker = await _start_worker(config, state, stack, report)
        report({"type": "ready", "checkpoint": state.number, "network_id": place.network_id.hex()})
        while opened_block is None:
            await asyncio.sleep(WAIT_FOR_OPENING_SECONDS)
            with contextlib.suppress(ServiceError):  # the chain may be restarting
                opened_block = await chain.opened_block(place.adapter_id)
        node = Node(
            identity,
            ChainIdentity(place.chain_id, place.contract),
            state,
            opened_block=opened_block,
            journal=database.journal(),
            residuals=database.residuals(),
            mentors=worker is not None,
            evaluates=worker is not None,
        )
        metrics = NodeMetrics()
        loop = MainLoop(
            node=node,
            account_key=identity.account_key,
            database=database,
            store=store,
            network=network,
            chain=chain,
            worker=worker,
            meter=_meter(config) if worker is not None else None,
            opened=opened,
            train_settings=_train_settings(config),
            fetcher=fetcher,
            recording=Recording(config.recording) if config.recording else None,
            report=report,
            first_block=place.created_block,
            metrics=metrics,
            versions_kept=config.versions_kept,
        )
        door.open(loop)
        await _start_gateway(
            config, store, lambda digest: loop.is_restored and digest not in loop.withheld, stack, report
        )
        if config.metrics:
            served = await stack.enter_async_context(MetricsServer(metrics, config.metrics))
            report({"type": "metrics", "address": served.address})
        await loop.run(stop, await _stored_events(database, store, place.network_id))


async def _start_gateway(
    config: NodeConfig,
    store: ContentStore,
    may_serve: Callable[[bytes], bool],
    stack: AsyncExitStack,
    report: Report,
) -> None:
    """The trustless HTTP gateway on loopback, where the operator wants one."""
    if config.gateway_port == 0:
        return
    from ..content.gateway import Gateway

    gateway = Gateway(store, port=config.gateway_port, may_serve=may_serve)
    await gateway.start()
    stack.push_async_callback(gateway.stop)
    report({"type": "gateway", "address": gateway.address})


class _Door:
    """What peers may ask for, before the loop runs and after."""

    def __init__(self, store: ContentStore, running: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._running = running
        self._loop: MainLoop | None = None

    def open(self, loop: MainLoop) -> None:
        self._loop = loop

    def find_blob(self, digest: bytes, size_bytes: int) -> Path | bytes | BlobStatus | None:
        """Runs in the network's worker threads; the store is asked on the loop it belongs to."""
        content = ContentId(digest, size_bytes)
        restored = self._loop is not None and self._loop.is_restored
        if not restored and self._store.ephemeral_checkpoint_of(content) is not None:
            return BlobStatus.BUSY  # a delta: whether it may be served, only the restored loop knows
        if self._loop is not None and digest in self._loop.withheld:
            return BlobStatus.WITHHELD
        opening = asyncio.run_coroutine_threadsafe(self._store.open_path(content), self._running)
        try:
            return opening.result(OPEN_SECONDS_MAX)
        except (TimeoutError, concurrent.futures.CancelledError, ServiceError):
            opening.cancel()
            return BlobStatus.BUSY  # a slow disk, or a daemon that is away: not the peer's fault, nor final

    async def answer(self, peer: str, payload: bytes) -> bytes:
        if self._loop is None:
            raise ServiceError("this node is still starting")
        return await self._loop.answer(peer, payload)


class _Place:
    """What the chain says about the network, and this node's place in it."""

    chain_id: int
    contract: bytes
    network_id: bytes
    nodes: tuple[Validator, ...]
    adapter_id: bytes
    base_model_id: bytes
    first_weights: ContentId
    genesis_record_hash: bytes
    created_block: int
    """Of the adapter: what the contract said before is not this network's business."""

    @classmethod
    async def find(
        cls, config: NodeConfig, preset: Preset, identity: Identity, chain: AdapterFactory
    ) -> _Place:
        """Raises ConfigError where this node is not registered or the adapter does not exist."""
        place = cls()
        place.chain_id = chain.chain_id
        place.contract = bytes.fromhex(config.contract.removeprefix("0x"))
        place.nodes = await chain.validators()
        mine = [node for node in place.nodes if node.node_key == identity.node_key]
        if not mine:
            raise ConfigError(
                f"node key {identity.node_key.hex()} is not registered in the contract\n"
                "  only registered nodes take part; the validator set stands in the contract's genesis"
            )
        if mine[0].account != identity.account:
            raise ConfigError(
                f"the contract registers account 0x{mine[0].account.hex()} for this node key, "
                f"keys.account_key_file holds 0x{identity.account.hex()}"
            )
        place.adapter_id = bytes.fromhex(config.adapter_id.removeprefix("0x"))
        adapter = await chain.adapter(place.adapter_id)
        place.base_model_id = adapter.base_model_id
        place.created_block = adapter.created_block
        first = await chain.version(place.adapter_id, 1)
        place.first_weights = ContentId(first.weights_hash, first.size_bytes)
        place.genesis_record_hash = await chain.genesis_record_hash()
        place.network_id = network_id(
            place.chain_id,
            await chain.genesis_block_hash(),
            place.contract,
            place.genesis_record_hash,
            preset.digest(),
        )
        return place


def _network_config(config: NodeConfig, preset: Preset, identity: Identity) -> NetworkConfig:
    return NetworkConfig(
        identity_seed=identity.seed,
        listen=config.listen,
        peers=config.peers,
        blob_size_bytes_max=max(preset.delta_size_bytes_max, preset.weights_size_bytes_max),
    )


def _sources(config: NodeConfig) -> tuple[ContentSource, ...]:
    """Stores on this disk first, then gateways, each in the operator's order."""
    folders = [FolderSource(path) for path in config.read_stores]
    return (*folders, *(GatewaySource(url) for url in config.gateways))


def _train_settings(config: NodeConfig) -> TrainSettings:
    return TrainSettings(
        steps=config.steps,
        batch_sequences=config.batch_sequences,
        sequence_bytes=config.sequence_bytes,
        learning_rate=config.learning_rate,
    )


def _meter(config: NodeConfig) -> CompositionMeter:
    def make_worker(settings: LoraSettings) -> TrainingWorker:
        return TrainingWorker(
            config.base_model,
            settings,
            config.data,
            sequence_bytes=config.sequence_bytes,
            threads=config.threads,
        )

    return CompositionMeter(make_worker)


async def _start_worker(
    config: NodeConfig, state: NetworkState, stack: AsyncExitStack, report: Report
) -> TrainingWorker | None:
    """The training process, or None for a node without data. Raises ConfigError for another base model."""
    if not config.data:
        return None
    base = await asyncio.to_thread(BaseModel.load, config.base_model)
    if base.base_model_id != state.base_model_id:
        raise ConfigError(
            f"base model {config.base_model!r} has id {base.base_model_id.hex()}, "
            f"the adapter is for {state.base_model_id.hex()}\n"
            "  set training.base_model to the base that the adapter was created for"
        )
    settings = state.weights.config
    worker = TrainingWorker(
        config.base_model,
        LoraSettings(settings.rank, settings.alpha, settings.targets),
        config.data,
        sequence_bytes=config.sequence_bytes,
        threads=config.threads,
    )
    stack.push_async_callback(worker.stop)
    report({"type": "starting", "what": "training"})
    facts = await worker.start()
    report(
        {
            "type": "trainer",
            "base_model_id": facts.base_model_id.hex(),
            "data_digest": facts.data_digest.hex(),
            "mixture": dict(facts.mixture),
            "train_examples": facts.train_examples,
            "held_out_examples": facts.held_out_examples,
            "instruction_set": facts.instruction_set,
        }
    )
    return worker


async def _find_state(
    config: NodeConfig,
    preset: Preset,
    place: _Place,
    chain: AdapterFactory,
    database: NodeDatabase,
    store: ContentStore,
    fetcher: Fetcher,
) -> tuple[NetworkState, int | None]:
    """The newest state this node can stand on, and the block that opened the checkpoint after it.

    The block is None where the network has not begun: the adapter is not open to mentorship yet.
    """
    known = database.final_checkpoints()
    if known:
        return await _own_state(preset, place, store, known[-1]), known[-1].block_number

    last = await chain.last_checkpoint()
    deadline = asyncio.get_running_loop().time() + WAIT_FOR_PEERS_SECONDS
    while True:
        if last.number == 0:
            data, _ = await fetcher.fetch_weights(place.first_weights)
            if data is not None:
                await store.put(data)
                return _genesis(preset, place, data), await chain.opened_block(place.adapter_id)
        else:
            fetched = await fetcher.fetch_state(place.network_id, last.number, last.record_hash)
            if fetched is not None:
                return await _adopt(preset, place, store, database, fetched, last.block_number)
        if asyncio.get_running_loop().time() > deadline:
            raise ServiceError(
                f"no peer has the adapter's weights {place.first_weights.cid} "
                f"(waited {WAIT_FOR_PEERS_SECONDS:.0f} s)\n"
                f"  check network.peers, or `citrate content add` the file to {config.folder / 'content'}"
            )
        await asyncio.sleep(0.5)


def _limits(preset: Preset) -> AdapterLimits:
    return AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max)


def _genesis(preset: Preset, place: _Place, data: bytes) -> NetworkState:
    try:
        weights = decode_adapter(data, _limits(preset))
        state = genesis_state(
            preset, place.network_id, place.nodes, place.adapter_id, weights, place.genesis_record_hash
        )
    except (FormatError, ValueError) as error:
        raise ServiceError(f"version 1 of the adapter cannot be mentored: {error}") from None
    if weights.config.base_model_id != place.base_model_id:
        raise ServiceError(
            f"version 1 of the adapter is for base model {weights.config.base_model_id.hex()}, "
            f"the contract says {place.base_model_id.hex()}"
        )
    return state


async def _own_state(
    preset: Preset, place: _Place, store: ContentStore, final: FinalCheckpoint
) -> NetworkState:
    try:
        return restore_state(
            preset,
            place.network_id,
            place.nodes,
            decode_record(final.record),
            await store.get(final.state_file),
            decode_adapter(await store.get(final.weights), _limits(preset)),
        )
    except (EncodingError, FormatError, ValueError) as error:
        raise ServiceError(
            f"checkpoint {final.number} in this node's folder is damaged: {error}\n"
            "  remove node.db and the content folder; the node will fetch the state from its peers"
        ) from None


async def _adopt(
    preset: Preset,
    place: _Place,
    store: ContentStore,
    database: NodeDatabase,
    fetched: ev.StateFetched,
    block_number: int,
) -> tuple[NetworkState, int]:
    """A newcomer's first state: fetched by hash, checked, stored like an own one."""
    try:
        weights = decode_adapter(fetched.weights, _limits(preset))
        state = restore_state(
            preset, place.network_id, place.nodes, decode_record(fetched.record), fetched.state_file, weights
        )
    except (EncodingError, FormatError, ValueError) as error:
        raise ServiceError(f"checkpoint {fetched.number} as peers gave it is not usable: {error}") from None
    final = FinalCheckpoint(
        fetched.number,
        block_number,
        fetched.record,
        b"",
        await store.put(fetched.state_file),
        await store.put(fetched.weights),
    )
    await asyncio.to_thread(database.finalize, final)
    return state, block_number


async def _stored_events(database: NodeDatabase, store: ContentStore, identity: bytes) -> list[ev.Event]:
    """What an earlier run had received of the open checkpoint."""
    events: list[ev.Event] = []
    deltas: list[ev.Event] = []
    for envelope in database.messages():
        try:
            message = open_message(envelope, identity)
        except Rejection:
            continue  # of an older program: it may be fetched again
        events.append(ev.MessageReceived(message))
        body = message.body
        if isinstance(body, MentorshipSignal):
            content = ContentId(body.delta_hash, body.delta_size_bytes)
            with contextlib.suppress(ContentMissing):  # damaged: it is fetched again
                if await store.has(content):
                    deltas.append(ev.DeltaFetched(content.digest, await store.get(content)))
    return [*events, *deltas]
