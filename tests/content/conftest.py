"""A small store for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from citrate_node.content.block_store import BlockStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockStore]:
    opened = BlockStore(tmp_path / "content", disk_reserve_bytes=0)
    yield opened
    opened.close()
