"""What there is to do about a devnet from outside: prepare its folder, ask how it is, stop it.

Called by `citrate devnet`; the devnet itself, while it runs, is devnet.py.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from ..chain.adapter_factory import AdapterFactory
from ..chain.genesis import DEFAULT_CHAIN_ID
from ..config import is_preset_file, load_preset
from ..errors import ConfigError, ServiceError
from ..protocol.certificate import account_of
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS
from ..recording import Recording, write_atomically
from ..training.base_model import BaseModel
from .devnet import Devnet, abi_file
from .devnet_folder import DevnetChoices, DevnetFolder, new_choices
from .folder_lock import lock_holder

STOP_SECONDS = 60.0


def prepare(
    folder: Path,
    *,
    nodes: int,
    checkpoints: int,
    preset: str,
    seed: int,
    base_model: str,
    rpc_url: str,
    page_port: int | None = None,
    ipfs_url: str = "",
) -> tuple[DevnetFolder, DevnetChoices]:
    """The folder of a new devnet with its keys, or an existing one with a target to reach.

    checkpoints: more checkpoints to reach, 0 for no end. An unfinished target of an earlier run stays.
    page_port: of the dashboard and wallet page, 0 for none; None: as before, at first a free one.
    ipfs_url: a Kubo daemon that keeps all contents; a devnet that began without one goes on without.
    """
    load_preset(preset)
    if is_preset_file(preset):
        preset = str(Path(preset).resolve())  # the nodes read it too, from folders of their own
    devnet = DevnetFolder(folder.resolve())
    if not devnet.exists:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no devnet\n  give another --dir")
        BaseModel.load(base_model)
        devnet.create_keys(nodes)
        devnet.save(
            new_choices(
                nodes=nodes,
                checkpoints=checkpoints,
                preset=preset,
                seed=seed,
                base_model=base_model,
                rpc_url=rpc_url,
                chain_id=DEFAULT_CHAIN_ID,
                now=int(time.time()),
                page_port=page_port,
                ipfs_url=ipfs_url,
            )
        )
        return devnet, devnet.load()
    choices = devnet.load()
    if choices.nodes != nodes and nodes != 4:
        raise ConfigError(
            f"the devnet in {folder} has {choices.nodes} nodes; their number is fixed in its genesis\n"
            "  give another --dir for another number"
        )
    if ipfs_url and not choices.ipfs_url and choices.adapter_id:
        raise ConfigError(
            f"the nodes of the devnet in {folder} keep their contents in stores of their own\n"
            "  leave --ipfs-url out, or give another --dir for a devnet on a daemon"
        )
    done = max((row.number for row in Recording(devnet.folder / "recording").chain_rows()), default=0)
    target = 0 if checkpoints == 0 else choices.target_checkpoint
    if checkpoints and target <= done:
        target = done + checkpoints
    return devnet, devnet.update(
        target_checkpoint=target,
        rpc_url=rpc_url or choices.rpc_url,
        page_port=choices.page_port if page_port is None else page_port,
        chain_port=choices.chain_port,
        ipfs_url=ipfs_url or choices.ipfs_url,
    )


def write_genesis(folder: DevnetFolder, choices: DevnetChoices) -> Path:
    """genesis.json for a chain of one's own."""
    path = folder.folder / "genesis.json"
    data = json.dumps(Devnet(folder, choices, lambda fact: None).genesis(), indent=1)
    write_atomically(path, data.encode() + b"\n")
    return path


async def devnet_status(folder: Path) -> dict[str, Any]:
    """What a wallet or script needs to know of a devnet, running or not."""
    devnet = DevnetFolder(folder.resolve())
    choices = devnet.load()
    process = lock_holder(devnet.folder)
    facts: dict[str, Any] = {
        "type": "status",
        "dir": str(devnet.folder),
        "running": process is not None,
        "process": process,
        "nodes": choices.nodes,
        "preset": choices.preset,
        "chain_id": choices.chain_id,
        "rpc_url": devnet.rpc_url(choices),
        "inner_rpc_url": devnet.inner_rpc_url(choices),
        "page_url": devnet.page_url(choices),
        "contract": "0x" + ADAPTER_FACTORY_ADDRESS.hex(),
        "abi_file": str(abi_file()),
        "adapter_id": choices.adapter_id,
        "founder": "0x" + account_of(devnet.founder_key()).hex(),
        "founder_key_file": str(devnet.folder / "keys" / "founder.key"),
        "target_checkpoint": choices.target_checkpoint,
        "checkpoint": max((r.number for r in Recording(devnet.folder / "recording").chain_rows()), default=0),
    }
    if process is not None:
        factory = await AdapterFactory.connect(facts["rpc_url"])
        try:
            facts["checkpoint"] = (await factory.last_checkpoint()).number
            facts["block"] = (await factory.head()).number
        finally:
            await factory.close()
    return facts


def stop_devnet(folder: Path) -> int:
    """End the process that runs a devnet, and wait for it. Raises ServiceError where none runs."""
    process = lock_holder(folder.resolve())
    if process is None:
        raise ServiceError(f"no devnet is running in {folder}")
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while lock_holder(folder.resolve()) == process:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"process {process} has not ended in {STOP_SECONDS:.0f} s\n  kill -9 {process}"
            )
        time.sleep(0.2)
    return process
