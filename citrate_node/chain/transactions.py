"""Signing, sending and waiting: one transaction from dry run to receipt.

A transaction is tried with eth_call first, so that a refusal costs nothing and carries its reason. While it
waits it is sent again and again: a chain that restarted from its last snapshot has forgotten it. Called by
adapter_factory.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

from eth_hash.auto import keccak

from ..errors import ServiceError
from ..protocol.certificate import account_of
from .recursion_limit import recursion_limit
from .rpc import ContractRefusal, Rpc, RpcError, hexed, unhexed

RECEIPT_TIMEOUT_SECONDS = 90.0
POLL_SECONDS = 0.2
SEND_AGAIN_SECONDS = 5.0
NONCE_ATTEMPTS = 5
TIP_WEI = 10**9


class Sender:
    """Sends for any number of accounts. One of them sends one transaction at a time up to the pool, so that
    nonces do not collide; another process with the same key is noticed and stepped around."""

    def __init__(self, rpc: Rpc, chain_id: int) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._locks: defaultdict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def send(self, private_key: bytes, to: bytes, data: bytes, *, value: int = 0) -> dict[str, Any]:
        """The receipt of a transaction that succeeded; value: wei that goes with it.

        Raises ContractRefusal where the contract says no, before sending or because another transaction came
        first, and ServiceError where the account cannot pay or no receipt comes.
        """
        account = account_of(private_key)
        call = {"from": hexed(account), "to": hexed(to), "data": hexed(data), "value": hex(value)}
        try:
            await self._rpc.request("eth_call", call, "latest")
            # storage may be dearer by the time it runs: the first writer of a word pays more
            gas = int(await self._rpc.request("eth_estimateGas", call), 16) * 5 // 4
        except RpcError as error:
            raise _explained(error, account) from error
        raw = await self._enter_pool(private_key, account, to, data, value, gas)
        receipt = await self._wait(raw)
        if receipt["status"] != "0x1":
            await self._rpc.request("eth_call", call, "latest")
            raise ServiceError(
                f"transaction {receipt['transactionHash']} failed, though the same call succeeds now\n"
                "  try again: it probably ran out of gas because another transaction came first"
            )
        return receipt

    async def _enter_pool(
        self, private_key: bytes, account: bytes, to: bytes, data: bytes, value: int, gas: int
    ) -> bytes:
        with recursion_limit():
            from eth_account import Account

        async with self._locks[account]:
            for attempt in range(1, NONCE_ATTEMPTS + 1):
                nonce = int(await self._rpc.request("eth_getTransactionCount", hexed(account), "pending"), 16)
                block = await self._rpc.request("eth_getBlockByNumber", "latest", False)
                signed = Account.sign_transaction(
                    {
                        "type": 2,
                        "chainId": self._chain_id,
                        "nonce": nonce,
                        "to": to,
                        "data": data,
                        "value": value,
                        "gas": gas,
                        # twice the base fee: it grows by an eighth per full block at most
                        "maxFeePerGas": 2 * int(block["baseFeePerGas"], 16) + TIP_WEI,
                        "maxPriorityFeePerGas": TIP_WEI,
                    },
                    private_key,
                )
                raw = bytes(signed.raw_transaction)
                try:
                    await self._rpc.request("eth_sendRawTransaction", hexed(raw))
                    return raw
                except RpcError as error:
                    if _already_known(error):
                        return raw
                    if not _nonce_taken(error) or attempt == NONCE_ATTEMPTS:
                        raise _explained(error, account) from error
                await asyncio.sleep(POLL_SECONDS * attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _wait(self, raw: bytes) -> dict[str, Any]:
        tx_hash = hexed(keccak(raw))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RECEIPT_TIMEOUT_SECONDS
        again = loop.time() + SEND_AGAIN_SECONDS
        lost: ServiceError | None = None
        while loop.time() < deadline:
            try:
                receipt = await self._rpc.request("eth_getTransactionReceipt", tx_hash)
                lost = None
                if receipt is not None and receipt.get("blockNumber") is not None:
                    found: dict[str, Any] = receipt
                    return found
                if loop.time() >= again:
                    again = loop.time() + SEND_AGAIN_SECONDS
                    await self._send_again(raw)
            except ContractRefusal:
                raise
            except ServiceError as error:
                lost = error  # the chain is being restarted: the deadline decides
            await asyncio.sleep(POLL_SECONDS)
        if lost is not None:
            raise lost
        raise ServiceError(
            f"transaction {tx_hash} was not mined within {RECEIPT_TIMEOUT_SECONDS:.0f} s\n"
            "  check that the chain makes blocks: `citrate devnet status`"
        )

    async def _send_again(self, raw: bytes) -> None:
        # refused where it is known, or its nonce was used meanwhile: the receipt tells
        with contextlib.suppress(RpcError):
            await self._rpc.request("eth_sendRawTransaction", hexed(raw))


def _already_known(error: RpcError) -> bool:
    text = error.message.lower()
    return "already known" in text or "already imported" in text or "known transaction" in text


def _nonce_taken(error: RpcError) -> bool:
    text = error.message.lower()
    return "nonce too low" in text or "underpriced" in text or "nonce has already been used" in text


def _explained(error: RpcError, account: bytes) -> ServiceError:
    if "insufficient funds" in error.message.lower():
        return ServiceError(
            f"account {hexed(account)} cannot pay for gas\n"
            f"  fund it with `citrate wallet fund {hexed(account)}`"
        )
    return error


def transaction_calldata(transaction: dict[str, Any] | None, contract: bytes) -> bytes | None:
    """Input of a transaction that calls this contract directly, else None."""
    if transaction is None or not transaction.get("to"):
        return None
    if unhexed(transaction["to"]) != contract:
        return None
    return unhexed(transaction.get("input") or transaction.get("data") or "0x")
