"""The gate in front of an exposed chain: what passes, and what does not."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSCloseCode, WSMsgType, WSServerHandshakeError
from chain_world import World, account, free_port, key

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.chain.rpc_gate import BATCH_MAX, REQUEST_BYTES_MAX
from citrate_node.chain.rpc_proxy import RpcProxy
from citrate_node.chain.rpc_subscriptions import SUBSCRIPTIONS_PER_CLIENT_MAX
from citrate_node.errors import ServiceError
from citrate_node.protocol.identifiers import ADAPTER_FACTORY_ADDRESS

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
        assert (await client.get(gate)).status_code == 426
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


async def test_a_name_that_is_not_this_machine_is_refused(gate: str) -> None:
    """What a page of a stranger would send after its own name was made to point here (DNS rebinding)."""
    async with httpx.AsyncClient() as client:
        answers = [
            (await client.post(gate, json=request("eth_chainId"), headers={"Host": host})).status_code
            for host in [
                *("127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:9", "127.8.8.8"),
                *(
                    "evil.example",
                    "127.0.0.1.evil.example",
                    "localhost.evil.example:80",
                    "192.168.1.2",
                    "[",
                    "",
                ),
            ]
        ]
    assert answers == [200] * 5 + [421] * 6


@asynccontextmanager
async def websocket(gate: str, **headers: str) -> AsyncIterator[ClientWebSocketResponse]:
    async with ClientSession() as session, session.ws_connect(gate, headers=headers) as opened:
        yield opened


async def told(socket: ClientWebSocketResponse, body: Any) -> Any:
    await socket.send_json(body)
    return await socket.receive_json(timeout=10)


async def test_new_blocks_and_logs_come_over_the_websocket(gate: str, world: World) -> None:
    async with websocket(gate) as socket:
        heads = await told(socket, request("eth_subscribe", "newHeads", name="h"))
        assert heads["id"] == "h"
        news = [await socket.receive_json(timeout=10) for _ in range(2)]
        assert {n["params"]["subscription"] for n in news} == {heads["result"]}
        first, second = (int(n["params"]["result"]["number"], 16) for n in news)
        assert second == first + 1
        await socket.send_json(request("eth_unsubscribe", heads["result"], name="u"))
        while (answer := await socket.receive_json(timeout=10)).get("id") != "u":
            assert answer["method"] == "eth_subscription"
        assert answer["result"] is True

        query = {"address": "0x" + ADAPTER_FACTORY_ADDRESS.hex()}
        logs = await told(socket, request("eth_subscribe", "logs", query, name=None))
        factory = await AdapterFactory.connect(gate)
        try:
            made = await factory.create_adapter(key("alice"), world.base.base_model_id, "a", bytes(64), 8)
        finally:
            await factory.close()
        log = (await socket.receive_json(timeout=10))["params"]
        assert log["subscription"] == logs["result"]
        assert log["result"]["topics"][1] == "0x" + made.adapter_id.hex()


async def test_the_list_and_the_bounds_hold_on_the_websocket_too(gate: str) -> None:
    async with websocket(gate) as socket:
        answers = [
            await told(socket, body)
            for body in [
                request("anvil_setBalance", "0x" + account("bob").hex(), "0x0"),
                request("eth_subscribe", "newPendingTransactions"),
                request("eth_subscribe"),
                request("eth_subscribe", {"a": 1}),
                [request("eth_subscribe", "newHeads")],
                request("eth_chainId"),
            ]
        ]
        parts = [answer[0] if isinstance(answer, list) else answer for answer in answers]
        codes = [part.get("error", {}).get("code") for part in parts]
        assert codes == [-32601, -32602, -32602, -32602, -32601, None]
        await socket.send_str("[" * 100_000)
        assert (await socket.receive_json(timeout=10))["error"]["code"] == -32700
        silent = {"address": "0x" + "11" * 20}
        subscribed = [
            await told(socket, request("eth_subscribe", "logs", silent))
            for _ in range(SUBSCRIPTIONS_PER_CLIENT_MAX + 1)
        ]
        assert ["result" in answer for answer in subscribed] == [True] * SUBSCRIPTIONS_PER_CLIENT_MAX + [
            False
        ]
        assert subscribed[-1]["error"]["code"] == -32005
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(WSServerHandshakeError):
            async with websocket(gate, **headers):
                pass
    async with websocket(gate, Origin=ORIGIN) as socket:
        assert (await told(socket, request("eth_chainId")))["result"] == "0x9d6b"


async def test_a_client_is_told_to_connect_again_when_the_chain_is_restarted(
    gate: str, chain: DevnetChain
) -> None:
    async with websocket(gate) as socket:
        await told(socket, request("eth_subscribe", "logs", {"address": "0x" + "11" * 20}))
        assert chain.process_id is not None
        os.kill(chain.process_id, signal.SIGKILL)
        message = await socket.receive(timeout=10)
        assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.SERVICE_RESTART)


async def test_a_chain_without_websocket_says_so() -> None:
    port = free_port()
    proxy = RpcProxy(f"http://127.0.0.1:{free_port()}", "127.0.0.1", port)
    await proxy.start()
    try:
        async with websocket(f"http://127.0.0.1:{port}") as socket:
            answer = await told(socket, request("eth_subscribe", "newHeads"))
            assert "offers no subscriptions" in answer["error"]["message"]
    finally:
        await proxy.stop()
