"""Reads presets and node configurations: TOML in, checked values out.

An unknown key is an error that names it: a misspelt limit must not silently be the default.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .protocol.preset import Preset, preset_from


def load_preset(name_or_path: str) -> Preset:
    """A preset by name (`devnet`, `minimal`) or by the path of a TOML file.

    Raises ConfigError for a name that does not exist, PresetError for numbers that cannot hold together.
    """
    if is_preset_file(name_or_path):
        return preset_from(read_toml(Path(name_or_path)))
    source = resources.files("citrate_node") / "presets" / f"{name_or_path}.toml"
    if not source.is_file():
        names = sorted(
            entry.name.removesuffix(".toml")
            for entry in (resources.files("citrate_node") / "presets").iterdir()
            if entry.name.endswith(".toml")
        )
        raise ConfigError(
            f"there is no preset {name_or_path!r}\n  choose one of {', '.join(names)}, or give a .toml file"
        )
    return preset_from(tomllib.loads(source.read_text()))


def is_preset_file(name_or_path: str) -> bool:
    """Whether a preset is given by its file and not by its name."""
    return name_or_path.endswith(".toml") or "/" in name_or_path


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it is absent, unreadable or not TOML."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One operator's settings: node.toml. Relative paths start at the folder of the file."""

    folder: Path
    """The node's data folder: database, content store, keys."""
    name: str
    preset: str
    node_seed_file: Path
    """Ed25519 seed, 64 hex digits, readable by its owner only: messages and libp2p identity."""
    account_key_file: Path
    """secp256k1 key: an encrypted keystore (.json), or 64 hex digits of a development key."""
    account_password_file: Path | None
    rpc_url: str
    contract: str
    adapter_id: str
    listen: str
    peers: tuple[str, ...]
    gateway_port: int
    """Port of the trustless gateway on loopback; 0 for none."""
    ipfs_url: str
    """RPC of a Kubo daemon that keeps the contents; empty for the embedded store."""
    versions_kept: int
    """Checkpoints for which a final state and its weights are kept, unless pinned; 0: for ever."""
    read_stores: tuple[Path, ...]
    """Content stores on this disk, read only, where weights that the chain names may lie."""
    gateways: tuple[str, ...]
    """Trustless gateways (URLs) that are asked for such weights, after the stores and before the peers."""
    base_model: str
    data: str
    """Source of the node's own examples (training/data.py); empty for a node that only votes and serves."""
    steps: int
    batch_sequences: int
    sequence_bytes: int
    learning_rate: float
    threads: int
    metrics: str
    """Address (`host:port`, or a port of loopback) of the node's metrics for Prometheus; empty for none."""
    recording: Path | None
    """Folder in which the inputs of every final checkpoint are kept, for replay; None for none."""


_NODE_KEYS: dict[str, dict[str, tuple[type, Any]]] = {
    "node": {"name": (str, ...), "preset": (str, ...), "metrics": (str, ""), "recording": (str, "")},
    "keys": {
        "node_seed_file": (str, "keys/node.seed"),
        "account_key_file": (str, "keys/account.key"),
        "account_password_file": (str, ""),
    },
    "chain": {
        "rpc_url": (str, ...),
        "contract": (str, "0x0000000000000000000000000000000000000103"),
        "adapter_id": (str, ...),
    },
    "network": {"listen": (str, "/ip4/127.0.0.1/tcp/0"), "peers": (list, [])},
    "content": {
        "gateway_port": (int, 0),
        "ipfs_url": (str, ""),
        "versions_kept": (int, 16),
        "read_stores": (list, []),
        "gateways": (list, []),
    },
    "training": {
        "base_model": (str, "embedded"),
        "data": (str, ""),
        "steps": (int, 8),
        "batch_sequences": (int, 8),
        "sequence_bytes": (int, 128),
        "learning_rate": (float, 0.01),
        "threads": (int, 1),
    },
}


def load_node_config(path: Path) -> NodeConfig:
    """A node.toml, checked. Raises ConfigError naming the table and key."""
    raw = read_toml(path)
    values: dict[str, Any] = {}
    for table in raw:
        if table not in _NODE_KEYS:
            raise ConfigError(f"{path}: unknown table [{table}]\n  known are {', '.join(_NODE_KEYS)}")
    for table, keys in _NODE_KEYS.items():
        given = raw.get(table, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: {table} must be a table, [{table}]")
        for key in given:
            if key not in keys:
                raise ConfigError(f"{path}: unknown key {table}.{key}\n  known are {', '.join(keys)}")
        for key, (kind, default) in keys.items():
            if key not in given and default is ...:
                raise ConfigError(f"{path}: {table}.{key} is missing")
            value = given.get(key, default)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise ConfigError(f"{path}: {table}.{key} must be a {kind.__name__}, is {value!r}")
            values[key] = value
    _check_node_values(path, values)
    folder = path.resolve().parent
    return NodeConfig(
        folder=folder,
        name=values["name"],
        preset=str(folder / values["preset"]) if is_preset_file(values["preset"]) else values["preset"],
        node_seed_file=folder / values["node_seed_file"],
        account_key_file=folder / values["account_key_file"],
        account_password_file=_optional(folder, values["account_password_file"]),
        rpc_url=values["rpc_url"],
        contract=values["contract"],
        adapter_id=values["adapter_id"],
        listen=values["listen"],
        peers=tuple(values["peers"]),
        gateway_port=values["gateway_port"],
        read_stores=tuple((folder / store).resolve() for store in values["read_stores"]),
        ipfs_url=values["ipfs_url"],
        versions_kept=values["versions_kept"],
        gateways=tuple(values["gateways"]),
        base_model=values["base_model"],
        data=values["data"],
        steps=values["steps"],
        batch_sequences=values["batch_sequences"],
        sequence_bytes=values["sequence_bytes"],
        learning_rate=values["learning_rate"],
        threads=values["threads"],
        metrics=values["metrics"],
        recording=_optional(folder, values["recording"]),
    )


def _optional(folder: Path, text: str) -> Path | None:
    return folder / text if text else None


def _check_node_values(path: Path, values: dict[str, Any]) -> None:
    rules = [
        ("training.steps", 1 <= values["steps"] <= 1_000_000, "must lie between 1 and 1,000,000"),
        (
            "training.batch_sequences",
            1 <= values["batch_sequences"] <= 65_536,
            "must lie between 1 and 65,536",
        ),
        ("training.sequence_bytes", 8 <= values["sequence_bytes"] <= 65_536, "must lie between 8 and 65,536"),
        ("training.learning_rate", 0.0 < values["learning_rate"] <= 10.0, "must lie between 0 and 10"),
        ("training.threads", 1 <= values["threads"] <= 256, "must lie between 1 and 256"),
        ("content.gateway_port", 0 <= values["gateway_port"] <= 65_535, "must lie between 0 and 65,535"),
        (
            "content.ipfs_url",
            not values["ipfs_url"] or values["ipfs_url"].startswith(("http://", "https://")),
            "must be the http(s) URL of a Kubo RPC, such as http://127.0.0.1:5001",
        ),
        (
            "content.versions_kept",
            values["versions_kept"] == 0 or 2 <= values["versions_kept"] <= 1_000_000,
            "must be 0 (keep all) or lie between 2 and 1,000,000",
        ),
        (
            "content.read_stores",
            all(isinstance(store, str) and store for store in values["read_stores"]),
            "must be folders of content stores",
        ),
        (
            "content.gateways",
            all(isinstance(u, str) and u.startswith(("http://", "https://")) for u in values["gateways"]),
            "must be http(s) URLs",
        ),
        ("chain.contract", _is_hex(values["contract"], 20), "must be 0x and 40 hex digits"),
        ("chain.adapter_id", _is_hex(values["adapter_id"], 32), "must be 0x and 64 hex digits"),
        ("chain.rpc_url", values["rpc_url"].startswith(("http://", "https://")), "must be an http(s) URL"),
        (
            "network.listen",
            values["listen"].startswith("/ip"),
            "must be a multiaddr such as /ip4/127.0.0.1/tcp/0",
        ),
        (
            "network.peers",
            all(isinstance(p, str) and "/p2p/" in p for p in values["peers"]),
            "must be multiaddrs that end in /p2p/<peer id>",
        ),
        ("node.metrics", _is_address(values["metrics"]), 'must be a port, or such as "127.0.0.1:9464"'),
        ("node.name", 0 < len(values["name"]) <= 64, "must have 1 to 64 characters"),
    ]
    for name, holds, text in rules:
        if not holds:
            raise ConfigError(f"{path}: {name} {text}")


def _is_address(text: str) -> bool:
    """A port from 1 to 65,535, with or without a host before it; or nothing."""
    host, colon, port = text.rpartition(":")
    return not text or (bool(host) == bool(colon) and port.isdecimal() and 0 < int(port) <= 65_535)


def _is_hex(text: str, size_bytes: int) -> bool:
    digits = text.removeprefix("0x")
    return (
        text.startswith("0x")
        and len(digits) == 2 * size_bytes
        and all(c in "0123456789abcdefABCDEF" for c in digits)
    )
