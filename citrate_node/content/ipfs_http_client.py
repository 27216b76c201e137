"""The same commands of a Kubo daemon through the library `ipfshttpclient` (extra of that name, 0.8.0a2).

For operators who have that library vetted; kubo_rpc.KuboRpc is the default. Its last release is of 2021:
it warns of every newer daemon (silenced here, for we depend on no version), blocks its thread, and reads a
whole answer before it can be measured. Given to kubo.KuboStore in place of a URL.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, ServiceError
from ..protocol.content_id import BLOCK_SIZE_BYTES_MAX, LEAF_SIZE_BYTES, LINKS_MAX
from .interface import ContentRefused
from .kubo_rpc import IMPORT_PARAMETERS, KuboRefused, Parts, unreachable

R = TypeVar("R")


class IpfsHttpClient:
    """A `kubo_rpc.Daemon`. Each call runs in a thread; the library's client is used by one at a time."""

    def __init__(self, url: str, *, timeout_ms: int = 120_000) -> None:
        try:
            import ipfshttpclient
        except ImportError as error:
            raise ConfigError(
                "the library ipfshttpclient is not installed\n"
                "  install `citrate-node[ipfshttpclient]`, or leave it: our own client needs no library"
            ) from error
        self.url = url.rstrip("/")
        self._library = ipfshttpclient
        self._using = asyncio.Lock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = ipfshttpclient.Client(_multiaddr(url), session=True, timeout=timeout_ms / 1000)

    async def import_car(self, parts: Parts) -> tuple[str, ...]:
        def run() -> Any:
            with _Upload(parts()) as file:
                try:
                    return self._client.dag.imprt(file, opts=dict(IMPORT_PARAMETERS))
                except (AssertionError, IndexError):
                    return []  # the library insists on exactly one root; a daemon that pins none names none

        answer = await self._ask("dag/import", run, without_answer=[])
        return tuple(str(line["Root"]["Cid"]["/"]) for line in _objects(answer) if "Root" in line)

    async def add(self, parts: Parts) -> tuple[str, ...]:
        options = {
            "max-file-links": str(LINKS_MAX),
            "hash": "sha2-256",
            "inline": "false",
            "cid-base": "base32",
        }

        def run() -> Any:
            with _Upload(parts()) as file:
                return self._client.add(
                    file,
                    pin=False,
                    raw_leaves=True,
                    cid_version=1,
                    chunker=f"size-{LEAF_SIZE_BYTES}",
                    opts=options,
                )

        return tuple(str(line["Hash"]) for line in _objects(await self._ask("add", run)))

    async def block(self, cid: str, timeout_ms: int) -> bytes:
        options = {"timeout": f"{timeout_ms}ms"}
        data = await self._ask("block/get", lambda: bytes(self._client.block.get(cid, opts=options)))
        if len(data) > BLOCK_SIZE_BYTES_MAX:
            raise ContentRefused(
                f"Kubo's answer to block/get is above the limit of {BLOCK_SIZE_BYTES_MAX} bytes"
            )
        return data

    async def make_folder(self, path: str) -> None:
        await self._ask("files/mkdir", lambda: self._client.files.mkdir(path, parents=True))

    async def copy(self, source: str, path: str, timeout_ms: int) -> None:
        options = {"timeout": f"{timeout_ms}ms"}
        await self._ask("files/cp", lambda: self._client.files.cp(source, path, opts=options))

    async def remove(self, path: str) -> None:
        await self._ask("files/rm", lambda: self._client.files.rm(path, opts={"force": "true"}))

    async def stat(self, path: str) -> dict[str, Any]:
        options = {"with-local": "true", "cid-base": "base32"}
        answer = await self._ask("files/stat", lambda: self._client.files.stat(path, opts=options))
        return dict(answer)

    async def collect_garbage(self) -> int:
        return len(_objects(await self._ask("repo/gc", lambda: self._client.repo.gc(), without_answer=[])))

    async def version(self) -> str:
        return str((await self._ask("version", lambda: self._client.version())).get("Version", "unknown"))

    async def close(self) -> None:
        async with self._using:
            await asyncio.to_thread(self._client.close)

    async def _ask(self, command: str, run: Callable[[], R], *, without_answer: Any = None) -> R:
        """Run in a thread; the library's errors become ours. `without_answer`: for a body without a line."""
        errors = self._library.exceptions
        async with self._using:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return await asyncio.to_thread(run)
            except errors.ErrorResponse as error:
                raise KuboRefused(command, 500, str(error)) from error
            except errors.StatusError as error:
                status = getattr(getattr(error.original, "response", None), "status_code", 500)
                raise KuboRefused(command, status, "") from error
            except (errors.ConnectionError, errors.TimeoutError, errors.ProtocolError) as error:
                raise unreachable(self.url, type(error).__name__, command) from error
            except errors.DecodingError as error:
                if without_answer is not None:
                    return without_answer  # type: ignore[no-any-return]  # the library knows no empty answer
                raise ContentRefused(
                    "Kubo's answer is not JSON\n  check that the address is the RPC's"
                ) from error
            except errors.Error as error:
                raise ServiceError(f"ipfshttpclient failed in {command}: {error}") from error


class _Upload(io.RawIOBase):
    """A readable file over the parts of an upload, as the library wants one."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def _objects(answer: Any) -> list[dict[str, Any]]:
    """The library gives one object alone, and several in a list."""
    lines = answer if isinstance(answer, list) else [answer]
    return [dict(line) for line in lines if line]


def _multiaddr(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is no http(s) URL of a Kubo RPC, such as http://127.0.0.1:5001")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        kind = f"ip{ipaddress.ip_address(parts.hostname).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{parts.hostname}/tcp/{port}/{parts.scheme}"
