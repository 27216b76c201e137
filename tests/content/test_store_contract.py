"""What the interface promises, asked of both stores: the embedded one, and Kubo (over a stand-in).

Kubo twice: through our own client, and through the library ipfshttpclient where it is installed.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_kubo import running_fake_kubo
from store_samples import LEAF, stream

from citrate_node.content.interface import ContentMissing, ContentRefused, ContentStore, Entry
from citrate_node.content.ipfs_http_client import IpfsHttpClient
from citrate_node.content.kubo import KuboStore
from citrate_node.content.kubo_rpc import Daemon, KuboRpc
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.content_id import content_id


@pytest.fixture(params=["embedded", "kubo stand-in", "kubo stand-in by ipfshttpclient"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ContentStore]:
    if request.param == "embedded":
        async with EmbeddedStore(tmp_path / "content", disk_reserve_bytes=0) as embedded:
            yield embedded
    else:
        async with (
            running_fake_kubo(tmp_path / "daemon") as fake,
            KuboStore(_daemon(request.param, fake.url), tmp_path / "content", repo_gc=True) as kubo,
        ):
            yield kubo


def _daemon(kind: str, url: str) -> Daemon:
    if kind == "kubo stand-in":
        return KuboRpc(url)
    pytest.importorskip("ipfshttpclient", reason="ipfshttpclient is not installed (extra of that name)")
    return IpfsHttpClient(url)


@pytest.mark.parametrize("size", [0, 1, LEAF, LEAF + 1, 3 * LEAF + 7])
async def test_bytes_come_back_under_the_name_computed_here(either: ContentStore, size: int) -> None:
    data = stream(size)
    content = await either.put(data)
    assert content == content_id(data)
    assert await either.has(content)
    assert await either.get(content) == data
    assert await either.get_by_cid(content.cid, size) == data
    for offset in {0, size // 2, size}:
        parts = [part async for part in either.read(content, offset)]
        assert b"".join(parts) == data[offset:]
    with pytest.raises(ValueError, match="lies outside"):
        await anext(aiter(either.read(content, size + 1)))


async def test_a_file_on_disk_is_stored_like_its_bytes(either: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(stream(2 * LEAF + 9))
    content = await either.put(tmp_path / "file")
    assert content == content_id(stream(2 * LEAF + 9))
    assert await either.get(content) == stream(2 * LEAF + 9)
    with pytest.raises(ConfigError, match="cannot read"):
        await either.put(tmp_path / "absent")


async def test_single_blocks_are_served_by_their_digest(either: ContentStore) -> None:
    await either.put(stream(LEAF + 1))
    assert await either.block(content_id(stream(LEAF)).digest) == stream(LEAF)
    with pytest.raises(ContentMissing):
        await either.block(bytes(32))


async def test_a_content_above_the_callers_limit_or_without_a_name_is_refused(either: ContentStore) -> None:
    content = await either.put(stream(LEAF + 1))
    with pytest.raises(ContentRefused, match="the limit is 1048576"):
        await either.get_by_cid(content.cid, LEAF)
    with pytest.raises(ConfigError, match="does not name a content"):
        await either.resolve("../secrets", LEAF)


async def test_absent_content_is_missing(either: ContentStore) -> None:
    absent = content_id(b"never stored")
    assert not await either.has(absent)
    for question in (either.get, either.pin, either.unpin):
        with pytest.raises(ContentMissing):
            await question(absent)
    assert await either.ls() == ()


async def test_pins_checkpoints_leases_and_collection(either: ContentStore) -> None:
    weights = await either.put(b"weights")
    early = await either.put(b"early", ephemeral_checkpoint=3)
    late = await either.put(b"late", ephemeral_checkpoint=4)
    followed = await either.put(b"followed", ephemeral_checkpoint=1)
    await either.pin(followed)
    assert await either.ls() == tuple(
        sorted(
            [
                Entry(weights, True, None),
                Entry(early, False, 3),
                Entry(late, False, 4),
                Entry(followed, True, 1),
            ],
            key=lambda entry: entry.content,
        )
    )
    assert await either.pins() == tuple(sorted([weights, followed]))
    with either.lease(early):
        assert (await either.collect(3)).contents_removed == ()
    report = await either.collect(3)
    assert (report.contents_removed, report.contents_kept) == ((early,), 3)
    assert [await either.has(c) for c in (weights, early, late, followed)] == [True, False, True, True]
    await either.unpin(weights)
    assert set((await either.collect(3)).contents_removed) == {weights}
    await either.unpin(followed)
    assert set((await either.collect(4)).contents_removed) == {late, followed}
    assert await either.ls() == ()
    with pytest.raises(ContentMissing):
        await either.get(late)


async def test_many_at_once_do_not_disturb_each_other(either: ContentStore) -> None:
    datas = [stream(LEAF + n, "shared") if n % 2 else stream(1000, str(n)) for n in range(12)]
    contents = await asyncio.gather(*(either.put(data, ephemeral_checkpoint=1) for data in [*datas, *datas]))
    await asyncio.gather(either.collect(0), *(either.get(content) for content in contents))
    assert await asyncio.gather(*(either.get(content) for content in contents)) == [*datas, *datas]
    assert len(await either.ls()) == 12


async def test_a_reading_that_is_left_early_gives_its_lease_back(either: ContentStore) -> None:
    content = await either.put(stream(3 * LEAF), ephemeral_checkpoint=1)
    reading = either.read(content)
    await anext(aiter(reading))
    assert (await either.collect(1)).contents_removed == ()
    await reading.aclose()  # type: ignore[attr-defined]
    assert (await either.collect(1)).contents_removed == (content,)


async def test_a_cancelled_put_leaves_nothing_kept(either: ContentStore) -> None:
    task = asyncio.create_task(either.put(bytes(200 * LEAF)))  # long to hash, one leaf to write
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    content = await either.put(b"the store goes on")
    assert await either.get(content) == b"the store goes on"
    assert [entry.content for entry in await either.ls()] == [content]


async def test_a_closed_store_says_so_and_closing_twice_is_harmless(either: ContentStore) -> None:
    content = await either.put(b"x")
    await either.close()
    await either.close()
    with pytest.raises(ServiceError, match="is closed"):
        await either.get(content)


async def test_a_store_opened_again_knows_what_it_keeps(tmp_path: Path) -> None:
    async with running_fake_kubo(tmp_path / "daemon") as fake:
        for number, opened in enumerate([lambda: EmbeddedStore(tmp_path / "one", disk_reserve_bytes=0)] * 2):
            async with opened() as store:
                await store.put(b"delta", ephemeral_checkpoint=5 - number)
                assert store.ephemeral_checkpoint_of(content_id(b"delta")) == 5
        for number in range(2):
            async with KuboStore(fake.url, tmp_path / "two") as store:
                await store.put(b"delta", ephemeral_checkpoint=5 - number)
                assert store.ephemeral_checkpoint_of(content_id(b"delta")) == 5
