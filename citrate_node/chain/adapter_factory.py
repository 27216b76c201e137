"""The AdapterFactory contract as an asyncio client: typed reads, safe sends, events.

Answers are those of the newest block. Called by runtime/ and the command line; simulation/ has a model of the
contract's rule instead (simulation/chain_model.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from ..errors import ConfigError, ServiceError
from ..protocol.certificate import (
    Certificate,
    CheckpointCommitment,
    Validator,
    compact_signature,
    node_keys_hash,
    ordered,
    seat_words,
    updates_hash,
    validator_set_hash,
)
from .contract_abi import DEFAULT_CONTRACT, factory_abi
from .contract_types import (
    EVENT_TYPES,
    AdapterCreated,
    AdapterRow,
    BaseModelRow,
    CheckpointRow,
    ContractEvent,
    Head,
    LineageRow,
    MentorshipChanged,
    Receipt,
    VersionAdded,
    VersionRow,
    made,
)
from .rpc import ContractRefusal, Rpc, RpcError, hexed, unhexed
from .transactions import Sender, transaction_calldata

__all__ = ["AdapterFactory", "ContractRefusal", "Receipt", "cid_argument"]

CONTRACT_VERSION = 1
LOG_BLOCKS_MAX = 2_000
"""Blocks of one eth_getLogs: public nodes refuse wide ranges."""


def cid_argument(weights_hash: bytes, codec: int, size_bytes: int) -> bytes:
    """The 44 bytes that name stored weights in createAdapter and publishVersion: CIDv1 and size."""
    return b"\x01" + bytes([codec]) + b"\x12\x20" + weights_hash + size_bytes.to_bytes(8, "big")


class AdapterFactory:
    """One contract on one chain. Made by `connect`, which has checked that it is the one we know."""

    def __init__(self, rpc: Rpc, contract: bytes, chain_id: int) -> None:
        self._rpc = rpc
        self._abi = factory_abi()
        self._sender = Sender(rpc, chain_id)
        self.contract = contract
        self.chain_id = chain_id

    @classmethod
    async def connect(cls, rpc_url: str, contract: bytes | str = DEFAULT_CONTRACT) -> AdapterFactory:
        """Raises ServiceError where the chain is silent, or the contract is absent or another one."""
        address = _address(contract)
        rpc = Rpc(rpc_url)
        try:
            factory = cls(rpc, address, int(await rpc.request("eth_chainId"), 16))
            await factory._require_known_contract()
        except BaseException:
            await rpc.close()
            raise
        return factory

    async def close(self) -> None:
        await self._rpc.close()

    async def _require_known_contract(self) -> None:
        where = f"{hexed(self.contract)} on chain {self.chain_id} at {self._rpc.rpc_url}"
        # an empty account answers every call with success and no data: a send would be lost without an error
        if await self._rpc.request("eth_getCode", hexed(self.contract), "latest") in ("0x", "", None):
            raise ServiceError(
                f"there is no contract at {where}\n"
                "  check chain.contract and chain.rpc_url in node.toml, or start `citrate devnet up`"
            )
        try:
            version = await self._read("contractVersion")
            ours = version == CONTRACT_VERSION and await self._read("supportsInterface", interface_id())
        except (ContractRefusal, RpcError, ValueError):
            version, ours = None, False
        if not ours:
            raise ServiceError(
                f"the contract at {where} is no AdapterFactory of version {CONTRACT_VERSION}"
                f" (it says {version})\n  check chain.contract in node.toml"
            )

    # ---------------------------------------------------------------- chain

    async def genesis_block_hash(self) -> bytes:
        block = await self._rpc.request("eth_getBlockByNumber", "0x0", False)
        return unhexed(block["hash"])

    async def head(self) -> Head:
        block = await self._rpc.request("eth_getBlockByNumber", "latest", False)
        return Head(int(block["number"], 16), int(block["timestamp"], 16))

    async def balance(self, account: bytes) -> int:
        """In wei."""
        return int(await self._rpc.request("eth_getBalance", hexed(account), "latest"), 16)

    # ---------------------------------------------------------------- checkpoints

    async def genesis_record_hash(self) -> bytes:
        """Parent of checkpoint 1: tells this network from others with the same validators and chain id."""
        return (await self.checkpoint(0)).record_hash

    async def last_checkpoint(self) -> CheckpointRow:
        return made(CheckpointRow, await self._read("lastCheckpoint"))

    async def checkpoint(self, number: int) -> CheckpointRow:
        """Raises ContractRefusal (NotNextCheckpoint) for one that is not final yet."""
        return made(CheckpointRow, await self._read("checkpoint", number))

    async def validators(self) -> tuple[Validator, ...]:
        rows = await self._read("validators")
        return tuple(Validator(row["nodeKey"], row["account"], row["stake"]) for row in rows)

    async def validator_set_hash(self) -> bytes:
        value: bytes = await self._read("validatorSetHash")
        return value

    async def equivocation(self, account: bytes) -> int:
        """Checkpoint at which the account voted twice; 0 if never."""
        return int(await self._read("equivocation", account))

    async def exclusion_due_from(self) -> int:
        """First checkpoint whose certificate must bring a set without equivocators; 0 if none is due."""
        return int(await self._read("exclusionDueFrom"))

    # ---------------------------------------------------------------- adapters

    async def base_model(self, base_model_id: bytes) -> BaseModelRow:
        return made(BaseModelRow, await self._read("baseModel", base_model_id))

    async def base_models(self, offset: int = 0, limit: int = 100) -> list[BaseModelRow]:
        return [made(BaseModelRow, row) for row in await self._read("baseModels", offset, limit)]

    async def adapter(self, adapter_id: bytes) -> AdapterRow:
        row = await self._read("adapter", adapter_id)
        first = await self.version(adapter_id, 1) if row["versionCount"] else None
        return made(AdapterRow, row, id=adapter_id, created_block=first.block_number if first else 0)

    async def base_model_id_of(self, adapter_id: bytes) -> bytes:
        """Half of what `adapter` costs, for those who look through many."""
        base: bytes = (await self._read("adapter", adapter_id))["baseModelId"]
        return base

    async def adapter_count(self) -> int:
        return int(await self._read("adapterCount"))

    async def adapters(self, offset: int = 0, limit: int = 100) -> list[bytes]:
        """Ids in the order of creation."""
        ids: list[bytes] = await self._read("adapters", offset, limit)
        return ids

    async def version(self, adapter_id: bytes, number: int) -> VersionRow:
        return made(VersionRow, await self._read("version", adapter_id, number))

    async def latest(self, adapter_id: bytes) -> VersionRow:
        return made(VersionRow, await self._read("latest", adapter_id))

    async def history(self, adapter_id: bytes, offset: int = 0, limit: int = 100) -> list[VersionRow]:
        """From version offset + 1 on."""
        return [made(VersionRow, row) for row in await self._read("history", adapter_id, offset, limit)]

    async def lineage(self, adapter_id: bytes) -> LineageRow | None:
        """None for an adapter that was created from weights."""
        row = made(LineageRow, await self._read("lineage", adapter_id))
        return row if row.weight_a else None

    # ---------------------------------------------------------------- writes

    async def send(self, key: bytes, function: str, *args: Any) -> Receipt:
        """Any function of the contract by its Solidity name. The methods below are typed ways to it."""
        return await self._send(key, function, *args)

    async def transfer(self, key: bytes, receiver: bytes, wei: int) -> str:
        """Send coins and wait until they have arrived; the transaction's hash."""
        receipt = await self._sender.send(key, receiver, b"", value=wei)
        return hexed(unhexed(receipt["transactionHash"]))

    async def register_base_model(
        self, key: bytes, base_model_id: bytes, name: str, uri: str, licence: str, size_bytes: int
    ) -> Receipt:
        return await self._send(key, "registerBaseModel", base_model_id, name, uri, licence, size_bytes)

    async def create_adapter(
        self, key: bytes, base_model_id: bytes, name: str, adapter_weights: bytes, rank: int
    ) -> Receipt:
        """adapter_weights: the weights, or `cid_argument(...)`. A second time refuses with AdapterExists."""
        return await self._send(key, "createAdapter", base_model_id, name, adapter_weights, rank)

    async def compose_adapters(
        self, key: bytes, adapter_a: bytes, adapter_b: bytes, weight_a: int, weight_b: int
    ) -> Receipt:
        return await self._send(key, "composeAdapters", adapter_a, adapter_b, weight_a, weight_b)

    async def publish_version(self, key: bytes, adapter_id: bytes, adapter_weights: bytes) -> Receipt:
        return await self._send(key, "publishVersion", adapter_id, adapter_weights)

    async def open_to_mentorship(self, key: bytes, adapter_id: bytes) -> Receipt:
        return await self._send(key, "openToMentorship", adapter_id)

    async def close_mentorship(self, key: bytes, adapter_id: bytes) -> Receipt:
        return await self._send(key, "closeMentorship", adapter_id)

    async def transfer_ownership(self, key: bytes, adapter_id: bytes, new_owner: bytes) -> Receipt:
        return await self._send(key, "transferOwnership", adapter_id, new_owner)

    async def accept_ownership(self, key: bytes, adapter_id: bytes) -> Receipt:
        return await self._send(key, "acceptOwnership", adapter_id)

    async def commit_checkpoint(
        self,
        key: bytes,
        certificate: Certificate,
        validators: Sequence[Validator],
        next_validators: Sequence[Validator] = (),
    ) -> Receipt:
        """validators: the set that voted. next_validators: the new set where the certificate changes it.

        Raises ContractRefusal("AlreadyCommitted") where somebody else was first: that is no fault.
        """
        commitment = certificate.commitment
        if next_validators and validator_set_hash(next_validators) == validator_set_hash(validators):
            next_validators = ()
        bitmap, signatures = 0, []
        for seat, validator in enumerate(ordered(validators)):
            signature = certificate.signatures.get(validator.account)
            if signature is not None:
                bitmap |= 1 << seat
                signatures.append(compact_signature(signature))
        quorum = (seat_words(validators), node_keys_hash(validators), bitmap, signatures)
        following = (
            [(v.node_key, v.account, v.stake) for v in ordered(next_validators)] if next_validators else []
        )
        return await self._send(key, "commitCheckpoint", _commitment(commitment), quorum, following)

    async def report_equivocation(
        self,
        key: bytes,
        validators: Sequence[Validator],
        account: bytes,
        first: tuple[CheckpointCommitment, bytes],
        second: tuple[CheckpointCommitment, bytes],
    ) -> Receipt:
        """Two commitments for one number, round and parent, each with the account's signature (65 bytes)."""
        seat = [validator.account for validator in ordered(validators)].index(account)
        return await self._send(key, "reportEquivocation", seat, _vote(*first), _vote(*second))

    # ---------------------------------------------------------------- events

    async def events(self, from_block: int, to_block: int) -> list[ContractEvent]:
        """Events of the blocks from_block to to_block, both included, in the order of the chain."""
        found: list[ContractEvent] = []
        for start in range(from_block, to_block + 1, LOG_BLOCKS_MAX):
            end = min(start + LOG_BLOCKS_MAX - 1, to_block)
            query = {"address": hexed(self.contract), "fromBlock": hex(start), "toBlock": hex(end)}
            found += self._decoded(await self._rpc.request("eth_getLogs", query))
        return await self._with_weights(found)

    def _decoded(self, logs: Iterable[dict[str, Any]]) -> list[ContractEvent]:
        events = []
        for log in logs:
            if unhexed(log["address"]) != self.contract:
                continue
            event = self._abi.event([unhexed(topic) for topic in log["topics"]], unhexed(log["data"]))
            if event is not None:
                place = {
                    "block_number": int(log["blockNumber"], 16),
                    "log_index": int(log["logIndex"], 16),
                    "tx_hash": hexed(unhexed(log["transactionHash"])),
                }
                events.append(made(EVENT_TYPES[event.name], event.args, **place))
        return sorted(events, key=lambda event: (event.block_number, event.log_index))

    async def _with_weights(self, events: list[ContractEvent]) -> list[ContractEvent]:
        """Weights that came in calldata, by the hash that the contract recorded: nothing else is believed."""
        wanted = {
            event.tx_hash: event
            for event in events
            if isinstance(event, VersionAdded) and event.checkpoint == 0
        }
        weights: dict[str, bytes] = {}
        for tx_hash, event in wanted.items():
            data = transaction_calldata(
                await self._rpc.request("eth_getTransactionByHash", tx_hash), self.contract
            )
            for function in ("createAdapter", "publishVersion") if data else ():
                arguments = self._abi.call_arguments(function, data or b"")
                if arguments and hashlib.sha256(arguments["adapterWeights"]).digest() == event.weights_hash:
                    weights[tx_hash] = arguments["adapterWeights"]
        return [
            replace(event, weights=weights.get(event.tx_hash))
            if isinstance(event, AdapterCreated | VersionAdded)
            else event
            for event in events
        ]

    async def opened_block(self, adapter_id: bytes) -> int | None:
        """Block in which the adapter was first opened to mentorship: checkpoint 1 opens there."""
        adapter = await self.adapter(adapter_id)
        if adapter.mentorship_until == 0:
            return None
        head = (await self.head()).number
        for start in range(adapter.created_block, head + 1, LOG_BLOCKS_MAX):
            for event in await self.events(start, min(start + LOG_BLOCKS_MAX - 1, head)):
                if isinstance(event, MentorshipChanged) and event.adapter_id == adapter_id:
                    return event.block_number
        return None

    async def gas_used(self, tx_hash: str) -> int:
        """Of a mined transaction."""
        receipt = await self._rpc.request("eth_getTransactionReceipt", tx_hash)
        if receipt is None:
            raise ServiceError(f"the chain knows no transaction {tx_hash}")
        return int(receipt["gasUsed"], 16)

    # ---------------------------------------------------------------- plumbing

    async def _read(self, function: str, *args: Any) -> Any:
        data = await self._rpc.call(self.contract, self._abi.call_data(function, *args))
        if not data:
            raise ServiceError(f"{function} gave no data: the contract at {hexed(self.contract)} is gone")
        return self._abi.result(function, data)

    async def _send(self, key: bytes, function: str, *args: Any) -> Receipt:
        receipt = await self._sender.send(key, self.contract, self._abi.call_data(function, *args))
        return Receipt(
            hexed(unhexed(receipt["transactionHash"])),
            int(receipt["blockNumber"], 16),
            int(receipt["gasUsed"], 16),
            tuple(self._decoded(receipt["logs"])),
        )


def interface_id() -> bytes:
    """ERC-165 id of IAdapterFactory: the selectors of its own functions, xored."""
    selectors = [
        int.from_bytes(factory_abi().selector(name), "big")
        for name in factory_abi().function_names()
        if name != "supportsInterface"
    ]
    return reduce(lambda left, right: left ^ right, selectors).to_bytes(4, "big")


def _commitment(commitment: CheckpointCommitment) -> tuple[Any, ...]:
    updates = [
        (u.adapter_id, u.weights_hash, u.codec, u.size_bytes, u.accuracy_ppm) for u in commitment.updates
    ]
    return (
        commitment.number,
        commitment.round,
        commitment.parent_record_hash,
        commitment.record_hash,
        commitment.next_validator_set_hash,
        updates,
    )


def _vote(commitment: CheckpointCommitment, signature: bytes) -> tuple[Any, ...]:
    return (
        commitment.number,
        commitment.round,
        commitment.parent_record_hash,
        commitment.record_hash,
        commitment.validator_set_hash,
        commitment.next_validator_set_hash,
        updates_hash(commitment.updates),
        compact_signature(signature),
    )


def _address(contract: bytes | str) -> bytes:
    try:
        address = unhexed(contract) if isinstance(contract, str) else contract
    except ValueError:
        address = b""
    if len(address) != 20:
        raise ConfigError(f"contract address {contract!r} must be 0x and 40 hex digits")
    return address
