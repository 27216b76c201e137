"""The Arweave archive: roots, proofs and signatures of the JavaScript library, and no trust in a gateway."""

import base64
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from js_ipfs import PACKAGES, needs_package
from store_samples import LEAF, stream

from citrate_node.content.arweave import (
    Arweave,
    ArweaveWallet,
    base64url,
    chunk_tree,
    deep_hash,
    signed_transaction,
)
from citrate_node.content.interface import ContentMissing, ContentRefused
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.content_id import content_id

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "arweave.json").read_text())
ID = base64url(bytes(32))


def write_wallet(path: Path) -> ArweaveWallet:
    """A fresh key, in the form of Arweave's tools. Half of its length: made in a moment."""
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    public = numbers.public_numbers
    fields = {"n": public.n, "e": public.e, "d": numbers.d, "p": numbers.p, "q": numbers.q}
    jwk = {name: base64url(n.to_bytes((n.bit_length() + 7) // 8, "big")) for name, n in fields.items()}
    path.write_text(json.dumps({"kty": "RSA", **jwk}))
    return ArweaveWallet.load(path)


def test_data_roots_proofs_and_deep_hash_are_the_javascript_library_s() -> None:
    from hashlib import sha256

    ours = []
    for size, *_ in VECTORS["roots"]:
        root, chunks = chunk_tree(stream(size))
        paths = sha256(b"".join(chunk.path for chunk in chunks)).hexdigest()
        ours.append([size, root.hex(), paths, [[chunk.start, chunk.stop] for chunk in chunks]])
    assert ours == VECTORS["roots"]
    deep = deep_hash([b"2", b"", [[b"name", b"value"], []], b"x" * 300])
    assert deep.hex() == VECTORS["deep_hash"]


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """A gateway that holds whatever a test puts into it, under any id."""
    held: dict[str, bytes] = {}

    async def give(request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name == "tx_anchor":
            return web.Response(text=base64url(bytes(48)))
        return web.Response(body=held[name]) if name in held else web.Response(status=404, text="Not Found")

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=410, text="not enough money")

    async def give_price(request: web.Request) -> web.Response:
        return web.Response(text="1000")

    app = web.Application()
    app.router.add_get("/{id}", give)
    app.router.add_get("/price/{size}", give_price)
    app.router.add_post("/tx", refuse)

    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}", held
    await runner.cleanup()


async def test_only_the_content_that_was_asked_for_comes_back(gateway: tuple[str, dict[str, bytes]]) -> None:
    url, held = gateway
    data = stream(LEAF + 5)
    content = content_id(data)
    async with Arweave(url) as archive:
        with pytest.raises(ContentMissing, match="takes minutes to be mined"):
            await archive.restore(ID, content.cid, 1 << 30)
        held[ID] = data
        assert await archive.restore(ID, content.cid, LEAF + 5) == (content, data)
        with pytest.raises(ContentRefused, match="sends more than 1048576 bytes"):
            await archive.restore(ID, content.cid, LEAF)
        held[ID] = data[:-1] + b"x"
        with pytest.raises(ContentRefused, match=f"not {content.cid}"):
            await archive.restore(ID, content.cid, 1 << 30)
        with pytest.raises(ConfigError, match="is no Arweave transaction id"):
            await archive.restore("../etc/passwd", content.cid, 1 << 30)


async def test_a_refusal_and_an_absent_gateway_say_so(
    gateway: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    wallet = write_wallet(tmp_path / "wallet.json")
    async with Arweave(gateway[0]) as archive:
        with pytest.raises(ServiceError, match=r"refused tx \(HTTP 410\): not enough money"):
            await archive.archive(b"weights", wallet)
    async with Arweave("http://127.0.0.1:1") as absent:
        with pytest.raises(ServiceError, match="cannot reach the Arweave gateway"):
            await absent.archive(b"weights", wallet)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"n": "AQ", "e": "AQ", "d": "AQ", "p": "AQ", "q": "AQ"}', '{"n": 5}']
)
def test_what_is_no_wallet_is_named_without_its_bytes(tmp_path: Path, text: str) -> None:
    (tmp_path / "wallet.json").write_text(text)
    with pytest.raises(ConfigError, match="is not an Arweave wallet"):
        ArweaveWallet.load(tmp_path / "wallet.json")


@pytest.mark.slow
@needs_package("arlocal", "arweave")
def test_the_javascript_library_accepts_our_signature_and_not_a_changed_one(tmp_path: Path) -> None:
    wallet = write_wallet(tmp_path / "wallet.json")
    root, _ = chunk_tree(b"weights")
    fields = signed_transaction(wallet, bytes(48), "10", [("IPFS-CID", "bafk")], 7, root)

    def accepts(transaction: dict[str, object]) -> str:
        command = ["node", str(PACKAGES / "arlocal" / "verify.cjs")]
        text = json.dumps({**transaction, "data": base64.b64encode(b"").decode()})
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60).stdout.strip()

    assert (accepts(fields), accepts({**fields, "reward": "11"})) == ("true", "false")
