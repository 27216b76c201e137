"""KuboStore against a daemon that lies, fails or lacks commands (a stand-in; see fake_kubo)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from fake_kubo import FakeKubo, failure, lines, running_fake_kubo
from store_samples import LEAF, stream

from citrate_node.content import kubo as kubo_module
from citrate_node.content.interface import (
    ContentDamaged,
    ContentMissing,
    ContentRefused,
    Entry,
    StoreBusy,
)
from citrate_node.content.kubo import KuboRefused, KuboStore
from citrate_node.errors import ServiceError
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
            "pin": "true",
        },
    )


async def test_a_daemon_that_names_the_content_otherwise_is_refused(fake: FakeKubo, kubo: KuboStore) -> None:
    """js-ipfs does so above 174 links: it ignores max-file-links. Its wrong pin is taken away again."""
    wrong = content_id(b"another").cid
    fake.missing_commands = {"dag/import"}
    fake.answers["add"] = [lines({"Name": "content", "Hash": wrong, "Size": "9"})]
    with pytest.raises(KuboRefused):  # the stand-in never pinned it, and says so
        await kubo.put(b"mine")
    assert fake.requests[-1] == ("pin/rm", {"arg": wrong})
    fake.missing_commands = set()
    fake.answers["dag/import"] = [lines({"Root": {"Cid": {"/": wrong}, "PinErrorMsg": ""}})]
    with pytest.raises(ContentRefused, match=f"not {content_id(b'mine').cid}"):
        await kubo.put(b"mine")
    assert await kubo.ls() == ()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: lines({"Root": {"Cid": {"/": content_id(b"x").cid}, "PinErrorMsg": "no room"}}), "no room"),
        (lambda: lines({"Message": "blockstore: closed", "Code": 0, "Type": "error"}), "blockstore: closed"),
        (lambda: failure("merkledag: not found"), "merkledag: not found"),
        (lambda: web.Response(status=500, text="upstream fell over"), "upstream fell over"),
        (lambda: web.Response(text="<html>login</html>"), "not JSON"),
        (lambda: web.Response(text="[]\n"), "not a JSON object"),
        (lambda: lines(), "Kubo imported"),
        (lambda: web.Response(body=b" " * (1 << 20) + b"{}"), "above the limit of 1048576"),
    ],
)
async def test_a_failed_import_says_what_the_daemon_said_and_keeps_nothing(
    fake: FakeKubo, kubo: KuboStore, answer, message: str
) -> None:
    fake.answers["dag/import"] = [answer()]
    with pytest.raises(ServiceError, match=message):
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
    fake: FakeKubo, kubo: KuboStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubo_module, "RETRY_SECONDS", 0.01)
    fake.drop_connections = kubo_module.ATTEMPTS - 1
    content = await kubo.put(stream(LEAF + 1))
    assert await kubo.get(content) == stream(LEAF + 1)
    fake.drop_connections = kubo_module.ATTEMPTS
    with pytest.raises(ServiceError, match=r"cannot reach Kubo at http://127.0.0.1:\d+ \(.* in block/get\)"):
        await kubo.get(content)


async def test_no_daemon_at_the_address_says_how_to_do_without(tmp_path: Path) -> None:
    async with KuboStore("http://127.0.0.1:1", tmp_path / "content") as store:
        with pytest.raises(ServiceError, match=r"cannot reach Kubo.*\n.*the embedded store needs no daemon"):
            await store.put(b"x")


async def test_a_daemon_that_asks_for_a_password_gets_it(fake: FakeKubo, tmp_path: Path) -> None:
    fake.authorization = "Bearer secret"
    async with KuboStore(fake.url, tmp_path / "one", authorization="Bearer secret") as store:
        assert await store.version() == "0.0.0-stand-in"
    async with KuboStore(fake.url, tmp_path / "two") as store:
        with pytest.raises(KuboRefused, match="403 - Forbidden"):
            await store.put(b"x")


async def test_collection_unpins_only_what_this_node_kept(fake: FakeKubo, kubo: KuboStore) -> None:
    others = fake.store.put(b"someone else's")
    fake.pins[others.cid] = others
    mine = await kubo.put(b"mine", ephemeral_checkpoint=1)
    report = await kubo.collect(1)
    assert (report.contents_removed, set(fake.pins)) == ((mine,), {others.cid})
    assert ("repo/gc", {}) not in fake.requests


async def test_a_pin_that_someone_took_away_is_no_longer_had_and_does_not_stop_collection(
    fake: FakeKubo, kubo: KuboStore
) -> None:
    content = await kubo.put(b"mine", ephemeral_checkpoint=1)
    fake.pins.clear()
    assert not await kubo.has(content)
    assert (await kubo.collect(1)).contents_removed == (content,)
    assert await kubo.ls() == ()


async def test_a_pin_the_daemon_cannot_complete_is_missing(fake: FakeKubo, kubo: KuboStore) -> None:
    content = await kubo.put(b"mine")
    fake.answers["pin/add"] = [failure("pin: context deadline exceeded")]
    with pytest.raises(ContentMissing):
        await kubo.pin(content)
    assert await kubo.ls() == (Entry(content, True, None),)


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
