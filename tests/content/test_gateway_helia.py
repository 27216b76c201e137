"""A node's gateway, read by Helia's verified-fetch: a client of other people that hashes what it gets.

Helia 7 needs a Node that Debian does not have; the package brings one.
"""

import asyncio
import hashlib
from pathlib import Path

import pytest
from js_ipfs import PACKAGES, needs_package
from store_samples import LEAF, stream

from citrate_node.content.gateway import Gateway
from citrate_node.content.store import EmbeddedStore
from citrate_node.protocol.content_id import content_id

pytestmark = [pytest.mark.slow, needs_package("helia", "node/bin/node")]


async def fetch(gateway: str, cid: str) -> tuple[int | None, bytes, bytes]:
    folder = PACKAGES / "helia"
    process = await asyncio.create_subprocess_exec(
        str(folder / "node_modules" / "node" / "bin" / "node"),
        str(folder / "fetch.mjs"),
        *(gateway, cid),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out, err


@pytest.mark.parametrize("size", [1000, 7 * LEAF + 5], ids=["one block", "a tree"])
async def test_helia_reads_an_adapter_from_a_node_s_gateway(tmp_path: Path, size: int) -> None:
    async with EmbeddedStore(tmp_path / "content") as store, Gateway(store) as gateway:
        content = await store.put(stream(size))
        code, out, err = await fetch(gateway.address, content.cid)
    assert (code, hashlib.sha256(out).digest()) == (0, hashlib.sha256(stream(size)).digest()), err.decode()


class Lying(EmbeddedStore):
    """Serves other bytes for every leaf."""

    async def block(self, digest: bytes) -> bytes:
        data = await super().block(digest)
        return data[:-1] + bytes([data[-1] ^ 1])


async def test_helia_takes_nothing_from_a_gateway_that_lies(tmp_path: Path) -> None:
    """The control: it does hash, so that what it read above was right."""
    async with Lying(tmp_path / "content") as store, Gateway(store) as gateway:
        await store.put(b"weights" * 100)
        code, out, _ = await fetch(gateway.address, content_id(b"weights" * 100).cid)
    assert (code != 0, out) == (True, b"")
