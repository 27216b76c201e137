"""The asyncio client against a real chain: what it reads, what it sends, and how it fails."""

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from chain_world import World, account, connected, free_port, key, running
from eth_hash.auto import keccak

from citrate_node.chain import transactions
from citrate_node.chain.adapter_factory import AdapterFactory, ContractRefusal, cid_argument
from citrate_node.chain.contract_types import (
    MENTORSHIP_OPEN,
    AdapterComposed,
    AdapterCreated,
    AdapterRow,
    BaseModelRegistered,
    BaseModelRow,
    CheckpointCommitted,
    EquivocationRecorded,
    LineageRow,
    MentorshipChanged,
    OwnershipOffered,
    OwnershipTransferred,
    ValidatorsChanged,
    VersionAdded,
    VersionRow,
)
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.certificate import (
    ACCURACY_UNKNOWN_PPM,
    CODEC_DAG_PB,
    CODEC_RAW,
    CertifiedUpdate,
    commitment_digest,
    sign_digest,
    validator_set_hash,
)

WEIGHTS = hashlib.shake_128(b"weights").digest(3_000)


def stored(text: str) -> bytes:
    return cid_argument(keccak(text.encode()), CODEC_DAG_PB, 4_096)


# ------------------------------------------------------------------------------------------------ connecting


async def test_a_silent_address_is_reported_with_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError) as raised:
        await AdapterFactory.connect(url)
    assert str(raised.value) == (
        f"cannot reach the chain at {url} (Connection refused)\n"
        "  start one with `citrate devnet up`, or set chain.rpc_url in node.toml"
    )


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ("<html>", 200, "cannot reach the chain"),
        ("[1, 2]", 200, "does not speak Ethereum JSON-RPC"),
        ('{"jsonrpc": "2.0", "id": 1}', 200, "does not speak Ethereum JSON-RPC"),
        ('{"error": "no"}', 200, "refused eth_chainId: no"),
        ('{"error": {"code": -32601, "message": "no such method"}}', 200, "no such method"),
        ('{"error": {"code": 3, "message": "x", "data": "0xzz"}}', 200, "refused eth_chainId: x"),
        ("", 503, "cannot reach the chain"),
    ],
)
async def test_a_server_that_is_no_chain_is_a_service_error(answer: str, status: int, message: str) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(text=answer, status=status, content_type="application/json")

    app = web.Application()
    app.router.add_post("/", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        with pytest.raises(ServiceError, match=message):
            await AdapterFactory.connect(f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()


async def test_an_empty_address_and_another_contract_are_refused(
    need_anvil: None, world: World, tmp_path: Path
) -> None:
    genesis = world.genesis()
    says_two, says_nothing = b"\x22" * 20, b"\x33" * 20
    genesis["alloc"]["0x" + says_two.hex()] = {"balance": "0x0", "code": "0x600260005260206000f3"}
    genesis["alloc"]["0x" + says_nothing.hex()] = {"balance": "0x0", "code": "0x00"}
    async with running(tmp_path, genesis) as chain:
        for address, message in [
            (
                b"\x11" * 20,
                "there is no contract at 0x1111111111111111111111111111111111111111 on chain 40299",
            ),
            (says_two, r"is no AdapterFactory of version 1 \(it says 2\)"),
            (says_nothing, "is no AdapterFactory of version 1|gave no data"),
        ]:
            with pytest.raises(ServiceError, match=message):
                await AdapterFactory.connect(chain.rpc_url, address)
        factory = await AdapterFactory.connect(chain.rpc_url, "0x0000000000000000000000000000000000000103")
        await factory.close()


@pytest.mark.parametrize("contract", ["0x0103", "", "0x" + "zz" * 20, b"\1" * 19])
async def test_a_malformed_contract_address_is_the_operators_fault(contract: str | bytes) -> None:
    with pytest.raises(ConfigError, match="40 hex digits"):
        await AdapterFactory.connect("http://127.0.0.1:1", contract)


# --------------------------------------------------------------------------------------------------- reading


async def test_genesis_is_read_back_whole(factory: AdapterFactory, world: World) -> None:
    base = world.base
    assert factory.chain_id == 40299
    assert await factory.genesis_record_hash() == world.genesis_record
    assert list(await factory.validators()) == sorted(world.validators, key=lambda seat: seat.account)
    assert await factory.validator_set_hash() == validator_set_hash(world.validators)
    assert (await factory.last_checkpoint()).number == 0
    assert await factory.adapters() == []
    assert await factory.base_models() == [
        BaseModelRow(base.base_model_id, base.name, base.uri, base.licence, base.size_bytes, bytes(20))
    ]
    assert len(await factory.genesis_block_hash()) == 32
    assert await factory.balance(account("alice")) == 10**21


async def test_an_adapter_goes_through_its_whole_life(factory: AdapterFactory, world: World) -> None:
    alice, bob, base = key("alice"), key("bob"), world.base.base_model_id
    created = await factory.create_adapter(alice, base, "poet", WEIGHTS, 8)
    a = created.adapter_id
    b = (await factory.create_adapter(bob, base, "prose", stored("b"), 16)).adapter_id
    published = await factory.publish_version(bob, b, stored("b2"))
    opened = await factory.open_to_mentorship(alice, a)
    composed = await factory.compose_adapters(alice, a, b, 25, 75)
    c = composed.adapter_id
    assert published.version == 2
    assert await factory.adapter(a) == AdapterRow(
        id=a,
        base_model_id=base,
        name="poet",
        creator=account("alice"),
        owner=account("alice"),
        pending_owner=bytes(20),
        rank=8,
        depth=0,
        version_count=1,
        mentorship_until=MENTORSHIP_OPEN,
        created_block=created.block_number,
    )
    assert (await factory.adapter(c)).created_block == 0
    assert await factory.lineage(c) == LineageRow(a, b, 1, 2, 25, 75)
    assert await factory.lineage(a) is None

    updates = sorted(
        [
            CertifiedUpdate(a, keccak(b"a2"), CODEC_RAW, 4_096, 18_000),
            CertifiedUpdate(c, keccak(b"c1"), CODEC_DAG_PB, 9_000, -3),
        ],
        key=lambda update: update.adapter_id,
    )
    made = world.commitment(updates=tuple(updates), round=2)
    committed = await factory.commit_checkpoint(key("v1"), world.certificate(factory, made), world.validators)
    expected = VersionRow(
        version=2,
        parent_id=a,
        weights_hash=keccak(b"a2"),
        accuracy=18_000,
        creator=account("alice"),
        checkpoint=1,
        codec=CODEC_RAW,
        size_bytes=4_096,
        block_number=committed.block_number,
    )
    assert await factory.latest(a) == expected == await factory.version(a, 2)
    assert [row.version for row in await factory.history(a)] == [1, 2]
    assert await factory.history(a, 1, 5) == [expected]
    assert expected.cid == b"\x01\x55\x12\x20" + keccak(b"a2")
    last = await factory.last_checkpoint()
    assert (last.number, last.record_hash, last.block_number, last.round, last.updates) == (
        1,
        made.record_hash,
        committed.block_number,
        2,
        2,
    )
    assert last == await factory.checkpoint(1)
    assert await factory.adapters() == [a, b, c]
    assert await factory.adapters(1, 1) == [b]

    events = await factory.events(0, (await factory.head()).number)
    assert [event for receipt in (created, opened, composed) for event in receipt.events] == [
        replace(event, weights=None) if isinstance(event, AdapterCreated | VersionAdded) else event
        for event in events
        if event.tx_hash in {created.tx_hash, opened.tx_hash, composed.tx_hash}
    ]
    assert [type(event) for event in events] == [
        *(AdapterCreated, VersionAdded, AdapterCreated, VersionAdded, VersionAdded),
        *(MentorshipChanged, AdapterComposed, CheckpointCommitted, VersionAdded, VersionAdded),
    ]


async def test_weights_come_out_of_calldata_only_if_they_have_the_recorded_hash(
    factory: AdapterFactory, world: World
) -> None:
    base = world.base.base_model_id
    first = await factory.create_adapter(key("alice"), base, "in calldata", WEIGHTS, 8)
    await factory.publish_version(key("alice"), first.adapter_id, WEIGHTS[::-1])
    await factory.create_adapter(key("alice"), base, "by cid", stored("x"), 8)
    events = await factory.events(0, (await factory.head()).number)
    seen = [(event.weights) for event in events if isinstance(event, AdapterCreated | VersionAdded)]
    assert seen == [WEIGHTS, WEIGHTS, WEIGHTS[::-1], None, None]


async def test_changes_of_owner_validators_and_base_models_are_followed(
    factory: AdapterFactory, world: World
) -> None:
    alice, bob = key("alice"), key("bob")
    new_base = keccak(b"new base")
    await factory.register_base_model(bob, new_base, "big", "uri", "MIT", 7)
    a = (await factory.create_adapter(alice, new_base, "a", stored("a"), 8)).adapter_id
    await factory.transfer_ownership(alice, a, account("bob"))
    await factory.accept_ownership(bob, a)
    await factory.open_to_mentorship(bob, a)
    await factory.close_mentorship(bob, a)

    following = world.validators[1:]
    made = world.commitment(next_validator_set_hash=validator_set_hash(following))
    certificate = world.certificate(factory, made)
    await factory.commit_checkpoint(key("v2"), certificate, world.validators, following)
    assert list(await factory.validators()) == sorted(following, key=lambda seat: seat.account)

    votes = []
    for text in (b"left", b"right"):
        vote = replace(world.commitment(2, made.record_hash), record_hash=keccak(text))
        digest = commitment_digest(factory.chain_id, factory.contract, vote)
        votes.append((vote, sign_digest(key("v3"), digest)))
    await factory.report_equivocation(key("v2"), following, account("v3"), votes[0], votes[1])
    assert (await factory.equivocation(account("v3")), await factory.exclusion_due_from()) == (2, 3)

    kinds = [type(event) for event in await factory.events(0, (await factory.head()).number)]
    assert kinds == [
        *(BaseModelRegistered, AdapterCreated, VersionAdded, OwnershipOffered, OwnershipTransferred),
        *(MentorshipChanged, MentorshipChanged, CheckpointCommitted, ValidatorsChanged, EquivocationRecorded),
    ]
    assert (await factory.adapter(a)).owner == account("bob")
    assert (await factory.version(a, 1)).accuracy == ACCURACY_UNKNOWN_PPM


# --------------------------------------------------------------------------------------------------- sending


async def test_a_refusal_names_the_error_and_costs_nothing(factory: AdapterFactory, world: World) -> None:
    before = await factory.balance(account("alice"))
    with pytest.raises(ContractRefusal) as raised:
        await factory.create_adapter(key("alice"), world.base.base_model_id, "a", WEIGHTS, 65)
    refusal = raised.value
    assert (refusal.name, refusal.args_by_name, str(refusal)) == (
        "RankOutOfRange",
        {"rank": 65, "min": 1, "max": 64},
        "the contract refused: RankOutOfRange(rank=65, min=1, max=64)",
    )
    assert await factory.balance(account("alice")) == before
    with pytest.raises(ContractRefusal, match="UnknownAdapter"):
        await factory.adapter(bytes(32))


async def test_many_sends_of_one_account_at_once_all_arrive(factory: AdapterFactory, world: World) -> None:
    base = world.base.base_model_id
    receipts = await asyncio.gather(
        *(factory.create_adapter(key("alice"), base, f"a{i}", stored(f"a{i}"), 8) for i in range(12))
    )
    ids = [receipt.adapter_id for receipt in receipts]
    assert sorted(await factory.adapters()) == sorted(ids)
    assert len(set(ids)) == 12


async def test_two_processes_with_one_key_step_around_each_other(chain: DevnetChain, world: World) -> None:
    """Two clients do not share the lock, so they take the same nonces: every send must still arrive."""
    base = world.base.base_model_id
    async with connected(chain) as one, connected(chain) as two:
        receipts = await asyncio.gather(
            *(
                client.create_adapter(key("alice"), base, f"{name}{i}", stored(f"{name}{i}"), 8)
                for i in range(4)
                for name, client in (("one", one), ("two", two))
            )
        )
        assert sorted(await one.adapters()) == sorted(receipt.adapter_id for receipt in receipts)


async def test_of_four_that_commit_at_once_one_wins_and_three_are_told(
    factory: AdapterFactory, world: World
) -> None:
    certificate = world.certificate(factory, world.commitment())
    outcomes = await asyncio.gather(
        *(factory.commit_checkpoint(key(name), certificate, world.validators) for name in world.names),
        return_exceptions=True,
    )
    lost = [outcome for outcome in outcomes if isinstance(outcome, ContractRefusal)]
    assert [(refusal.name, refusal.args_by_name) for refusal in lost] == [
        ("AlreadyCommitted", {"number": 1})
    ] * 3
    assert len(outcomes) - len(lost) == 1


async def test_an_account_without_money_is_told_how_to_get_some(
    factory: AdapterFactory, world: World
) -> None:
    with pytest.raises(ServiceError) as raised:
        await factory.create_adapter(key("pauper"), world.base.base_model_id, "a", stored("a"), 8)
    assert f"citrate wallet fund 0x{account('pauper').hex()}" in str(raised.value)


async def test_coins_are_sent_and_more_than_there_are_is_refused(
    factory: AdapterFactory, world: World
) -> None:
    await factory.transfer(key("alice"), account("pauper"), 5 * 10**17)
    assert await factory.balance(account("pauper")) == 5 * 10**17
    with pytest.raises(ServiceError, match=r"cannot pay for gas\n  fund it with `citrate wallet fund"):
        await factory.transfer(key("pauper"), account("bob"), 10**18)
    with pytest.raises(ServiceError):  # the contract takes no coins
        await factory.transfer(key("alice"), factory.contract, 1)


async def test_a_transaction_that_a_killed_chain_forgot_is_sent_again(
    need_anvil: None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "SEND_AGAIN_SECONDS", 0.3)
    async with running(tmp_path, world.genesis(), block_time_s=2) as chain, connected(chain) as factory:
        sending = asyncio.create_task(
            factory.create_adapter(key("alice"), world.base.base_model_id, "a", stored("a"), 8)
        )
        while await _pending(factory) == 0:
            await asyncio.sleep(0.01)
        assert chain.process_id is not None
        os.kill(chain.process_id, 9)
        receipt = await sending
        assert (await factory.adapters(), chain.restarts) == ([receipt.adapter_id], 1)


async def _pending(factory: AdapterFactory) -> int:
    """Transactions of alice in the pool."""
    rpc: Any = factory._rpc
    address = "0x" + account("alice").hex()
    return int(await rpc.request("eth_getTransactionCount", address, "pending"), 16)


async def test_a_transaction_that_is_never_mined_ends_in_an_error(
    need_anvil: None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "RECEIPT_TIMEOUT_SECONDS", 0.5)
    async with running(tmp_path, world.genesis(), block_time_s=3600) as chain, connected(chain) as factory:
        with pytest.raises(ServiceError, match="was not mined within"):
            await factory.create_adapter(key("alice"), world.base.base_model_id, "a", stored("a"), 8)
