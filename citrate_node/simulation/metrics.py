"""What a run leaves in numbers: one row per node and checkpoint, and one per checkpoint.

    history.jsonl     one object per checkpoint: CheckpointRow
    metrics.parquet   one row per node and checkpoint: NodeRow (metrics.jsonl where pyarrow is not installed)

Both engines write through MetricsWriter (scenario.py for messages in time, rounds.py for state transitions
alone); report.py and comparison.py read. Nothing here enters a history hash.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..protocol.messages import MentorshipSignal, Message
from ..protocol.preset import ONE_PPM
from ..protocol.state_transition import Outcome, SignalOutcome
from ..recording import write_atomically

if TYPE_CHECKING:
    from .gossip_model import NetworkLoad
    from .options import ClusterOptions

Ints = npt.NDArray[np.int64]

HISTORY_FILE = "history.jsonl"
PARQUET_FILE = "metrics.parquet"
JSON_LINES_FILE = "metrics.jsonl"
ROWS_IN_GROUP = 50_000
"""Node rows that are held before they are written: some 10 MB."""

HONEST = "honest"
_ATTACKS = {
    "sign_flippers": "sign_flip",
    "withholders": "withholding",
    "equivocators": "equivocation",
    "copiers": "copying",
    "forkers": "forking",
    "liars": "lying",
    "forgers": "forging",
    "two_faced": "two_faces",
    "boasters": "boasting",
    "colluders": "collusion",
    "repeaters": "stale",
}
"""Group of ClusterOptions to the kind of its nodes."""
OUTCOMES = (
    *("averaged", "negative", "copy", "unmeasured", "withheld", "equivocation"),
    *("absent", "not_drawn"),
)
"""What became of a node's signal in a checkpoint; `averaged` has weight, all others have none.

negative: its score was not above zero. unmeasured: fewer than preset.evaluations_min evaluations.
withheld and equivocation: as the record names them. absent: drawn as a mentor, no signal in the record.
not_drawn: no mentor of this checkpoint.
"""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node in one checkpoint, after it."""

    checkpoint: int
    node: int
    """Index of the node, from 0."""
    kind: str
    """"honest", or the attack's name."""
    reputation_ppm: int
    credibility_ppm: int
    score_ppm: int | None
    """Weighted median of the evaluations of its signal; None where there was none, or too few."""
    weight_ppm: int
    """Part of the average; 0 where its signal was left out."""
    outcome: str
    """One of OUTCOMES."""
    signal_bytes: int
    """Size of the delta that it announced; 0 without a signal in the record."""


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One final checkpoint. None where an engine does not know a figure."""

    number: int
    virtual_ms: int | None
    """When all running nodes had it."""
    record_hash: str
    loss: float
    """Mean over all nodes of the loss on their own held-out data."""
    bytes_sent: int
    """On all links together, since the start of the run."""
    signals: int | None = None
    evaluations: int | None = None
    accuracy_ppm: int | None = None
    withheld: int | None = None
    equivocations: int | None = None
    promoted: bool | None = None
    """Whether the average became the adapter."""
    figures: dict[str, float] = field(default_factory=dict)
    """Further losses by name, such as "worst" or "general"."""

    def as_json(self) -> dict[str, Any]:
        """The line of history.jsonl; what is not known is left out."""
        return {"type": "checkpoint", **{k: v for k, v in asdict(self).items() if v not in (None, {})}}


class MetricsWriter:
    """Writes both files into a folder, or keeps the history alone where there is none.

    A context manager: at its end, also one by an error or Ctrl-C, both files stand whole with the checkpoints
    that were final by then. `notice` says what to install where Parquet could not be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.history: list[CheckpointRow] = []
        self.notice = ""
        self._sink: _ParquetSink | _JsonSink | None = None
        self._waiting: list[NodeRow] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._sink = _ParquetSink(folder)
            except ImportError:
                self._sink = _JsonSink(folder)
                self.notice = (
                    f"pyarrow is not installed: node rows go to {JSON_LINES_FILE}\n"
                    "  `pip install 'citrate-node[parquet]'` gives metrics.parquet"
                )

    def add(self, row: CheckpointRow, nodes: Iterable[NodeRow] = ()) -> None:
        """The next checkpoint."""
        self.history.append(row)
        if self._sink is None:
            return
        self._waiting += nodes
        if len(self._waiting) >= ROWS_IN_GROUP:
            self._sink.write(self._waiting)
            self._waiting = []

    def close(self) -> None:
        """Put both files in place. May be called twice."""
        if self.folder is None or self._sink is None:
            return
        self._sink.write(self._waiting)
        self._sink.close()
        self._waiting, self._sink = [], None
        lines = "".join(json.dumps(row.as_json()) + "\n" for row in self.history)
        write_atomically(self.folder / HISTORY_FILE, lines.encode())

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ParquetSink:
    """metrics.parquet, a row group at a time; under its name only when it is whole."""

    def __init__(self, folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        arrow: Any = pyarrow
        types = {"int": arrow.int64(), "int | None": arrow.int64(), "str": arrow.string()}
        self._arrow = arrow
        self._schema = arrow.schema([(f.name, types[str(f.type)]) for f in fields(NodeRow)])
        self._path = folder / PARQUET_FILE
        self._temporary = _temporary(self._path)
        self._file = pyarrow.parquet.ParquetWriter(self._temporary, self._schema, compression="zstd")

    def write(self, rows: list[NodeRow]) -> None:
        columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(NodeRow)}
        self._file.write_table(self._arrow.table(columns, schema=self._schema))

    def close(self) -> None:
        self._file.close()
        _put_in_place(self._temporary, self._path)


class _JsonSink:
    """metrics.jsonl: the same rows, one object per line."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JSON_LINES_FILE
        self._temporary = _temporary(self._path)
        self._file = self._temporary.open("w")

    def write(self, rows: list[NodeRow]) -> None:
        self._file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)

    def close(self) -> None:
        self._file.close()
        _put_in_place(self._temporary, self._path)


def _temporary(path: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        return Path(file.name)


def _put_in_place(temporary: Path, path: Path) -> None:
    try:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


# -------------------------------------------------------------------- rows of an engine


def node_rows(
    outcome: Outcome,
    messages: Iterable[Message],
    mentors: frozenset[bytes],
    nodes: Iterable[tuple[bytes, str]],
) -> Iterator[NodeRow]:
    """One row per node of a checkpoint that was computed.

    messages: those that its record names; others do no harm. mentors: node keys drawn for it
    (NetworkState.mentors of the state before). nodes: (node key, kind) of every node by index.
    """
    state, record = outcome.state, outcome.record
    named = {m.id: m for m in messages if isinstance(m.body, MentorshipSignal)}
    withheld = {named[i].author: named[i] for i in record.withheld}
    signals = {named[i].author: named[i] for i in record.signals} | withheld
    equivocators = {named[pair.first].author for pair in record.equivocations}
    results = {o.mentor: o for o in outcome.aggregation.outcomes}
    whole = max(1, sum(o.weight for o in results.values()))
    for index, (key, kind) in enumerate(nodes):
        row = state.reputations[state.position[key]]
        signal, result = signals.get(key), results.get(key)
        if key in equivocators:
            what = "equivocation"
        elif key in withheld:
            what = "withheld"
        elif result is None:
            what = "absent" if key in mentors else "not_drawn"
        else:
            what = _what_became(result)
        yield NodeRow(
            checkpoint=record.number,
            node=index,
            kind=kind,
            reputation_ppm=row.reputation_ppm,
            credibility_ppm=row.credibility_ppm,
            score_ppm=None if result is None else result.score_ppm,
            weight_ppm=0 if result is None else result.weight * ONE_PPM // whole,
            outcome=what,
            signal_bytes=0 if signal is None else _size(signal),
        )


def _what_became(result: SignalOutcome) -> str:
    if result.weight:
        return "averaged"
    if result.copy_of is not None:
        return "copy"
    return "unmeasured" if result.score_ppm is None else "negative"


def _size(signal: Message) -> int:
    assert isinstance(signal.body, MentorshipSignal)
    return signal.body.delta_size_bytes


def kinds(options: ClusterOptions) -> tuple[str, ...]:
    """Per node, "honest" or what it does, joined by + where it does several things."""
    names: list[list[str]] = [[] for _ in range(options.nodes)]
    for group, name in _ATTACKS.items():
        for node in getattr(options, group):
            names[node].append(name)
    for node, name in options.delta_attackers:
        names[node].append(name)
    return tuple("+".join(each) or HONEST for each in names)


def bytes_sent(load: NetworkLoad) -> int:
    """Bytes on all links together, of everything that a NetworkLoad counts: copies of messages in the mesh,
    deltas, states and weights of who follows, and messages caught up."""
    published = load.messages.total()
    gossip = load.gossip_copies * load.message_bytes // max(1, published)
    return gossip + load.delta_bytes + load.state_bytes + load.catch_up_bytes


# -------------------------------------------------------------------- reading them again


def read_history(folder: Path) -> list[CheckpointRow]:
    """The checkpoints of a run. Raises ConfigError where the folder holds none, or a line is damaged."""
    path = folder / HISTORY_FILE
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}\n  give the folder of a run: `citrate simulate … --out`"
        ) from None
    known = {f.name for f in fields(CheckpointRow)}
    rows = []
    for place, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
            given = {k: v for k, v in raw.items() if k in known}
            rows.append(CheckpointRow(**{"bytes_sent": 0, "virtual_ms": None} | given))
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path}:{place} is damaged: {error}") from None
    return rows


def read_nodes(folder: Path) -> list[NodeRow]:
    """The node rows of a run; empty where it left none. Raises ConfigError as `read_columns`."""
    columns = _columns(folder)
    return [NodeRow(*row) for row in zip(*(columns[f.name] for f in fields(NodeRow)), strict=True)]


@dataclass(frozen=True)
class NodeColumns:
    """The node rows of a run as arrays of one length: as NodeRow, with kinds and outcomes as codes."""

    checkpoint: Ints
    node: Ints
    reputation_ppm: Ints
    weight_ppm: Ints
    kind_code: Ints
    """Places in `kinds`."""
    outcome_code: Ints
    """Places in `outcomes`."""
    kinds: list[str]
    outcomes: list[str]

    def of_kind(self, kind: str) -> npt.NDArray[np.bool_]:
        """Which rows are of nodes of this kind."""
        if kind not in self.kinds:
            return np.zeros(len(self.node), dtype=np.bool_)
        chosen: npt.NDArray[np.bool_] = self.kind_code == self.kinds.index(kind)
        return chosen


def read_columns(folder: Path) -> NodeColumns:
    """The node rows of a run for arithmetic; of length 0 where it left none.

    Raises ConfigError where the file is damaged, or pyarrow is needed and not installed.
    """
    columns = _columns(folder)
    kinds, kind_code = _coded(columns["kind"])
    outcomes, outcome_code = _coded(columns["outcome"])
    names = ("checkpoint", "node", "reputation_ppm", "weight_ppm")
    numbers = {name: np.array(columns[name], dtype=np.int64) for name in names}
    return NodeColumns(
        **numbers, kind_code=kind_code, outcome_code=outcome_code, kinds=kinds, outcomes=outcomes
    )


def _coded(texts: list[str]) -> tuple[list[str], Ints]:
    names = sorted(set(texts))
    place = {name: code for code, name in enumerate(names)}
    return names, np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts))


def _columns(folder: Path) -> dict[str, list[Any]]:
    """Name of a field of NodeRow to its values, from either file."""
    parquet, lines = folder / PARQUET_FILE, folder / JSON_LINES_FILE
    names = [f.name for f in fields(NodeRow)]
    try:
        if parquet.is_file():
            return _read_parquet(parquet, names)
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
        return {name: [row[name] for row in rows] for name in names}
    except (TypeError, ValueError, KeyError, OSError) as error:  # pyarrow's are ValueErrors and OSErrors
        raise ConfigError(f"the node rows of {folder} are damaged: {error}") from None


def _read_parquet(path: Path, names: list[str]) -> dict[str, list[Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow\n  `pip install 'citrate-node[parquet]'`") from None
    columns: dict[str, list[Any]] = pyarrow.parquet.read_table(path, columns=names).to_pydict()
    if set(columns) != set(names):
        raise ValueError(f"columns are {', '.join(columns)}")
    return columns
