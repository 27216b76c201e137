"""A whole network on this machine: embedded chain, nodes as processes, and what it was all worth.

Supervises; takes no part in the protocol. Everything it needs to go on is in the folder (devnet_folder.py), so
a devnet that was stopped or killed goes on when started again. Called by `citrate devnet`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..chain.adapter_factory import AdapterFactory
from ..chain.devnet_chain import DevnetChain
from ..chain.genesis import GenesisBaseModel, build_genesis, fund_equally
from ..config import load_preset
from ..content.store import EmbeddedStore
from ..errors import ServiceError
from ..protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from ..protocol.certificate import account_of
from ..protocol.preset import Preset
from ..recording import ChainRow, RecordedNetwork, Recording
from ..training.base_model import BaseModel
from ..training.initial import initial_weights
from ..training.settings import LoraSettings, TrainSettings
from .devnet_folder import DevnetChoices, DevnetFolder, is_free
from .folder_lock import FolderLock
from .node_process import NodeProcess, peak_memory_bytes

ADAPTER_NAME = "devnet"
POLL_SECONDS = 0.3
FINALIZED_SECONDS = 20.0
"""After the last commit, nodes have this long to finalize it before they are stopped."""

Show = Callable[[dict[str, Any]], None]
"""Takes one fact: a JSON-ready mapping with a `type`."""


@dataclass
class Devnet:
    """One devnet while it runs."""

    folder: DevnetFolder
    choices: DevnetChoices
    show: Show
    nodes: dict[int, NodeProcess] = field(default_factory=dict)
    finalized: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Checkpoint to node number to what that node said of it."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per checkpoint committed in this run: what the summary repeats."""
    peak_memory: dict[int, int] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event) -> dict[str, Any] | None:
        """Until the target checkpoint is final, or `stop`. Returns the summary; None when stopped before."""
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            stack.enter_context(FolderLock(self.folder.folder, "a devnet"))
            self._check_ports()
            rpc_url = await self._start_chain(stack)
            factory = await AdapterFactory.connect(rpc_url)
            stack.push_async_callback(factory.close)
            await self._create_adapter(factory)
            await self._write_recording(factory)
            self.show(self._wallet_facts(factory, rpc_url))
            await self._start_nodes(stack, rpc_url)
            reached = await self._follow(factory, stop)
            self._read_memory()
            await self._stop_nodes()
        if not reached:
            return None
        summary = await self._summary(rpc_url)
        summary["seconds"] = round(time.monotonic() - began, 1)
        return summary

    # ---------------------------------------------------------------- chain

    def _check_ports(self) -> None:
        ports = list(self.choices.node_ports)
        if not self.choices.rpc_url:
            ports.append(self.choices.rpc_port)
        for port in ports:
            if not is_free(port):
                raise ServiceError(
                    f"port {port} is in use by another program\n"
                    f"  stop that program, or change the port in {self.folder.folder / 'devnet.json'}"
                )

    async def _start_chain(self, stack: AsyncExitStack) -> str:
        if self.choices.rpc_url:
            return self.choices.rpc_url
        self.show({"type": "starting", "what": "chain"})
        raise NotImplementedError

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
        """Once: the founder creates the adapter, opens it to mentorship, and node 1 holds its first weights."""
        if self.choices.adapter_id:
            return
        self.show({"type": "starting", "what": "adapter"})
        data = self.first_weights().encode()
        async with EmbeddedStore(self.folder.node_folder(1) / "content") as store:
            content = await store.put(data)
        raise NotImplementedError(content)

    async def _write_recording(self, factory: AdapterFactory) -> None:
        recording = Recording(self.folder.folder / "recording")
        if (recording.folder / "network.cbor").exists():
            return
        weights = self.first_weights()
        from ..protocol.content_id import content_id

        data = weights.encode()
        network = RecordedNetwork(
            chain_id=factory.chain_id,
            genesis_block_hash=await factory.genesis_block_hash(),
            contract=factory.contract,
            preset=self.preset(),
            nodes=self.folder.validators(self.choices.nodes),
            adapter_id=bytes.fromhex(self.choices.adapter_id.removeprefix("0x")),
            genesis_record_hash=bytes.fromhex(self.choices.genesis_record_hash),
            genesis_weights_hash=content_id(data).digest,
        )
        recording.write_network(network, data)

    def preset(self) -> Preset:
        return load_preset(self.choices.preset)

    def _wallet_facts(self, factory: AdapterFactory, rpc_url: str) -> dict[str, Any]:
        return {
            "type": "devnet",
            "dir": str(self.folder.folder),
            "rpc_url": rpc_url,
            "chain_id": factory.chain_id,
            "contract": "0x" + factory.contract.hex(),
            "adapter_id": self.choices.adapter_id,
            "founder": "0x" + account_of(self.folder.founder_key()).hex(),
            "founder_key_file": str(self.folder.folder / "keys" / "founder.key"),
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

    async def _stop_nodes(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    def _on_fact(self, number: int, fact: dict[str, Any]) -> None:
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
        raise NotImplementedError

    async def _checkpoint_row(
        self, factory: AdapterFactory, recording: Recording, number: int
    ) -> dict[str, Any]:
        raise NotImplementedError

    async def _said_of(self, number: int) -> dict[int, dict[str, Any]]:
        """What nodes said of a checkpoint, once all that run have finalized it or FINALIZED_SECONDS are over."""
        deadline = time.monotonic() + FINALIZED_SECONDS
        while time.monotonic() < deadline:
            running = [n for n, node in self.nodes.items() if node.process_id is not None]
            said = self.finalized.get(number, {})
            if said and all(n in said for n in running):
                break
            await asyncio.sleep(0.1)
        return self.finalized.get(number, {})

    async def _summary(self, rpc_url: str) -> dict[str, Any]:
        raise NotImplementedError
