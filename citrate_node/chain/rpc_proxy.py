"""A gate in front of a chain that others may reach: only methods on the list pass.

anvil answers `anvil_*` on the port of everything else, and those act as any account without its key. So that
port stays on 127.0.0.1, and what is exposed is this. Called by whoever exposes a devnet (runtime/devnet.py).
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from ..errors import ServiceError
from .recursion_limit import PARSING_LIMIT, recursion_limit

ALLOWED_METHODS = frozenset(
    {
        *("web3_clientVersion", "net_version", "net_listening", "eth_chainId", "eth_syncing"),
        *("eth_blockNumber", "eth_getBlockByNumber", "eth_getBlockByHash", "eth_getBlockReceipts"),
        *("eth_getBlockTransactionCountByNumber", "eth_getBlockTransactionCountByHash"),
        *("eth_getBalance", "eth_getCode", "eth_getStorageAt", "eth_getTransactionCount", "eth_getProof"),
        *("eth_call", "eth_estimateGas", "eth_createAccessList", "eth_gasPrice"),
        *("eth_maxPriorityFeePerGas", "eth_feeHistory", "eth_blobBaseFee"),
        *("eth_sendRawTransaction", "eth_getTransactionByHash", "eth_getTransactionReceipt"),
        *("eth_getTransactionByBlockNumberAndIndex", "eth_getTransactionByBlockHashAndIndex", "eth_getLogs"),
    }
)
"""What reads, and what carries its own signature. Nothing that signs for others, mines, or sets state; no
filters either, which would let strangers pile up state in the node."""

REQUEST_BYTES_MAX = 512 * 1024
"""Two transactions of the largest size, in hex."""
BATCH_MAX = 50
UPSTREAM_TIMEOUT_SECONDS = 20.0


class RpcProxy:
    """Listens on one address and forwards to one chain."""

    def __init__(self, upstream_url: str, host: str, port: int, *, allow_origin: str | None = None) -> None:
        self._upstream_url = upstream_url
        self._host = host
        self._port = port
        self._allow_origin = allow_origin
        self._runner: web.AppRunner | None = None
        self._session: ClientSession | None = None

    async def start(self) -> None:
        """Raises ServiceError where the address is in use."""
        app = web.Application(client_max_size=REQUEST_BYTES_MAX)
        app.router.add_post("/", self._respond)
        app.router.add_options("/", self._preflight)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ServiceError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}\n  choose another address"
            ) from error
        self._session = ClientSession(timeout=ClientTimeout(total=UPSTREAM_TIMEOUT_SECONDS))

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            text = await request.read()
            with recursion_limit(PARSING_LIMIT):
                body = json.loads(text)
        except (ValueError, RecursionError):
            return self._answer(_error(None, -32700, "no JSON"))
        if not isinstance(body, list):
            return self._answer(await self._one(body))
        if not 0 < len(body) <= BATCH_MAX:
            return self._answer(_error(None, -32600, f"a batch has 1 to {BATCH_MAX} requests"))
        return self._answer([await self._one(part) for part in body])

    async def _one(self, request: Any) -> Any:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, -32600, "no request")
        method, name = request["method"], request.get("id")
        if not isinstance(name, int | str | float | None):
            return _error(None, -32600, "no request")
        if method not in ALLOWED_METHODS:
            return _error(name, -32601, f"the method {method[:64]} is not offered here")
        # made anew: whatever else stood in the request does not pass
        clean = {"jsonrpc": "2.0", "id": name, "method": method, "params": request.get("params") or []}
        assert self._session is not None
        try:
            async with self._session.post(self._upstream_url, json=clean) as answer:
                return await answer.json(content_type=None)
        except (ClientError, TimeoutError, ValueError):
            return _error(name, -32000, "the chain does not answer at the moment")

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


def _error(name: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": name, "error": {"code": code, "message": message}}
