"""The adapters a server has loaded: found on chain, verified, allowed, and let go when others need the room.

Only weights that hash to what the chain names, of the server's own base, ever reach the engine; and folders
of this machine that the config names, which every answer calls unverified. Called by runtime/serving_http.py.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ..chain.rpc import ContractRefusal
from ..errors import CitrateError, ConfigError
from ..protocol.content_id import cid_text
from ..training.base_model import BaseModel
from .adapters import AdapterDesk, adapter_reference, default_limits
from .adapters_card import pulled
from .adapters_files import WEIGHTS_FILE, AdapterFile, BaseModelMismatch, read_adapter, require_fit
from .serving_config import LOCAL, CallerKey, LocalAdapter, ServeConfig
from .serving_engine import ServingEngine


class NotAllowed(ConfigError):
    """This caller, or this server, may not use the adapter."""


class UnknownModel(ConfigError):
    """The model's name is no adapter, or there is none of that name."""


class NoRoom(CitrateError):
    """Every loaded adapter is in use."""


@dataclass(slots=True)
class Loaded:
    """One version in the engine; of the base itself all but the key is None."""

    key: str
    adapter_id: str | None = None
    name: str | None = None
    version: int | None = None
    weights_hash: str | None = None
    cid: str | None = None
    rank: int | None = None
    creator: str | None = None
    users: int = 0
    used_at: float = 0.0
    is_local: bool = False

    @property
    def source(self) -> str:
        """What vouches for the weights: "base" (alone), "chain", or nothing: "unverified-local"."""
        return "unverified-local" if self.is_local else "chain" if self.adapter_id else "base"

    def facts(self, base: BaseModel) -> dict[str, object]:
        """Exactly what produced a text: with every answer and every record."""
        return {
            "base_model": base.name,
            "base_model_id": base.base_model_id.hex(),
            "source": self.source,
            "adapter_id": self.adapter_id,
            "adapter_name": self.name,
            "version": self.version,
            "weights_hash": self.weights_hash,
            "cid": self.cid,
        }


class ServedAdapters:
    """Loads by ID, ID@VERSION, ID@latest or local:NAME. desk: None where no chain was named."""

    def __init__(self, engine: ServingEngine, desk: AdapterDesk | None, config: ServeConfig) -> None:
        self._engine = engine
        self._desk = desk
        self._config = config
        self._base = Loaded("")
        self._loaded: dict[str, Loaded] = {}
        self._latest: dict[bytes, tuple[float, int]] = {}
        self._local = {LOCAL + each.name: each for each in config.local}
        self._local_keys: dict[str, tuple[tuple[int, int], str]] = {}
        self._lock = asyncio.Lock()

    @property
    def loaded(self) -> list[Loaded]:
        return list(self._loaded.values())

    @asynccontextmanager
    async def use(self, model: str, caller: CallerKey | None) -> AsyncIterator[Loaded]:
        """The adapter of this name, kept loaded meanwhile.

        Raises UnknownModel, NotAllowed, NoRoom, BaseModelMismatch, or what verification raises.
        """
        found = await self._find(model, caller)
        found.users += 1
        found.used_at = time.monotonic()
        try:
            yield found
        finally:
            found.users -= 1

    async def _find(self, model: str, caller: CallerKey | None) -> Loaded:
        base = self._engine.base
        if model in ("base", base.name, base.base_model_id.hex()):
            return self._base
        if model in self._local:
            return await self._find_local(self._local[model], caller)
        if not model.startswith("0x") or self._desk is None:
            allowed = self._config.access.allows_local
            local = [name for name, each in self._local.items() if allowed(each.name, caller)]
            known = ", ".join(repr(name) for name in (base.name, *local))
            on_chain = "the id of an adapter (ID, ID@VERSION or ID@latest), or " if self._desk else ""
            raise UnknownModel(f"there is no model {model!r}; give {on_chain}one of {known}")
        try:
            adapter_id, number = adapter_reference(model.removesuffix("@latest"))
        except ConfigError as error:
            raise UnknownModel(str(error)) from None
        access = self._config.access
        if not access.allows_adapter(adapter_id, caller):
            raise NotAllowed(f"adapter 0x{adapter_id.hex()} may not be used here by this key")
        async with self._lock:  # one at a time: two requests for one adapter load it once
            try:
                number = number or await self._newest(adapter_id)
                key = f"0x{adapter_id.hex()}@{number}"
                if key not in self._loaded:
                    await self._load(key, adapter_id, number)
            except ContractRefusal as refusal:
                raise UnknownModel(str(refusal)) from refusal
            return self._loaded[key]

    async def _find_local(self, local: LocalAdapter, caller: CallerKey | None) -> Loaded:
        """The folder as it is now: one that was trained again is loaded again, under the new file's hash."""
        if not self._config.access.allows_local(local.name, caller):
            raise NotAllowed(f"{LOCAL}{local.name} may not be used here by this key")
        async with self._lock:
            try:
                state = await asyncio.to_thread(_state_of, Path(local.folder))
                known_state, key = self._local_keys.get(local.name, (None, ""))
                fresh = state != known_state or key not in self._loaded
                file = await asyncio.to_thread(self._read_local, local) if fresh else None
            except CitrateError as error:  # it names the folder, which is none of the caller's business
                print(f"citrate: {LOCAL}{local.name}: {error}", file=sys.stderr, flush=True)
                raise ConfigError(
                    f"{LOCAL}{local.name} cannot be loaded; the server's output says why"
                ) from None
            if file is not None:
                digest = file.content.digest.hex()
                key = f"{LOCAL}{local.name}@{digest[:16]}"
                if key not in self._loaded:
                    await self._make_room()
                    await self._engine.put(key, file.weights)
                    self._loaded[key] = Loaded(
                        key=key,
                        name=local.name,
                        weights_hash=digest,
                        cid=file.content.cid,
                        rank=file.weights.config.rank,
                        is_local=True,
                    )
                self._local_keys[local.name] = (state, key)
            return self._loaded[key]

    def _read_local(self, local: LocalAdapter) -> AdapterFile:
        base, folder = self._engine.base, Path(local.folder)
        limits = self._desk.place.limits if self._desk is not None else default_limits()
        file = read_adapter(folder, limits, base.base_model_id)
        require_fit(file.weights, base, f"{LOCAL}{local.name}")
        return file

    async def _newest(self, adapter_id: bytes) -> int:
        assert self._desk is not None
        asked_at, number = self._latest.get(adapter_id, (float("-inf"), 0))
        if time.monotonic() - asked_at > self._config.limits.latest_seconds:
            number = (await self._desk.version(adapter_id, None)).version
            self._latest[adapter_id] = (time.monotonic(), number)
        return number

    async def _load(self, key: str, adapter_id: bytes, number: int) -> None:
        """Judge before the bytes are fetched, verify, then hand over."""
        assert self._desk is not None
        base = self._engine.base
        row = await self._desk.adapter(adapter_id)
        if not self._config.access.allows(adapter_id, row.creator):
            raise NotAllowed(
                f"adapter 0x{adapter_id.hex()} of creator 0x{row.creator.hex()} is not allowed by "
                "access.creators or access.adapters"
            )
        if row.base_model_id != base.base_model_id:
            raise BaseModelMismatch(
                f"adapter 0x{adapter_id.hex()} is made for base model {row.base_model_id.hex()}, "
                f"this server has {base.base_model_id.hex()}"
            )
        got = await pulled(self._desk, adapter_id, number)
        require_fit(got.file.weights, base, key)
        await self._make_room()
        await self._engine.put(key, got.file.weights)
        self._loaded[key] = Loaded(
            key=key,
            adapter_id=f"0x{adapter_id.hex()}",
            name=row.name,
            version=number,
            weights_hash=got.version.weights_hash.hex(),
            cid=cid_text(got.version.codec, got.version.weights_hash),
            rank=row.rank,
            creator=f"0x{row.creator.hex()}",
        )

    async def _make_room(self) -> None:
        while len(self._loaded) >= self._config.limits.adapters_max:
            idle = [each for each in self._loaded.values() if each.users == 0]
            if not idle:
                raise NoRoom(f"all {len(self._loaded)} loaded adapters are in use; try again")
            oldest = min(idle, key=lambda each: each.used_at)
            del self._loaded[oldest.key]
            await self._engine.drop(oldest.key)


def _state_of(folder: Path) -> tuple[int, int]:
    """What changes when the folder's weights do. Raises ConfigError where there are none."""
    file = folder / WEIGHTS_FILE if folder.is_dir() else folder
    try:
        found = file.stat()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}\n  see [[local]] in the config") from None
    return found.st_mtime_ns, found.st_size
