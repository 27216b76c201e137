"""What an adapter server is told: where it listens, what it takes on, and who may use which adapters.

    [server]                       # every key may be left out
    host = "127.0.0.1"
    port = 8400
    base = "embedded"              # a folder or hub name
    record = "serve.jsonl"         # the runtime record; "" for none

    [limits]
    prompt_tokens_max = 1024
    tokens_max = 256               # of one answer
    requests_max = 32              # texts under way and waiting, n of them in one request; beyond it 429
    choices_max = 8                # n of one request
    body_bytes_max = 65536
    request_seconds_max = 60.0
    adapters_max = 16              # loaded at once; the longest unused one makes room
    latest_seconds = 5.0           # how long "latest" is remembered before the chain is asked again

    [stores]
    folders = []                   # content stores, or data folders of nodes; empty: those of the devnet
    gateways = []                  # URLs of trustless IPFS gateways, asked after the stores

    [[local]]                      # a folder of this machine, asked for as "local:mine"; nothing confirms it
    name = "mine"
    folder = "out/mine"            # from the place of this file

    [access]
    creators = ["0x…"]             # with both empty, any adapter of the base whose weights the chain confirms
    adapters = ["0x…"]

    [[access.keys]]                # without any, everybody who reaches the port (loopback only)
    name = "alice"
    sha256 = "…"                   # of the key: the key itself is nowhere on disk
    adapters = []                  # of this caller, ids or "local:mine"; empty: all that the server allows

Called by runtime/serving_http.py and cli/adapter_serve.py.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from ..content.sources import gateway_url
from ..errors import ConfigError
from .adapters import account_bytes, id_bytes

_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
LOCAL = "local:"
"""Before the name of a [[local]] folder, wherever a model is named."""

_KEY_PREFIX = "citrate-"


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """[server]"""

    __pydantic_config__: ClassVar[Any] = _STRICT
    host: str = "127.0.0.1"
    port: int = 8400
    base: str = "embedded"
    record: str = "serve.jsonl"


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """[limits]"""

    __pydantic_config__: ClassVar[Any] = _STRICT
    prompt_tokens_max: int = 1024
    tokens_max: int = 256
    requests_max: int = 32
    choices_max: int = 8
    body_bytes_max: int = 65_536
    request_seconds_max: float = 60.0
    adapters_max: int = 16
    latest_seconds: float = 5.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise ValueError(f"{limit.name} is {getattr(self, limit.name)}, it must be positive")


@dataclass(frozen=True, slots=True)
class CallerKey:
    """[[access.keys]]"""

    __pydantic_config__: ClassVar[Any] = _STRICT
    name: str
    sha256: str
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise ValueError(f"sha256 of key {self.name!r} must be 64 hex digits in lower case")
        for text in self.adapters:
            if not text.startswith(LOCAL):
                id_bytes(text, "adapter id")


@dataclass(frozen=True, slots=True)
class ServeStores:
    """[stores]"""

    __pydantic_config__: ClassVar[Any] = _STRICT
    folders: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for url in self.gateways:
            try:
                gateway_url(url)
            except ConfigError as error:
                raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """[[local]]"""

    __pydantic_config__: ClassVar[Any] = _STRICT
    name: str
    folder: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.name):
            raise ValueError(
                f"{self.name!r} is no name: 1 to 64 letters, digits, points, dashes or underscores"
            )


@dataclass(frozen=True, slots=True)
class ServeAccess:
    """[access]"""

    __pydantic_config__: ClassVar[Any] = _STRICT
    creators: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    keys: tuple[CallerKey, ...] = ()

    def __post_init__(self) -> None:
        for text in self.creators:
            account_bytes(text)
        for text in self.adapters:
            id_bytes(text, "adapter id")
        names = [key.name for key in self.keys]
        if len(set(names)) != len(names):
            raise ValueError("two keys have one name")

    def caller(self, authorization: str | None) -> CallerKey | None:
        """Whose key a request carries ("Bearer KEY"). None: nobody's. Any wrong key takes the same time."""
        kind, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest() if kind.lower() == "bearer" else ""
        found = None
        for each in self.keys:
            if hmac.compare_digest(each.sha256, digest):
                found = each
        return found

    def allows_adapter(self, adapter_id: bytes, caller: CallerKey | None) -> bool:
        """Whether this caller may ask for this adapter at all; its creator is looked at once it is known."""
        if caller is not None and caller.adapters and adapter_id not in _ids(caller.adapters):
            return False  # names of local folders in that list allow no adapter on chain
        return bool(self.creators) or not self.adapters or adapter_id in _ids(self.adapters)

    def allows_local(self, name: str, caller: CallerKey | None) -> bool:
        """Whether this caller may ask for a local folder. The server has it because its config says so."""
        return caller is None or not caller.adapters or LOCAL + name in caller.adapters

    def allows(self, adapter_id: bytes, creator: bytes) -> bool:
        """Whether the server may load this adapter of this creator: named itself, or its creator is."""
        if not self.creators and not self.adapters:
            return True
        named = adapter_id in _ids(self.adapters)
        return named or creator in {account_bytes(text) for text in self.creators}


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The whole file."""

    __pydantic_config__: ClassVar[Any] = _STRICT
    server: ServerPlace = field(default_factory=ServerPlace)
    limits: ServeLimits = field(default_factory=ServeLimits)
    access: ServeAccess = field(default_factory=ServeAccess)
    stores: ServeStores = field(default_factory=ServeStores)
    local: tuple[LocalAdapter, ...] = ()

    def __post_init__(self) -> None:
        names = [each.name for each in self.local]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ValueError(f"two local folders have the name {twice[0]}")
        for key in self.access.keys:
            for text in key.adapters:
                if text.startswith(LOCAL) and text.removeprefix(LOCAL) not in names:
                    raise ValueError(f"key {key.name!r} may use {text}, and no [[local]] has that name")

    def beside(self, folder: Path) -> ServeConfig:
        """The same with folders that are not absolute taken from this one, where the config lies."""
        local = tuple(replace(each, folder=str(folder / each.folder)) for each in self.local)
        stores = replace(self.stores, folders=tuple(str(folder / each) for each in self.stores.folders))
        return replace(self, local=local, stores=stores)

    def require_safe(self) -> None:
        """Raises ConfigError where a port that others reach would be open to everybody."""
        if not self.access.keys and not _is_loopback(self.server.host):
            raise ConfigError(
                f"server.host {self.server.host} can be reached by others, and access.keys is empty\n"
                "  add a key (`citrate adapter serve --new-key NAME` makes one), or listen on 127.0.0.1"
            )


def load_serve_config(path: Path | None) -> ServeConfig:
    """Raises ConfigError, naming the key that is wrong. None: the defaults."""
    from pydantic import TypeAdapter, ValidationError

    if path is None:
        return ServeConfig()
    try:
        # strict types are those of JSON: a table is an object, a list a tuple; a date is none of ours
        values = json.dumps(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    try:
        config: ServeConfig = TypeAdapter(ServeConfig).validate_json(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        text = f"{path}: {place}: {first['msg'].lower()}"
        raise ConfigError(f"{text}\n  docs/serving.md names the keys and their defaults") from None
    return config.beside(path.parent)


def new_key(name: str) -> tuple[str, str]:
    """(a fresh key, what the config says of it). 256 random bits: a plain hash of them cannot be guessed."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    if not name or any(sign in name for sign in '"\\\n') or len(name) > 64:
        raise ConfigError(f"{name!r} is no name for a key: 1 to 64 characters without quotes")
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f'[[access.keys]]\nname = "{name}"\nsha256 = "{digest}"\n'


def _ids(texts: Sequence[str]) -> set[bytes]:
    return {id_bytes(text, "adapter id") for text in texts if not text.startswith(LOCAL)}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
