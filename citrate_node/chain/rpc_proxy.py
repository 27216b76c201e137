"""The address of a devnet's chain that wallets and other programs are given.

The chain itself listens for the devnet's nodes alone; what passes from here is rpc_gate.py's list. Started by
runtime/devnet.py.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ..errors import ServiceError
from .host_guard import loopback_names_only
from .rpc_gate import REQUEST_BYTES_MAX, RpcGate
from .rpc_subscriptions import Subscriptions


class RpcProxy:
    """Listens on one address and forwards to one chain: JSON-RPC by POST, subscriptions over a websocket."""

    def __init__(self, upstream_url: str, host: str, port: int, *, allow_origin: str | None = None) -> None:
        self._gate = RpcGate(upstream_url)
        self._subscriptions = Subscriptions(self._gate, upstream_url, allow_origin)
        self._host = host
        self._port = port
        self._allow_origin = allow_origin
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises ServiceError where the address is in use."""
        app = web.Application(client_max_size=REQUEST_BYTES_MAX, middlewares=[loopback_names_only])
        app.router.add_post("/", self._respond)
        app.router.add_options("/", self._preflight)
        app.router.add_get("/", self._subscriptions.serve, allow_head=False)
        app.on_shutdown.append(self._subscriptions.close)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ServiceError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}\n  choose another address"
            ) from error
        await self._gate.start()

    async def stop(self) -> None:
        """Harmless when repeated."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._gate.stop()

    async def _respond(self, request: web.Request) -> web.Response:
        return self._answer(await self._gate.answer(await request.read()))

    async def _preflight(self, _: web.Request) -> web.Response:
        response = self._answer(None)
        response.headers["Access-Control-Allow-Methods"] = "POST"
        response.headers["Access-Control-Allow-Headers"] = "content-type"
        return response

    def _answer(self, body: Any) -> web.Response:
        response = web.json_response(body)
        if self._allow_origin is not None:
            response.headers["Access-Control-Allow-Origin"] = self._allow_origin
        return response
