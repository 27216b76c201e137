"""Opens the content store that a node's settings name: the embedded one, or a Kubo daemon.

Called by runtime/wiring, runtime/devnet, sources and the command line; none knows which it got.
"""

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..errors import ConfigError
from .files import write_temporary
from .interface import ContentStore
from .store import EmbeddedStore

DAEMON_FILE = "kubo.json"
"""Written beside a node's records where a daemon keeps its contents; says which, and under what owner."""


def owner_of(node_key: bytes) -> str:
    """How a node is called in the daemon's file system: `/citrate/<owner>`."""
    return f"node-{node_key.hex()[:16]}"


def open_store(folder: Path, ipfs_url: str, owner: str) -> ContentStore:
    """The embedded store in `folder`, or the store on the daemon at `ipfs_url` with its records in `folder`.

    Raises ConfigError where `folder` holds the contents of the other kind: they would be lost from sight.
    """
    daemon = daemon_of(folder)
    if not ipfs_url:
        if daemon is not None:
            raise ConfigError(
                f"the contents of {folder} are kept by the Kubo daemon at {daemon[0]}\n"
                "  set content.ipfs_url to it again, or remove the folder: the node fetches from its peers"
            )
        return EmbeddedStore(folder)
    from .kubo import KuboStore

    if daemon is None and (folder / "roots").is_dir() and any((folder / "roots").iterdir()):
        raise ConfigError(
            f"{folder} is an embedded store with contents of its own\n"
            "  unset content.ipfs_url, or remove the folder: the node then fetches from its peers"
        )
    store = KuboStore(ipfs_url, folder, owner=owner)
    if daemon != (ipfs_url, owner):
        fields = json.dumps({"rpc_url": ipfs_url, "owner": owner}).encode()
        write_temporary(folder / "incoming", fields).replace(folder / DAEMON_FILE)
    return store


def daemon_of(folder: Path) -> tuple[str, str] | None:
    """(rpc_url, owner) where a daemon keeps the contents of this store folder."""
    try:
        fields = json.loads((folder / DAEMON_FILE).read_bytes())
        return str(fields["rpc_url"]), str(fields["owner"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / DAEMON_FILE} is damaged\n  remove it; the node writes it again"
        ) from error


@asynccontextmanager
async def daemon_reader(rpc_url: str) -> AsyncIterator[ContentStore]:
    """Reads what a daemon has, beside the nodes that keep it there: nothing is held, nothing remembered."""
    from .kubo import KuboStore
    from .kubo_rpc import KuboRpc

    with tempfile.TemporaryDirectory(prefix="citrate-") as folder:
        async with KuboStore(KuboRpc(rpc_url, outage_ms=0), Path(folder), block_timeout_ms=5_000) as store:
            yield store
