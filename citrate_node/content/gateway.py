"""A trustless gateway: contents over HTTP as raw blocks and CAR streams, which the reader verifies.

`GET|HEAD /ipfs/{cid}?format=raw|car`, as https://specs.ipfs.tech/http-gateways/trustless-gateway says:
CAR parameters `dag-scope` and `entity-bytes`, 400 without a format, 404 for what is not here, 412 for
`only-if-cached`, 304, the `bafkqaaa` probe. It serves what the store holds and fetches nothing, so no
request makes this node work for more than its own disk. Started by the runtime; bound to loopback
unless told otherwise.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from aiohttp import web

from ..errors import CitrateError, ServiceError
from ..protocol.content_id import ContentId, encode_cid, parse_cid
from .car import encode_header, encode_section
from .interface import ContentMissing, ContentRefused, ContentStore
from .tree import Walk, content_of_root, foreign_tree

RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car"
PROBE_CID = "bafkqaaa"
_PROBE_CID_BYTES = b"\x01\x55\x00\x00"

MayServe = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """What one gateway takes on; beyond it, requests are turned away at once."""

    requests_max: int = 64
    """Requests answered at the same time."""

    content_size_bytes_max: int = 16 << 30
    """Largest file sent as a CAR."""

    write_timeout_ms: int = 30_000
    """A reader that takes no byte for so long is cut off."""


class _Refused(Exception):
    """A request that gets an error status and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class _CarRequest:
    """Which blocks of a CAR are asked for."""

    scope: str
    """`block`, `entity` or `all`; the last two are the same here, where every content is a file."""

    first: int
    last: int | None
    """Bytes of the file, both included, negative ones counted from its end; None: to the end."""

    duplicates: bool
    """Whether a block is sent each time the walk meets it."""


class Gateway:
    """Serves one store. `may_serve(digest)` says whether a root may be given out now: a delta that is
    withheld until its phase closes counts as not here, to everybody and in every format."""

    def __init__(
        self,
        store: ContentStore,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        may_serve: MayServe = lambda digest: True,
        limits: GatewayLimits | None = None,
    ) -> None:
        self._store = store
        self._host = host
        self._port = port
        self._may_serve = may_serve
        self._limits = limits or GatewayLimits()
        self._running = 0
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        """Where it listens, as a URL, once started."""
        assert self._runner is not None, "the gateway is not started"
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        """Listen; ServiceError where the address cannot be had."""
        app = web.Application(client_max_size=1)  # no request has a body
        app.router.add_get("/ipfs/{cid}", self._handle, allow_head=True)
        app.router.add_get("/ipfs/{cid}/{path:.*}", self._handle, allow_head=True)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=30, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ServiceError(
                f"the gateway cannot listen on {self._host}:{self._port} ({error.strerror})\n"
                "  choose another port, or stop what uses this one"
            ) from error
        self._runner = runner

    async def stop(self) -> None:
        """Stop listening and end what runs. Harmless when repeated."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> "Gateway":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._running >= self._limits.requests_max:
            return _text(503, "too many requests at once", {"Retry-After": "1"})
        self._running += 1
        try:
            return await self._answer(request)
        except _Refused as refused:
            return _text(refused.status, refused.text)
        except ContentMissing:
            cached_only = "only-if-cached" in request.headers.get("Cache-Control", "")
            return _text(412 if cached_only else 404, "this gateway does not hold the content")
        except ContentRefused as error:
            return _text(404, str(error).splitlines()[0])
        except CitrateError:
            return _text(500, "the store behind this gateway failed")
        finally:
            self._running -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        cid, car = request.match_info["cid"], _car_request(request)
        headers = _headers(cid, car)
        if cid == PROBE_CID:
            return web.Response(body=encode_header(_PROBE_CID_BYTES) if car else b"", headers=headers)
        try:
            codec, digest = parse_cid(cid)
        except ValueError as error:
            raise _Refused(400, f"not a CID that this gateway serves: {error}") from error
        if request.match_info.get("path"):
            raise _Refused(404 if car else 400, "contents here are files: there is nothing below a CID")
        if not self._may_serve(digest):
            raise ContentMissing("withheld")
        root = await self._store.block(digest)
        if _matches(request.headers.get("If-None-Match", ""), headers["Etag"]):
            return web.Response(status=304, headers={"Etag": headers["Etag"]})
        if car is None:
            return web.Response(body=root, headers=headers)
        if car.scope == "block":
            return await self._send(request, headers, _block_alone(codec, digest, root))
        content = content_of_root(codec, digest, root, self._limits.content_size_bytes_max)
        start, stop = _byte_range(car, content.size_bytes)
        with self._store.lease(content):
            return await self._send(request, headers, self._walk(content, start, stop, car.duplicates))

    async def _walk(
        self, content: ContentId, start: int, stop: int, duplicates: bool
    ) -> AsyncIterator[bytes]:
        """The CAR of part of a file: depth first, and no block twice unless `duplicates` are wanted."""
        yield encode_header(content.cid_bytes)
        walk = Walk(content, start, stop)
        sent: set[bytes] = set()
        while (wanted := walk.wanted) is not None:
            if wanted.depth == 0 and wanted.digest in sent and not duplicates:
                walk.skip()
                continue
            block = await self._store.block(wanted.digest)
            try:
                walk.accept(block, hashed=True)
            except ValueError as error:
                raise foreign_tree(wanted, error) from error
            if duplicates or wanted.digest not in sent:
                sent.add(wanted.digest)
                yield encode_section(wanted.codec, wanted.digest, block)

    async def _send(
        self, request: web.Request, headers: dict[str, str], parts: AsyncIterator[bytes]
    ) -> web.StreamResponse:
        """Stream; a block that fails on the way cuts the connection, so that nobody takes half for whole."""
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        try:
            async for part in parts:
                async with asyncio.timeout(self._limits.write_timeout_ms / 1000):
                    await response.write(part)
        except (CitrateError, TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response


async def _block_alone(codec: int, digest: bytes, block: bytes) -> AsyncIterator[bytes]:
    yield encode_header(encode_cid(codec, digest))
    yield encode_section(codec, digest, block)


def _car_request(request: web.Request) -> _CarRequest | None:
    """What kind of answer is wanted, None for a raw block; 400 or 406 where none of ours is.

    The query goes before the header, as the specification says; a header that names both gets the block.
    """
    query, accepted = request.query, request.headers.get("Accept", "")
    wanted = query.get("format")
    options: dict[str, str] = {}
    if wanted is None:
        for media, parameters in _media_types(accepted):
            if media in (RAW_TYPE, CAR_TYPE):
                wanted = "raw" if media == RAW_TYPE else "car"
                options = parameters
                break
    if wanted == "raw":
        return None
    if wanted != "car":
        raise _Refused(
            400,
            f"ask for ?format=raw or ?format=car, or Accept {RAW_TYPE} or {CAR_TYPE}: nothing else is served",
        )
    version = query.get("car-version", options.get("version", "1"))
    order = query.get("car-order", options.get("order", "dfs"))
    duplicates = query.get("car-dups", options.get("dups", "n"))
    if version != "1" or order not in ("dfs", "unk") or duplicates not in ("y", "n"):
        raise _Refused(406, "a CAR here has version=1, order=dfs and dups=y or n")
    scope = query.get("dag-scope", "all")
    if scope not in ("block", "entity", "all"):
        raise _Refused(400, "dag-scope is block, entity or all")
    bounds = query.get("entity-bytes")
    if bounds is None:
        return _CarRequest(scope, 0, None, duplicates == "y")
    found = re.fullmatch(r"(-?[0-9]{1,19}):(\*|-?[0-9]{1,19})", bounds, re.ASCII)
    if found is None:
        raise _Refused(400, "entity-bytes is from:to, two whole numbers or * for the end")
    last = None if found[2] == "*" else int(found[2])
    return _CarRequest("entity", int(found[1]), last, duplicates == "y")


def _media_types(accepted: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The media types of an Accept header in their order, each with its parameters."""
    for entry in accepted.split(","):
        media, *parameters = (part.strip() for part in entry.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        yield media.lower(), {name.strip().lower(): value.strip().lower() for name, _, value in pairs}


def _byte_range(car: _CarRequest, size_bytes: int) -> tuple[int, int]:
    """[start, stop) of the file, 400 where that lies beyond its end. An empty range asks for the root."""
    first = car.first if car.first >= 0 else max(0, size_bytes + car.first)
    last = size_bytes - 1 if car.last is None else car.last if car.last >= 0 else size_bytes + car.last
    if first >= size_bytes > 0 or (car.last is not None and 0 <= car.last < car.first):
        raise _Refused(400, f"the range lies outside a file of {size_bytes} bytes")
    return first, max(first, last + 1)


def _headers(cid: str, car: _CarRequest | None) -> dict[str, str]:
    if car is None:
        kind, suffix, etag = RAW_TYPE, "bin", f'"{cid}.raw"'
    else:
        kind, suffix = f"{CAR_TYPE}; version=1; order=dfs; dups={'y' if car.duplicates else 'n'}", "car"
        asked = f"{car.scope} {car.first} {car.last} {car.duplicates}"
        etag = f'W/"{cid}.car.{hashlib.sha256(asked.encode()).hexdigest()[:16]}"'
    return {
        "Content-Type": kind,
        "Content-Disposition": f'attachment; filename="{cid}.{suffix}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "public, max-age=29030400, immutable",
        "Etag": etag,
        "X-Ipfs-Path": f"/ipfs/{cid}",
        "X-Ipfs-Roots": cid,
    }


def _matches(if_none_match: str, etag: str) -> bool:
    """Whether the reader has this answer already (weak comparison, RFC 9110 section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag.removeprefix("W/") in tags


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        text=text + "\n",
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", **(headers or {})},
    )
