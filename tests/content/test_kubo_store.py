"""KuboStore against a daemon that lies, fails or lacks commands (a stand-in; see fake_kubo)."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from fake_kubo import FakeKubo, failure, lines, running_fake_kubo
from store_samples import LEAF, stream

from citrate_node.content import kubo_rpc
from citrate_node.content.interface import (
    ContentDamaged,
    ContentMissing,
    ContentRefused,
    Entry,
    StoreBusy,
)
from citrate_node.content.ipfs_http_client import IpfsHttpClient, _multiaddr
from citrate_node.content.kubo import KuboStore
from citrate_node.content.kubo_rpc import KuboRefused, KuboRpc
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.content_id import BLOCK_SIZE_BYTES_MAX, content_id


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeKubo]:
    async with running_fake_kubo(tmp_path / "daemon") as running:
        yield running


@pytest.fixture
async def kubo(fake: FakeKubo, tmp_path: Path) -> AsyncIterator[KuboStore]:
    async with KuboStore(fake.url, tmp_path / "content") as store:
        yield store


async def test_a_daemon_without_dag_import_gets_add_with_every_parameter(
    fake: FakeKubo, kubo: KuboStore
) -> None:
    fake.missing_commands = {"dag/import"}
    content = await kubo.put(stream(2 * LEAF))
    assert await kubo.get(content) == stream(2 * LEAF)
    command, parameters = next(request for request in fake.requests if request[0] == "add")
    assert (command, parameters) == (
        "add",
        {
            "cid-version": "1",
            "hash": "sha2-256",
            "raw-leaves": "true",
            "chunker": "size-1048576",
            "max-file-links": "1024",
            "trickle": "false",
            "inline": "false",
            "nocopy": "false",
            "cid-base": "base32",
            "progress": "false",
            "pin": "false",
        },
    )


async def test_a_daemon_that_names_the_content_otherwise_is_refused(fake: FakeKubo, kubo: KuboStore) -> None:
    """js-ipfs does so above 174 links: it ignores max-file-links. Nothing is kept under the wrong name."""
    wrong = content_id(b"another").cid
    for command, answer in (
        ("dag/import", lines({"Root": {"Cid": {"/": wrong}, "PinErrorMsg": ""}})),
        ("add", lines({"Name": "content", "Hash": wrong, "Size": "9"})),
        ("add", lines()),
    ):
        fake.missing_commands = {"dag/import"} - {command}
        fake.answers[command] = [answer]
        with pytest.raises(ContentRefused, match=f"not {content_id(b'mine').cid}"):
            await kubo.put(b"mine")
    assert (await kubo.ls(), fake.holdings) == ((), {})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: lines({"Message": "blockstore: closed", "Code": 0, "Type": "error"}), "blockstore: closed"),
        (lambda: failure("merkledag: not found"), "merkledag: not found"),
        (lambda: web.Response(status=500, text="upstream fell over"), "upstream fell over"),
        (lambda: web.Response(text="<html>login</html>"), "not JSON"),
        (lambda: web.Response(text="[]\n"), "not a JSON object"),
        (lambda: web.Response(body=b" " * (1 << 20) + b"{}"), "above the limit of 1048576"),
    ],
)
async def test_a_failed_import_says_what_the_daemon_said_and_keeps_nothing(
    fake: FakeKubo, kubo: KuboStore, answer, message: str
) -> None:
    fake.answers["dag/import"] = [answer()]
    with pytest.raises(ServiceError, match=message):
        await kubo.put(b"x")
    assert (await kubo.ls(), fake.holdings) == ((), {})


async def test_an_import_of_which_the_daemon_kept_nothing_is_not_recorded(
    fake: FakeKubo, kubo: KuboStore
) -> None:
    """It said 200 and has no root: the entry in its file system cannot be made."""
    fake.answers["dag/import"] = [lines()]
    with pytest.raises(KuboRefused, match="files/cp"):
        await kubo.put(b"x")
    assert await kubo.ls() == ()


async def test_a_daemon_that_serves_damaged_blocks_is_found_out(fake: FakeKubo, kubo: KuboStore) -> None:
    """Kubo does not hash what it reads from its disk, unless told to."""
    content = await kubo.put(stream(LEAF + 3))
    fake.answers["block/get"] = [web.Response(body=b"x")]
    with pytest.raises(ContentDamaged, match="other bytes"):
        await kubo.get(content)
    fake.answers["block/get"] = [web.Response(body=b"x")]
    with pytest.raises(ContentDamaged, match="other bytes"):
        await kubo.block(content.digest)
    assert await kubo.get(content) == stream(LEAF + 3)


async def test_an_endless_block_is_cut_off(fake: FakeKubo, kubo: KuboStore) -> None:
    content = await kubo.put(b"x")
    fake.answers["block/get"] = [web.Response(body=bytes(BLOCK_SIZE_BYTES_MAX + 1))]
    with pytest.raises(ContentRefused, match="above the limit of 2097152"):
        await kubo.get(content)


async def test_a_lost_connection_is_tried_again_and_given_up_in_the_end(
    fake: FakeKubo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubo_rpc, "RETRY_SECONDS", 0.01)
    async with KuboStore(KuboRpc(fake.url, outage_ms=400), tmp_path / "content") as kubo:
        fake.drop_connections = 2
        content = await kubo.put(stream(LEAF + 1))
        assert await kubo.get(content) == stream(LEAF + 1)
        fake.drop_connections = 1_000
        with pytest.raises(
            ServiceError, match=r"cannot reach Kubo at http://127.0.0.1:\d+ \(.* in block/get\)"
        ):
            await kubo.get(content)


async def test_no_daemon_at_the_address_says_how_to_do_without(tmp_path: Path) -> None:
    async with KuboStore(KuboRpc("http://127.0.0.1:1", outage_ms=300), tmp_path / "content") as store:
        with pytest.raises(ServiceError, match=r"cannot reach Kubo.*\n.*the embedded store needs no daemon"):
            await store.put(b"x")


async def test_a_daemon_that_asks_for_a_password_gets_it(fake: FakeKubo, tmp_path: Path) -> None:
    fake.authorization = "Bearer secret"
    async with KuboStore(KuboRpc(fake.url, authorization="Bearer secret"), tmp_path / "one") as store:
        assert await store.version() == "0.0.0-stand-in"
    async with KuboStore(fake.url, tmp_path / "two") as store:
        with pytest.raises(KuboRefused, match="403 - Forbidden"):
            await store.put(b"x")


async def test_pins_of_the_daemon_are_never_touched(fake: FakeKubo, kubo: KuboStore) -> None:
    """Also where its operator pinned the very content that a node keeps."""
    others = fake.store.put(b"someone else's")
    mine = await kubo.put(b"mine", ephemeral_checkpoint=1)
    fake.pins |= {others.cid: others, mine.cid: mine}
    assert (await kubo.collect(1)).contents_removed == (mine,)
    assert (set(fake.pins), fake.holdings) == ({others.cid, mine.cid}, {})
    asked = {command for command, _ in fake.requests}
    assert asked == {"dag/import", "files/mkdir", "files/cp", "files/rm"}


async def test_two_nodes_on_one_daemon_let_go_each_for_itself(fake: FakeKubo, tmp_path: Path) -> None:
    async with (
        KuboStore(fake.url, tmp_path / "one", owner="node-1", repo_gc=True) as one,
        KuboStore(fake.url, tmp_path / "two", owner="node-2", repo_gc=True) as two,
    ):
        for store in (one, two):
            delta = await store.put(stream(LEAF + 1), ephemeral_checkpoint=1)
        assert (await one.collect(1)).contents_removed == (delta,)
        assert (await one.has(delta), await two.has(delta)) == (False, True)
        assert await two.get(delta) == stream(LEAF + 1)
        assert set(fake.holdings) == {f"/citrate/node-2/{delta.cid}"}
        assert (await two.collect(1)).blocks_removed == 3


@pytest.mark.parametrize("tells_locality", [True, False], ids=["with-local", "without"])
async def test_what_someone_took_away_is_no_longer_had_and_does_not_stop_collection(
    fake: FakeKubo, kubo: KuboStore, tells_locality: bool
) -> None:
    fake.tells_locality = tells_locality
    content = await kubo.put(b"mine", ephemeral_checkpoint=1)
    assert await kubo.has(content)
    fake.holdings.clear()
    assert not await kubo.has(content)
    assert (await kubo.collect(1)).contents_removed == (content,)
    assert await kubo.ls() == ()


async def test_a_block_that_vanished_from_the_daemon_s_disk_is_told_by_its_locality(
    fake: FakeKubo, kubo: KuboStore
) -> None:
    content = await kubo.put(stream(2 * LEAF))
    (fake.store.path / "blocks" / content_id(stream(LEAF)).digest.hex()).unlink()
    assert not await kubo.has(content)
    assert await kubo.open_path(content) is None
    await kubo.put(stream(2 * LEAF))
    assert await kubo.has(content)


async def test_a_pin_the_daemon_cannot_complete_is_missing(fake: FakeKubo, kubo: KuboStore) -> None:
    content = await kubo.put(b"mine", ephemeral_checkpoint=1)
    fake.answers["block/get"] = [failure("block get: context deadline exceeded")]
    with pytest.raises(ContentMissing):
        await kubo.pin(content)
    assert await kubo.ls() == (Entry(content, False, 1),)
    await kubo.pin(content)
    assert await kubo.ls() == (Entry(content, True, 1),)


async def test_files_for_senders_are_whole_verified_and_within_a_budget(
    fake: FakeKubo, tmp_path: Path
) -> None:
    async with KuboStore(fake.url, tmp_path / "content", assembled_bytes_max=3 * LEAF) as kubo:
        first, second = await kubo.put(stream(2 * LEAF, "a")), await kubo.put(stream(2 * LEAF, "b"))
        path = await kubo.open_path(first)
        assert path is not None
        assert path.read_bytes() == stream(2 * LEAF, "a")
        assert await kubo.open_path(first) == path
        assert await kubo.open_path(second) is not None
        assert not path.exists(), "the older one made room"
        fake.answers["block/get"] = [web.Response(body=b"x")]
        assert await kubo.open_path(first) is None, "a damaged block is not sent on"
        assert list((tmp_path / "content" / "incoming").iterdir()) == []
        assert await kubo.open_path(content_id(b"unknown")) is None
        await kubo.unpin(second)
        await kubo.collect()
        assert list((tmp_path / "content" / "assembled").iterdir()) == []


@pytest.mark.parametrize("owner", ["", "a/b", "..", "x" * 65])
def test_an_owner_that_would_be_another_path_is_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        KuboStore("http://127.0.0.1:1", tmp_path / "content", owner=owner)


async def test_one_node_per_memory_folder(fake: FakeKubo, kubo: KuboStore, tmp_path: Path) -> None:
    with pytest.raises(StoreBusy):
        KuboStore(fake.url, tmp_path / "content")


async def test_content_that_holds_a_boundary_arrives_unchanged(
    fake: FakeKubo, kubo: KuboStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta is written by strangers: a boundary they can guess would end the upload early."""
    used: list[str] = []
    real = httpx.AsyncClient.stream

    def watched(self, method, url, **options):
        used.append(str(options["headers"].get("Content-Type", "")).rpartition("boundary=")[2])
        return real(self, method, url, **options)

    monkeypatch.setattr(httpx.AsyncClient, "stream", watched)
    await kubo.put(b"first")
    data = f"\r\n--{used[0]}--\r\n".encode() * 3
    content = await kubo.put(data)
    assert await kubo.get(content) == data


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://[::1]:5001/", "/ip6/::1/tcp/5001/http"),
        ("https://ipfs.example", "/dns/ipfs.example/tcp/443/https"),
    ],
)
def test_the_library_is_given_the_url_as_a_multiaddr(url: str, address: str) -> None:
    assert _multiaddr(url) == address


def test_the_library_that_is_not_installed_and_an_address_that_is_no_url_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="is no http"):
        _multiaddr("/ip4/127.0.0.1/tcp/5001")
    monkeypatch.setitem(sys.modules, "ipfshttpclient", None)
    with pytest.raises(ConfigError, match="the library ipfshttpclient is not installed"):
        IpfsHttpClient("http://127.0.0.1:5001")


async def test_a_daemon_whose_disk_is_full_leaves_nothing_recorded(fake: FakeKubo, kubo: KuboStore) -> None:
    old = await kubo.put(b"old")
    fake.answers["dag/import"] = [failure("write blocks/XY.data: no space left on device")]
    with pytest.raises(KuboRefused, match="no space left on device"):
        await kubo.put(stream(2 * LEAF))
    fake.answers["files/cp"] = [failure("no space left on device")]
    with pytest.raises(KuboRefused, match="no space left on device"):
        await kubo.put(stream(2 * LEAF))
    assert await kubo.ls() == (Entry(old, True, None),)
    assert await kubo.get(old) == b"old"
    await kubo.put(stream(2 * LEAF))


async def test_a_daemon_that_is_started_again_is_waited_for(tmp_path: Path) -> None:
    async with running_fake_kubo(tmp_path / "daemon") as fake:
        port = int(fake.url.rpartition(":")[2])
    async with KuboStore(f"http://127.0.0.1:{port}", tmp_path / "content") as kubo:
        putting = asyncio.create_task(kubo.put(stream(LEAF + 1)))
        await asyncio.sleep(0.3)
        assert not putting.done()
        async with running_fake_kubo(tmp_path / "daemon", port=port):
            content = await putting
            assert await kubo.get(content) == stream(LEAF + 1)
