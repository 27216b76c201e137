"""Repeatable bytes, and looks into a store's folder. Used by the tests of this folder."""

import hashlib

from citrate_node.content.block_store import BlockStore

LEAF = 1 << 20


def stream(size_bytes: int, seed: str = "content") -> bytes:
    """Repeatable bytes without structure."""
    return hashlib.shake_256(seed.encode()).digest(size_bytes)


def block_files(store: BlockStore) -> set[str]:
    return {path.name for path in (store.path / "blocks").iterdir()}


def leftovers(store: BlockStore) -> list[str]:
    return sorted(path.name for path in (store.path / "incoming").iterdir())
