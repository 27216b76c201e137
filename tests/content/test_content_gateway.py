"""The trustless gateway, case by case as its specification has them, over real HTTP."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from store_samples import LEAF, stream

from citrate_node.content.block_store import BlockStore
from citrate_node.content.car import import_car, read_header, read_sections
from citrate_node.content.gateway import Gateway, GatewayLimits
from citrate_node.content.interface import ContentRefused
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ServiceError
from citrate_node.protocol.content_id import DAG_PB, RAW, ContentId, content_id, decode_node

RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car"
SMALL = stream(1000)
LARGE = stream(3 * LEAF + 10, "large")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(tmp_path / "content", disk_reserve_bytes=0) as opened:
        await opened.put(SMALL)
        await opened.put(LARGE)
        yield opened


@pytest.fixture
async def http(store: EmbeddedStore) -> AsyncIterator[httpx.AsyncClient]:
    async with Gateway(store) as gateway, httpx.AsyncClient(base_url=gateway.address) as client:
        yield client


def blocks(car: bytes) -> list[bytes]:
    """Digests in a CAR, in order; reading them hashes every block."""
    body = io.BytesIO(car)
    read_header(body)
    return [digest for _, digest, _ in read_sections(body)]


async def leaves(store: EmbeddedStore, content: ContentId) -> list[bytes]:
    return [link.digest for link in decode_node(await store.block(content.digest))]


async def test_a_raw_block_with_all_its_headers(http: httpx.AsyncClient) -> None:
    cid = content_id(SMALL).cid
    answer = await http.get(f"/ipfs/{cid}?format=raw")
    assert (answer.status_code, answer.content) == (200, SMALL)
    expected = {
        "Content-Type": RAW_TYPE,
        "Content-Length": "1000",
        "Content-Disposition": f'attachment; filename="{cid}.bin"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "public, max-age=29030400, immutable",
        "Etag": f'"{cid}.raw"',
        "X-Ipfs-Path": f"/ipfs/{cid}",
        "X-Ipfs-Roots": cid,
    }
    assert {name: answer.headers[name] for name in expected} == expected


async def test_head_is_get_without_the_body(http: httpx.AsyncClient) -> None:
    for name in (content_id(SMALL).cid, content_id(LARGE).cid, "bafkqaaa"):
        for kind in ("raw", "car"):
            url = f"/ipfs/{name}?format={kind}"
            head, got = await http.head(url), await http.get(url)
            ignored = {"date", "transfer-encoding"}
            if kind == "car" or name == "bafkqaaa":  # streamed, or empty: its length is not said in advance
                ignored.add("content-length")
            assert (head.status_code, head.content) == (200, b"")
            assert {n: v for n, v in head.headers.items() if n not in ignored} == {
                n: v for n, v in got.headers.items() if n not in ignored
            }


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("", RAW_TYPE, (200, RAW_TYPE)),
        ("", f"text/html, {CAR_TYPE};q=0.9", (200, f"{CAR_TYPE}; version=1; order=dfs; dups=n")),
        ("", f"{CAR_TYPE}; version=1; order=dfs; dups=y", (200, f"{CAR_TYPE}; version=1; order=dfs; dups=y")),
        ("?format=raw", CAR_TYPE, (200, RAW_TYPE)),
        ("?format=car&car-dups=n", f"{CAR_TYPE};dups=y", (200, f"{CAR_TYPE}; version=1; order=dfs; dups=n")),
        ("", "*/*", (400, "text/plain; charset=utf-8")),
        ("", "text/html", (400, "text/plain; charset=utf-8")),
        ("?format=json", RAW_TYPE, (400, "text/plain; charset=utf-8")),
        ("?format=car&car-version=2", "*/*", (406, "text/plain; charset=utf-8")),
        ("", f"{CAR_TYPE}; order=bfs", (406, "text/plain; charset=utf-8")),
        ("?format=car&dag-scope=some", "*/*", (400, "text/plain; charset=utf-8")),
    ],
)
async def test_the_format_comes_from_the_query_then_from_accept(
    http: httpx.AsyncClient, query: str, accept: str, expected: tuple[int, str]
) -> None:
    answer = await http.get(f"/ipfs/{content_id(SMALL).cid}{query}", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == expected
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/ipfs/{content_id(b'absent').cid}?format=raw", 404),
        (f"/ipfs/{content_id(b'absent').cid}?format=car", 404),
        ("/ipfs/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG?format=raw", 400),
        ("/ipfs/not-a-cid?format=raw", 400),
        ("/ipfs/..%2f..%2fetc%2fpasswd?format=raw", 400),
        (f"/ipfs/{content_id(SMALL).cid}/file?format=raw", 400),
        (f"/ipfs/{content_id(SMALL).cid}/file?format=car", 404),
        ("/ipns/example.org?format=raw", 404),
        ("/", 404),
    ],
)
async def test_what_is_not_served_has_its_status(http: httpx.AsyncClient, path: str, status: int) -> None:
    assert (await http.get(path)).status_code == status
    assert (await http.head(path)).status_code == status


async def test_other_methods_are_refused(http: httpx.AsyncClient) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = await http.request(method, f"/ipfs/{content_id(SMALL).cid}?format=raw", content=b"x" * 100)
        assert answer.status_code == 405


async def test_only_if_cached_fails_with_412_where_the_root_is_not_here(http: httpx.AsyncClient) -> None:
    headers = {"Cache-Control": "only-if-cached"}
    absent, present = content_id(b"absent").cid, content_id(SMALL).cid
    assert (await http.get(f"/ipfs/{absent}?format=raw", headers=headers)).status_code == 412
    assert (await http.get(f"/ipfs/{present}?format=raw", headers=headers)).status_code == 200


async def test_a_reader_that_has_it_gets_304_and_another_request_another_etag(
    http: httpx.AsyncClient,
) -> None:
    cid = content_id(LARGE).cid
    queries = [
        "raw",
        "car",
        "car&dag-scope=block",
        "car&entity-bytes=0:5",
        "car&entity-bytes=0:6",
        "car&car-dups=y",
    ]
    etags = [(await http.get(f"/ipfs/{cid}?format={query}")).headers["Etag"] for query in queries]
    assert len(set(etags)) == len(queries)
    for query, etag in zip(queries, etags, strict=True):
        for sent in (etag, f'"other", {etag}', etag.removeprefix("W/"), "*"):
            again = await http.get(f"/ipfs/{cid}?format={query}", headers={"If-None-Match": sent})
            assert (again.status_code, again.content, again.headers["Etag"]) == (304, b"", etag)
        other = await http.get(f"/ipfs/{cid}?format={query}", headers={"If-None-Match": '"other"'})
        assert other.status_code == 200


async def test_the_probe_answers_as_a_trustless_gateway_must(http: httpx.AsyncClient) -> None:
    raw = await http.get("/ipfs/bafkqaaa?format=raw")
    assert (raw.status_code, raw.content) == (200, b"")
    car = await http.get("/ipfs/bafkqaaa?format=car")
    header = b"\xa2\x65roots\x81\xd8\x2a\x45\x00\x01\x55\x00\x00\x67version\x01"
    assert (car.status_code, car.content) == (200, bytes([len(header)]) + header)


async def test_a_car_of_a_file_imports_elsewhere(http: httpx.AsyncClient, tmp_path: Path) -> None:
    other = BlockStore(tmp_path / "other", disk_reserve_bytes=0)
    for data in (SMALL, LARGE):
        answer = await http.get(f"/ipfs/{content_id(data).cid}?format=car")
        content = import_car(other, io.BytesIO(answer.content), size_bytes_max=len(data))
        assert other.get(content) == data
    other.close()


async def test_dag_scope_chooses_the_blocks(http: httpx.AsyncClient, store: EmbeddedStore) -> None:
    content = content_id(LARGE)
    everything = [content.digest, *await leaves(store, content)]
    for scope, expected in (("block", everything[:1]), ("entity", everything), ("all", everything)):
        answer = await http.get(f"/ipfs/{content.cid}?format=car&dag-scope={scope}")
        assert blocks(answer.content) == expected


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ("0:*", [0, 1, 2, 3]),
        ("0:0", [0]),
        (f"{LEAF}:{LEAF}", [1]),
        (f"{LEAF - 1}:{LEAF}", [0, 1]),
        (f"{2 * LEAF}:*", [2, 3]),
        ("-1:*", [3]),
        ("-11:*", [2, 3]),
        (f"0:-{2 * LEAF + 11}", [0]),
        (f"{LEAF}:-{LEAF + 11}", [1]),
        ("0:999999999999", [0, 1, 2, 3]),
        ("-999999999999:0", [0]),
        ("5:-99999999999", []),
    ],
)
async def test_entity_bytes_sends_the_least_blocks_that_prove_the_range(
    http: httpx.AsyncClient, store: EmbeddedStore, bounds: str, expected: list[int]
) -> None:
    content = content_id(LARGE)
    children = await leaves(store, content)
    for extra in ("", "&dag-scope=block"):  # a range implies the entity
        answer = await http.get(f"/ipfs/{content.cid}?format=car&entity-bytes={bounds}{extra}")
        assert answer.status_code == 200
        assert blocks(answer.content) == [content.digest, *(children[number] for number in expected)]


@pytest.mark.parametrize(
    "bounds", [f"{len(LARGE)}:*", "9:3", "a:b", "1", ":", "0:1:2", "1.5:2", "0:**", "٣:*"]
)
async def test_a_range_outside_the_file_or_without_sense_is_400(http: httpx.AsyncClient, bounds: str) -> None:
    answer = await http.get(
        f"/ipfs/{content_id(LARGE).cid}", params={"format": "car", "entity-bytes": bounds}
    )
    assert answer.status_code == 400


async def test_repeated_blocks_travel_once_unless_asked_for(
    http: httpx.AsyncClient, store: EmbeddedStore
) -> None:
    content = await store.put(bytes(4 * LEAF))
    leaf = content_id(bytes(LEAF)).digest
    once = await http.get(f"/ipfs/{content.cid}?format=car")
    every = await http.get(f"/ipfs/{content.cid}?format=car&car-dups=y")
    assert blocks(once.content) == [content.digest, leaf]
    assert blocks(every.content) == [content.digest] + [leaf] * 4


async def test_an_inner_block_is_served_raw_and_is_no_file(
    http: httpx.AsyncClient, store: EmbeddedStore
) -> None:
    """The digest of a root read as a raw file names another content, which the store also holds."""
    content = content_id(LARGE)
    as_raw = ContentId(content.digest, len(await store.block(content.digest)))
    assert as_raw.codec != content.codec
    assert (await http.get(f"/ipfs/{as_raw.cid}?format=raw")).content == await store.block(content.digest)
    leaf_as_node = ContentId(content_id(SMALL).digest, LEAF + 1)
    assert (leaf_as_node.codec, content_id(SMALL).codec) == (DAG_PB, RAW)
    answer = await http.get(f"/ipfs/{leaf_as_node.cid}?format=car")
    assert (answer.status_code, "is not the root of a file" in answer.text) == (404, True)


async def test_a_damaged_block_is_404_and_cuts_a_car_that_has_begun(
    http: httpx.AsyncClient, store: EmbeddedStore
) -> None:
    content = content_id(LARGE)
    last = (await leaves(store, content))[2]
    (store.blocking.path / "blocks" / last.hex()).write_bytes(bytes(LEAF))
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(f"/ipfs/{content.cid}?format=car")
    (store.blocking.path / "blocks" / content_id(SMALL).digest.hex()).write_bytes(b"other")
    assert (await http.get(f"/ipfs/{content_id(SMALL).cid}?format=raw")).status_code == 404


async def test_a_withheld_root_is_as_absent_as_any_other(store: EmbeddedStore) -> None:
    withheld = {content_id(SMALL).digest}
    async with (
        Gateway(store, may_serve=lambda digest: digest not in withheld) as gateway,
        httpx.AsyncClient(base_url=gateway.address) as http,
    ):
        for query in ("?format=raw", "?format=car", "?format=car&dag-scope=block"):
            absent = await http.get(f"/ipfs/{content_id(b'absent').cid}{query}")
            answer = await http.get(f"/ipfs/{content_id(SMALL).cid}{query}")
            assert (answer.status_code, answer.text) == (404, absent.text)
        withheld.clear()
        assert (await http.get(f"/ipfs/{content_id(SMALL).cid}?format=raw")).content == SMALL


async def test_a_reader_that_stops_reading_is_cut_off_and_its_place_is_free_again(
    store: EmbeddedStore,
) -> None:
    content = await store.put(stream(24 * LEAF, "long"), ephemeral_checkpoint=1)
    limits = GatewayLimits(requests_max=1, write_timeout_ms=300)
    async with Gateway(store, limits=limits) as gateway:
        host, port = gateway.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /ipfs/{content.cid}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
        await reader.readexactly(100)
        async with httpx.AsyncClient(base_url=gateway.address) as http:
            url = f"/ipfs/{content_id(SMALL).cid}?format=raw"
            busy = await http.get(url)
            assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
            assert (await store.collect(1)).contents_removed == ()  # what is being sent stays
            async with asyncio.timeout(20):
                while (await http.get(url)).status_code == 503:
                    await asyncio.sleep(0.05)
            assert (await store.collect(1)).contents_removed == (content,)
        writer.close()


async def test_a_file_above_the_limit_is_not_sent_as_a_car(store: EmbeddedStore) -> None:
    async with (
        Gateway(store, limits=GatewayLimits(content_size_bytes_max=LEAF)) as gateway,
        httpx.AsyncClient(base_url=gateway.address) as http,
    ):
        assert (await http.get(f"/ipfs/{content_id(LARGE).cid}?format=car")).status_code == 404
        assert (
            await http.get(f"/ipfs/{content_id(LARGE).cid}?format=car&dag-scope=block")
        ).status_code == 200


async def test_it_listens_on_loopback_and_a_taken_port_is_named(store: EmbeddedStore) -> None:
    async with Gateway(store) as gateway:
        assert gateway.address.startswith("http://127.0.0.1:")
        port = int(gateway.address.rpartition(":")[2])
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{port}"):
            await Gateway(store, port=port).start()
    with pytest.raises(httpx.ConnectError):
        await httpx.AsyncClient().get(f"http://127.0.0.1:{port}/")


async def test_garbage_on_the_wire_stops_nothing(http: httpx.AsyncClient) -> None:
    host, port = str(http.base_url).removeprefix("http://").rstrip("/").split(":")
    for garbage in (
        b"\x00" * 200,
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /ipfs/ HTTP/9.9\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        async with asyncio.timeout(10):
            first_line = await reader.readline()
        assert b" 40" in first_line
        writer.close()
    assert (await http.get(f"/ipfs/{content_id(SMALL).cid}?format=raw")).content == SMALL


def test_a_cut_car_is_told_from_a_whole_one() -> None:
    with pytest.raises(ContentRefused, match="ends"):
        blocks(b"\x3a\xa2")
