"""A stand-in for a Kubo daemon: the few RPC commands that KuboStore uses, over an embedded store.

It is NOT Kubo. It answers as Kubo's reference says (status codes, one JSON object per line, errors as
{"Message", "Code", "Type"}), so that KuboStore is exercised over real HTTP; that a real daemon agrees has
to be shown against one. Faults are set on it by the tests.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from citrate_node.content.block_store import BlockStore
from citrate_node.content.car import import_car
from citrate_node.content.interface import ContentMissing, ContentRefused
from citrate_node.protocol.content_id import ContentId, parse_cid


class FakeKubo:
    """The state of the stand-in: blocks, pins, files, requests seen, and what to do wrong."""

    def __init__(self, folder: Path) -> None:
        self.store = BlockStore(folder, disk_reserve_bytes=0)
        self.pins: dict[str, ContentId] = {}
        self.folders: set[str] = set()
        self.holdings: dict[str, ContentId] = {}
        """Files of the daemon's own file system, by path."""
        self.tells_locality = True
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.missing_commands: set[str] = set()
        self.answers: dict[str, list[web.Response]] = {}
        """Prepared answers per command, used up before the real one."""
        self.drop_connections = 0
        self.authorization: str | None = None
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/api/v0/{command:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        command = request.match_info["command"]
        if request.method != "POST":
            return web.Response(status=405, text="405 - Method Not Allowed")
        if self.authorization is not None and request.headers.get("Authorization") != self.authorization:
            return web.Response(status=403, text="403 - Forbidden")
        self.requests.append((command, dict(request.query)))
        if self.drop_connections:
            self.drop_connections -= 1
            assert request.transport is not None
            request.transport.close()
            await asyncio.sleep(0.01)
        if self.answers.get(command):
            await request.read()
            return self.answers[command].pop(0)
        name = "do_" + command.replace("/", "_")
        if command in self.missing_commands or not hasattr(self, name):
            return web.Response(status=404, text="404 page not found")
        try:
            return await getattr(self, name)(request)
        except (ContentMissing, ContentRefused, ValueError) as error:
            return failure(str(error).splitlines()[0])

    async def do_version(self, request: web.Request) -> web.Response:
        return lines({"Version": "0.0.0-stand-in", "Commit": ""})

    async def do_dag_import(self, request: web.Request) -> web.Response:
        data = await _upload(request)
        content = await asyncio.to_thread(import_car, self.store, io.BytesIO(data), size_bytes_max=1 << 30)
        if request.query.get("pin-roots") == "false":
            return lines()
        self.pins[content.cid] = content
        return lines({"Root": {"Cid": {"/": content.cid}, "PinErrorMsg": ""}})

    async def do_add(self, request: web.Request) -> web.Response:
        content = self.store.put(await _upload(request))
        if request.query.get("pin") != "false":
            self.pins[content.cid] = content
        return lines({"Name": "content", "Hash": content.cid, "Size": str(content.size_bytes)})

    async def do_block_get(self, request: web.Request) -> web.Response:
        return web.Response(body=self.store.block(parse_cid(request.query["arg"])[1]))

    async def do_files_mkdir(self, request: web.Request) -> web.Response:
        self.folders.add(request.query["arg"])
        return web.Response()

    async def do_files_cp(self, request: web.Request) -> web.Response:
        source, path = request.query.getall("arg")
        if path.rpartition("/")[0] not in self.folders:
            return failure("file does not exist")
        if path in self.holdings:
            return failure("directory already has entry by that name")
        self.holdings[path] = self.store.resolve(source.removeprefix("/ipfs/"), 1 << 30)
        return web.Response()

    async def do_files_rm(self, request: web.Request) -> web.Response:
        if self.holdings.pop(request.query["arg"], None) is None and request.query.get("force") != "true":
            return failure("file does not exist")
        return web.Response()

    async def do_files_stat(self, request: web.Request) -> web.Response:
        content = self.holdings.get(request.query["arg"])
        if content is None:
            return failure("file does not exist")
        local = {"WithLocality": True, "Local": self.store.has(content)} if self.tells_locality else {}
        return lines({"Hash": content.cid, "Size": content.size_bytes, "Type": "file", **local})

    async def do_repo_gc(self, request: web.Request) -> web.Response:
        before = {path.name for path in (self.store.path / "blocks").iterdir()}
        kept = {*self.pins.values(), *self.holdings.values()}
        for content in self.store.pins():
            if content not in kept:
                self.store.unpin(content)
        self.store.collect()
        gone = before - {path.name for path in (self.store.path / "blocks").iterdir()}
        return lines(*({"Key": {"/": name}} for name in sorted(gone)))


def lines(*objects: object) -> web.Response:
    return web.Response(text="".join(json.dumps(line) + "\n" for line in objects))


def failure(message: str) -> web.Response:
    return web.json_response({"Message": message, "Code": 0, "Type": "error"}, status=500)


async def _upload(request: web.Request) -> bytes:
    reader = await request.multipart()
    part = await reader.next()
    return bytes(await part.read())  # type: ignore[union-attr]


@asynccontextmanager
async def running_fake_kubo(folder: Path, port: int = 0) -> AsyncIterator[FakeKubo]:
    fake = FakeKubo(folder)
    runner = web.AppRunner(fake.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.url = f"http://{host}:{port}"
    try:
        yield fake
    finally:
        await runner.cleanup()
        fake.store.close()
