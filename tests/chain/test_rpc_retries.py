"""A block that is forgotten while it is asked about is asked again; any other refusal is not."""

from __future__ import annotations

from typing import Any

import pytest

from citrate_node.chain.rpc import PRUNED_RETRIES, Rpc, RpcError

PRUNED = {
    "error": {"code": -32602, "message": "BlockOutOfRangeError: block height is 32 but requested was 31"}
}


class Answers:
    """A provider that gives these answers, one after the other."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.left = list(answers)

    async def make_request(self, method: str, params: list[Any]) -> dict[str, Any]:
        return self.left.pop(0)


def rpc_with(*answers: dict[str, Any]) -> tuple[Rpc, Answers]:
    rpc, provider = Rpc("http://127.0.0.1:9"), Answers(*answers)
    rpc._provider = provider  # type: ignore[assignment]
    return rpc, provider


async def test_a_call_on_a_block_that_was_just_pruned_is_made_again() -> None:
    rpc, provider = rpc_with(PRUNED, PRUNED, {"result": "0x1"})
    assert await rpc.request("eth_call") == "0x1"
    assert provider.left == []


async def test_it_is_not_made_again_for_ever() -> None:
    rpc, provider = rpc_with(*[PRUNED] * (PRUNED_RETRIES + 5))
    with pytest.raises(RpcError, match="BlockOutOfRange"):
        await rpc.request("eth_call")
    assert len(provider.left) == 4


async def test_another_refusal_is_told_at_once() -> None:
    rpc, provider = rpc_with({"error": {"code": -32601, "message": "no such method"}}, {"result": 1})
    with pytest.raises(RpcError, match="no such method"):
        await rpc.request("eth_x")
    assert len(provider.left) == 1
