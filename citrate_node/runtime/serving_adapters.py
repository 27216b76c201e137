"""The adapters a server has loaded: found on chain, verified, allowed, and let go when others need the room.

Only weights that hash to what the chain names, of the server's own base, ever reach the engine.
Called by runtime/serving_http.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..chain.rpc import ContractRefusal
from ..errors import CitrateError, ConfigError
from ..protocol.content_id import cid_text
from ..training.base_model import BaseModel
from .adapters import AdapterDesk, adapter_reference
from .adapters_card import pulled
from .adapters_files import BaseModelMismatch, require_fit
from .serving_config import CallerKey, ServeConfig
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

    def facts(self, base: BaseModel) -> dict[str, object]:
        """Exactly what produced a text: with every answer and every record."""
        return {
            "base_model": base.name,
            "base_model_id": base.base_model_id.hex(),
            "adapter_id": self.adapter_id,
            "adapter_name": self.name,
            "version": self.version,
            "weights_hash": self.weights_hash,
            "cid": self.cid,
        }


class ServedAdapters:
    """Loads by ID, ID@VERSION or ID@latest. desk: None where no chain was named: then only the base."""

    def __init__(self, engine: ServingEngine, desk: AdapterDesk | None, config: ServeConfig) -> None:
        self._engine = engine
        self._desk = desk
        self._config = config
        self._base = Loaded("")
        self._loaded: dict[str, Loaded] = {}
        self._latest: dict[bytes, tuple[float, int]] = {}
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
        if not model.startswith("0x") or self._desk is None:
            raise UnknownModel(
                f"there is no model {model!r}; give the id of an adapter (ID, ID@VERSION or ID@latest) or "
                f"{base.name!r}"
            )
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
