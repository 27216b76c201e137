"""Archive and restore against arlocal, a gateway of other people that checks signatures and data roots.

arlocal is not the Arweave network: it mines when asked to, and pays from coins that it mints.
"""

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from js_ipfs import PACKAGES, free_ports, needs_package
from store_samples import LEAF, stream
from test_arweave import write_wallet

from citrate_node.content.arweave import Arweave
from citrate_node.content.interface import ContentRefused
from citrate_node.protocol.content_id import content_id

pytestmark = [pytest.mark.slow, needs_package("arlocal", ".bin/arlocal")]


@contextmanager
def running_arlocal(folder: Path) -> Iterator[str]:
    """It listens on all interfaces and cannot be told otherwise; it lives for one test."""
    (port,) = free_ports(1)
    program = str(PACKAGES / "arlocal" / "node_modules" / ".bin" / "arlocal")
    log = folder / "arlocal.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, str(port)], cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(200):
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/info", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.fixture
async def arlocal(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with running_arlocal(tmp_path) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            yield http


@pytest.mark.parametrize("size", [7, 300_000, 3 * LEAF + 9], ids=["inline", "two chunks", "many chunks"])
async def test_an_adapter_is_archived_and_comes_back(
    arlocal: httpx.AsyncClient, tmp_path: Path, size: int
) -> None:
    wallet = write_wallet(tmp_path / "wallet.json")
    await arlocal.get(f"/mint/{wallet.address}/1000000000000")
    data = stream(size)
    content = content_id(data)
    async with Arweave(str(arlocal.base_url)) as archive:
        transaction = await archive.archive(data, wallet)
        await arlocal.get("/mine")
        assert await archive.restore(transaction, content.cid, size) == (content, data)
        with pytest.raises(ContentRefused, match="the id is only a hint"):
            await archive.restore(transaction, content_id(b"another").cid, size)
    tags = (await arlocal.get(f"/tx/{transaction}")).json()["tags"]
    assert len(tags) == 3
