"""Coins from a devnet's founder to a wallet, so that it can pay for gas. Called by `citrate wallet fund`.

The founder's key lies in clear in the devnet's folder: a development key, worth nothing anywhere else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ..chain.recursion_limit import recursion_limit
from ..chain.rpc import Rpc, RpcError, hexed
from ..errors import ConfigError, ServiceError
from ..protocol.certificate import account_of
from .adapters import AdapterDesk, UnfundedWallet, coins

TRANSFER_GAS = 21_000
TIP_WEI = 10**9
RECEIPT_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.2
NONCE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """Coins that have arrived."""

    sender: bytes
    receiver: bytes
    wei: int
    tx_hash: str
    balance_wei: int
    """Of the receiver, afterwards."""


def wei_of(text: str) -> int:
    """Coins as typed, such as 2.5, in wei. Raises ConfigError for anything but a positive decimal number."""
    whole, _, decimals = text.partition(".")
    digits = whole + decimals
    if not digits.isascii() or not digits.isdigit() or len(decimals) > 18 or len(whole) > 24:
        raise ConfigError(f"amount {text!r} must be a number of coins such as 2.5, with at most 18 decimals")
    wei = int(whole or "0") * 10**18 + int(decimals.ljust(18, "0") or "0")
    if wei == 0:
        raise ConfigError("the amount must be above 0")
    return wei


async def transfer(desk: AdapterDesk, key: bytes, receiver: bytes, wei: int) -> Transfer:
    """Send coins and wait until they have arrived."""
    rpc = Rpc(desk.place.rpc_url)
    try:
        tx_hash = await _send(rpc, desk.factory.chain_id, key, receiver, wei)
        await _wait(rpc, tx_hash)
    finally:
        await rpc.close()
    return Transfer(account_of(key), receiver, wei, tx_hash, await desk.factory.balance(receiver))


async def _send(rpc: Rpc, chain_id: int, key: bytes, receiver: bytes, wei: int) -> str:
    with recursion_limit():
        from eth_account import Account

    sender = account_of(key)
    for attempt in range(1, NONCE_ATTEMPTS + 1):
        nonce = int(await rpc.request("eth_getTransactionCount", hexed(sender), "pending"), 16)
        block = await rpc.request("eth_getBlockByNumber", "latest", False)
        fee = 2 * int(block["baseFeePerGas"], 16) + TIP_WEI
        balance = int(await rpc.request("eth_getBalance", hexed(sender), "latest"), 16)
        if balance < wei + TRANSFER_GAS * fee:
            raise UnfundedWallet(
                f"account {hexed(sender)} has {coins(balance)}, too little for {coins(wei)} and gas\n"
                "  fund with a smaller amount"
            )
        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": chain_id,
                "nonce": nonce,
                "to": receiver,
                "data": b"",
                "value": wei,
                "gas": TRANSFER_GAS,
                "maxFeePerGas": fee,
                "maxPriorityFeePerGas": TIP_WEI,
            },
            key,
        )
        try:
            answer: str = await rpc.request("eth_sendRawTransaction", hexed(bytes(signed.raw_transaction)))
            return answer
        except RpcError as error:
            # the devnet itself sends from this account, so another transaction may have taken the number
            if "nonce" not in error.message.lower() or attempt == NONCE_ATTEMPTS:
                raise
        await asyncio.sleep(POLL_SECONDS * attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _wait(rpc: Rpc, tx_hash: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RECEIPT_TIMEOUT_SECONDS
    while loop.time() < deadline:
        receipt = await rpc.request("eth_getTransactionReceipt", tx_hash)
        if receipt is not None and receipt.get("blockNumber") is not None:
            if receipt["status"] != "0x1":
                raise ServiceError(
                    f"transfer {tx_hash} failed: the receiver is a contract that takes no coins"
                )
            return
        await asyncio.sleep(POLL_SECONDS)
    raise ServiceError(
        f"transfer {tx_hash} was not mined within {RECEIPT_TIMEOUT_SECONDS:.0f} s\n"
        "  check that the chain makes blocks: `citrate devnet status`"
    )
