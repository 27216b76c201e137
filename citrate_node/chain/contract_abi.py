"""The AdapterFactory artifact, and its ABI as bytes: calls out, results, errors and events back in.

Small on purpose: eth_abi does the work, so that genesis and tests need not import web3. Called by
adapter_factory.py, genesis.py and the contract tests.
"""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any

from eth_abi import decode, encode
from eth_hash.auto import keccak

DEFAULT_CONTRACT = bytes.fromhex("0000000000000000000000000000000000000103")
"""Where the predeploy sits by convention. Another address is configuration, never an assumption."""

_PANIC = keccak(b"Panic(uint256)")[:4]
_ERROR = keccak(b"Error(string)")[:4]


@dataclass(frozen=True, slots=True)
class Reverted:
    """Why the contract refused: the name of its error and the values it carried."""

    name: str
    args: dict[str, Any]

    def __str__(self) -> str:
        values = ", ".join(f"{key}={_shown(value)}" for key, value in self.args.items())
        return f"{self.name}({values})"


@dataclass(frozen=True, slots=True)
class Event:
    """One log of the contract, decoded."""

    name: str
    args: dict[str, Any]


@dataclass(frozen=True)
class ContractAbi:
    """Encodes and decodes by name. Structs are tuples going in, and dicts by field name coming out."""

    entries: tuple[dict[str, Any], ...]

    @cached_property
    def _functions(self) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in self.entries if entry["type"] == "function"}

    @cached_property
    def _errors(self) -> dict[bytes, dict[str, Any]]:
        return {_selector(entry): entry for entry in self.entries if entry["type"] == "error"}

    @cached_property
    def _events(self) -> dict[bytes, dict[str, Any]]:
        return {keccak(_signature(entry)): entry for entry in self.entries if entry["type"] == "event"}

    def event_topic(self, name: str) -> bytes:
        return next(topic for topic, entry in self._events.items() if entry["name"] == name)

    def call_data(self, function: str, *args: Any) -> bytes:
        entry = self._functions[function]
        encoded: bytes = encode([_type(item) for item in entry["inputs"]], args)
        return _selector(entry) + encoded

    def call_arguments(self, function: str, data: bytes) -> dict[str, Any] | None:
        """Arguments of a call, or None where the data is not a well-formed call of this function."""
        entry = self._functions[function]
        if data[:4] != _selector(entry):
            return None
        try:
            return _named(entry["inputs"], decode([_type(item) for item in entry["inputs"]], data[4:]))
        except Exception:  # any fault of a stranger's calldata: eth_abi has no common base of its errors
            return None

    def function_names(self) -> list[str]:
        return sorted(self._functions)

    def selector(self, function: str) -> bytes:
        return _selector(self._functions[function])

    def outputs(self, function: str) -> int:
        """How many values a function returns."""
        return len(self._functions[function]["outputs"])

    def result(self, function: str, data: bytes) -> Any:
        """One value where the function returns one, else a dict by name. Raises on malformed data."""
        outputs = self._functions[function]["outputs"]
        values = [
            _value(item, value)
            for item, value in zip(outputs, decode([_type(item) for item in outputs], data), strict=True)
        ]
        if len(values) == 1:
            return values[0]
        return {
            item["name"] or str(i): value for i, (item, value) in enumerate(zip(outputs, values, strict=True))
        }

    def error(self, data: bytes) -> Reverted:
        """The error in revert data. One that the ABI does not know keeps its raw bytes."""
        entry = self._errors.get(data[:4])
        try:
            if entry is not None:
                types = [_type(item) for item in entry["inputs"]]
                return Reverted(entry["name"], _named(entry["inputs"], decode(types, data[4:])))
            if data[:4] == _PANIC:
                return Reverted("Panic", {"code": decode(["uint256"], data[4:])[0]})
            if data[:4] == _ERROR:
                return Reverted("Error", {"message": decode(["string"], data[4:])[0]})
        except Exception:  # malformed: shown raw, like an unknown one
            pass
        return Reverted("UnknownError", {"data": data})

    def event(self, topics: list[bytes], data: bytes) -> Event | None:
        """The event in a log, or None where it is not one of ours."""
        entry = self._events.get(topics[0]) if topics else None
        if entry is None:
            return None
        indexed = [item for item in entry["inputs"] if item["indexed"]]
        plain = [item for item in entry["inputs"] if not item["indexed"]]
        args = {
            item["name"]: _value(item, decode([_type(item)], topic)[0])
            for item, topic in zip(indexed, topics[1:], strict=True)
        }
        args |= _named(plain, decode([_type(item) for item in plain], data))
        return Event(entry["name"], {item["name"]: args[item["name"]] for item in entry["inputs"]})


@lru_cache(maxsize=1)
def artifact() -> dict[str, Any]:
    """The compiled contract as `npm run build` wrote it: abi, runtimeBytecode, storageLayout, compiler."""
    text = files("citrate_node.chain").joinpath("artifacts/AdapterFactory.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@lru_cache(maxsize=1)
def factory_abi() -> ContractAbi:
    return ContractAbi(tuple(artifact()["abi"]))


def runtime_code() -> bytes:
    return bytes.fromhex(artifact()["runtimeBytecode"].removeprefix("0x"))


def _type(item: dict[str, Any]) -> str:
    name: str = item["type"]
    if not name.startswith("tuple"):
        return name
    return "(" + ",".join(_type(part) for part in item["components"]) + ")" + name.removeprefix("tuple")


def _signature(entry: dict[str, Any]) -> bytes:
    return f"{entry['name']}({','.join(_type(item) for item in entry['inputs'])})".encode()


def _selector(entry: dict[str, Any]) -> bytes:
    return bytes(keccak(_signature(entry))[:4])


def _named(items: list[dict[str, Any]], values: tuple[Any, ...]) -> dict[str, Any]:
    return {item["name"]: _value(item, value) for item, value in zip(items, values, strict=True)}


def _value(item: dict[str, Any], value: Any) -> Any:
    """Structs become dicts; addresses, which eth_abi gives as text, become bytes like everything else."""
    kind: str = item["type"]
    if kind.endswith("]"):
        inner = {**item, "type": kind[: kind.rindex("[")]}
        return [_value(inner, part) for part in value]
    if kind == "tuple":
        return _named(item["components"], value)
    if kind == "address":
        return bytes.fromhex(value.removeprefix("0x"))
    return value


def _shown(value: Any) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)
