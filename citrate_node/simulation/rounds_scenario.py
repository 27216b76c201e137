"""Scenarios of the rounds engine: a TOML file that asks a question, with its variants.

    engine = "rounds"
    question = "…"
    nodes = 50
    [set]                 # numbers of the preset
    codec = "int4"
    [[variants]]          # each is the file with these keys changed; all get the same seeds
    name = "alone"
    sharing = "alone"
    [grid]                # every combination, with every variant; a dot leads into a table
    attack = ["noise", "ipm"]
    "set.aggregation_rule" = ["mean", "trimmed_mean"]

Called by `citrate simulate` and by benchmarks/findings.py. Every run leaves the files of simulation/runs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..config import load_preset, read_toml
from ..errors import ConfigError
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS
from ..protocol.preset import preset_from
from ..recording import ChainRow, RecordedNetwork, Recording, write_atomically
from .metrics import CheckpointRow, MetricsWriter
from .round_options import Round, RoundsOptions
from .round_tally import Tally
from .rounds import ADAPTER_ID, Rounds, pool_of
from .runs import OPTIONS_FILE, RESULT_FILE, forget_run
from .training_workload import training_options
from .variants import expanded, typed

ENGINE = "rounds"
_OPTIONS: dict[str, Any] = {
    f.name: {} if f.name == "mixture" else f.default
    for f in fields(RoundsOptions)
    if f.name not in ("preset", "nodes", "checkpoints", "seed", "training")
}
_KEYS: dict[str, Any] = {
    "engine": ENGINE,
    "question": "",
    "preset": "minimal",
    "nodes": 10,
    "checkpoints": 10,
    "set": {},
    "training": {},
    "workload": "synthetic",
    **_OPTIONS,
}


@dataclass(frozen=True)
class RoundsScenario:
    """One variant of one question."""

    name: str
    variant: str
    """Empty where the file has none."""
    question: str
    options: RoundsOptions
    source: str

    @property
    def label(self) -> str:
        return f"{self.name}:{self.variant}" if self.variant else self.name


def load_rounds(path: Path, seed: int) -> list[RoundsScenario]:
    """Every variant of a file, in its order.

    Raises ConfigError naming the key that is unknown, of another type or out of range.
    """
    runs = expanded(path, read_toml(path))
    return [_scenario(path, name, table, seed) for name, table in runs]


def _scenario(path: Path, variant: str, table: Mapping[str, Any], seed: int) -> RoundsScenario:
    where = f"{path}: {variant}" if variant else str(path)
    values = typed(where, table, _KEYS)
    if any(type(count) is not int or count < 1 for count in values["mixture"].values()):
        raise ConfigError(f"{where}: mixture must name attacks with how many nodes do them, from 1")
    if not 1 <= values["checkpoints"] <= 100_000:
        raise ConfigError(f"{where}: checkpoints must lie between 1 and 100,000")
    if values["workload"] not in ("synthetic", "training"):
        raise ConfigError(f"{where}: workload is {values['workload']!r}, must be synthetic or training")
    preset = preset_from({**asdict(load_preset(values["preset"])), **values["set"]})
    training = None
    if values["workload"] == "training":
        training = training_options(values["training"], f"{where}: training")
    elif values["training"]:
        raise ConfigError(f'{where}: a table [training] needs workload = "training"')
    options = RoundsOptions(
        preset=preset,
        nodes=values["nodes"],
        checkpoints=values["checkpoints"],
        seed=seed,
        training=training,
        **{key: values[key] for key in _OPTIONS},
    )
    return RoundsScenario(path.stem, variant, values["question"], options, str(path))


def run_rounds_scenario(
    scenario: RoundsScenario,
    out: Path | None,
    on_checkpoint: Callable[[dict[str, Any]], None],
    *,
    workers: int = 1,
    ray: str | None = None,
) -> dict[str, Any]:
    """Run it to its last checkpoint; the result that also stands in result.json, whatever computes it.

    A run of mentorship leaves a recording too, which `citrate replay` computes again. Raises ConfigError or
    ServiceError (workers.py).
    """
    options = scenario.options
    with pool_of(options, workers, ray) as pool, MetricsWriter(_cleared(scenario, out)) as metrics:
        engine = Rounds(options, pool)
        if out is not None and options.sharing == "mentorship":
            engine.on_outcome = _recorder(engine, out)
        sent, last, tally = 0, engine.before(), Tally()
        start = {"loss": last.loss, "worst_node": last.worst_node, **last.figures}
        for last in engine.checkpoints():
            sent += last.sent_bytes
            tally.add(last)
            row = _row(last, sent)
            metrics.add(row, last.nodes)
            on_checkpoint(row.as_json())
    result = {
        "type": "result",
        "scenario": scenario.name,
        "variant": scenario.variant,
        "seed": options.seed,
        "checkpoints": options.checkpoints,
        "history_hash": engine.history_hash(),
        "start": start,
        "loss": last.loss,
        "worst_node": last.worst_node,
        "figures": last.figures,
        "bytes_sent": sent,
        **tally.figures(),
    }
    if out is not None:
        write_atomically(out / RESULT_FILE, json.dumps(result, indent=1).encode() + b"\n")
    return result


def _cleared(scenario: RoundsScenario, out: Path | None) -> Path | None:
    if out is not None:
        forget_run(out)
        out.mkdir(parents=True, exist_ok=True)
        raw = {"scenario": scenario.name, "variant": scenario.variant, "question": scenario.question}
        raw |= {"source": scenario.source, "engine": ENGINE, **asdict(scenario.options)}
        write_atomically(out / OPTIONS_FILE, json.dumps(raw, indent=1).encode() + b"\n")
    return out


def _recorder(engine: Rounds, out: Path) -> Callable[..., None]:
    recording = Recording(out / "recording", durable=False)
    state = engine.state
    assert state is not None
    recording.write_network(
        RecordedNetwork(
            1,
            bytes(32),
            ADAPTER_FACTORY_ADDRESS,
            engine.options.preset,
            state.nodes,
            ADAPTER_ID,
            bytes(32),
            state.weights_content.digest,
        ),
        state.weights.encode(),
    )

    def record(number: int, outcome: Any, inputs: Any) -> None:
        messages = (*inputs.signals, *inputs.evaluations, *inputs.measurements)
        recording.write_checkpoint(number, outcome.record.encode(), messages, inputs.deltas, ())
        recording.add_chain_row(
            ChainRow(number, outcome.record.hash.hex(), outcome.record.weights_hash.hex(), number, "", 0)
        )

    return record


def _row(done: Round, sent: int) -> CheckpointRow:
    return CheckpointRow(
        number=done.number,
        virtual_ms=None,
        record_hash=done.record_hash or done.weights_hash,
        loss=done.loss,
        bytes_sent=sent,
        signals=sum(each.signal_bytes > 0 for each in done.nodes),
        evaluations=done.evaluations,
        accuracy_ppm=done.accuracy_ppm,
        promoted=done.promoted,
        figures={"worst_node": done.worst_node, **done.figures},
    )
