"""The folder of a devnet: what is chosen once and kept, so that it can be started again.

    devnet.json          choices: nodes, seed, ports, chain id, preset, adapter id, target checkpoint
    genesis.json         the chain's genesis; chain/ its state
    keys/                founder's wallet (development key)
    node-1/ node-2/ …    node.toml, keys/, node.db, content/, node.log
    checkpoints.jsonl    a row per checkpoint, for the page
    recording/           inputs of every checkpoint, for `citrate replay`

Development keys only: they are written in clear, and said to be so.
"""

from __future__ import annotations

import json
import secrets
import socket
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import ConfigError
from ..network.identity import peer_id_of
from ..node.core import Identity
from ..protocol.certificate import Validator
from ..recording import write_atomically
from .keys import read_identity, read_secret, write_secret

FOLDER_VERSION = 1


@dataclass(frozen=True, slots=True)
class DevnetChoices:
    """What a devnet was started with. Fixed at the first start, except target and adapter id."""

    version: int
    nodes: int
    seed: int
    preset: str
    chain_id: int
    rpc_url: str
    """Empty: an embedded chain."""
    chain_port: int
    """The embedded chain itself: for the devnet's own nodes, since it obeys whoever reaches it."""
    rpc_port: int
    """What wallets and other programs use: the gate in front of the embedded chain."""
    page_port: int
    """The dashboard and wallet page; 0: no page."""
    node_ports: tuple[int, ...]
    base_model: str
    alpha: float
    bytes_per_node: int
    steps: int
    batch_sequences: int
    sequence_bytes: int
    learning_rate: float
    rank: int
    lora_alpha: int
    genesis_record_hash: str
    genesis_timestamp: int
    target_checkpoint: int
    adapter_id: str
    """Empty until createAdapter is mined."""
    ipfs_url: str = ""
    """RPC of the Kubo daemon that keeps all nodes' contents; empty: each node's embedded store."""


class DevnetFolder:
    """Paths and keys of one devnet. Creates what is missing, never overwrites a key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / "devnet.json").is_file()

    def load(self) -> DevnetChoices:
        path = self.folder / "devnet.json"
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            if isinstance(raw, dict) and not raw.keys() & {"chain_port", "page_port"}:
                # a folder from before there was a gate and a page: kept with the next update
                raw["chain_port"], raw["page_port"] = free_ports(2)
            raw.setdefault("ipfs_url", "")  # a folder from before nodes could keep contents in a daemon
            if set(raw) != {field.name for field in fields(DevnetChoices)}:
                raise ValueError("other fields than this version's")
            return DevnetChoices(**{**raw, "node_ports": tuple(raw["node_ports"])})
        except FileNotFoundError:
            raise ConfigError(
                f"there is no devnet in {self.folder}\n  start one with `citrate devnet up`"
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged or of another version: {error}\n  use another --dir"
            ) from None

    def save(self, choices: DevnetChoices) -> None:
        write_atomically(self.folder / "devnet.json", json.dumps(asdict(choices), indent=1).encode() + b"\n")

    def update(self, **changes: Any) -> DevnetChoices:
        choices = replace(self.load(), **changes)
        self.save(choices)
        return choices

    def node_folder(self, number: int) -> Path:
        """number: from 1."""
        return self.folder / f"node-{number}"

    def identity(self, number: int) -> Identity:
        keys = self.node_folder(number) / "keys"
        return read_identity(keys / "node.seed", keys / "account.key", None)

    def founder_key(self) -> bytes:
        """secp256k1 key of the wallet that creates the first adapter."""
        return read_secret(self.folder / "keys" / "founder.key", "founder key")

    def create_keys(self, nodes: int) -> None:
        """Fresh keys of every node and of the founder; existing ones stay."""
        for number in range(1, nodes + 1):
            keys = self.node_folder(number) / "keys"
            for name in ("node.seed", "account.key"):
                if not (keys / name).exists():
                    write_secret(keys / name, secrets.token_bytes(32))
        if not (self.folder / "keys" / "founder.key").exists():
            write_secret(self.folder / "keys" / "founder.key", secrets.token_bytes(32))

    def validators(self, nodes: int) -> tuple[Validator, ...]:
        """All nodes with equal stake."""
        identities = [self.identity(number) for number in range(1, nodes + 1)]
        return tuple(Validator(identity.node_key, identity.account, 100) for identity in identities)

    def rpc_url(self, choices: DevnetChoices) -> str:
        """The chain as wallets and other programs reach it."""
        return choices.rpc_url or f"http://127.0.0.1:{choices.rpc_port}"

    def inner_rpc_url(self, choices: DevnetChoices) -> str:
        """The chain as the devnet's own nodes reach it."""
        return choices.rpc_url or f"http://127.0.0.1:{choices.chain_port}"

    def page_url(self, choices: DevnetChoices) -> str | None:
        """The dashboard and wallet page; None where there is none."""
        return f"http://127.0.0.1:{choices.page_port}/" if choices.page_port else None

    def checkpoint_rows(self) -> list[dict[str, Any]]:
        """What was shown of every checkpoint so far, in all runs on this folder, ascending by number."""
        path = self.folder / "checkpoints.jsonl"
        if not path.exists():
            return []
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            return sorted(rows, key=lambda row: int(row["number"]))
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ConfigError(f"{path} is damaged: {error}\n  remove it: only the page reads it") from None

    def add_checkpoint_row(self, row: dict[str, Any]) -> None:
        """Keep the row of a checkpoint; one of the same number is replaced."""
        rows = [known for known in self.checkpoint_rows() if known["number"] != row["number"]]
        lines = [json.dumps(known) for known in (*rows, row)]
        write_atomically(self.folder / "checkpoints.jsonl", ("\n".join(lines) + "\n").encode())

    def data_source(self, choices: DevnetChoices, number: int) -> str:
        """A node's own slice of the embedded corpus (training/data.py)."""
        return (
            f"embedded:{number - 1}/{choices.nodes}?alpha={choices.alpha}"
            f"&bytes={choices.bytes_per_node}&seed={choices.seed}"
        )

    def address(self, choices: DevnetChoices, number: int) -> str:
        peer = peer_id_of(self.identity(number).node_key)
        return f"/ip4/127.0.0.1/tcp/{choices.node_ports[number - 1]}/p2p/{peer}"

    def write_node_config(self, choices: DevnetChoices, number: int, rpc_url: str) -> Path:
        """node.toml of one node; its peers are all the others."""
        numbers = range(1, choices.nodes + 1)
        raw = {
            "node": {"name": f"node-{number}", "preset": choices.preset, "recording": "../recording"},
            "keys": {"node_seed_file": "keys/node.seed", "account_key_file": "keys/account.key"},
            "chain": {"rpc_url": rpc_url, "adapter_id": choices.adapter_id},
            "network": {
                "listen": f"/ip4/127.0.0.1/tcp/{choices.node_ports[number - 1]}",
                "peers": [self.address(choices, other) for other in numbers if other != number],
            },
            # where wallet users of this devnet put weights that are too large for a transaction
            "content": {"read_stores": ["../content"], "ipfs_url": choices.ipfs_url},
            "training": {
                "base_model": choices.base_model,
                "data": self.data_source(choices, number),
                "steps": choices.steps,
                "batch_sequences": choices.batch_sequences,
                "sequence_bytes": choices.sequence_bytes,
                "learning_rate": choices.learning_rate,
                "threads": 1,
            },
        }
        path = self.node_folder(number) / "node.toml"
        write_atomically(path, tomli_w.dumps(raw).encode())
        return path


def new_choices(
    *,
    nodes: int,
    checkpoints: int,
    preset: str,
    seed: int,
    base_model: str,
    rpc_url: str,
    chain_id: int,
    now: int,
    page_port: int | None = None,
    ipfs_url: str = "",
) -> DevnetChoices:
    """Choices of a new devnet: free ports, and a genesis record that no other network has.

    page_port: of the dashboard and wallet page; None for a free one, 0 for no page.
    """
    ports = free_ports(nodes + 3)
    return DevnetChoices(
        version=FOLDER_VERSION,
        nodes=nodes,
        seed=seed,
        preset=preset,
        chain_id=chain_id,
        rpc_url=rpc_url,
        chain_port=ports[0],
        rpc_port=ports[1],
        page_port=ports[2] if page_port is None else page_port,
        node_ports=tuple(ports[3:]),
        base_model=base_model,
        alpha=0.3,
        bytes_per_node=32_768,
        steps=8,
        batch_sequences=8,
        sequence_bytes=128,
        learning_rate=0.01,
        rank=8,
        lora_alpha=16,
        genesis_record_hash=sha256(b"citrate devnet genesis" + secrets.token_bytes(32)).hexdigest(),
        genesis_timestamp=now,
        target_checkpoint=checkpoints,
        adapter_id="",
        ipfs_url=ipfs_url,
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment, on loopback."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def is_free(port: int) -> bool:
    """Whether a listener could bind this port on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
