"""The text that ships with the package: eight domains that differ, and general text.

Read by data.py (what a node of a devnet learns from) and by pretrain.py (what the embedded base
model learnt from). Written once by `build_corpus`, from the standard library of Python 3.11:
distributions differ in what they install, so the slices travel in the wheel with their sha256, and
the same data digest means the same data on every machine. Licence of the text: PSF-2.0.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from citrate_node.errors import ConfigError, ServiceError

DOMAINS = (
    "changelog",
    "concurrency",
    "documentation",
    "encodings",
    "gui",
    "markup",
    "packaging",
    "web",
)
"""The eight domains, sorted: the order of every mixture."""

GENERAL_TRAIN = "general_train"
GENERAL_HELD_OUT = "general_held_out"

SEPARATOR = b"\n\x0c\n"
"""Stands between two documents of one file: a line that holds a form feed alone."""

LICENCE = "PSF-2.0"
INDEX_NAME = "index.json"

_DOMAIN_BYTES = 112_000  # eight of them and the general text stay under 2 MB in the wheel
_GENERAL_TRAIN_BYTES = 900_000
_GENERAL_HELD_OUT_BYTES = 48_000
_DOCUMENT_BYTES = 14_000  # of one file at most, so that no single module is a domain
_GENERAL_HELD_OUT_DOCUMENT_BYTES = 5_000  # of many files, to speak for all of them
_SOURCES: dict[str, tuple[str, ...]] = {
    "changelog": ("idlelib/*.txt", "idlelib/ChangeLog", "LICENSE.txt"),
    "concurrency": ("asyncio/*.py", "concurrent/**/*.py", "multiprocessing/*.py"),
    "documentation": ("pydoc_data/topics.py",),
    "encodings": ("encodings/*.py",),
    "gui": ("tkinter/*.py", "idlelib/*.py"),
    "markup": ("xml/**/*.py", "html/*.py", "xmlrpc/*.py"),
    "packaging": ("distutils/**/*.py", "lib2to3/**/*.py"),
    "web": ("email/**/*.py", "http/*.py", "urllib/*.py"),
}
_GENERAL_SOURCES = (
    "*.py",
    "collections/*.py",
    "ctypes/*.py",
    "importlib/**/*.py",
    "json/*.py",
    "logging/*.py",
)
_LEFT_OUT = ("test", "tests", "idle_test", "__pycache__")


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One line of the index: what a file of the corpus holds and where it came from."""

    name: str
    sha256: str
    size_bytes: int
    sources: tuple[str, ...]


def read_documents(name: str) -> tuple[bytes, ...]:
    """The documents of one corpus file (a domain, GENERAL_TRAIN or GENERAL_HELD_OUT), in stored order.

    Raises ServiceError when the installed file is not the one in the index: another text would give
    other losses and another data digest, without a word.
    """
    return _read_documents(name)


@cache
def _read_documents(name: str) -> tuple[bytes, ...]:
    entry = read_index().get(name)
    if entry is None:
        raise ConfigError(f"the corpus has no part {name!r}\n  it has: {', '.join(sorted(read_index()))}")
    data = (_assets() / f"{name}.txt").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise ServiceError(
            f"corpus file {name}.txt has sha256 {found[:16]}…, the index says {entry.sha256[:16]}…\n"
            "  the installation is damaged: reinstall citrate-node"
        )
    return tuple(data.split(SEPARATOR))


def read_index() -> dict[str, CorpusFile]:
    """The index by file name, without the extension."""
    raw = json.loads((_assets() / INDEX_NAME).read_text(encoding="utf-8"))
    return {
        name: CorpusFile(name, row["sha256"], int(row["size_bytes"]), tuple(row["sources"]))
        for name, row in raw["files"].items()
    }


def build_corpus(stdlib: Path, out: Path, python_version: str) -> dict[str, CorpusFile]:
    """Cut the corpus out of a standard library and write it, with its index, to `out`.

    Files are taken in the order of the sha256 of their path, so that a slice is a fair sample of its
    domain. General training text and general held-out text share no file. Repeatable: the same
    library gives the same bytes.
    """
    texts: dict[str, tuple[bytes, tuple[str, ...]]] = {}
    for domain in DOMAINS:
        documents = _documents(stdlib, _SOURCES[domain])
        texts[domain] = _fill(documents, _DOMAIN_BYTES)
    general = _documents(stdlib, _GENERAL_SOURCES)
    texts[GENERAL_HELD_OUT] = _fill(general, _GENERAL_HELD_OUT_BYTES, _GENERAL_HELD_OUT_DOCUMENT_BYTES)
    used = set(texts[GENERAL_HELD_OUT][1])
    texts[GENERAL_TRAIN] = _fill([d for d in general if d[0] not in used], _GENERAL_TRAIN_BYTES)

    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, CorpusFile] = {}
    for name, (data, sources) in sorted(texts.items()):
        (out / f"{name}.txt").write_bytes(data)
        files[name] = CorpusFile(name, hashlib.sha256(data).hexdigest(), len(data), sources)
    index = {
        "licence": LICENCE,
        "origin": f"the standard library of Python {python_version}; licence text in LICENSE.txt",
        "files": {
            name: {"sha256": f.sha256, "size_bytes": f.size_bytes, "sources": list(f.sources)}
            for name, f in files.items()
        },
    }
    (out / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (out / "LICENSE.txt").write_bytes((stdlib / "LICENSE.txt").read_bytes())
    return files


def _documents(stdlib: Path, patterns: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """(relative path, text) of every usable file, in the order of the sha256 of the path."""
    paths = {path for pattern in patterns for path in stdlib.glob(pattern) if path.is_file()}
    found: list[tuple[str, bytes]] = []
    for path in paths:
        relative = path.relative_to(stdlib)
        name = relative.as_posix()
        if any(part in _LEFT_OUT for part in relative.parts) or name.startswith("_sysconfigdata"):
            continue  # tests repeat themselves; build data names the machine that built it
        if name == "pydoc_data/topics.py":
            found += _topics(path.read_text(encoding="utf-8"))
            continue
        data = path.read_bytes().replace(b"\r\n", b"\n").strip() + b"\n"
        if len(data) < 400 or SEPARATOR in data or not _is_utf8(data):
            continue
        found.append((name, data))
    return sorted(found, key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _topics(source: str) -> list[tuple[str, bytes]]:
    """The manual's prose out of pydoc's topics module, one document per topic."""
    scope: dict[str, dict[str, str]] = {}
    exec(compile(source, "topics.py", "exec"), scope)  # our own standard library, at build time only
    return [(f"pydoc_data/topics.py#{name}", text.encode()) for name, text in scope["topics"].items()]


def _fill(
    documents: list[tuple[str, bytes]], limit_bytes: int, document_bytes: int = _DOCUMENT_BYTES
) -> tuple[bytes, tuple[str, ...]]:
    taken: list[bytes] = []
    sources: list[str] = []
    room = limit_bytes
    for name, data in documents:
        if room < 400:
            break
        piece = _cut(data, min(room, document_bytes))
        taken.append(piece)
        sources.append(name)
        room -= len(piece) + len(SEPARATOR)
    return SEPARATOR.join(taken), tuple(sources)


def _cut(data: bytes, limit_bytes: int) -> bytes:
    """The first lines that fit, so that no piece ends inside a line or a character."""
    if len(data) <= limit_bytes:
        return data
    return data[: data.rfind(b"\n", 0, limit_bytes) + 1]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _assets() -> Path:
    return Path(str(resources.files("citrate_node.training"))) / "assets" / "corpus"
