"""A whole network on this machine: embedded chain, nodes as processes, and what it was all worth.

Supervises; takes no part in the protocol. Everything it needs to go on is in the folder (devnet_folder.py),
so a devnet that was stopped or killed goes on when started again. Called by `citrate devnet`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chain.adapter_factory import AdapterFactory, cid_argument
from ..chain.contract_types import CheckpointCommitted
from ..chain.devnet_chain import DevnetChain
from ..chain.genesis import GenesisBaseModel, build_genesis, fund_equally
from ..chain.rpc_proxy import RpcProxy
from ..config import load_preset
from ..content.block_store import BlockStore
from ..content.opening import open_store, owner_of
from ..content.sources import FolderSource
from ..errors import ServiceError
from ..protocol.adapter import AdapterConfig, AdapterLimits, AdapterWeights, decode_adapter, from_tensors
from ..protocol.certificate import ACCURACY_UNKNOWN_PPM, account_of
from ..protocol.content_id import ContentId, content_id
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS
from ..protocol.methods import moving_factor
from ..protocol.preset import Preset
from ..recording import ChainRow, RecordedNetwork, Recording
from ..training.base_model import BaseModel
from ..training.initial import initial_weights
from ..training.settings import LoraSettings, TrainSettings
from .devnet_folder import DevnetChoices, DevnetFolder, is_free
from .folder_lock import FolderLock
from .node_process import NodeProcess, peak_memory_bytes

if TYPE_CHECKING:
    from ..training.summary import Losses

ADAPTER_NAME = "devnet"
POLL_SECONDS = 0.3
READY_SECONDS = 90.0
"""Nodes have this long to load at the first start; then the network begins with those that have."""
FINALIZED_SECONDS = 20.0
"""After the last commit, nodes have this long to finalize it before they are stopped."""


def abi_file() -> Path:
    """The contract's artifact: ABI, code and storage layout."""
    return Path(str(files("citrate_node.chain").joinpath("artifacts/AdapterFactory.json")))


Show = Callable[[dict[str, Any]], None]
"""Takes one fact: a JSON-ready mapping with a `type`."""

OpenPage = Callable[[str], AbstractAsyncContextManager[Any]]
"""Serves the dashboard and wallet page until left; given the URL of the chain that the page reads."""


@dataclass
class Devnet:
    """One devnet while it runs."""

    folder: DevnetFolder
    choices: DevnetChoices
    show: Show
    open_page: OpenPage | None = None
    nodes: dict[int, NodeProcess] = field(default_factory=dict)
    finalized: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Checkpoint to node number to what that node said of it."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per checkpoint committed in this run: what the summary repeats."""
    peak_memory: dict[int, int] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    """Nodes that have loaded their base model and data."""
    delta_bytes: int = 0
    """Size of the latest signal's delta, and of the same values as float32."""
    float32_bytes: int = 0
    _chain_failed: asyncio.Task[ServiceError] | None = None
    chain: DevnetChain | None = None
    """The embedded chain; None with an --rpc-url."""

    async def run(self, stop: asyncio.Event) -> dict[str, Any] | None:
        """Until the target checkpoint is final, or `stop`. Returns the summary; None when stopped before."""
        began = time.monotonic()
        async with AsyncExitStack() as page:
            if not await self._run_network(stop, page):
                return None
            summary = await self._summary(stop)
            summary["seconds"] = round(time.monotonic() - began, 1)
            self.show(summary)
            return summary

    async def _run_network(self, stop: asyncio.Event, page: AsyncExitStack) -> bool:
        """Chain and nodes, started and ended again; whether the target was reached. Only the page goes on."""
        async with AsyncExitStack() as stack:
            stack.enter_context(FolderLock(self.folder.folder, "a devnet"))
            self._check_ports()
            rpc_url = await self._start_chain(stack)
            factory = await AdapterFactory.connect(rpc_url)
            stack.push_async_callback(factory.close)
            await self._create_adapter(factory)
            await self._write_recording(factory)
            if self.open_page is not None and self.choices.page_port:
                await page.enter_async_context(self.open_page(rpc_url))
            self.show(self._wallet_facts(factory))
            await self._start_nodes(stack, rpc_url)
            await self._open_network(factory, stop)
            if self.chain is not None:
                self._chain_failed = asyncio.create_task(self.chain.wait_failed())
                stack.callback(self._chain_failed.cancel)
            reached = await self._follow(factory, stop)
            self._read_memory()
            await self._stop_nodes()
        return reached

    # ---------------------------------------------------------------- chain

    def _check_ports(self) -> None:
        ports = list(self.choices.node_ports)
        if not self.choices.rpc_url:
            ports += [self.choices.chain_port, self.choices.rpc_port]
        if self.choices.page_port and self.open_page is not None:
            ports.append(self.choices.page_port)
        for port in ports:
            if not is_free(port):
                raise ServiceError(
                    f"port {port} is in use by another program\n"
                    f"  stop that program, or change the port in {self.folder.folder / 'devnet.json'}"
                )

    async def _start_chain(self, stack: AsyncExitStack) -> str:
        """The chain, and the gate in front of it. Returns the URL that the devnet itself uses."""
        if self.choices.rpc_url:
            return self.choices.rpc_url
        self.show({"type": "starting", "what": "chain"})
        chain = DevnetChain(
            self.folder.folder / "chain", self.genesis(), port=self.choices.chain_port, block_time_s=1
        )
        await chain.start()
        stack.push_async_callback(chain.stop)
        self.chain = chain
        # any page may read the chain and send what is signed already, as on any public network
        gate = RpcProxy(chain.rpc_url, "127.0.0.1", self.choices.rpc_port, allow_origin="*")
        await gate.start()
        stack.push_async_callback(gate.stop)
        return chain.rpc_url

    def genesis(self) -> dict[str, Any]:
        """The chain's genesis: contract, registered nodes, base model, and money for nodes and founder."""
        validators = self.folder.validators(self.choices.nodes)
        founder = account_of(self.folder.founder_key())
        base = self.base_model()
        size_bytes = sum(tensor.size_bytes for tensor in base.tensors.values())
        return build_genesis(
            validators,
            bytes.fromhex(self.choices.genesis_record_hash),
            funded=fund_equally([*(v.account for v in validators), founder]),
            timestamp=self.choices.genesis_timestamp,
            chain_id=self.choices.chain_id,
            base_models=[
                GenesisBaseModel(
                    base.base_model_id, base.name[-64:], "", base.licence[:64], size_bytes, founder
                )
            ],
        )

    def base_model(self) -> BaseModel:
        return BaseModel.load(self.choices.base_model)

    def lora(self) -> LoraSettings:
        return LoraSettings(rank=self.choices.rank, alpha=self.choices.lora_alpha)

    def first_weights(self) -> AdapterWeights:
        """The adapter before any training: A from the public genesis seed, B zero."""
        base, lora = self.base_model(), self.lora()
        shapes = base.tensor_shapes(lora)
        tensors = initial_weights(shapes, bytes.fromhex(self.choices.genesis_record_hash))
        targets = sorted({name.rsplit(".", 3)[1] for name in shapes})
        config = AdapterConfig(base.base_model_id, lora.rank, lora.alpha, tuple(targets))
        return from_tensors(config, tensors)

    async def _create_adapter(self, factory: AdapterFactory) -> None:
        """Once: the founder creates the adapter and opens it to mentorship; node 1 holds its weights."""
        if self.choices.adapter_id:
            return
        self.show({"type": "starting", "what": "adapter"})
        data = self.first_weights().encode()
        owner = owner_of(self.folder.identity(1).node_key)
        store = open_store(self.folder.node_folder(1) / "content", self.choices.ipfs_url, owner)
        try:
            content = await store.put(data)
        finally:
            await store.close()
        founder = self.folder.founder_key()
        receipt = await factory.create_adapter(
            founder,
            self.base_model().base_model_id,
            ADAPTER_NAME,
            cid_argument(content.digest, content.codec, content.size_bytes),
            self.choices.rank,
        )
        if self.chain is not None:
            await self.chain.snapshot()
        self.choices = self.folder.update(adapter_id="0x" + receipt.adapter_id.hex())

    async def _write_recording(self, factory: AdapterFactory) -> None:
        recording = Recording(self.folder.folder / "recording")
        if (recording.folder / "network.cbor").exists():
            return
        data = self.first_weights().encode()
        network = RecordedNetwork(
            chain_id=factory.chain_id,
            genesis_block_hash=await factory.genesis_block_hash(),
            contract=factory.contract,
            preset=self.preset(),
            nodes=self.folder.validators(self.choices.nodes),
            adapter_id=self.adapter_id,
            genesis_record_hash=bytes.fromhex(self.choices.genesis_record_hash),
            genesis_weights_hash=content_id(data).digest,
        )
        recording.write_network(network, data)

    def preset(self) -> Preset:
        return load_preset(self.choices.preset)

    def _wallet_facts(self, factory: AdapterFactory) -> dict[str, Any]:
        return {
            "type": "devnet",
            "dir": str(self.folder.folder),
            "rpc_url": self.folder.rpc_url(self.choices),
            "inner_rpc_url": self.folder.inner_rpc_url(self.choices),
            "page_url": self.folder.page_url(self.choices) if self.open_page is not None else None,
            "chain_id": factory.chain_id,
            "contract": "0x" + factory.contract.hex(),
            "adapter_id": self.choices.adapter_id,
            "founder": "0x" + account_of(self.folder.founder_key()).hex(),
            "founder_key_file": str(self.folder.folder / "keys" / "founder.key"),
            "abi_file": str(abi_file()),
            "nodes": self.choices.nodes,
        }

    # ---------------------------------------------------------------- nodes

    async def _start_nodes(self, stack: AsyncExitStack, rpc_url: str) -> None:
        for number in range(1, self.choices.nodes + 1):
            config = self.folder.write_node_config(self.choices, number, rpc_url)
            node = NodeProcess(number, config, self._on_fact)
            self.nodes[number] = node
            stack.push_async_callback(node.stop)
            node.start()

    async def _open_network(self, factory: AdapterFactory, stop: asyncio.Event) -> None:
        """When the nodes have loaded: the founder opens the adapter, once, and checkpoint 1 begins.

        On a folder that has begun before, the embedded chain waits for the nodes instead.
        """
        begun = await factory.opened_block(self.adapter_id) is not None
        if begun and self.chain is not None:
            await self.chain.pause()  # it goes on where it was: a phase must not pass while nodes load
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and not stop.is_set():
            if all(number in self.ready or node.gave_up for number, node in self.nodes.items()):
                break
            await asyncio.sleep(0.1)
        if not self.ready:
            self._raise_if_all_gave_up()
        if begun:
            if self.chain is not None:
                await self.chain.resume()
            return
        await factory.open_to_mentorship(self.folder.founder_key(), self.adapter_id)
        if self.chain is not None:
            await self.chain.snapshot()

    @property
    def adapter_id(self) -> bytes:
        return bytes.fromhex(self.choices.adapter_id.removeprefix("0x"))

    async def _stop_nodes(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        for number in self.nodes:
            self.show({"type": "node", "node": number, "what": "stopped"})

    def _on_fact(self, number: int, fact: dict[str, Any]) -> None:
        if fact.get("type") == "announced":
            self.delta_bytes, self.float32_bytes = fact["delta_bytes"], fact["float32_bytes"]
        if fact.get("type") == "ready":
            self.ready.add(number)
        if fact.get("type") == "finalized":
            self.finalized.setdefault(fact["checkpoint"], {})[number] = fact
        self.show({**fact, "type": "node", "node": number, "what": fact.get("type", "")})

    def _read_memory(self) -> None:
        for number, node in self.nodes.items():
            if node.process_id is not None:
                self.peak_memory[number] = peak_memory_bytes(node.process_id)

    # ---------------------------------------------------------------- checkpoints

    async def _follow(self, factory: AdapterFactory, stop: asyncio.Event) -> bool:
        """Show checkpoints as the chain takes them, until the target. False when stopped before."""
        recording = Recording(self.folder.folder / "recording")
        seen = max((row.number for row in recording.chain_rows()), default=0)
        while seen < self.choices.target_checkpoint or self.choices.target_checkpoint == 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
            if stop.is_set():
                return False
            if all(node.process_id is None for node in self.nodes.values()) and self.nodes:
                self._raise_if_all_gave_up()
            self._read_memory()
            if self._chain_failed is not None and self._chain_failed.done():
                raise self._chain_failed.result()
            try:
                last = await factory.last_checkpoint()
            except ServiceError:
                continue  # the chain is being restarted by its supervisor
            while seen < last.number:
                seen += 1
                row = await self._checkpoint_row(factory, recording, seen)
                self.rows.append(row)
                self.show({"type": "checkpoint", **row})
        return True

    def _raise_if_all_gave_up(self) -> None:
        """Nodes that are being started again are no reason; nodes that cannot be are."""
        if all(node.gave_up for node in self.nodes.values()):
            raise ServiceError(f"no node could run: {self.nodes[1].last_words()}\n  see {self.nodes[1].log}")

    async def _checkpoint_row(
        self, factory: AdapterFactory, recording: Recording, number: int
    ) -> dict[str, Any]:
        """What the chain and the nodes say of a checkpoint; the chain's part goes into the recording."""
        committed = await factory.checkpoint(number)
        events = await factory.events(committed.block_number, committed.block_number)
        tx = next(e.tx_hash for e in events if isinstance(e, CheckpointCommitted) and e.number == number)
        said = await self._said_of(number)
        gas_used = await factory.gas_used(tx)
        latest = await factory.latest(self.adapter_id)
        content = ContentId(latest.weights_hash, latest.size_bytes)
        computed = next((fact for fact in said.values() if fact["computed"]), {})
        opened = await self._opened_block(factory, number)
        preset = self.preset()
        row = ChainRow(
            number,
            committed.record_hash.hex(),
            content.digest.hex(),
            committed.block_number,
            tx,
            gas_used,
        )
        shown = {
            "number": number,
            "signals": computed.get("signals"),
            "withheld": computed.get("withheld"),
            "promoted": computed.get("promoted"),
            "scores_ppm": [
                o["score_ppm"] for o in computed.get("outcomes", []) if o["score_ppm"] is not None
            ],
            "weights_hash": content.digest.hex(),
            "cid": content.cid,
            "tx": tx,
            "gas_used": gas_used,
            "block": committed.block_number,
            "round": committed.round,
            "accuracy_ppm": latest.accuracy if latest.accuracy != ACCURACY_UNKNOWN_PPM else None,
            # blocks come once a second: their distance is the time, whatever the poll saw
            "seconds_to_commit": float(committed.block_number - opened - preset.signal_deadline_blocks),
            "reputations": self._by_name(computed.get("reputations", {})),
            "finalized_by": sorted(said),
        }
        # the page's row first: a checkpoint without a chain row is read again after a kill
        await asyncio.to_thread(self.folder.add_checkpoint_row, shown)
        await asyncio.to_thread(recording.add_chain_row, row)
        if self.chain is not None:
            await self.chain.snapshot()
        return shown

    def _by_name(self, by_key: dict[str, int]) -> dict[str, int]:
        """Figures under the first bytes of node keys, as nodes report them, by node name."""
        names = {self.folder.identity(n).node_key[:4].hex(): f"node-{n}" for n in self.nodes}
        return {
            names.get(key, key): value
            for key, value in sorted(by_key.items(), key=lambda i: names.get(i[0], i[0]))
        }

    async def _opened_block(self, factory: AdapterFactory, number: int) -> int:
        """The block in which checkpoint `number` opened."""
        if number > 1:
            return (await factory.checkpoint(number - 1)).block_number
        opened = await factory.opened_block(self.adapter_id)
        assert opened is not None, "a checkpoint was committed"
        return opened

    async def _said_of(self, number: int) -> dict[int, dict[str, Any]]:
        """What nodes said of a checkpoint, once all that run have finalized it (or never did)."""
        deadline = time.monotonic() + FINALIZED_SECONDS
        while time.monotonic() < deadline:
            running = [n for n, node in self.nodes.items() if node.process_id is not None]
            said = self.finalized.get(number, {})
            if said and all(n in said for n in running):
                break
            await asyncio.sleep(0.1)
        return self.finalized.get(number, {})

    async def _summary(self, stop: asyncio.Event) -> dict[str, Any]:
        """What mentorship was worth, and the run in figures."""
        self.show({"type": "step", "text": "measuring what mentorship was worth against training alone …"})
        losses = await asyncio.to_thread(self._losses, stop)
        return {
            "type": "summary",
            "dir": str(self.folder.folder),
            "rpc_url": self.folder.rpc_url(self.choices),
            "contract": "0x" + ADAPTER_FACTORY_ADDRESS.hex(),
            "loss": {name: asdict(row) for name, row in losses.items()},
            "checkpoints": self.rows,
            "delta_bytes": self.delta_bytes,
            "float32_bytes": self.float32_bytes,
            "peak_memory_bytes": self.peak_memory,
        }

    def _losses(self, stop: asyncio.Event) -> dict[str, Losses]:
        """Runs in a thread; a stop ends it at the next part."""
        # two torch threads that spin while they wait for each other crawl on a machine with other work
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from ..training.summary import summarize

        def on_progress(done: int, of: int) -> None:
            if stop.is_set():
                raise ServiceError("stopped while measuring; the checkpoints are safe")

        preset, choices = self.preset(), self.choices
        first = self.first_weights()
        recording = Recording(self.folder.folder / "recording")
        last = max((row for row in recording.chain_rows()), key=lambda row: row.number)
        return summarize(
            self.base_model(),
            self.lora(),
            self.train_settings(),
            [self.folder.data_source(choices, number) for number in range(1, choices.nodes + 1)],
            first.tensors(),
            self._weights_of(bytes.fromhex(last.weights_hash)).tensors(),
            [moving_factor(preset.method, number) for number in range(1, last.number + 1)],
            on_progress=on_progress,
        )

    def _weights_of(self, digest: bytes) -> AdapterWeights:
        """A version's weights from any node's store."""
        preset = self.preset()
        limits = AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max)
        for number in range(1, self.choices.nodes + 1):
            with contextlib.suppress(ServiceError):
                folder = self.folder.node_folder(number) / "content"
                store = BlockStore(folder, read_only=True)  # the records; the bytes may lie in a daemon
                entries = store.entries()
                store.close()
                for entry in entries:
                    if entry.content.digest == digest:
                        data = asyncio.run(FolderSource(folder).get(entry.content))
                        return decode_adapter(data, limits)
        raise ServiceError(f"no node holds the weights {digest.hex()}")

    def train_settings(self) -> TrainSettings:
        choices = self.choices
        return TrainSettings(
            steps=choices.steps,
            batch_sequences=choices.batch_sequences,
            sequence_bytes=choices.sequence_bytes,
            learning_rate=choices.learning_rate,
        )
