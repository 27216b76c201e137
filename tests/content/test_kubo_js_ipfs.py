"""KuboStore against a real daemon that is not ours: js-ipfs 0.66.1 (reports RPC version 0.18.1).

Runs where CITRATE_TEST_JSIPFS names its `jsipfs` (`npm install ipfs@0.66.1`, Node 20); archived, but the
one IPFS daemon with an RPC that npm still installs. It is not Kubo: it ignores `max-file-links`, accepts
damaged CARs, and its pins and garbage collection are its own.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from store_samples import LEAF, stream

from citrate_node.content.interface import ContentMissing
from citrate_node.content.kubo import KuboStore
from citrate_node.protocol.content_id import content_id

JSIPFS = os.environ.get("CITRATE_TEST_JSIPFS", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not JSIPFS, reason="CITRATE_TEST_JSIPFS does not name a jsipfs (npm install ipfs@0.66.1)"
    ),
]
POLYFILL = """
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="module")
def rpc_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon without network, alone on a fresh repository."""
    folder = tmp_path_factory.mktemp("js-ipfs")
    api, gateway = free_ports(2)
    (folder / "polyfill.cjs").write_text(POLYFILL)
    environment = {**os.environ, "IPFS_PATH": str(folder / "repo")}
    jsipfs = ["node", "--require", str(folder / "polyfill.cjs"), JSIPFS]
    subprocess.run(
        [*jsipfs, "init", "--empty-repo"], env=environment, check=True, capture_output=True, timeout=120
    )
    config = json.loads((folder / "repo" / "config").read_text())
    config["Addresses"] |= {
        "Swarm": [],
        "Delegates": [],
        "API": f"/ip4/127.0.0.1/tcp/{api}",
        "Gateway": f"/ip4/127.0.0.1/tcp/{gateway}",
    }
    config["Bootstrap"] = []
    config["Discovery"] = {"MDNS": {"Enabled": False}, "webRTCStar": {"Enabled": False}}
    config["Routing"] = {"Type": "none"}
    (folder / "repo" / "config").write_text(json.dumps(config))
    log = folder / "daemon.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen([*jsipfs, "daemon", "--offline"], env=environment, stdout=out, stderr=out)
    try:
        for _ in range(300):
            assert daemon.poll() is None, log.read_text()
            if b"Daemon is ready" in log.read_bytes():
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{api}"
    finally:
        daemon.kill()
        daemon.wait(20)


@pytest.fixture
async def kubo(rpc_url: str, tmp_path: Path) -> AsyncIterator[KuboStore]:
    async with KuboStore(rpc_url, tmp_path / "content", repo_gc=True, block_timeout_ms=3_000) as store:
        yield store


async def test_a_real_daemon_keeps_serves_and_lets_go(kubo: KuboStore, tmp_path: Path) -> None:
    datas = [b"", b"hello world", stream(LEAF), stream(3 * LEAF + 7), stream(LEAF, "many") * 200]
    contents = [await kubo.put(data) for data in datas[:-1]]
    (tmp_path / "large").write_bytes(datas[-1])
    contents.append(
        await kubo.put(tmp_path / "large")
    )  # 200 leaves: beyond the 174 links that `add` makes of it
    assert contents == [content_id(data) for data in datas]
    for content, data in zip(contents, datas, strict=True):
        assert await kubo.has(content)
        assert await kubo.get(content) == data
        assert await kubo.get_by_cid(content.cid, len(data)) == data
    tail = [part async for part in kubo.read(contents[3], 2 * LEAF + 1)]
    assert b"".join(tail) == datas[3][2 * LEAF + 1 :]


async def test_a_real_daemon_forgets_what_a_collection_unpins(kubo: KuboStore) -> None:
    kept, delta = await kubo.put(b"weights"), await kubo.put(stream(2 * LEAF), ephemeral_checkpoint=1)
    assert (await kubo.collect(1)).contents_removed == (delta,)
    assert (await kubo.has(kept), await kubo.has(delta)) == (True, False)
    assert await kubo.get(kept) == b"weights"
    with pytest.raises(ContentMissing):
        await kubo.get(delta)
