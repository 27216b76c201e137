"""Reads a person's data for `citrate train`: text files, JSON lines, parquet, and folders of `datasets`.

One source is a file, a folder, or "domain:NAME" of the embedded corpus. Every record becomes a Document: a
plain text, a prompt with the completion to learn, or a text with a label. Parquet and Arrow need the extra
`parquet` (pyarrow), and nothing else of the datasets library. Called by examples.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrate_node.errors import ConfigError, ServiceError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
ARROW_SUFFIXES = (".arrow",)
SOURCE_BYTES_MAX = 1_000_000_000
"""Of text, held in memory: more is refused before it is read."""
LINE_BYTES_MAX = 16_000_000

FORMATS = (
    '{"text": …}, {"prompt": …, "completion": …}, {"instruction": …, "input": …, "output": …}, '
    '{"messages": [{"role": …, "content": …}, …]} or {"text": …, "label": …}'
)


@dataclass(frozen=True, slots=True)
class Document:
    """One record of the data, before it is tokenized."""

    text: str
    """All of it; for a pair, the prompt."""

    completion: str | None = None
    """What is to be learnt after `text`. None: all of `text` is."""

    label: str | None = None

    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of a conversation whose last message is the completion; a chat template spells it."""

    @property
    def content(self) -> str:
        """Everything that makes two documents the same, in one text."""
        turns = [f"{role}\x1f{content}" for role, content in self.messages]
        parts = [self.text, *turns, self.completion or "", self.label or ""]
        return "\x1e".join(parts) if self.completion is not None or self.label is not None else self.text


def read_documents(source: str) -> Iterator[Document]:
    """Every record of a file or folder, in the order of the paths.

    A folder written by `datasets.save_to_disk` with several splits gives its "train" split; name another
    one's folder to read that. Raises ConfigError for a source or record that cannot be read, naming file
    and line.
    """
    place = Path(source.removeprefix("folder:")).expanduser()
    if place.is_file():
        files = [place]
    elif place.is_dir():
        files = _files(place)
    else:
        raise ConfigError(
            f"data source {source}: there is no such file or folder\n"
            "  give text, .jsonl, .parquet, a folder of these, or domain:NAME of the embedded corpus"
        )
    total = sum(file.stat().st_size for file in files)
    if total > SOURCE_BYTES_MAX:
        raise ConfigError(
            f"data source {source} has {total} bytes, the limit is {SOURCE_BYTES_MAX}\n  give a part of it"
        )
    if not files:
        raise ConfigError(
            f"data source {source} holds no file that is read here\n"
            f"  text ({' '.join(TEXT_SUFFIXES)}), JSON lines, parquet or arrow"
        )
    for file in files:
        yield from _read_file(file)


def _files(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():  # several splits: what is for training
        folder = folder / "train"
        if not folder.is_dir():
            raise ConfigError(f"dataset {folder.parent} has no split named train: name a split's folder")
    if (folder / "state.json").is_file():  # its other files are caches of old transformations
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [folder / str(row["filename"]) for row in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder}/state.json is not one that datasets wrote: {error}") from None
    known = (*TEXT_SUFFIXES, *JSON_LINES_SUFFIXES, *PARQUET_SUFFIXES, *ARROW_SUFFIXES)
    hidden = {p for p in folder.rglob("*") if any(x.startswith(".") for x in p.relative_to(folder).parts)}
    return sorted(p for p in folder.rglob("*") if p.suffix in known and p.is_file() and p not in hidden)


def _read_file(file: Path) -> Iterator[Document]:
    if file.suffix in JSON_LINES_SUFFIXES:
        yield from _json_lines(file)
    elif file.suffix in PARQUET_SUFFIXES or file.suffix in ARROW_SUFFIXES:
        for number, row in enumerate(_table_rows(file), start=1):
            yield _document(row, f"{file}, row {number}")
    else:
        try:
            yield Document(file.read_bytes().decode("utf-8", errors="replace"))
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def _json_lines(file: Path) -> Iterator[Document]:
    try:
        with file.open("rb") as lines:
            number = 0
            while line := lines.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise ConfigError(f"{file}, line {number}: longer than {LINE_BYTES_MAX} bytes")
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ConfigError(f"{file}, line {number}: not JSON: {error}") from None
                yield _document(record, f"{file}, line {number}")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def _table_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ServiceError(
            f"{file}: pyarrow is not installed\n  pip install 'citrate-node[parquet]'"
        ) from error
    try:
        if file.suffix in PARQUET_SUFFIXES:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches():
                    yield from batch.to_pylist()
            return
        with pa.memory_map(str(file)) as raw:
            try:
                reader = pa.ipc.open_stream(raw)  # as save_to_disk writes it
                for batch in reader:
                    yield from batch.to_pylist()
            except pa.ArrowInvalid:
                raw.seek(0)
                opened = pa.ipc.open_file(raw)
                for place in range(opened.num_record_batches):
                    yield from opened.get_batch(place).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{file} is no table that can be read: {error}") from None


def _document(record: Any, where: str) -> Document:
    if isinstance(record, Mapping):
        if isinstance(record.get("messages"), list):
            return _conversation(record["messages"], where)
        if _texts(record, "prompt", "completion"):
            return Document(record["prompt"], completion=record["completion"])
        if _texts(record, "instruction", "output"):
            more = record.get("input")
            prompt = (
                f"{record['instruction']}\n\n{more}"
                if isinstance(more, str) and more
                else record["instruction"]
            )
            return Document("", record["output"], messages=(("user", prompt),))
        if _texts(record, "text"):
            label = record.get("label")
            if label is None:
                return Document(record["text"])
            if isinstance(label, (str, int)) and not isinstance(label, bool):
                return Document(record["text"], label=str(label))
            raise ConfigError(f"{where}: label is {label!r}; give a text or a whole number")
    raise ConfigError(f"{where}: expected {FORMATS}")


def _conversation(messages: list[Any], where: str) -> Document:
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or not _texts(message, "role", "content"):
            raise ConfigError(f'{where}: each of "messages" needs a text "role" and a text "content"')
        turns.append((message["role"], message["content"]))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise ConfigError(
            f'{where}: "messages" must end with one of role "assistant", which is what is learnt'
        )
    return Document("", completion=turns[-1][1], messages=tuple(turns[:-1]))


def _texts(record: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(record.get(name), str) for name in names)
