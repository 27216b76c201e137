"""The RPC of a Kubo daemon (`/api/v0`), as far as kubo.KuboStore needs it: one method per command.

Asynchronous and streaming, over httpx. Nothing depends on the daemon's version string: commands and options
are those that daemons since 0.18 have, and every parameter that matters is sent. `Daemon` is what KuboStore
asks for; ipfs_http_client.py gives the same through the library ipfshttpclient.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

import httpx

from ..errors import ServiceError
from ..protocol.content_id import BLOCK_SIZE_BYTES_MAX, LEAF_SIZE_BYTES, LINKS_MAX
from .interface import ContentRefused

ANSWER_SIZE_BYTES_MAX = 1 << 20
"""Of an answer that is not a block; those we ask for have a few lines."""
GARBAGE_ANSWER_SIZE_BYTES_MAX = 1 << 28
"""Of the answer to a garbage collection, which names every block it removed."""
RETRY_SECONDS = 0.2
RETRY_SECONDS_MAX = 2.0
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
    "pin": "false",
}
IMPORT_PARAMETERS = {"pin-roots": "false", "silent": "false", "stats": "false", "allow-big-block": "false"}

Parts = Callable[[], Iterator[bytes]]
"""Makes the bytes of an upload, as often as it is begun. Runs beside the event loop."""


class KuboRefused(ServiceError):
    """The daemon answered a command with an error."""

    def __init__(self, command: str, status: int, message: str) -> None:
        super().__init__(
            f"Kubo refused {command}: {message or f'HTTP {status}'}\n"
            "  look at the daemon's log; `ipfs diag sys` tells its version and disk"
        )
        self.status = status
        self.message = message

    @property
    def is_unknown_command(self) -> bool:
        return self.status in (404, 405)


class Daemon(Protocol):
    """What KuboStore asks a daemon for. Each raises KuboRefused where the daemon says no."""

    async def import_car(self, parts: Parts) -> tuple[str, ...]:
        """Take in a CAR; the roots it names in its answer, where it names any."""
        ...

    async def add(self, parts: Parts) -> tuple[str, ...]:
        """Take in a file with ADD_PARAMETERS; the CIDs it gives."""
        ...

    async def block(self, cid: str, timeout_ms: int) -> bytes:
        """One block, at most BLOCK_SIZE_BYTES_MAX of it; nothing about it is checked."""
        ...

    async def make_folder(self, path: str) -> None: ...

    async def copy(self, source: str, path: str, timeout_ms: int) -> None: ...

    async def remove(self, path: str) -> None: ...

    async def stat(self, path: str) -> dict[str, Any]: ...

    async def collect_garbage(self) -> int:
        """Blocks removed."""
        ...

    async def version(self) -> str: ...

    async def close(self) -> None: ...


class KuboRpc:
    """A `Daemon` at `url`. A broken connection is tried again for as long as `outage_ms`: daemons restart.

    `timeout_ms` bounds the wait for the next bytes of an answer; `authorization` is the header that
    Kubo's `API.Authorizations` asks for.
    """

    def __init__(
        self,
        url: str,
        *,
        authorization: str | None = None,
        timeout_ms: int = 120_000,
        outage_ms: int = 15_000,
    ) -> None:
        self.url = url.rstrip("/")
        self._outage_seconds = outage_ms / 1000
        self._http = httpx.AsyncClient(
            base_url=f"{self.url}/api/v0/",
            headers={"Authorization": authorization} if authorization else {},
            timeout=httpx.Timeout(timeout_ms / 1000, connect=5.0),
            trust_env=False,  # an RPC on this machine is never behind a proxy
        )

    async def import_car(self, parts: Parts) -> tuple[str, ...]:
        answer = await self._ask("dag/import", IMPORT_PARAMETERS, upload=parts)
        roots = [line["Root"] for line in _lines("dag/import", answer) if isinstance(line.get("Root"), dict)]
        cids = [root.get("Cid") for root in roots]
        return tuple(str(cid.get("/")) if isinstance(cid, dict) else str(cid) for cid in cids)

    async def add(self, parts: Parts) -> tuple[str, ...]:
        lines = _lines("add", await self._ask("add", ADD_PARAMETERS, upload=parts))
        return tuple(str(line.get("Hash")) for line in lines)

    async def block(self, cid: str, timeout_ms: int) -> bytes:
        parameters = {"arg": cid, "timeout": f"{timeout_ms}ms"}
        return await self._ask("block/get", parameters, size_bytes_max=BLOCK_SIZE_BYTES_MAX)

    async def make_folder(self, path: str) -> None:
        await self._ask("files/mkdir", {"arg": path, "parents": "true"})

    async def copy(self, source: str, path: str, timeout_ms: int) -> None:
        await self._ask("files/cp", {"arg": [source, path], "timeout": f"{timeout_ms}ms"})

    async def remove(self, path: str) -> None:
        await self._ask("files/rm", {"arg": path, "force": "true"})

    async def stat(self, path: str) -> dict[str, Any]:
        parameters = {"arg": path, "with-local": "true", "cid-base": "base32"}
        return _object(await self._ask("files/stat", parameters))

    async def collect_garbage(self) -> int:
        answer = await self._ask("repo/gc", {}, size_bytes_max=GARBAGE_ANSWER_SIZE_BYTES_MAX)
        return len(_lines("repo/gc", answer))

    async def version(self) -> str:
        return str(_object(await self._ask("version", {})).get("Version", "unknown"))

    async def close(self) -> None:
        await self._http.aclose()

    # within

    async def _ask(
        self,
        command: str,
        parameters: Mapping[str, str | list[str]],
        *,
        upload: Parts | None = None,
        size_bytes_max: int = ANSWER_SIZE_BYTES_MAX,
    ) -> bytes:
        """One RPC call. All that we use may be repeated, so a broken connection is tried again."""
        deadline = time.monotonic() + self._outage_seconds
        pause = RETRY_SECONDS
        while True:
            try:
                return await self._ask_once(command, parameters, upload, size_bytes_max)
            except httpx.TransportError as error:
                if time.monotonic() + pause > deadline or isinstance(error, httpx.ReadTimeout):
                    raise unreachable(self.url, type(error).__name__, command) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)

    async def _ask_once(
        self,
        command: str,
        parameters: Mapping[str, str | list[str]],
        upload: Parts | None,
        size_bytes_max: int,
    ) -> bytes:
        boundary = secrets.token_hex(16)  # not to be guessed: content that holds it would end the upload
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"} if upload else {}
        body = _multipart(upload, boundary) if upload else None
        async with self._http.stream(
            "POST", command, params=parameters, headers=headers, content=body
        ) as answer:
            data = bytearray()
            announced = answer.headers.get("Content-Length", "0")
            if not announced.isdecimal() or int(announced) > size_bytes_max:
                raise _too_long(command, size_bytes_max)
            async for part in answer.aiter_bytes():
                data += part
                if len(data) > size_bytes_max:
                    raise _too_long(command, size_bytes_max)
            if answer.status_code != 200:
                raise KuboRefused(command, answer.status_code, _message(bytes(data)))
            return bytes(data)


def unreachable(url: str, reason: str, command: str) -> ServiceError:
    """The error of a daemon that does not answer."""
    return ServiceError(
        f"cannot reach Kubo at {url} ({reason} in {command})\n"
        "  start it with `ipfs daemon`, or do without: the embedded store needs no daemon"
    )


def _too_long(command: str, size_bytes_max: int) -> ContentRefused:
    return ContentRefused(f"Kubo's answer to {command} is above the limit of {size_bytes_max} bytes")


async def _multipart(parts: Parts, boundary: str) -> AsyncIterator[bytes]:
    yield (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="content"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    made = parts()
    while (part := await asyncio.to_thread(next, made, None)) is not None:
        yield part
    yield f"\r\n--{boundary}--\r\n".encode()


def _lines(command: str, answer: bytes) -> list[dict[str, Any]]:
    """The objects of an answer of one JSON object per line; an error among them is raised."""
    lines = [_object(line) for line in answer.splitlines() if line.strip()]
    for line in lines:
        if line.get("Type") == "error":  # begun with 200, failed on the way
            raise KuboRefused(command, 200, str(line.get("Message", "")))
        if line.get("Error"):  # a garbage collection's way to say so
            raise KuboRefused(command, 200, str(line["Error"]))
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
