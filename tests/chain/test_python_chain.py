"""The chain in Python, for machines without anvil: same client, same contract, nothing lost by a kill."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from chain_world import World, account, connected, free_port, key, running
from eth_account import Account
from eth_hash.auto import keccak

from citrate_node.chain import devnet_chain
from citrate_node.chain.adapter_factory import AdapterFactory, ContractRefusal, cid_argument
from citrate_node.chain.block_journal import BlockJournal, JournalBlock
from citrate_node.chain.contract_types import (
    AdapterCreated,
    CheckpointCommitted,
    MentorshipChanged,
    VersionAdded,
)
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.errors import ServiceError
from citrate_node.protocol.certificate import CODEC_RAW, CertifiedUpdate


@pytest.fixture(autouse=True)
def no_anvil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITRATE_CHAIN", "python")


async def create(factory: AdapterFactory, world: World, text: str) -> bytes:
    weights = cid_argument(keccak(text.encode()), 0x55, 1_000)
    receipt = await factory.create_adapter(key("alice"), world.base.base_model_id, text, weights, 8)
    return receipt.adapter_id


async def block_hash(factory: AdapterFactory, number: int) -> str:
    rpc: Any = factory._rpc
    return str((await rpc.request("eth_getBlockByNumber", hex(number), False))["hash"])


async def test_the_client_works_on_it_as_on_anvil(world: World, tmp_path: Path) -> None:
    weights = bytes(range(200))
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        assert chain.program == "python"
        created = await factory.create_adapter(key("alice"), world.base.base_model_id, "a", weights, 8)
        a = created.adapter_id
        await factory.open_to_mentorship(key("alice"), a)
        made = world.commitment(updates=(CertifiedUpdate(a, keccak(b"a2"), CODEC_RAW, 5, 7),))
        certificate = world.certificate(factory, made)
        outcomes = await asyncio.gather(
            *(factory.commit_checkpoint(key(name), certificate, world.validators) for name in world.names),
            return_exceptions=True,
        )
        refusals = [outcome.name for outcome in outcomes if isinstance(outcome, ContractRefusal)]
        assert refusals == ["AlreadyCommitted"] * 3
        assert (await factory.latest(a)).weights_hash == keccak(b"a2")
        events = await factory.events(0, (await factory.head()).number)
        assert [type(event) for event in events] == [
            *(AdapterCreated, VersionAdded, MentorshipChanged, CheckpointCommitted, VersionAdded)
        ]
        first = events[0]
        assert isinstance(first, AdapterCreated)
        assert first.weights == weights
        assert [event.log_index for event in events if event.tx_hash == created.tx_hash] == [0, 1]


async def test_a_kill_loses_nothing_and_every_block_comes_back_the_same(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        ids = [await create(factory, world, text) for text in ("a", "b")]
        head = await factory.head()
        hashes = [await block_hash(factory, number) for number in range(head.number + 1)]
        assert chain.process_id is not None
        os.kill(chain.process_id, signal.SIGKILL)
        async with asyncio.timeout(20):
            while chain.restarts < 1 or chain.process_id is None:
                await asyncio.sleep(0.02)
        assert await factory.adapters() == ids
        assert [await block_hash(factory, number) for number in range(head.number + 1)] == hashes
        ids.append(await create(factory, world, "c"))
    with (tmp_path / "blocks.jsonl").open("ab") as file:
        file.write(b'{"timestamp": 99, "transac')  # power went in the middle of a line
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        assert await factory.adapters() == ids
        await create(factory, world, "d")


async def test_what_it_refuses_has_the_words_that_clients_look_for(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis(), block_time_s=3600) as chain, connected(chain) as factory:
        rpc: Any = factory._rpc

        async def sent(who: str, **change: Any) -> str:
            fields = {
                "type": 2,
                "chainId": 40299,
                "nonce": 0,
                "to": account("bob"),
                "value": 1,
                "gas": 21_000,
                "maxFeePerGas": 3 * 10**9,
                "maxPriorityFeePerGas": 10**9,
                "data": b"",
            }
            raw = Account.sign_transaction({**fields, **change}, key(who)).raw_transaction
            try:
                return str(await rpc.request("eth_sendRawTransaction", "0x" + bytes(raw).hex()))
            except ServiceError as error:
                return str(error)

        assert (await sent("alice")).startswith("0x")
        for expected, answer in [
            ("already known", await sent("alice")),
            ("nonce too low", await sent("alice", value=2)),
            ("nonce too high", await sent("alice", nonce=2)),
            ("insufficient funds", await sent("pauper")),
            ("invalid chain id", await sent("bob", chainId=1)),
            ("exceeds block gas limit", await sent("bob", gas=60_000_001)),
            ("oversized", await sent("bob", data=bytes(131_073), gas=10_000_000)),
            ("intrinsic gas too low", await sent("bob", gas=20_999)),
        ]:
            assert expected in answer
        for method, *params in [
            ("eth_getBalance", "0x12", "latest"),
            ("eth_call", {}, "latest"),
            ("eth_sendRawTransaction", "0xzz"),
            ("eth_getBlockByNumber",),
            ("anvil_impersonateAccount", "0x" + "00" * 20),
        ]:
            with pytest.raises(ServiceError):
                await rpc.request(method, *params)
        assert await rpc.request("eth_getTransactionReceipt", "0x" + "00" * 32) is None


async def test_coins_are_sent_and_more_than_there_are_is_refused(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        await factory.transfer(key("alice"), account("pauper"), 5 * 10**17)
        assert await factory.balance(account("pauper")) == 5 * 10**17
        with pytest.raises(ServiceError, match=r"cannot pay for gas\n  fund it with `citrate wallet fund"):
            await factory.transfer(key("pauper"), account("bob"), 10**18)
        rpc: Any = factory._rpc
        call = {"from": "0x" + account("bob").hex(), "to": "0x" + account("alice").hex()}
        with pytest.raises(ServiceError, match="value is negative"):
            await rpc.request("eth_call", {**call, "value": "-0x1"}, "latest")
        call["to"] = "0x" + factory.contract.hex()
        with pytest.raises(ServiceError, match="execution reverted"):  # the contract takes no coins
            await rpc.request("eth_call", {**call, "value": "0x1"}, "latest")


async def test_a_folder_of_the_other_program_is_not_touched(
    need_anvil: None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "python", world.genesis()):
        await asyncio.sleep(0.3)
    monkeypatch.delenv("CITRATE_CHAIN")
    with pytest.raises(ServiceError, match="a chain of the Python program"):
        await DevnetChain(tmp_path / "python", world.genesis(), free_port()).start()
    async with running(tmp_path / "anvil", world.genesis()) as chain:
        assert chain.program == "anvil"
    monkeypatch.setenv("CITRATE_CHAIN", "python")
    with pytest.raises(ServiceError, match="a chain of anvil"):
        await DevnetChain(tmp_path / "anvil", world.genesis(), free_port()).start()


async def test_without_anvil_and_without_py_evm_it_says_what_to_install(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devnet_chain, "python_chain_available", lambda: False)
    with pytest.raises(ServiceError, match="run `npm ci`"):
        await DevnetChain(tmp_path, world.genesis(), free_port()).start()


def test_a_journal_with_a_damaged_middle_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "blocks.jsonl"
    journal = BlockJournal(path)
    blocks = [JournalBlock(1, ()), JournalBlock(2, (b"\1\2",)), JournalBlock(3, ())]
    assert list(journal.replay()) == []
    for block in blocks:
        journal.append(block)
    journal.close()
    assert list(BlockJournal(path).replay()) == blocks

    lines = path.read_bytes().splitlines(keepends=True)
    for cut in range(len(lines[2])):
        path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
        assert list(BlockJournal(path).replay()) == blocks[:2]
        assert path.read_bytes() == b"".join(lines[:2])

    damaged = lines[0] + json.dumps({"timestamp": 2}).encode() + b"\n" + lines[2]
    path.write_bytes(damaged)
    with pytest.raises(ServiceError, match="block 2"):
        list(BlockJournal(path).replay())
    assert path.read_bytes() == damaged


async def test_deeply_nested_json_is_refused_and_the_chain_lives(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        async with httpx.AsyncClient() as client:
            answer = (await client.post(chain.rpc_url, content=b"[" * 500_000)).json()
        assert answer["error"] == {"code": -32700, "message": "no JSON"}
        assert (await factory.last_checkpoint()).number == 0
        assert chain.restarts == 0
