"""New blocks and logs, pushed to wallets and programs over a websocket, through the same list as everything.

A client's requests go the way of any request; only `eth_subscribe` and `eth_unsubscribe` travel over a
websocket to the chain, one per client, opened when first needed. The chain in Python has none and says so.
Called by rpc_proxy.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from aiohttp import ClientError, ClientWebSocketResponse, WSCloseCode, WSMsgType, web

from .recursion_limit import PARSING_LIMIT, recursion_limit
from .rpc_gate import REQUEST_BYTES_MAX, RpcGate, cleaned, rpc_error

SUBSCRIPTION_METHODS = frozenset({"eth_subscribe", "eth_unsubscribe"})
SUBSCRIPTION_KINDS = ("newHeads", "logs")
"""Pending transactions are left out: they are another's until they are mined."""

CLIENTS_MAX = 64
SUBSCRIPTIONS_PER_CLIENT_MAX = 16
SEND_TIMEOUT_SECONDS = 10.0
"""A client that takes nothing for so long is cut off: its news would pile up here."""
PING_SECONDS = 30.0


class Subscriptions:
    """All websockets of one proxy."""

    def __init__(self, gate: RpcGate, upstream_url: str, allow_origin: str | None = None) -> None:
        self._gate = gate
        self._upstream_url = upstream_url
        self._allow_origin = allow_origin
        self._clients: set[web.WebSocketResponse] = set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One client, from its handshake to its end. 426 for what is no websocket, 503 for one too many."""
        client = web.WebSocketResponse(heartbeat=PING_SECONDS, max_msg_size=REQUEST_BYTES_MAX)
        if not client.can_prepare(request):
            return web.Response(
                status=426, headers={"Upgrade": "websocket"}, text="JSON-RPC: POST, or websocket\n"
            )
        origin = request.headers.get("Origin")
        if origin is not None and self._allow_origin not in ("*", origin):
            return web.Response(status=403, text="pages of this origin may not use this address\n")
        if len(self._clients) >= CLIENTS_MAX:
            return web.Response(status=503, text=f"{CLIENTS_MAX} websockets are open already\n")
        await client.prepare(request)
        self._clients.add(client)
        connection = _Connection(self._gate, self._upstream_url, client)
        try:
            await connection.run()
        finally:
            self._clients.discard(client)
            await connection.close()
        return client

    async def close(self, _: web.Application) -> None:
        """Tell every client that it is over."""
        await asyncio.gather(*(client.close(code=WSCloseCode.GOING_AWAY) for client in self._clients))


class _Connection:
    """One client and, from its first subscription on, its websocket to the chain."""

    def __init__(self, gate: RpcGate, upstream_url: str, client: web.WebSocketResponse) -> None:
        self._gate = gate
        self._upstream_url = upstream_url
        self._client = client
        self._upstream: ClientWebSocketResponse | None = None
        self._relay: asyncio.Task[None] | None = None
        self._waiting: dict[int, tuple[Any, str]] = {}
        """Our number of a request under way to the client's id and the method."""
        self._sent = 0
        self._open_subscriptions = 0

    async def run(self) -> None:
        async for message in self._client:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            text = message.data.encode() if isinstance(message.data, str) else message.data
            answer = await self._answer(text)
            if answer is not None:
                await self._send(answer)

    async def close(self) -> None:
        if self._relay is not None:
            self._relay.cancel()
            await asyncio.gather(self._relay, return_exceptions=True)
        if self._upstream is not None:
            await self._upstream.close()

    async def _answer(self, text: bytes) -> Any:
        """The answer to a message, or None where the chain's own answer will come over the websocket."""
        try:
            with recursion_limit(PARSING_LIMIT):
                body = json.loads(text)
        except (ValueError, RecursionError):
            return rpc_error(None, -32700, "no JSON")
        if not isinstance(body, dict) or body.get("method") not in SUBSCRIPTION_METHODS:
            return await self._gate.answer(text)
        request = cleaned(body, SUBSCRIPTION_METHODS)
        return request if "error" in request else await self._subscription(request)

    async def _subscription(self, request: dict[str, Any]) -> dict[str, Any] | None:
        params, method = request["params"], request["method"]
        if len(self._waiting) >= SUBSCRIPTIONS_PER_CLIENT_MAX:
            return rpc_error(request["id"], -32005, "too many requests wait for the chain: wait for answers")
        if method == "eth_subscribe":
            if not isinstance(params, list) or not params or params[0] not in SUBSCRIPTION_KINDS:
                kinds = " and ".join(SUBSCRIPTION_KINDS)
                return rpc_error(request["id"], -32602, f"subscriptions are offered to {kinds}")
            if self._open_subscriptions + len(self._waiting) >= SUBSCRIPTIONS_PER_CLIENT_MAX:
                return rpc_error(
                    request["id"], -32005, f"at most {SUBSCRIPTIONS_PER_CLIENT_MAX} subscriptions"
                )
        try:
            upstream = await self._connected()
            self._sent += 1
            self._waiting[self._sent] = (request["id"], method)
            await upstream.send_str(json.dumps({**request, "id": self._sent}))
        except (ClientError, OSError, TimeoutError):
            return rpc_error(
                request["id"], -32000, "this chain offers no subscriptions at the moment: poll instead"
            )
        return None

    async def _connected(self) -> ClientWebSocketResponse:
        if self._upstream is None:
            url = "ws" + self._upstream_url.removeprefix("http")
            self._upstream = await self._gate.session.ws_connect(url, heartbeat=PING_SECONDS, max_msg_size=0)
            self._relay = asyncio.create_task(self._relay_news(self._upstream), name="chain subscription")
        return self._upstream

    async def _relay_news(self, upstream: ClientWebSocketResponse) -> None:
        """Until the chain's end closes: then the client's closes too, and its library connects again."""
        with contextlib.suppress(ClientError, OSError, TimeoutError, ValueError):
            async for message in upstream:
                if message.type is not WSMsgType.TEXT:
                    break
                news = json.loads(message.data)
                if news.get("id") in self._waiting:
                    self._settle(news)
                await self._send(news)
        await self._client.close(code=WSCloseCode.SERVICE_RESTART, message=b"the chain was restarted")

    def _settle(self, news: dict[str, Any]) -> None:
        """Give an answer the client's own id back, and count what is open now."""
        news["id"], method = self._waiting.pop(news["id"])
        if method == "eth_subscribe" and "result" in news:
            self._open_subscriptions += 1
        elif method == "eth_unsubscribe" and news.get("result") is True:
            self._open_subscriptions -= 1

    async def _send(self, body: Any) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await self._client.send_json(body)
        except (TimeoutError, ConnectionError):
            await self._client.close()
