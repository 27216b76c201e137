"""Coins from a devnet's founder to a wallet, so that it can pay for gas. Called by `citrate wallet fund`.

The founder's key lies in clear in the devnet's folder: a development key, worth nothing anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..chain.rpc import hexed
from ..errors import ConfigError
from ..protocol.certificate import account_of
from .adapters import AdapterDesk, UnfundedWallet, coins


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
    """Send coins and wait until they have arrived. Raises UnfundedWallet where the sender has too little."""
    sender = account_of(key)
    balance = await desk.factory.balance(sender)
    if balance <= wei:
        raise UnfundedWallet(
            f"account {hexed(sender)} has {coins(balance)}, too little for {coins(wei)} and gas\n"
            "  fund with a smaller amount"
        )
    tx_hash = await desk.factory.transfer(key, receiver, wei)
    return Transfer(sender, receiver, wei, tx_hash, await desk.factory.balance(receiver))
