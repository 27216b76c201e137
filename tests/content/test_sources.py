"""Places beside the own store: whatever they hand out is hashed, and what they do wrong is named."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from citrate_node.content.block_store import BlockStore
from citrate_node.content.gateway import Gateway
from citrate_node.content.interface import ContentMissing, ContentRefused
from citrate_node.content.sources import FolderSource, GatewaySource, from_sources, gateway_url
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.content_id import LEAF_SIZE_BYTES, content_id

SMALL = b"a small content"
LARGE = hashlib.shake_128(b"three leaves").digest(2 * LEAF_SIZE_BYTES + 7)


@asynccontextmanager
async def answering(respond: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    """A server of strangers; gives its URL."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return respond(request)

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "one block", "three leaves"])
async def test_a_content_comes_whole_out_of_a_gateway_and_out_of_a_folder(
    tmp_path: Path, data: bytes
) -> None:
    async with EmbeddedStore(tmp_path / "store") as store, Gateway(store) as gateway:
        content = await store.put(data)
        for source in (GatewaySource(gateway.address + "/ipfs/"), FolderSource(tmp_path / "store")):
            assert await source.get(content) == data
            assert await source.resolve(content.cid, len(data)) == content
            assert await source.get(content) == data


async def test_what_a_source_does_not_have_is_missing_and_the_next_one_is_asked(tmp_path: Path) -> None:
    content = content_id(SMALL)
    BlockStore(tmp_path / "empty").close()
    async with EmbeddedStore(tmp_path / "store") as store, Gateway(store) as gateway:
        empty, absent = FolderSource(tmp_path / "empty"), FolderSource(tmp_path / "absent")
        asked = GatewaySource(gateway.address)
        for source in (empty, asked):
            with pytest.raises(ContentMissing):
                await source.get(content)
        with pytest.raises(ServiceError, match="there is no content store at"):
            await absent.get(content)
        assert await from_sources([absent, empty, asked], content) == (None, None)
        await store.put(SMALL)
        assert await from_sources([absent, empty, asked], content) == (SMALL, gateway.address)


async def test_a_folder_is_asked_anew_so_what_is_stored_later_is_found(tmp_path: Path) -> None:
    source = FolderSource(tmp_path / "later")
    content = content_id(LARGE)
    assert await from_sources([source], content) == (None, None)
    store = BlockStore(tmp_path / "later")  # stays open: the reader stands beside its writer
    store.put(LARGE)
    assert await from_sources([source], content) == (LARGE, str(tmp_path / "later"))
    store.close()


async def test_a_root_above_the_limit_is_refused_before_its_leaves_are_read(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "store") as store, Gateway(store) as gateway:
        content = await store.put(LARGE)
        for source in (GatewaySource(gateway.address), FolderSource(tmp_path / "store")):
            with pytest.raises(ContentRefused, match="the limit is 1000"):
                await source.resolve(content.cid, 1000)


async def test_a_gateway_that_gives_other_bytes_is_refused() -> None:
    async with answering(lambda request: web.Response(body=b"another content")) as url:
        with pytest.raises(ContentRefused, match=r"another block for bafkrei.*does not hash to its name"):
            await GatewaySource(url).get(content_id(SMALL))


async def test_a_gateway_that_sends_too_much_is_cut_off() -> None:
    async with answering(lambda request: web.Response(body=bytes(3 * LEAF_SIZE_BYTES))) as url:
        with pytest.raises(ContentRefused, match=f"more than {len(SMALL)} bytes"):
            await GatewaySource(url).get(content_id(SMALL))


async def test_a_tree_that_hashes_to_its_name_and_has_another_shape_is_refused(tmp_path: Path) -> None:
    """The size on chain allows one tree only."""
    async with EmbeddedStore(tmp_path / "store") as store, Gateway(store) as gateway:
        content = await store.put(LARGE)
        other = type(content)(content.digest, content.size_bytes + 1)
        with pytest.raises(ContentRefused, match="does not part"):
            await GatewaySource(gateway.address).get(other)


@pytest.mark.parametrize("status", [302, 400, 500])
async def test_another_answer_than_a_block_is_named(status: int) -> None:
    def respond(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "http://elsewhere.invalid/"})

    async with answering(respond) as url:
        with pytest.raises(ServiceError, match=f"answered {status}.*\n  name a gateway that serves"):
            await GatewaySource(url).get(content_id(SMALL))


async def test_a_gateway_that_never_ends_is_given_up() -> None:
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(30), "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"did not give bafkrei.* within 0\.2 s"):
            await GatewaySource(url, block_timeout_s=0.2).get(content_id(SMALL))


async def test_a_gateway_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceError, match=r"cannot read bafkrei.* from http://127\.0\.0\.1:9 "):
        await GatewaySource("http://127.0.0.1:9").get(content_id(SMALL))


@pytest.mark.parametrize(
    "text", ["", "ipfs.io", "ftp://a", "http://", "http://a?x=1", "http://u:p@a", "http://[::"]
)
def test_an_address_that_is_no_gateway_s_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no gateway"):
        gateway_url(text)
