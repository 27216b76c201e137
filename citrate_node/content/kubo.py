"""A content store on a Kubo daemon, over its RPC (`/api/v0`), behind the same interface as the embedded one.

The daemon is not trusted: names are computed here and another answer is refused, and every block it
returns is hashed. Contents go in as a CAR of our own blocks, so that no setting of the daemon can change
their CID; a daemon without `dag/import` gets `add` with every parameter that matters spelled out.
Nothing depends on the daemon's version string.

What is kept, and for which checkpoint, is remembered in a folder of ours; in the daemon each kept content
is pinned. Its other pins are never touched. Used by the runtime in place of store.EmbeddedStore.
"""

import asyncio
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from ..errors import ServiceError
from ..protocol.content_id import (
    BLOCK_SIZE_BYTES_MAX,
    LEAF_SIZE_BYTES,
    LINKS_MAX,
    RAW,
    Bytes,
    ContentId,
    Importer,
    cid_text,
)
from .car import encode_header, encode_section
from .files import Records, named_errors, open_source, source_chunks
from .interface import (
    CollectReport,
    ContentDamaged,
    ContentRefused,
    Entry,
    entry_after_put,
    missing,
)
from .store_folder import StoreFolder
from .tree import Walk, asked_cid, content_of_root, foreign_tree

ANSWER_SIZE_BYTES_MAX = 1 << 20
"""Of an answer that is not a block; those we ask for have a few lines."""
ATTEMPTS = 3
RETRY_SECONDS = 0.2
ADD_PARAMETERS = {
    "cid-version": "1",
    "hash": "sha2-256",
    "raw-leaves": "true",
    "chunker": f"size-{LEAF_SIZE_BYTES}",
    "max-file-links": str(LINKS_MAX),
    "trickle": "false",
    "inline": "false",
    "nocopy": "false",
    "cid-base": "base32",
    "progress": "false",
    "pin": "true",
}


class KuboRefused(ServiceError):
    """The daemon answered a command with an error."""

    def __init__(self, command: str, status: int, message: str) -> None:
        super().__init__(
            f"Kubo refused {command}: {message or f'HTTP {status}'}\n"
            "  look at the daemon's log; `ipfs diag sys` tells its version and disk"
        )
        self.status = status
        self.message = message


class KuboStore:
    """A `ContentStore` on the daemon at `rpc_url`, remembering in `folder` what this node keeps there.

    `block_timeout_ms` bounds the wait for one block, which the daemon may have to find among its peers.
    `repo_gc` lets `collect` run the daemon's own garbage collection; leave it off where others use it.
    """

    def __init__(
        self,
        rpc_url: str,
        folder: Path,
        *,
        authorization: str | None = None,
        timeout_ms: int = 120_000,
        block_timeout_ms: int = 30_000,
        repo_gc: bool = False,
    ) -> None:
        self.rpc_url = rpc_url.rstrip("/")
        self._block_timeout_ms = block_timeout_ms
        self._repo_gc = repo_gc
        self._folder = StoreFolder(folder, read_only=False, disk_reserve_bytes=0)
        self._records = Records(self._folder.roots, self._folder.incoming)
        self._entries, _ = self._records.load()  # an unreadable one lets nothing go: its pin just stays
        self._leases: Counter[ContentId] = Counter()
        self._writing = asyncio.Lock()
        self._http = httpx.AsyncClient(
            base_url=f"{self.rpc_url}/api/v0/",
            headers={"Authorization": authorization} if authorization else {},
            timeout=httpx.Timeout(timeout_ms / 1000, connect=5.0),
            trust_env=False,  # an RPC on this machine is never behind a proxy
        )

    # the interface

    async def put(self, data: bytes | Path, *, ephemeral_checkpoint: int | None = None) -> ContentId:
        """Name the bytes here, send them, and refuse a daemon that names them otherwise."""
        content = await asyncio.to_thread(_name, data)
        try:
            await self._import(data, content)
        except KuboRefused as error:
            if error.status not in (404, 405):
                raise
            await self._add(data, content)
        async with self._writing:
            self._record(entry_after_put(self._entries.get(content), content, ephemeral_checkpoint))
        return content

    async def get(self, content: ContentId) -> bytes:
        return b"".join([data async for data in self.read(content)])

    async def get_by_cid(self, cid: str, size_bytes_max: int) -> bytes:
        return await self.get(await self.resolve(cid, size_bytes_max))

    async def resolve(self, cid: str, size_bytes_max: int) -> ContentId:
        codec, digest = asked_cid(cid)
        return content_of_root(codec, digest, await self.block(digest), size_bytes_max)

    async def block(self, digest: bytes) -> bytes:
        """One block, hashed; the daemon finds it by its digest, whatever codec the name says."""
        data = await self._fetch(digest)
        if hashlib.sha256(data).digest() != digest:
            raise _damaged(digest)
        return data

    async def read(self, content: ContentId, offset: int = 0) -> AsyncIterator[bytes]:
        """The file from `offset` on, block by block, each checked before it is handed out."""
        if not 0 <= offset <= content.size_bytes:
            raise ValueError(f"offset {offset} lies outside a content of {content.size_bytes} bytes")
        with self.lease(content):
            walk = Walk(content, offset)
            while (wanted := walk.wanted) is not None:
                block = await self._fetch(wanted.digest)
                try:
                    data = await asyncio.to_thread(walk.accept, block)
                except ValueError as error:
                    if hashlib.sha256(block).digest() != wanted.digest:
                        raise _damaged(wanted.digest) from error
                    raise foreign_tree(wanted, error) from error
                if data:
                    yield bytes(data)

    async def has(self, content: ContentId) -> bool:
        """Whether this node keeps the content and the daemon still pins it, so all of it is there."""
        if content not in self._entries:
            return False
        try:
            await self._ask("pin/ls", {"arg": content.cid, "type": "recursive"})
        except KuboRefused:
            return False
        return True

    async def pin(self, content: ContentId) -> None:
        """Keep a content; the daemon fetches what it lacks, for as long as `block_timeout_ms`."""
        async with self._writing:
            try:
                await self._ask(
                    "pin/add",
                    {"arg": content.cid, "recursive": "true", "timeout": f"{self._block_timeout_ms}ms"},
                )
            except KuboRefused as error:
                raise missing(content.cid) from error
            old = self._entries.get(content)
            self._record(Entry(content, True, old.ephemeral_checkpoint if old else None))

    async def unpin(self, content: ContentId) -> None:
        """Let a content go at the next collection; the daemon keeps it until then."""
        async with self._writing:
            old = self._entries.get(content)
            if old is None:
                raise missing(content.cid)
            self._record(Entry(content, False, old.ephemeral_checkpoint))

    async def pins(self) -> tuple[ContentId, ...]:
        return tuple(entry.content for entry in await self.ls() if entry.pinned)

    async def ls(self) -> tuple[Entry, ...]:
        return tuple(self._entries[content] for content in sorted(self._entries))

    async def collect(self, final_checkpoint: int | None = None) -> CollectReport:
        """Unpin in the daemon what nothing keeps any more.

        The disk is freed when the daemon collects its garbage. Unpinned first, forgotten last: cut short,
        the next collection does it again.
        """
        async with self._writing:
            doomed = tuple(
                entry.content
                for entry in self._entries.values()
                if entry.is_over(final_checkpoint) and not self._leases[entry.content]
            )
            for content in doomed:
                try:
                    await self._ask("pin/rm", {"arg": content.cid, "recursive": "true"})
                except KuboRefused as error:
                    if "not pinned" not in error.message:
                        raise
                with named_errors(self._folder.path):
                    self._records.remove((content,))
                del self._entries[content]
            removed = len(_lines(await self._ask("repo/gc", {}))) if self._repo_gc else 0
            return CollectReport(doomed, len(self._entries), removed, 0)

    def lease(self, content: ContentId) -> AbstractContextManager[None]:
        """While open, no collection of this node lets the content go."""
        return self._lease(content)

    def ephemeral_checkpoint_of(self, content: ContentId) -> int | None:
        entry = self._entries.get(content)
        return entry.ephemeral_checkpoint if entry else None

    async def version(self) -> str:
        """What the daemon calls itself, for people to read."""
        return str(_object(await self._ask("version", {})).get("Version", "unknown"))

    async def close(self) -> None:
        await self._http.aclose()
        self._folder.close()

    async def __aenter__(self) -> "KuboStore":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # within

    @contextmanager
    def _lease(self, content: ContentId) -> Iterator[None]:
        self._leases[content] += 1
        try:
            yield
        finally:
            self._leases[content] -= 1
            if not self._leases[content]:
                del self._leases[content]

    def _record(self, entry: Entry) -> None:
        with named_errors(self._folder.path):
            self._records.write(entry)
        self._entries[entry.content] = entry

    async def _fetch(self, digest: bytes) -> bytes:
        """A block as the daemon returns it, which the caller hashes."""
        name = cid_text(RAW, digest)
        try:
            return await self._ask(
                "block/get",
                {"arg": name, "timeout": f"{self._block_timeout_ms}ms"},
                size_bytes_max=BLOCK_SIZE_BYTES_MAX,
            )
        except KuboRefused as error:
            raise missing(name) from error

    async def _import(self, data: bytes | Path, content: ContentId) -> None:
        answer = await self._ask(
            "dag/import",
            {"pin-roots": "true", "silent": "false", "stats": "false", "allow-big-block": "false"},
            upload=lambda: _car(data, content),
        )
        roots = [line["Root"] for line in _lines(answer) if isinstance(line.get("Root"), dict)]
        named = [root.get("Cid", {}).get("/") for root in roots]
        if named != [content.cid]:
            raise ContentRefused(f"Kubo imported {named}, not {content.cid}\n  check the daemon's version")
        if roots[0].get("PinErrorMsg"):
            raise KuboRefused("dag/import", 200, f"cannot pin {content.cid}: {roots[0]['PinErrorMsg']}")

    async def _add(self, data: bytes | Path, content: ContentId) -> None:
        answer = await self._ask("add", ADD_PARAMETERS, upload=lambda: _file(data))
        named = [line.get("Hash") for line in _lines(answer)]
        if named != [content.cid]:
            for wrong in named:
                await self._ask("pin/rm", {"arg": str(wrong)})
            raise ContentRefused(
                f"Kubo named the content {named}, not {content.cid}\n"
                "  this daemon does not follow the profile unixfs-v1-2025: use one that has dag/import"
            )

    async def _ask(
        self,
        command: str,
        parameters: dict[str, str],
        *,
        upload: Callable[[], AsyncIterator[bytes]] | None = None,
        size_bytes_max: int = ANSWER_SIZE_BYTES_MAX,
    ) -> bytes:
        """One RPC call. All that we use may be repeated, so a broken connection is tried again."""
        self._folder.require_open()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._ask_once(command, parameters, upload, size_bytes_max)
            except httpx.TransportError as error:
                if attempt == ATTEMPTS or isinstance(error, httpx.ReadTimeout):
                    raise ServiceError(
                        f"cannot reach Kubo at {self.rpc_url} ({type(error).__name__} in {command})\n"
                        "  start it with `ipfs daemon`, or do without: the embedded store needs no daemon"
                    ) from error
                await asyncio.sleep(RETRY_SECONDS * attempt)
        raise AssertionError("unreachable")

    async def _ask_once(
        self,
        command: str,
        parameters: dict[str, str],
        upload: Callable[[], AsyncIterator[bytes]] | None,
        size_bytes_max: int,
    ) -> bytes:
        boundary = secrets.token_hex(16)  # not to be guessed: content that holds it would end the upload
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"} if upload else {}
        body = _multipart(upload(), boundary) if upload else None
        async with self._http.stream(
            "POST", command, params=parameters, headers=headers, content=body
        ) as answer:
            if int(answer.headers.get("Content-Length", 0)) > size_bytes_max:
                raise ContentRefused(
                    f"Kubo's answer to {command} is above the limit of {size_bytes_max} bytes"
                )
            data = bytearray()
            async for part in answer.aiter_bytes():
                data += part
                if len(data) > size_bytes_max:
                    raise ContentRefused(
                        f"Kubo's answer to {command} is above the limit of {size_bytes_max} bytes"
                    )
            if answer.status_code != 200:
                raise KuboRefused(command, answer.status_code, _message(bytes(data)))
            return bytes(data)


def _name(data: bytes | Path) -> ContentId:
    importer = Importer()
    if isinstance(data, Path):
        with open_source(data) as file:
            for chunk in source_chunks(file, data):
                importer.update(chunk)
    else:
        importer.update(data)
    return importer.finish()


async def _file(data: bytes | Path) -> AsyncIterator[bytes]:
    """The bytes to send, a leaf at a time, read beside the event loop."""
    if isinstance(data, Path):
        with open_source(data) as file:
            chunks = source_chunks(file, data)
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        return
    for start in range(0, len(data), LEAF_SIZE_BYTES):
        yield data[start : start + LEAF_SIZE_BYTES]


async def _car(data: bytes | Path, content: ContentId) -> AsyncIterator[bytes]:
    """The CAR of a file, made while it is sent; refused where the file no longer has that name."""
    sections: dict[bytes, bytes] = {}
    sent: set[bytes] = set()

    def add(digest: bytes, codec: int, block: Bytes) -> None:
        if digest not in sent:
            sent.add(digest)
            sections[digest] = encode_section(codec, digest, block)

    importer = Importer(add)
    yield encode_header(content.cid_bytes)
    async for chunk in _file(data):
        await asyncio.to_thread(importer.update, chunk)
        for section in sections.values():
            yield section
        sections.clear()
    if importer.finish() != content:
        raise ContentRefused("the file changed while it was sent\n  store it once nothing writes to it")
    for section in sections.values():
        yield section


async def _multipart(body: AsyncIterator[bytes], boundary: str) -> AsyncIterator[bytes]:
    yield (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="content"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    async for part in body:
        yield part
    yield f"\r\n--{boundary}--\r\n".encode()


def _lines(answer: bytes) -> list[dict[str, Any]]:
    """The objects of an answer of one JSON object per line; an error among them is raised."""
    lines = [_object(line) for line in answer.splitlines() if line.strip()]
    for line in lines:
        if line.get("Type") == "error":  # begun with 200, failed on the way
            raise KuboRefused("a command", 200, str(line.get("Message", "")))
    return lines


def _object(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContentRefused("Kubo's answer is not JSON\n  check that the address is the RPC's") from error
    if not isinstance(parsed, dict):
        raise ContentRefused("Kubo's answer is not a JSON object\n  check that the address is the RPC's")
    return parsed


def _message(answer: bytes) -> str:
    """The message of an error answer, which may also be plain text."""
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        return answer[:200].decode(errors="replace").strip()
    return str(parsed.get("Message", "")) if isinstance(parsed, dict) else ""


def _damaged(digest: bytes) -> ContentDamaged:
    return ContentDamaged(
        f"Kubo returned other bytes for block {digest.hex()}\n"
        "  run `ipfs repo verify` on the daemon, and fetch the content again"
    )
