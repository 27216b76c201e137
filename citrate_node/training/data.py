"""Local data of a node: examples to learn from, and examples that are never learnt from.

A source is a short string, so that it fits a config file, a command line and a worker's start message:

    embedded:INDEX/NODES?alpha=1.0&bytes=16384&held_out=8192&seed=1   a non-IID slice of the shipped corpus
    FOLDER  or  folder:FOLDER?bytes=N                   text files (.txt .md .rst .py) and .jsonl

Examples are rows of token ids of one width. Exact duplicates are removed, and one rule for everybody
decides from an example's own hash whether it is held out: so no example is in both parts, and no node
trains on what another node holds out. Free of torch. Called by worker_process.py and summary.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training import corpus
from citrate_node.training.base_model import BaseModel
from citrate_node.training.byte_tokenizer import encode_bytes

Rows = npt.NDArray[np.int32]
"""Examples, (count, width): token ids, then PAD where an example is shorter."""

Encode = Callable[[bytes], npt.NDArray[np.int32]]

PAD = -1
"""Not a token: a padded place is neither read nor predicted."""

SEQUENCE_BYTES = 128
HELD_OUT_ONE_IN = 5
EXAMPLE_TOKENS_MIN = 16  # a shorter rest of a document says too little to learn from
FOLDER_BYTES_MAX = 256_000_000  # rows are held in memory; a larger folder must say bytes=

_EMBEDDED = "embedded:"
_FOLDER = "folder:"
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
_JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
_OPTIONS = {"alpha": 1.0, "bytes": 16_384.0, "held_out": 8_192.0, "seed": 1.0}


@dataclass(frozen=True, slots=True)
class NodeData:
    """What one node has of its own. None of it leaves the node."""

    source: str

    train: Rows

    held_out: Rows

    mixture: dict[str, float]
    """Share of each domain of the embedded corpus; {"local": 1.0} for a folder."""

    digest: bytes
    """sha256 over the sorted example hashes of both parts: names the data without showing it."""


@dataclass(frozen=True, slots=True)
class EmbeddedSource:
    """A parsed "embedded:" source."""

    index: int
    """Which node, counted from 0."""

    nodes: int

    alpha: float
    """Of the Dirichlet draw: 0.1 makes specialists, 100 makes all alike."""

    train_bytes: int

    held_out_bytes: int
    """Of its own mixture, beside what it trains on: little data should not mean crude measurements."""

    seed: int


def load_node_data(source: str, base: BaseModel, sequence_bytes: int = SEQUENCE_BYTES) -> NodeData:
    """Read, cut, deduplicate and split a source. Raises ConfigError when too little is left."""
    encode = encoder(base)
    if source.startswith(_EMBEDDED):
        train, held_out, mixture = _embedded_rows(parse_embedded(source), encode, sequence_bytes)
    else:
        rows = _distinct(_folder_rows(source, encode, sequence_bytes), sequence_bytes)
        held = held_out_mask(rows)
        train, held_out, mixture = rows[~held], rows[held], {"local": 1.0}
    if len(train) == 0 or len(held_out) == 0:
        raise ConfigError(
            f"data source {source} gives {len(train)} examples to train on and {len(held_out)} held out\n"
            f"  give more text: about {20 * sequence_bytes} bytes are the least"
        )
    return NodeData(source, train, held_out, mixture, _digest(train, held_out))


def domain_held_out(
    base: BaseModel, sequences_max: int = 24, sequence_bytes: int = SEQUENCE_BYTES
) -> dict[str, Rows]:
    """Held-out examples of every embedded domain: nobody trains on them."""
    encode = encoder(base)
    return {d: _domain_pool(d, True, encode, sequence_bytes, 0)[:sequences_max] for d in corpus.DOMAINS}


def general_held_out(base: BaseModel, sequences_max: int = 96, sequence_bytes: int = SEQUENCE_BYTES) -> Rows:
    """General text that neither a node nor the embedded base learnt from: it shows forgetting."""
    rows = _domain_rows(corpus.GENERAL_HELD_OUT, encoder(base), sequence_bytes)
    return rows[_order(len(rows), corpus.GENERAL_HELD_OUT, seed=0)][:sequences_max]


def domain_rows(base: BaseModel, domain: str, width: int) -> tuple[Rows, Rows]:
    """(to learn from, held out): all of one embedded domain, by the rule that every node follows."""
    encode = encoder(base)
    return _domain_pool(domain, False, encode, width, 0), _domain_pool(domain, True, encode, width, 0)


def encoder(base: BaseModel) -> Encode:
    """Text to token ids, for this base."""
    return encode_bytes if base.byte_level else _hub_encoder(str(base.directory))


@cache
def _hub_encoder(directory: str) -> Encode:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ServiceError(f"transformers cannot load the tokenizer in {directory}: {error}") from error

    def encode(data: bytes) -> npt.NDArray[np.int32]:
        ids = tokenizer(data.decode("utf-8", errors="replace"), add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    return encode


def parse_embedded(source: str) -> EmbeddedSource:
    """Parse "embedded:INDEX/NODES?alpha=…&bytes=…&held_out=…&seed=…"; each option may be left out."""
    place, options = _split_options(source.removeprefix(_EMBEDDED), source)
    try:
        index, nodes = (int(part) for part in place.split("/"))
    except ValueError:
        raise ConfigError(
            f'data source {source}: write "embedded:INDEX/NODES", such as embedded:0/4'
        ) from None
    if not 0 <= index < nodes:
        raise ConfigError(f"data source {source}: the index must lie between 0 and {nodes - 1}")
    sizes = (int(options["bytes"]), int(options["held_out"]))
    if not 0 < options["alpha"] < math.inf or min(sizes) < 1 or options["seed"] < 0:
        raise ConfigError(
            f"data source {source}: alpha, bytes and held_out must be positive, seed not negative"
        )
    return EmbeddedSource(index, nodes, options["alpha"], *sizes, int(options["seed"]))


def domain_mixture(source: EmbeddedSource) -> dict[str, float]:
    """Shares of the eight domains in one node's data: a Dirichlet draw that the seed and the index decide.

    A small alpha makes nodes that know one or two domains. Source: Hsu et al. 2019, arXiv:1909.06335.
    """
    generator = np.random.Generator(np.random.PCG64([source.seed, source.index]))
    shares = generator.dirichlet([source.alpha] * len(corpus.DOMAINS))
    return {domain: float(share) for domain, share in zip(corpus.DOMAINS, shares, strict=True)}


def example_hash(row: Rows) -> bytes:
    """sha256 of one example, padding left out."""
    return hashlib.sha256(row[row != PAD].astype("<i4").tobytes()).digest()


def held_out_mask(rows: Rows) -> npt.NDArray[np.bool_]:
    """True for one example in five, chosen by the example's own hash."""
    picks = (int.from_bytes(example_hash(row)[:8], "little") % HELD_OUT_ONE_IN == 0 for row in rows)
    return np.fromiter(picks, dtype=np.bool_, count=len(rows))


def _embedded_rows(source: EmbeddedSource, encode: Encode, width: int) -> tuple[Rows, Rows, dict[str, float]]:
    """This node's slices of every domain, to train on and to hold out, and its mixture.

    Slices of different nodes overlap only once a domain is used up.
    """
    mixtures = [domain_mixture(replace(source, index=index)) for index in range(source.index + 1)]
    parts: list[Rows] = []
    for held_out, size_bytes in ((False, source.train_bytes), (True, source.held_out_bytes)):
        counts = [_largest_remainder(mixture, max(1, size_bytes // width)) for mixture in mixtures]
        rows = [
            _slice(
                _domain_pool(domain, held_out, encode, width, source.seed),
                start=sum(count[domain] for count in counts[:-1]),
                count=counts[-1][domain],
            )
            for domain in corpus.DOMAINS
        ]
        parts.append(np.concatenate(rows))
    return parts[0], parts[1], mixtures[-1]


def _slice(rows: Rows, start: int, count: int) -> Rows:
    """`count` rows from `start` on, from the beginning again after the end, none twice."""
    return rows[(start + np.arange(min(count, len(rows)))) % len(rows)]


@cache
def _domain_pool(domain: str, held_out: bool, encode: Encode, width: int, seed: int) -> Rows:
    """All that may be trained on in a domain, or all that is held out, in the order of a seed."""
    rows = _domain_rows(domain, encode, width)
    rows = rows[held_out_mask(rows) == held_out]
    ordered: Rows = rows[_order(len(rows), domain, seed)]
    return ordered


def _largest_remainder(shares: dict[str, float], total: int) -> dict[str, int]:
    counts = {name: int(share * total) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: (counts[name] - shares[name] * total, name))
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


@cache
def _domain_rows(name: str, encode: Encode, sequence_bytes: int) -> Rows:
    rows = (row for text in corpus.read_documents(name) for row in _cut(encode(text), sequence_bytes))
    return _distinct(rows, sequence_bytes)


def _order(count: int, name: str, seed: int) -> npt.NDArray[np.int64]:
    entropy = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64([seed, entropy])).permutation(count)


def _cut(tokens: npt.NDArray[np.int32], width: int) -> Iterator[npt.NDArray[np.int32]]:
    for start in range(0, len(tokens), width):
        piece = tokens[start : start + width]
        if len(piece) >= min(width, EXAMPLE_TOKENS_MIN):
            yield piece


def _distinct(examples: Iterable[npt.NDArray[np.int32]], width: int) -> Rows:
    """Padded rows in the order of first appearance."""
    seen: set[bytes] = set()
    kept: list[npt.NDArray[np.int32]] = []
    for example in examples:
        key = example_hash(example)
        if key not in seen:
            seen.add(key)
            kept.append(np.pad(example, (0, width - len(example)), constant_values=PAD))
    return np.stack(kept) if kept else np.empty((0, width), dtype=np.int32)


def _digest(*parts: Rows) -> bytes:
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(len(rows).to_bytes(8, "little"))
        for key in sorted(example_hash(row) for row in rows):
            digest.update(key)
    return digest.digest()


def _folder_rows(source: str, encode: Encode, width: int) -> Iterator[npt.NDArray[np.int32]]:
    place, options = _split_options(source.removeprefix(_FOLDER), source, defaults={"bytes": 0.0})
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"data source {source}: {folder} is not a folder of text or JSON lines")
    limit = int(options["bytes"])
    room = limit or FOLDER_BYTES_MAX
    for text in _folder_texts(folder):
        if len(text) > room and not limit:
            raise ConfigError(
                f"data source {source} holds more than {FOLDER_BYTES_MAX} bytes\n"
                f"  take a part of it: {source}?bytes=N"
            )
        yield from _cut(encode(text[:room]), width)
        room -= len(text)
        if room <= 0:
            return


def _folder_texts(folder: Path) -> Iterator[bytes]:
    """Texts of a folder in the order of their paths: a whole text file, or one line of JSON lines."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix in _TEXT_SUFFIXES:
            yield path.read_bytes()
        elif path.suffix in _JSON_LINES_SUFFIXES:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _json_line(line, f"{path}, line {number}")


def _json_line(line: bytes, where: str) -> bytes:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if isinstance(record, dict):
        if isinstance(record.get("text"), str):
            return str(record["text"]).encode()
        pair = (record.get("prompt"), record.get("completion"))
        if all(isinstance(part, str) for part in pair):
            return f"{pair[0]}{pair[1]}".encode()
    raise ConfigError(f'{where}: expected {{"text": …}} or {{"prompt": …, "completion": …}}')


def _split_options(
    rest: str, source: str, defaults: dict[str, float] | None = None
) -> tuple[str, dict[str, float]]:
    place, _, query = rest.partition("?")
    options = dict(_OPTIONS if defaults is None else defaults)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options:
            raise ConfigError(f"data source {source}: unknown option {key}; known are {', '.join(options)}")
        try:
            options[key] = float(value)
        except ValueError:
            raise ConfigError(f"data source {source}: {key}={value} is not a number") from None
    return place, options
