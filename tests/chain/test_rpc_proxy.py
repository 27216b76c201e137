"""The gate in front of an exposed chain: what passes, and what does not."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from chain_world import World, account, free_port, key

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.chain.rpc_proxy import BATCH_MAX, REQUEST_BYTES_MAX, RpcProxy
from citrate_node.errors import ServiceError

ORIGIN = "http://localhost:3000"


@pytest.fixture
async def gate(chain: DevnetChain) -> AsyncIterator[str]:
    port = free_port()
    proxy = RpcProxy(chain.rpc_url, "127.0.0.1", port, allow_origin=ORIGIN)
    await proxy.start()
    yield f"http://127.0.0.1:{port}"
    await proxy.stop()


async def ask(url: str, body: Any) -> Any:
    async with httpx.AsyncClient() as client:
        if isinstance(body, bytes):
            return (await client.post(url, content=body)).json()
        return (await client.post(url, json=body)).json()


def request(method: Any, *params: Any, name: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": name, "method": method, "params": list(params)}


async def test_the_client_reads_and_sends_through_it(gate: str, world: World) -> None:
    factory = await AdapterFactory.connect(gate)
    try:
        receipt = await factory.create_adapter(
            key("alice"), world.base.base_model_id, "a", bytes(range(64)), 8
        )
        assert await factory.adapters() == [receipt.adapter_id]
    finally:
        await factory.close()


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("anvil_impersonateAccount", ["0x" + account("alice").hex()]),
        ("anvil_setBalance", ["0x" + account("bob").hex(), "0x0"]),
        ("anvil_dumpState", []),
        ("evm_mine", []),
        ("hardhat_setCode", ["0x" + account("bob").hex(), "0x00"]),
        ("eth_sendTransaction", [{}]),
        ("eth_sign", []),
        ("eth_newFilter", [{}]),
        ("debug_traceTransaction", []),
        ("eth_call ", []),
        ("ETH_CALL", []),
    ],
)
async def test_what_is_not_on_the_list_does_not_pass(gate: str, method: str, params: list[Any]) -> None:
    refused = {"code": -32601, "message": f"the method {method} is not offered here"}
    assert (await ask(gate, request(method, *params)))["error"] == refused
    both = await ask(gate, [request("eth_chainId", name="a"), request(method, *params, name="b")])
    assert both == [
        {"jsonrpc": "2.0", "id": "a", "result": "0x9d6b"},
        {"jsonrpc": "2.0", "id": "b", "error": refused},
    ]


async def test_malformed_requests_are_answered_and_harm_nothing(gate: str) -> None:
    codes = [
        (await ask(gate, body))["error"]["code"]
        for body in [
            *(b"", b"{", b"[" * 100_000, b"1", b"null", b'"eth_call"'),
            *([], [request("eth_chainId")] * (BATCH_MAX + 1), {"method": 1}, request(["eth_chainId"])),
            request("eth_chainId", name={"a": 1}),
        ]
    ]
    assert codes == [-32700] * 3 + [-32600] * 8
    async with httpx.AsyncClient() as client:
        assert (await client.post(gate, content=b" " * (REQUEST_BYTES_MAX + 1))).status_code == 413
        assert (await client.get(gate)).status_code == 405
    assert await ask(gate, request("eth_chainId")) == {"jsonrpc": "2.0", "id": 1, "result": "0x9d6b"}


async def test_only_the_named_origin_may_use_it_from_a_page(gate: str) -> None:
    async with httpx.AsyncClient() as client:
        preflight = await client.options(gate)
        answer = await client.post(gate, json=request("eth_chainId"))
    origins = [response.headers["access-control-allow-origin"] for response in (preflight, answer)]
    assert origins == [ORIGIN, ORIGIN]


async def test_a_chain_that_is_down_is_an_answer_not_a_failure() -> None:
    port = free_port()
    proxy = RpcProxy(f"http://127.0.0.1:{free_port()}", "127.0.0.1", port)
    await proxy.start()
    try:
        answer = await ask(f"http://127.0.0.1:{port}", request("eth_chainId", name=9))
        assert answer["error"] == {"code": -32000, "message": "the chain does not answer at the moment"}
        with pytest.raises(ServiceError, match="cannot listen"):
            await RpcProxy("http://127.0.0.1:1", "127.0.0.1", port).start()
    finally:
        await proxy.stop()
