"""A network of four validators on a chain of its own, for the tests of this folder."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_hash.auto import keccak

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.chain.genesis import GenesisBaseModel, build_genesis, fund_equally
from citrate_node.protocol.certificate import (
    Certificate,
    CheckpointCommitment,
    Validator,
    account_of,
    commitment_digest,
    sign_digest,
    validator_set_hash,
)

BLOCK_TIME_S = 0.1


def key(name: str) -> bytes:
    return keccak(f"test account {name}".encode())


def account(name: str) -> bytes:
    return account_of(key(name))


BASE = GenesisBaseModel(keccak(b"base"), "tiny", "", "Apache-2.0", 1_800_000)


@dataclass(frozen=True)
class World:
    """Who is there at genesis."""

    names: tuple[str, ...] = ("v1", "v2", "v3", "v4")
    genesis_record: bytes = keccak(b"genesis record")
    base: GenesisBaseModel = BASE

    @property
    def validators(self) -> list[Validator]:
        return [Validator(keccak(b"node " + name.encode()), account(name), 100) for name in self.names]

    def genesis(self, **more: Any) -> dict[str, Any]:
        return build_genesis(
            self.validators,
            self.genesis_record,
            funded=fund_equally(account(name) for name in ("alice", "bob", *self.names)),
            timestamp=1_700_000_000,
            base_models=[self.base],
            **more,
        )

    def commitment(self, number: int = 1, parent: bytes | None = None, **more: Any) -> CheckpointCommitment:
        present = validator_set_hash(self.validators)
        fields = {
            "number": number,
            "parent_record_hash": self.genesis_record if parent is None else parent,
            "record_hash": keccak(f"record {number}".encode()),
            "validator_set_hash": present,
            "next_validator_set_hash": present,
            "updates": (),
        }
        return CheckpointCommitment(**(fields | more))

    def certificate(self, factory: AdapterFactory, made: CheckpointCommitment, *names: str) -> Certificate:
        digest = commitment_digest(factory.chain_id, factory.contract, made)
        voters = names or self.names[:3]
        return Certificate(made, {account(name): sign_digest(key(name), digest) for name in voters})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(folder: Path, genesis: dict[str, Any], **options: Any) -> AsyncIterator[DevnetChain]:
    """A chain that stops with the block."""
    chain = DevnetChain(folder, genesis, free_port(), **({"block_time_s": BLOCK_TIME_S} | options))
    await chain.start()
    try:
        yield chain
    finally:
        await chain.stop()


@asynccontextmanager
async def connected(chain: DevnetChain) -> AsyncIterator[AdapterFactory]:
    factory = await AdapterFactory.connect(chain.rpc_url)
    try:
        yield factory
    finally:
        await factory.close()
