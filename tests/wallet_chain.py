"""A devnet's folder and its chain without nodes, for the tests of what wallet users do (cli, examples)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.chain.wallet import WalletFolder
from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from citrate_node.protocol.certificate import (
    Certificate,
    CertifiedUpdate,
    CheckpointCommitment,
    account_of,
    commitment_digest,
    sign_digest,
    validator_set_hash,
)
from citrate_node.protocol.content_id import ContentId
from citrate_node.runtime.devnet import Devnet
from citrate_node.runtime.devnet_folder import DevnetChoices, DevnetFolder, new_choices
from citrate_node.training.base_model import BaseModel
from citrate_node.training.settings import ALL_LINEAR, LoraSettings

CHAIN_ID = 40298
PASSWORD = "a password for tests"
NODES = 2


@dataclass(frozen=True)
class WalletChain:
    """A running chain, the folder of its devnet, and a folder of wallets."""

    devnet: DevnetFolder
    choices: DevnetChoices
    rpc_url: str
    wallets: Path
    password_file: Path

    def add_wallet(self, name: str) -> bytes:
        """A wallet of a fixed key; a light keystore, since scrypt at full strength takes a second."""
        key = bytes([len(name)]) * 31 + bytes([sum(name.encode()) % 255 + 1])
        WalletFolder(self.wallets).add(name, PASSWORD, key, scrypt_rounds=2)
        return account_of(key)

    async def certify(self, adapter_id: bytes, content: ContentId, accuracy_ppm: int) -> None:
        """Commits the next checkpoint with one new version, signed by the devnet's nodes."""
        validators = self.devnet.validators(NODES)
        factory = await AdapterFactory.connect(self.rpc_url)
        try:
            last = await factory.last_checkpoint()
            present = validator_set_hash(validators)
            commitment = CheckpointCommitment(
                number=last.number + 1,
                round=0,
                parent_record_hash=last.record_hash,
                record_hash=bytes([last.number + 1]) * 32,
                validator_set_hash=present,
                next_validator_set_hash=present,
                updates=(
                    CertifiedUpdate(
                        adapter_id, content.digest, content.codec, content.size_bytes, accuracy_ppm
                    ),
                ),
            )
            digest = commitment_digest(factory.chain_id, factory.contract, commitment)
            identities = [self.devnet.identity(number) for number in range(1, NODES + 1)]
            votes = {each.account: sign_digest(each.account_key, digest) for each in identities}
            certificate = Certificate(commitment, votes)
            await factory.commit_checkpoint(self.devnet.founder_key(), certificate, validators)
        finally:
            await factory.close()


@contextmanager
def wallet_chain(folder: Path) -> Iterator[WalletChain]:
    """anvil, or the chain in Python where there is none, in a thread with a loop of its own."""
    devnet = DevnetFolder(folder / "devnet")
    devnet.folder.mkdir(parents=True)
    devnet.create_keys(NODES)
    choices = new_choices(
        nodes=NODES,
        checkpoints=1,
        preset="devnet",
        seed=1,
        base_model="embedded",
        rpc_url="",
        chain_id=CHAIN_ID,
        now=int(time.time()),
    )
    devnet.save(choices)
    genesis = Devnet(devnet, choices, lambda fact: None).genesis()
    chain = DevnetChain(devnet.folder / "chain", genesis, choices.rpc_port, block_time_s=0.2)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="chain of the tests")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(chain.start(), loop).result(60)
        try:
            password_file = folder / "password"
            password_file.write_text(PASSWORD + "\n")
            yield WalletChain(devnet, choices, chain.rpc_url, folder / "wallets", password_file)
        finally:
            asyncio.run_coroutine_threadsafe(chain.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def adapter(seed: int, rank: int = 2, targets: str | tuple[str, ...] = ("q_proj",)) -> AdapterWeights:
    """Random factors for the embedded base, below 1/10, on the grid. Rank 2 on q_proj: 8 KiB."""
    base = BaseModel.load()
    shapes = base.tensor_shapes(LoraSettings(rank, 2 * rank, targets))
    random = np.random.default_rng(seed)
    tensors = {name: random.uniform(-0.1, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    if targets == ALL_LINEAR:
        targets = tuple(sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in shapes}))
    assert isinstance(targets, tuple)
    return from_tensors(AdapterConfig(base.base_model_id, rank, 2 * rank, targets), tensors)
