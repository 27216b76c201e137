"""Serves the page of a devnet on loopback: its files, the live facts, a gated way to the chain, and a judge.

Nothing here signs or changes anything: transactions are signed by the reader's own wallet. The judge reads an
adapter file with the nodes' own code, so that the page does not say yes to what they would refuse. Answers
only to loopback names (host_guard.py), takes requests with a body only from its own pages, and its content
security policy lets no script run but the files in static/. Started by cli/devnet.py.
"""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..chain.contract_abi import artifact
from ..chain.host_guard import Handler, loopback_names_only
from ..chain.rpc_gate import REQUEST_BYTES_MAX, RpcGate
from ..config import load_preset
from ..errors import ServiceError
from ..protocol.adapter import AdapterLimits, decode_adapter
from ..protocol.content_id import content_id
from ..protocol.tensors import FormatError
from ..runtime.adapters import CALLDATA_BYTES_MAX, CALLDATA_BYTES_MIN
from .feed import Feed, TooManyPages

STATIC = {
    "index.html": "text/html",
    "style.css": "text/css",
    **dict.fromkeys(
        (
            *("main.js", "ui.js", "cid.js", "contract.js", "wallet.js", "network.js"),
            *("adapters.js", "lineage.js", "transaction.js", "create.js", "compose.js"),
            "vendor/ethers-6.17.0.min.js",
        ),
        "text/javascript",
    ),
}
"""Every file that is served, by its path under static/."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""data: images are the wallets' own icons (EIP-6963). Trusted types: no text can become markup or script."""

FILE_BYTES_MAX = 16 * 1024 * 1024
"""Adapter files that the page judges; larger ones are for `citrate adapter create`."""
BODY_SECONDS = 30.0
"""A request has this long to come in whole: files are judged one at a time."""
HEARTBEAT_SECONDS = 15.0
WRITE_TIMEOUT_SECONDS = 10.0
END_SECONDS = 2.0
"""Pages that listen have this long to take the last facts."""


class PageServer:
    """The page while it is served: `async with PageServer(...)`."""

    def __init__(self, feed: Feed, chain_url: str, *, port: int, preset: str) -> None:
        """chain_url: of the chain to read, gated or not. preset: whose limits adapter files must keep."""
        self._feed = feed
        self._gate = RpcGate(chain_url)
        self._port = port
        limits = load_preset(preset)
        self._limits = AdapterLimits(
            min(FILE_BYTES_MAX, limits.weights_size_bytes_max), limits.tensors_max, limits.rank_max
        )
        self._judging = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        folder = files("citrate_node.dashboard").joinpath("static")
        self._files = {name: folder.joinpath(name).read_bytes() for name in STATIC}
        self._abi = json.dumps(artifact()["abi"]).encode()

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        assert self._runner is not None, "the page is not served"
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/"

    async def __aenter__(self) -> PageServer:
        """Raises ServiceError where the port is in use."""
        app = web.Application(middlewares=[_headers, loopback_names_only, _own_pages_only])
        app.router.add_get("/", self._file)
        app.router.add_get("/static/{name:.+}", self._file)
        app.router.add_get("/api/abi", self._abi_json)
        app.router.add_get("/api/state", self._state)
        app.router.add_get("/api/events", self._events)
        app.router.add_post("/api/adapter-file", self._judge)
        app.router.add_post("/rpc", self._rpc)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=END_SECONDS)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ServiceError(
                f"the page cannot listen on 127.0.0.1:{self._port} ({error.strerror})\n"
                "  choose another --page-port, or 0 for no page"
            ) from error
        await self._gate.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.end()
        if self._runner is not None:
            await self._runner.cleanup()
        await self._gate.stop()

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in STATIC:
            raise web.HTTPNotFound(text="there is no such file\n")
        return web.Response(body=self._files[name], content_type=STATIC[name], charset="utf-8")

    async def _abi_json(self, _: web.Request) -> web.Response:
        return web.Response(body=self._abi, content_type="application/json")

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response(self._feed.state())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the state, then every fact; comments in between show that the line is up."""
        try:
            with self._feed.subscribed() as queue:
                response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
                await response.prepare(request)
                await _send(response, _event(self._feed.state()))
                while True:
                    try:
                        async with asyncio.timeout(HEARTBEAT_SECONDS):
                            fact = await queue.get()
                    except TimeoutError:
                        await _send(response, b":\n\n")
                        continue
                    if fact is None:
                        return response
                    await _send(response, _event(fact))
        except TooManyPages:
            return web.Response(status=503, text="too many pages listen already\n")
        except (ConnectionError, TimeoutError):
            return response

    async def _rpc(self, request: web.Request) -> web.Response:
        return web.json_response(await self._gate.answer(await _body(request, REQUEST_BYTES_MAX)))

    async def _judge(self, request: web.Request) -> web.Response:
        """What an adapter file says of itself, or `error` with the reason why nodes would refuse it."""
        async with self._judging:
            data = await _body(request, self._limits.size_bytes_max)
            try:
                verdict = await asyncio.to_thread(_judged, data, self._limits)
            except FormatError as error:
                verdict = {"error": f"not in the form that nodes take: {error}"}
        return web.json_response(verdict)


def _judged(data: bytes, limits: AdapterLimits) -> dict[str, Any]:
    config = decode_adapter(data, limits).config
    content = content_id(data)
    return {
        "base_model_id": "0x" + config.base_model_id.hex(),
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": list(config.targets),
        "size_bytes": len(data),
        "cid": content.cid,
        "fits_calldata": CALLDATA_BYTES_MIN <= len(data) <= CALLDATA_BYTES_MAX,
    }


def _event(fact: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fact).encode() + b"\n\n"


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
        await response.write(data)


async def _body(request: web.Request, bytes_max: int) -> bytes:
    """The body: 413 as soon as it is known to be larger, 408 where it does not come."""
    if (request.content_length or 0) > bytes_max:
        raise web.HTTPRequestEntityTooLarge(bytes_max, request.content_length or 0)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                data += part
                if len(data) > bytes_max:
                    raise web.HTTPRequestEntityTooLarge(bytes_max, len(data))
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_SECONDS:.0f} s\n") from None
    return bytes(data)


@web.middleware
async def _headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    if not response.prepared:
        response.headers.update(HEADERS)
    return response


@web.middleware
async def _own_pages_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """403 for a body from another site's page: browsers say so in Origin and Sec-Fetch-Site."""
    origin = request.headers.get("Origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("Host")
    if request.method == "POST" and (
        foreign or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
    ):
        raise web.HTTPForbidden(text="only the page itself may ask this\n")
    return await handler(request)
