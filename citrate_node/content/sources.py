"""Places beside a node's own store where a content may lie: other stores on this disk, trustless gateways.

None of them is trusted: every block is hashed, and the tree must be the one that the size allows. A node asks
them for weights that the chain names (runtime/fetching.py), a wallet user for those it pulls
(runtime/adapters_weights.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from ..errors import ConfigError, ServiceError
from ..protocol.content_id import BLOCK_SIZE_BYTES_MAX, Bytes, ContentId, cid_text
from .block_store import BlockStore
from .interface import ContentRefused, missing
from .opening import daemon_of, daemon_reader
from .tree import Walk, asked_cid, content_of_root, foreign_tree

if TYPE_CHECKING:
    import httpx

RAW_TYPE = "application/vnd.ipld.raw"
BLOCK_TIMEOUT_SECONDS = 30.0
"""For one block of at most a mebibyte, from the request to its last byte."""
CONNECT_TIMEOUT_SECONDS = 5.0


class ContentSource(Protocol):
    """Somewhere to ask. Both methods raise ServiceError (ContentMissing, ContentRefused, no answer)."""

    @property
    def name(self) -> str:
        """For messages: a path or a URL."""
        ...

    async def get(self, content: ContentId) -> bytes:
        """The whole file, verified."""
        ...

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        """Join a CID with the size that its root states."""
        ...


class FolderSource:
    """A content store that somebody else writes to, or nobody. Opened for each question: it may be made,
    or removed, while a node runs. Where a Kubo daemon keeps that node's contents, the daemon is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    async def get(self, content: ContentId) -> bytes:
        daemon = daemon_of(self._path)
        if daemon is not None:
            async with daemon_reader(daemon[0]) as store:
                return await store.get(content)
        return await asyncio.to_thread(self._get, content)

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        daemon = daemon_of(self._path)
        if daemon is not None:
            async with daemon_reader(daemon[0]) as store:
                return await store.resolve(cid, size_bytes_max)
        return await asyncio.to_thread(self._resolve, cid, size_bytes_max)

    def _open(self) -> BlockStore:
        try:
            return BlockStore(self._path, read_only=True)
        except ConfigError as error:  # absent: what is asked for is not here, and may be later
            raise ServiceError(str(error)) from error

    def _get(self, content: ContentId) -> bytes:
        store = self._open()
        try:
            return store.get(content)
        finally:
            store.close()

    def _resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        store = self._open()
        try:
            return store.resolve(cid, size_bytes_max)
        finally:
            store.close()


class GatewaySource:
    """A gateway that answers `GET /ipfs/{cid}?format=raw`, as the trustless gateway specification says.

    Redirects are not followed: an answer must come from where the operator said.
    """

    def __init__(self, url: str, *, block_timeout_s: float = BLOCK_TIMEOUT_SECONDS) -> None:
        self._url = gateway_url(url)
        self._block_timeout_s = block_timeout_s
        self._root: tuple[bytes, bytes] = (b"", b"")
        """The block that `resolve` read last, by its digest: `get` begins with the same one."""

    @property
    def name(self) -> str:
        return self._url

    async def get(self, content: ContentId) -> bytes:
        whole = io.BytesIO()
        walk = Walk(content)
        while (wanted := walk.wanted) is not None:
            block = await self._block(wanted.codec, wanted.digest, wanted.block_size_bytes_max)
            try:
                data: Bytes = walk.accept(block, hashed=True)
            except ValueError as error:
                raise foreign_tree(wanted, error) from error
            whole.write(data)
        return whole.getvalue()

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        codec, digest = asked_cid(cid)
        block = await self._block(codec, digest, BLOCK_SIZE_BYTES_MAX)
        self._root = digest, block
        return content_of_root(codec, digest, block, size_bytes_max)

    async def _block(self, codec: int, digest: bytes, size_bytes_max: int) -> bytes:
        if self._root[0] == digest:
            return self._root[1]
        import httpx

        cid = cid_text(codec, digest)
        timeout = httpx.Timeout(self._block_timeout_s, connect=CONNECT_TIMEOUT_SECONDS)
        here = urlsplit(self._url).hostname in ("127.0.0.1", "::1", "localhost")  # never behind a proxy
        try:
            async with (
                asyncio.timeout(self._block_timeout_s),
                httpx.AsyncClient(timeout=timeout, trust_env=not here) as client,
            ):
                block = await self._read(client, cid, size_bytes_max)
        except TimeoutError:
            raise ServiceError(
                f"{self._url} did not give {cid} within {self._block_timeout_s:g} s\n"
                "  try again, or name another gateway"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ServiceError(
                f"cannot read {cid} from {self._url} ({reason})\n  check the URL, or name another gateway"
            ) from error
        if hashlib.sha256(block).digest() != digest:
            raise ContentRefused(
                f"{self._url} gave another block for {cid}: it does not hash to its name\n"
                "  name another gateway"
            )
        return block

    async def _read(self, client: httpx.AsyncClient, cid: str, size_bytes_max: int) -> bytes:
        """The body, cut off as soon as it is longer than the block can be."""
        # identity: a compressed answer could grow without end on our side
        headers = {"Accept": RAW_TYPE, "Accept-Encoding": "identity"}
        async with client.stream("GET", f"{self._url}/ipfs/{cid}?format=raw", headers=headers) as answer:
            if answer.status_code in (404, 410, 412, 451):
                raise missing(cid)
            if answer.status_code != 200:
                to = f" to {answer.headers.get('location', '?')}" if answer.is_redirect else ""
                raise ServiceError(
                    f"{self._url} answered {answer.status_code}{to} for {cid}\n"
                    "  name a gateway that serves `?format=raw` itself"
                )
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > size_bytes_max:
                    raise ContentRefused(
                        f"{self._url} sent more than {size_bytes_max} bytes for {cid}\n  name another gateway"
                    )
            return bytes(body)


def gateway_url(text: str) -> str:
    """A gateway's address without a slash at its end. Raises ConfigError for anything but an http(s) URL."""
    try:
        parts = urlsplit(text)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{text!r} is no gateway: it must be a URL such as http://127.0.0.1:8080")
    return text.rstrip("/").removesuffix("/ipfs")


async def from_sources(
    sources: Sequence[ContentSource], content: ContentId
) -> tuple[bytes | None, str | None]:
    """(bytes, name of the source) from the first that has the content, (None, None) where none has."""
    for source in sources:
        try:
            return await source.get(content), source.name
        except ServiceError:
            continue  # absent, damaged or silent: the next one decides
    return None, None
