"""The rooms keep their promises: who imports what, read from the source of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "citrate_node"
SERVICES = ("network", "chain", "content", "training")

IMPURE = {
    *("asyncio", "threading", "socket", "select", "subprocess", "multiprocessing", "concurrent", "queue"),
    *("logging", "random", "secrets", "time", "datetime", "os", "pathlib", "shutil", "tempfile", "sqlite3"),
    *("torch", "trio", "web3", "libp2p", "httpx", "aiohttp", "transformers", "peft", "signal", "uuid"),
}
"""What waits, remembers, looks at a clock or at chance: nothing for protocol/ and node/."""

ALONE = {
    "trio": ("network",),
    "libp2p": ("network",),
    "web3": ("chain",),
    "torch": ("training", "simulation"),
    "transformers": ("training", "simulation"),
    "peft": ("training", "simulation"),
}
"""Library to the only rooms that may import it."""

MAY_USE = {
    "protocol": set(),
    "node": {"protocol"},
    **{service: {"protocol"} for service in SERVICES},
    "runtime": {"protocol", "node", *SERVICES, "recording", "replay", "config"},
    "simulation": {"protocol", "node", "training", "recording", "replay", "config"},
    "dashboard": {"protocol", "chain", "runtime", "config"},
    "cli": {
        *("protocol", "node", *SERVICES, "runtime", "simulation", "dashboard"),
        *("recording", "replay", "config"),
    },
}
"""Room to the rooms (and top-level modules) it may import, beside itself and `errors`."""


def imports_of(source: str, package: tuple[str, ...]) -> list[str]:
    """Every module that a source imports, anywhere in it, with relative names made absolute."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            found.append(module)
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def violations(path: Path, source: str) -> list[str]:
    """What a file at this path must not import, as sentences."""
    folders = path.relative_to(PACKAGE).parent.parts
    room = folders[0]
    found = []
    for name in imports_of(source, ("citrate_node", *folders)):
        top, *rest = name.split(".")
        if room in ("protocol", "node") and top in IMPURE:
            found.append(f"{path.name} is in {room}/ and imports {name}")
        if top in ALONE and room not in ALONE[top]:
            found.append(f"{path.name} is in {room}/ and imports {name}")
        if top == "citrate_node" and rest and room in MAY_USE:
            other = rest[0]
            if other not in {room, "errors", "__version__", *MAY_USE[room]}:
                found.append(f"{path.name} is in {room}/ and imports {other}/")
    return found


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    assert [sentence for path in files for sentence in violations(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("protocol", "import time"),
        ("protocol", "from ..node import core"),
        ("node", "def f():\n    import torch"),
        ("node", "from citrate_node.runtime import database"),
        ("network", "from ..chain import rpc"),
        ("content", "import trio"),
        ("runtime", "from web3 import Web3"),
        ("simulation", "from ..runtime import devnet"),
        ("runtime", "from ..dashboard import server"),
    ],
)
def test_a_wall_that_is_broken_is_seen(room: str, line: str) -> None:
    """The walker itself: each of these lines would be found."""
    assert violations(PACKAGE / room / "some_file.py", line) != []
