"""KuboStore against a real daemon that is not ours: js-ipfs 0.66.1 (see js_ipfs.py in tests/).

It is not Kubo. Known to be different, and why this file cannot show more: it ignores `max-file-links` (above
174 leaves `add` gives another root; found out here), accepts damaged CARs, answers `dag/get` with 500, does
not report locality in `files/stat`, serves no trustless gateway, and its garbage collection is its own.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from js_ipfs import needs_package, running_js_ipfs
from store_samples import LEAF, stream

from citrate_node.content.interface import ContentMissing, ContentRefused
from citrate_node.content.ipfs_http_client import IpfsHttpClient
from citrate_node.content.kubo import KuboStore
from citrate_node.content.kubo_rpc import KuboRefused, KuboRpc, Parts
from citrate_node.protocol.content_id import content_id

pytestmark = [pytest.mark.slow, needs_package("js-ipfs", ".bin/jsipfs")]


@pytest.fixture(scope="module")
def rpc_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_js_ipfs(tmp_path_factory.mktemp("js-ipfs")) as url:
        yield url


@pytest.fixture
async def kubo(rpc_url: str, tmp_path: Path) -> AsyncIterator[KuboStore]:
    async with KuboStore(rpc_url, tmp_path / "content", repo_gc=True, block_timeout_ms=3_000) as store:
        yield store


async def test_a_real_daemon_is_used_through_the_library_ipfshttpclient_too(
    rpc_url: str, tmp_path: Path
) -> None:
    pytest.importorskip("ipfshttpclient", reason="ipfshttpclient is not installed (extra of that name)")
    async with KuboStore(IpfsHttpClient(rpc_url), tmp_path / "content", owner="library") as kubo:
        data = stream(LEAF, "many") * 180
        content = await kubo.put(data, ephemeral_checkpoint=1)
        assert (content, await kubo.get(content)) == (content_id(data), data)
        assert (await kubo.collect(1)).contents_removed == (content,)
        assert not await kubo.has(content)


class WithoutImport(KuboRpc):
    """As if the daemon had no `dag/import`."""

    async def import_car(self, parts: Parts) -> tuple[str, ...]:
        raise KuboRefused("dag/import", 404, "")


async def test_a_real_daemon_keeps_serves_and_lets_go(kubo: KuboStore, tmp_path: Path) -> None:
    datas = [b"", b"hello world", stream(LEAF), stream(3 * LEAF + 7), stream(LEAF, "many") * 200]
    contents = [await kubo.put(data) for data in datas[:-1]]
    (tmp_path / "large").write_bytes(datas[-1])
    # 200 leaves: beyond the 174 links that `add` makes of it
    contents.append(await kubo.put(tmp_path / "large"))
    assert contents == [content_id(data) for data in datas]
    for content, data in zip(contents, datas, strict=True):
        assert await kubo.has(content)
        assert await kubo.get(content) == data
        assert await kubo.get_by_cid(content.cid, len(data)) == data
    tail = [part async for part in kubo.read(contents[3], 2 * LEAF + 1)]
    assert b"".join(tail) == datas[3][2 * LEAF + 1 :]


async def test_a_real_daemon_forgets_what_a_collection_lets_go(kubo: KuboStore) -> None:
    kept, delta = await kubo.put(b"weights"), await kubo.put(stream(2 * LEAF), ephemeral_checkpoint=1)
    report = await kubo.collect(1)
    assert report.contents_removed == (delta,)
    assert report.blocks_removed >= 3
    assert (await kubo.has(kept), await kubo.has(delta)) == (True, False)
    assert await kubo.get(kept) == b"weights"
    with pytest.raises(ContentMissing):
        await kubo.get(delta)


async def test_two_nodes_on_one_real_daemon_do_not_let_go_for_each_other(
    kubo: KuboStore, rpc_url: str, tmp_path: Path
) -> None:
    async with KuboStore(rpc_url, tmp_path / "other", owner="other") as other:
        for store in (kubo, other):
            delta = await store.put(stream(LEAF, "shared"), ephemeral_checkpoint=1)
        assert (await kubo.collect(1)).contents_removed == (delta,)
        assert await other.get(delta) == stream(LEAF, "shared")


async def test_a_real_daemon_s_add_gives_our_name_or_is_found_out(rpc_url: str, tmp_path: Path) -> None:
    async with KuboStore(WithoutImport(rpc_url), tmp_path / "content") as kubo:
        content = await kubo.put(stream(3 * LEAF + 7))
        assert await kubo.get(content) == stream(3 * LEAF + 7)
        with pytest.raises(ContentRefused, match="does not follow the profile unixfs-v1-2025"):
            await kubo.put(stream(LEAF, "many") * 175)
        assert [entry.content for entry in await kubo.ls()] == [content]
