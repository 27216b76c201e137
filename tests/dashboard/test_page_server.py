"""The page over HTTP: what it serves, to whom, and what it refuses."""

import asyncio
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from page_world import PageWorld, checkpoint_fact
from wallet_chain import adapter

from citrate_node.dashboard.feed import Feed
from citrate_node.dashboard.server import FILE_BYTES_MAX, HEADERS, STATIC, PageServer
from citrate_node.errors import ServiceError
from citrate_node.protocol.content_id import content_id

FOLDER = Path(str(files("citrate_node.dashboard").joinpath("static")))
ETHERS = "vendor/ethers-6.17.0.min.js"
ETHERS_SHA256 = "b016b0c3898c78fd8156466eb1ff1f42c9df951c2f0d64c9bdf799fe745b0a6c"


@pytest.fixture
def client(world: PageWorld) -> httpx.Client:
    return httpx.Client(base_url=world.page.url, timeout=20)


def test_every_file_of_the_page_is_served_with_the_policy(client: httpx.Client) -> None:
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert set(STATIC) == there - {"vendor/ethers-LICENSE.md"}
    for name, kind in STATIC.items():
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert {key: answer.headers[key] for key in HEADERS} == HEADERS
    assert client.get("/").content == (FOLDER / "index.html").read_bytes()


def test_the_page_needs_nothing_from_elsewhere_and_no_inline_script() -> None:
    html = (FOLDER / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', html)) == {
        "data:,",
        "/static/style.css",
        "/static/main.js",
    }
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", html)
    for name in set(STATIC) - {ETHERS, "index.html"}:
        text = (FOLDER / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?://", text), name


def test_the_library_is_the_published_file() -> None:
    """sha256 of dist/ethers.min.js in npm's ethers 6.17.0, which examples/ethers locks too."""
    assert hashlib.sha256((FOLDER / ETHERS).read_bytes()).hexdigest() == ETHERS_SHA256
    assert (FOLDER / "vendor/ethers-LICENSE.md").read_text().startswith("MIT License")


@pytest.mark.parametrize(
    "path", ["/static/../feed.py", "/static/%2e%2e/feed.py", "/static/", "/server.py", "/api"]
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_another_name_or_another_sites_page_is_refused(client: httpx.Client, world: PageWorld) -> None:
    own = world.page.url.rstrip("/")
    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    for path in ("/", "/api/state", "/api/events", "/static/main.js"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 421
    statuses = [
        client.post("/rpc", json=body, headers=headers).status_code
        for headers in [
            *({}, {"Origin": own}, {"Origin": own, "Sec-Fetch-Site": "same-origin"}),
            *({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}),
            *(
                {"Origin": own, "Sec-Fetch-Site": "same-site"},
                {"Host": "evil.example", "Origin": "http://evil.example"},
            ),
        ]
    ]
    assert statuses == [200] * 3 + [403] * 4 + [421]


def test_the_pages_way_to_the_chain_is_the_gate(client: httpx.Client) -> None:
    def ask(method: str) -> dict[str, object]:
        answer: dict[str, object] = client.post("/rpc", json={"id": 1, "method": method}).json()
        return answer

    assert ask("eth_chainId")["result"] == hex(40298)
    for method in ("anvil_dumpState", "evm_mine", "eth_sendTransaction", "personal_sign", "debug_traceCall"):
        assert ask(method)["error"] == {"code": -32601, "message": f"the method {method} is not offered here"}
    assert client.post("/rpc", content=b" " * (512 * 1024 + 1)).status_code == 413


def test_the_judge_reads_files_as_nodes_do(client: httpx.Client) -> None:
    small = adapter(seed=5)
    data = small.encode()
    assert client.post("/api/adapter-file", content=data).json() == {
        "base_model_id": "0x" + small.config.base_model_id.hex(),
        "rank": 2,
        "alpha": 4,
        "targets": ["q_proj"],
        "size_bytes": len(data),
        "cid": content_id(data).cid,
        "fits_calldata": True,
    }
    large = adapter(seed=5, rank=32).encode()
    assert client.post("/api/adapter-file", content=large).json()["fits_calldata"] is False
    for bad in (b"", data[:-1], data + b" ", b"\xff" * 100, data.replace(b'"rank":"2"', b'"rank":"3"')):
        verdict = client.post("/api/adapter-file", content=bad).json()
        assert set(verdict) == {"error"}
        assert verdict["error"].startswith("not in the form that nodes take: ")
    assert client.post("/api/adapter-file", content=b" " * (FILE_BYTES_MAX + 1)).status_code == 413


def test_facts_come_as_they_happen_and_paths_stay_here(client: httpx.Client, world: PageWorld) -> None:
    with client.stream("GET", "/api/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
        lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
        first = json.loads(next(lines))
        world.take(checkpoint_fact(1))
        assert json.loads(next(lines)) == checkpoint_fact(1)
    assert first["type"] == "state"
    assert client.get("/api/state").json() == {**first, "checkpoints": [checkpoint_fact(1)]}
    assert "/secret" not in json.dumps(first)
    assert world.chain.rpc_url not in json.dumps(first)


async def test_pages_that_listen_are_told_the_end_at_once() -> None:
    feed = Feed()
    async with httpx.AsyncClient() as client:
        async with PageServer(feed, "http://127.0.0.1:9", port=0, preset="devnet") as page:
            stream = client.stream("GET", page.url + "api/events")
            lines = (await stream.__aenter__()).aiter_lines()
            assert json.loads((await anext(lines)).removeprefix("data: "))["type"] == "state"
            port = int(page.url.rstrip("/").rsplit(":", 1)[1])
            with pytest.raises(ServiceError, match="choose another --page-port"):
                await PageServer(feed, "http://127.0.0.1:9", port=port, preset="devnet").__aenter__()
            feed.take({"type": "step", "text": "last words"})
        rest = [line async for line in lines if line]
        await stream.__aexit__(None, None, None)
    assert rest == ['data: {"type": "step", "text": "last words"}']


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep everybody else's file waiting."""
    monkeypatch.setattr("citrate_node.dashboard.server.BODY_SECONDS", 0.2)
    async with PageServer(Feed(), "http://127.0.0.1:9", port=0, preset="devnet") as page:
        port = int(page.url.rstrip("/").rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /api/adapter-file HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()
