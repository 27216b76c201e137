"""Canonical CBOR: one value, one byte string. Everything that is hashed or signed passes through here.

The encoding is the core deterministic one of RFC 8949 section 4.2.1, made by cbor2. The decoder takes
nothing that does not encode back to the same bytes, so no two byte strings mean the same message.
Map keys are always text; for text keys length-first order (RFC 7049) and bytewise order agree.

`encode_fields` and `decode_fields` carry a frozen dataclass as a CBOR map of its field names; the limit of
each field stands in its annotation (`Annotated[int, Between(...)]`, `Annotated[bytes, Sized(32)]`).
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from hashlib import sha256
from typing import Annotated, Any, NoReturn, TypeVar

import cbor2

DEPTH_MAX = 8
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1


class EncodingError(ValueError):
    """Bytes that are not the canonical encoding of what they claim to be. The text names the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """Limit of an integer field, both ends included."""

    low: int
    high: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sized:
    """Limit of the length of a bytes, text or list field, both ends included."""

    low: int
    high: int


Hash32 = Annotated[bytes, Sized(32, 32)]
NodeKey = Annotated[bytes, Sized(32, 32)]
"""Ed25519 public key of a node: its name in every message and its libp2p identity."""
CheckpointNumber = Annotated[int, Between(0, UINT64_MAX)]
Ppm = Annotated[int, Between(INT64_MIN + 1, INT64_MAX)]
"""Parts per million; signed where a change can be for the worse. The least int64 means unknown on chain."""
Count = Annotated[int, Between(0, 2**40)]
Round = Annotated[int, Between(0, 2**32 - 1)]
"""Attempt at a checkpoint: a uint32 of the contract."""
Name = Annotated[str, Sized(1, 64)]
SizedIds = tuple[Annotated[bytes, Sized(32, 32)], ...]
"""A list of 32-byte ids."""


def encode(value: Any) -> bytes:
    """Canonical bytes of ints, bytes, text, lists and maps with text keys."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, size_bytes_max: int) -> Any:
    """The value of canonical bytes. Raises EncodingError when they are too long, broken or not canonical."""
    if len(data) > size_bytes_max:
        raise EncodingError(f"{len(data)} bytes, limit {size_bytes_max}")
    try:
        value = cbor2.loads(
            data,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            tag_hook=_refuse_tag,
            semantic_decoders=_NO_TAGS,
        )
        _check_types(value)
        again = cbor2.dumps(value, canonical=True)
    except EncodingError:
        raise
    except Exception as error:  # the decoder raises several kinds on hostile bytes
        raise EncodingError(f"not CBOR: {error}") from None
    if again != data:
        raise EncodingError("not the canonical encoding")
    return value


def _check_types(value: Any) -> None:
    """Refuse what CBOR can say beyond ints, bytes, text, lists, maps with text keys and booleans."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise EncodingError(f"map keys are text, not {type(key).__name__}")
            _check_types(item)
    elif type(value) is list:
        for item in value:
            _check_types(item)
    elif type(value) not in (int, bytes, str, bool):
        raise EncodingError(f"{type(value).__name__} is not used here")


def digest(domain: str, data: bytes) -> bytes:
    """sha256 over a domain name, a zero byte and the data: equal bytes in two roles hash differently."""
    return sha256(domain.encode() + b"\0" + data).digest()


def _refuse_tag(*_: Any) -> NoReturn:
    raise EncodingError("CBOR tags are not used here")


# cbor2 decodes these by itself (dates, bignums, regular expressions, sets, addresses ...); each is refused.
_TAGS_KNOWN = (
    0,
    1,
    2,
    3,
    4,
    5,
    25,
    28,
    29,
    30,
    35,
    36,
    37,
    52,
    54,
    100,
    256,
    258,
    260,
    261,
    1004,
    43000,
    55799,
)
_NO_TAGS = dict.fromkeys(_TAGS_KNOWN, _refuse_tag)


T = TypeVar("T")


@functools.cache
def _schema(kind: Any) -> dict[str, tuple[type, tuple[Any, ...]]]:
    """Field name to (plain type, limits), read from the annotations of a dataclass."""
    schema = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name.startswith("_") or name not in {f.name for f in dataclasses.fields(kind)}:
            continue
        plain, limits = hint, ()
        if typing.get_origin(hint) is Annotated:
            plain, *rest = typing.get_args(hint)
            limits = tuple(rest)
        schema[name] = (plain, limits)
    return schema


def encode_fields(value: Any) -> bytes:
    """Canonical CBOR map of a dataclass of this module's field types. Raises EncodingError past a limit."""
    return encode(fields_of(value))


def fields_of(value: Any) -> dict[str, Any]:
    """The map that `encode_fields` encodes. Raises EncodingError naming the field that breaks its limit."""
    out = {}
    for name, (plain, limits) in _schema(typing.cast(Any, type(value))).items():
        item = getattr(value, name)
        _check(name, item, plain, limits)
        out[name] = _plain(item)
    return out


def decode_fields(kind: type[T], data: bytes, *, size_bytes_max: int) -> T:
    """The dataclass whose `encode_fields` is `data`. Raises EncodingError naming the field and the limit."""
    return fields_from(kind, decode(data, size_bytes_max=size_bytes_max))


def fields_from(kind: type[T], raw: Any) -> T:
    """The dataclass of a decoded map; exactly its fields, no more and no fewer."""
    schema = _schema(typing.cast(Any, kind))
    if not isinstance(raw, dict):
        raise EncodingError(f"{kind.__name__} must be a map")
    for name in raw:
        if name not in schema:
            raise EncodingError(f"unknown field {str(name)[:40]!r}")
    values = {}
    for name, (plain, limits) in schema.items():
        if name not in raw:
            raise EncodingError(f"field {name} is missing")
        values[name] = _build(name, raw[name], plain)
        _check(name, values[name], plain, limits)
    return kind(**values)


def _plain(item: Any) -> Any:
    if isinstance(item, tuple):
        return [_plain(part) for part in item]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return fields_of(item)
    return item


def _build(name: str, raw: Any, plain: Any) -> Any:
    if typing.get_origin(plain) is tuple:
        if not isinstance(raw, list):
            raise EncodingError(f"field {name} must be a list")
        args = typing.get_args(plain)
        inner = args[0]
        if typing.get_origin(inner) is Annotated:
            inner = typing.get_args(inner)[0]
        return tuple(_build(name, part, inner) for part in raw)
    if dataclasses.is_dataclass(plain):
        return fields_from(typing.cast(type, plain), raw)
    return raw


def _check(name: str, item: Any, plain: Any, limits: tuple[Any, ...]) -> None:
    if typing.get_origin(plain) is tuple:
        if not isinstance(item, tuple):
            raise EncodingError(f"field {name} must be a tuple")
        inner = typing.get_args(plain)[0]
        inner_plain, inner_limits = inner, ()
        if typing.get_origin(inner) is Annotated:
            inner_plain, *rest = typing.get_args(inner)
            inner_limits = tuple(rest)
        for part in item:
            _check(name, part, inner_plain, inner_limits)
    elif type(item) is not plain:
        raise EncodingError(
            f"field {name} must be {getattr(plain, '__name__', plain)}, is {type(item).__name__}"
        )
    for limit in limits:
        if isinstance(limit, Between) and not limit.low <= item <= limit.high:
            raise EncodingError(f"field {name} is {item}, must lie between {limit.low} and {limit.high}")
        if isinstance(limit, Sized) and not limit.low <= len(item) <= limit.high:
            raise EncodingError(
                f"field {name} has length {len(item)}, must have between {limit.low} and {limit.high}"
            )
