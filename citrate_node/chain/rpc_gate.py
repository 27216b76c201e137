"""Which requests may reach a chain from outside, and the gate that lets only those through.

anvil answers `anvil_*` on the port of everything else, and those act as any account without its key. Called
by rpc_proxy.py, which listens for wallets, and by dashboard/server.py for the page's own reads.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

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


class RpcGate:
    """Judges requests and forwards the good ones to one chain."""

    def __init__(self, upstream_url: str) -> None:
        self._upstream_url = upstream_url
        self._session: ClientSession | None = None

    async def start(self) -> None:
        self._session = ClientSession(timeout=ClientTimeout(total=UPSTREAM_TIMEOUT_SECONDS))

    async def stop(self) -> None:
        """Harmless when repeated."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def session(self) -> ClientSession:
        assert self._session is not None, "start() first"
        return self._session

    async def answer(self, text: bytes) -> Any:
        """What JSON-RPC answers to a body, whatever that body is."""
        try:
            with recursion_limit(PARSING_LIMIT):
                body = json.loads(text)
        except (ValueError, RecursionError):
            return rpc_error(None, -32700, "no JSON")
        if not isinstance(body, list):
            return await self._one(body)
        if not 0 < len(body) <= BATCH_MAX:
            return rpc_error(None, -32600, f"a batch has 1 to {BATCH_MAX} requests")
        return [await self._one(part) for part in body]

    async def _one(self, request: Any) -> Any:
        clean = cleaned(request)
        if "error" in clean:
            return clean
        try:
            async with self.session.post(self._upstream_url, json=clean) as answer:
                return await answer.json(content_type=None)
        except (ClientError, TimeoutError, ValueError):
            return rpc_error(clean["id"], -32000, "the chain does not answer at the moment")


def cleaned(request: Any, allowed: frozenset[str] = ALLOWED_METHODS) -> dict[str, Any]:
    """The request made anew from the parts that may pass, or the error that answers it (it has `error`)."""
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return rpc_error(None, -32600, "no request")
    method, name = request["method"], request.get("id")
    if not isinstance(name, int | str | float | None):
        return rpc_error(None, -32600, "no request")
    if method not in allowed:
        return rpc_error(name, -32601, f"the method {method[:64]} is not offered here")
    return {"jsonrpc": "2.0", "id": name, "method": method, "params": request.get("params") or []}


def rpc_error(name: Any, code: int, message: str) -> dict[str, Any]:
    """A JSON-RPC error object; name: the id of the request."""
    return {"jsonrpc": "2.0", "id": name, "error": {"code": code, "message": message}}
