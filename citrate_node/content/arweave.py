"""Archives final adapters on Arweave, where what is paid for once stays for ever, and brings them back.

Never trusted: what a gateway returns is imported again and must have the CID that was asked for, so the
transaction id is only a hint where to look. Written here because the Python libraries for Arweave have had no
release since 2023 and block the event loop; it is the smallest part of the protocol that archives one file:
format 2 transactions, their Merkle tree of chunks, and RSA-PSS by `cryptography`.
Called by `citrate content archive` and `restore`. Tried against arlocal; never on the real network.

Source of the formats: https://docs.arweave.org (transaction format 2, deep hash, chunk and data_path).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from ..errors import ConfigError, ServiceError
from ..protocol.content_id import ContentId, Importer, content_id
from .interface import ContentMissing, ContentRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

CHUNK_SIZE_BYTES_MAX = 256 * 1024
CHUNK_SIZE_BYTES_MIN = 32 * 1024
ANSWER_SIZE_BYTES_MAX = 64 * 1024

Deep = bytes | list["Deep"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the data, with the proof that it belongs to the transaction's data root."""

    start: int
    stop: int
    """One past its last byte."""
    path: bytes


@dataclass(frozen=True, slots=True)
class _Node:
    digest: bytes
    stop: int
    left: _Node | None = None
    right: _Node | None = None
    start: int = 0
    data_digest: bytes = b""


class ArweaveWallet:
    """An RSA key (of 4096 bits on the real network) in the JSON Web Key form that Arweave's tools write."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self._key = key
        modulus = key.public_key().public_numbers().n
        self.owner = modulus.to_bytes((modulus.bit_length() + 7) // 8, "big")

    @classmethod
    def load(cls, path: Path) -> ArweaveWallet:
        """Raises ConfigError for a file that holds no such key; the key is never part of a message."""
        from cryptography.hazmat.primitives.asymmetric import rsa

        try:
            jwk = json.loads(path.read_bytes())
            p, q, d, n, e = (
                int.from_bytes(_unbase64(jwk[name]), "big") for name in ("p", "q", "d", "n", "e")
            )
            numbers = rsa.RSAPrivateNumbers(
                p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n)
            )
            key = numbers.private_key()
        except OSError as error:
            raise ConfigError(f"cannot read the Arweave wallet {path} ({error.strerror})") from None
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            raise ConfigError(f"{path} is not an Arweave wallet (a JSON Web Key of an RSA key)") from None
        return cls(key)

    @property
    def address(self) -> str:
        return base64url(hashlib.sha256(self.owner).digest())

    def sign(self, message: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        return self._key.sign(message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


class Arweave:
    """One gateway. `timeout_ms` bounds the wait for the next bytes of an answer."""

    def __init__(self, url: str, *, timeout_ms: int = 60_000) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no http(s) URL of an Arweave gateway, such as https://arweave.net")
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url + "/",
            timeout=httpx.Timeout(timeout_ms / 1000, connect=5.0),
            follow_redirects=True,
        )

    async def archive(self, data: bytes, wallet: ArweaveWallet) -> str:
        """Send one file for ever, tagged with its CID; returns the transaction id."""
        if not data:
            raise ConfigError("an empty file cannot be archived")
        content = content_id(data)
        anchor = _unbase64((await self._ask("GET", "tx_anchor")).decode())
        reward = (await self._ask("GET", f"price/{len(data)}")).decode()
        if not reward.isdecimal():
            raise ServiceError(f"{self.url} states no price but {reward[:40]!r}\n  check the gateway's URL")
        tags = [
            ("Content-Type", "application/octet-stream"),
            ("App-Name", "citrate-node"),
            ("IPFS-CID", content.cid),
        ]
        data_root, chunks = chunk_tree(data)
        fields = signed_transaction(wallet, anchor, reward, tags, len(data), data_root)
        inline = len(chunks) == 1
        await self._ask("POST", "tx", {**fields, "data": base64url(data) if inline else ""})
        for chunk in [] if inline else chunks:
            await self._ask(
                "POST",
                "chunk",
                {
                    "data_root": base64url(data_root),
                    "data_size": str(len(data)),
                    "data_path": base64url(chunk.path),
                    "offset": str(chunk.stop - 1),
                    "chunk": base64url(data[chunk.start : chunk.stop]),
                },
            )
        return str(fields["id"])

    async def restore(self, transaction_id: str, cid: str, size_bytes_max: int) -> tuple[ContentId, bytes]:
        """What the gateway has under that id, if it is the content `cid`; ContentRefused if it is not."""
        if len(transaction_id) != 43 or len(_unbase64(transaction_id)) != 32:
            raise ConfigError(f"{transaction_id!r} is no Arweave transaction id (43 characters of base64url)")
        importer, data = Importer(), bytearray()
        async for part in self._data(transaction_id):
            data += part
            if len(data) > size_bytes_max:
                raise ContentRefused(
                    f"{self.url} sends more than {size_bytes_max} bytes\n  raise the limit if you trust it"
                )
            importer.update(part)
        content = importer.finish()
        if content.cid != cid:
            raise ContentRefused(
                f"transaction {transaction_id} holds {content.cid}, not {cid}\n"
                "  the id is only a hint: ask for the right one, or another gateway"
            )
        return content, bytes(data)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Arweave:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _data(self, transaction_id: str) -> AsyncIterator[bytes]:
        try:
            async with self._http.stream("GET", transaction_id) as answer:
                if answer.status_code != 200:
                    raise ContentMissing(
                        f"{self.url} has no transaction {transaction_id} (HTTP {answer.status_code})\n"
                        "  a new one takes minutes to be mined; or ask another gateway"
                    )
                async for part in answer.aiter_bytes():
                    yield part
        except httpx.HTTPError as error:
            raise self._failed(error) from error

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        try:
            async with self._http.stream(method, path, json=body) as answer:
                data = bytearray()
                async for part in answer.aiter_bytes():
                    data += part
                    if len(data) > ANSWER_SIZE_BYTES_MAX:
                        raise ServiceError(f"{self.url} answers {path} with too many bytes")
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        if answer.status_code not in (200, 202, 208):
            said = data[:200].decode(errors="replace").strip()
            raise ServiceError(
                f"{self.url} refused {path} (HTTP {answer.status_code}): {said}\n"
                "  check that the wallet has enough AR for the price"
            )
        return bytes(data)

    def _failed(self, error: httpx.HTTPError) -> ServiceError:
        return ServiceError(
            f"cannot reach the Arweave gateway {self.url} ({type(error).__name__})\n  check its URL"
        )


def signed_transaction(
    wallet: ArweaveWallet,
    anchor: bytes,
    reward: str,
    tags: list[tuple[str, str]],
    data_size_bytes: int,
    data_root: bytes,
) -> dict[str, Any]:
    """The JSON form of a data transaction of format 2 that transfers nothing, without its data."""
    pairs: list[Deep] = [[name.encode(), value.encode()] for name, value in tags]
    message = deep_hash(
        [
            b"2",
            wallet.owner,
            b"",
            b"0",
            reward.encode(),
            anchor,
            pairs,
            str(data_size_bytes).encode(),
            data_root,
        ]
    )
    signature = wallet.sign(message)
    return {
        "format": 2,
        "id": base64url(hashlib.sha256(signature).digest()),
        "last_tx": base64url(anchor),
        "owner": base64url(wallet.owner),
        "tags": [
            {"name": base64url(name.encode()), "value": base64url(value.encode())} for name, value in tags
        ],
        "target": "",
        "quantity": "0",
        "data_size": str(data_size_bytes),
        "data_root": base64url(data_root),
        "reward": reward,
        "signature": base64url(signature),
    }


def deep_hash(value: Deep) -> bytes:
    """sha384 over a tree of byte strings, each with its kind and length, so that no two trees collide."""
    if isinstance(value, bytes):
        return _sha384(_sha384(f"blob{len(value)}".encode()) + _sha384(value))
    digest = _sha384(f"list{len(value)}".encode())
    for item in value:
        digest = _sha384(digest + deep_hash(item))
    return digest


def chunk_tree(data: bytes) -> tuple[bytes, tuple[Chunk, ...]]:
    """(data root, chunks with their proofs) of a file, as every Arweave node computes them.

    A file of a whole number of chunks has an empty leaf at its end in the tree, which is not sent.
    """
    level: list[_Node] = []
    start = 0
    while len(data) - start >= CHUNK_SIZE_BYTES_MAX:
        rest = len(data) - start
        size = CHUNK_SIZE_BYTES_MAX
        if 0 < rest - size < CHUNK_SIZE_BYTES_MIN:
            size = (rest + 1) // 2
        level.append(_leaf(data, start, start + size))
        start += size
    level.append(_leaf(data, start, len(data)))
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [_branch(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0].digest, tuple(_chunks(level[0], b""))


def _leaf(data: bytes, start: int, stop: int) -> _Node:
    data_digest = hashlib.sha256(data[start:stop]).digest()
    digest = _sha256(_sha256(data_digest) + _sha256(_note(stop)))
    return _Node(digest, stop, start=start, data_digest=data_digest)


def _branch(left: _Node, right: _Node) -> _Node:
    digest = _sha256(_sha256(left.digest) + _sha256(right.digest) + _sha256(_note(left.stop)))
    return _Node(digest, right.stop, left, right)


def _chunks(node: _Node, path: bytes) -> list[Chunk]:
    if node.left is not None and node.right is not None:
        path += node.left.digest + node.right.digest + _note(node.left.stop)
        return _chunks(node.left, path) + _chunks(node.right, path)
    if node.start == node.stop:
        return []
    return [Chunk(node.start, node.stop, path + node.data_digest + _note(node.stop))]


def _note(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def base64url(data: bytes) -> str:
    """As Arweave writes bytes: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, TypeError):
        return b""
