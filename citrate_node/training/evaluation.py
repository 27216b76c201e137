"""Measures an adapter before it is promoted: on its domain, on general text, and on a person's own prompts.

What is measured is what is deployed: this base, these weights, this quantization. An adapter that makes
general text worse than the bound is held back, unless somebody gives a reason, which is recorded. Called by
cli/evaluate.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrate_node.errors import ConfigError
from citrate_node.training.adapter_model import Measurement
from citrate_node.training.architecture import Objective, objective_of
from citrate_node.training.base_model import BaseModel
from citrate_node.training.card import write_card
from citrate_node.training.examples import GENERAL, Dataset, DataSettings, Examples, load_dataset
from citrate_node.training.export import WEIGHTS_FILE
from citrate_node.training.folder_adapter import load_folder, read_folder
from citrate_node.training.provenance import (
    DataFacts,
    EvaluationFacts,
    read_provenance,
    write_provenance,
    write_whole,
)
from citrate_node.training.run_settings import Quantization
from citrate_node.training.suite import SuitePrompt, SuiteResult, run_prompt

EVALUATION_FILE = "evaluation.json"
SCHEMA = "citrate-evaluation-v1"


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What is measured, and what must hold."""

    sources: tuple[str, ...]
    """Data sources of the adapter's domain."""
    general: str = GENERAL
    general_worse_percent_max: float = 5.0
    """How much the loss on general text may rise above the base's."""
    quantization: Quantization = "none"
    sequence_tokens: int = 128
    all_examples: bool = False
    """Measure on every example of the sources, not on the held-out ones: for data nobody trained on."""
    suite: tuple[SuitePrompt, ...] = ()

    def __post_init__(self) -> None:
        if not self.general_worse_percent_max >= 0:
            raise ConfigError(f"bound is {self.general_worse_percent_max} %, it must be 0 or more")
        names = [name_of(source) for source in self.sources]
        if not names or len(set(names)) != len(names) or "general" in names:
            raise ConfigError(
                f"data: the sources are called {', '.join(names) or 'nothing'} after their last part\n"
                '  give at least one, each with a name of its own, none of them "general"'
            )


@dataclass(frozen=True, slots=True)
class Row:
    """Base and adapter on one set of examples."""

    name: str
    source: str
    digest: str
    examples: int
    loss_base: float
    loss: float
    accuracy_base: float | None = None
    accuracy: float | None = None

    @property
    def improvement_ppm(self) -> int:
        """Of the loss over the base's; negative: worse."""
        return round((self.loss_base - self.loss) / self.loss_base * 1_000_000)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One adapter on everything that was asked for."""

    folder: Path
    weights_sha256: str
    base_model_id: str
    quantization: Quantization
    rows: tuple[Row, ...]
    """Domain by domain, then general text, where there is such a thing: not for a head that names labels."""
    general_worse_percent_max: float
    suite: tuple[SuiteResult, ...]

    @property
    def general(self) -> Row | None:
        return self.rows[-1] if self.rows[-1].name == "general" else None

    @property
    def general_worse_percent(self) -> float | None:
        return -self.general.improvement_ppm / 10_000 if self.general is not None else None

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it is held back; empty: it may be promoted."""
        found = [f"{r.name}: {failure}" for r in self.suite for failure in r.failures]
        row, worse = self.general, self.general_worse_percent
        if row is not None and worse is not None and worse > self.general_worse_percent_max:
            found.insert(
                0,
                f"general text: loss {row.loss_base:.4f} base, {row.loss:.4f} adapter, "
                f"{worse:.2f} % worse; the bound is {self.general_worse_percent_max:g} %",
            )
        return tuple(found)

    def facts(self, forced_reason: str | None) -> EvaluationFacts:
        """For the provenance."""
        figures: dict[str, float] = {}
        if self.general is not None:
            figures["general_worse_percent_max"] = self.general_worse_percent_max
        for row in self.rows:
            figures |= {
                f"loss_{row.name}_base_nats": row.loss_base,
                f"loss_{row.name}_nats": row.loss,
                f"improvement_{row.name}_ppm": float(row.improvement_ppm),
            }
            if row.accuracy is not None and row.accuracy_base is not None:
                figures |= {
                    f"accuracy_{row.name}_base": row.accuracy_base,
                    f"accuracy_{row.name}": row.accuracy,
                }
        if self.suite:
            figures["suite_prompts"] = float(len(self.suite))
            figures["suite_prompts_failed"] = float(sum(bool(r.failures) for r in self.suite))
        return EvaluationFacts(
            figures=figures,
            weights_sha256=self.weights_sha256,
            quantization=self.quantization,
            data=tuple(DataFacts(r.digest, f"{r.name}: {r.source}", examples=r.examples) for r in self.rows),
            passed=not self.failures if self.general is not None or self.suite else None,
            forced_reason=forced_reason if self.failures else None,
        )

    def as_json(self, forced_reason: str | None) -> dict[str, Any]:
        """What evaluation.json holds."""
        worse = self.general_worse_percent
        return {
            "schema": SCHEMA,
            "base_model_id": self.base_model_id,
            "weights_sha256": self.weights_sha256,
            "quantization": self.quantization,
            "rows": [{**dataclasses.asdict(r), "improvement_ppm": r.improvement_ppm} for r in self.rows],
            "general_worse_percent": None if worse is None else round(worse, 4),
            "general_worse_percent_max": None if worse is None else self.general_worse_percent_max,
            "suite": [dataclasses.asdict(result) for result in self.suite],
            "passed": not self.failures,
            "failures": list(self.failures),
            "forced_reason": forced_reason if self.failures else None,
        }


def name_of(source: str) -> str:
    """A source's short name in figures: the domain, or the last part of a path without its ending."""
    last = source.rsplit(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1].split("?")[0]
    return "".join(sign if sign.isalnum() else "_" for sign in (last.rsplit(".", 1)[0] or last))


def evaluate(
    folders: list[Path],
    base: BaseModel,
    settings: EvaluationSettings,
    *,
    device: str = "cpu",
    threads: int = 1,
    on_row: Callable[[str, Row], None] = lambda name, row: None,
) -> list[Evaluation]:
    """Measure adapters of one base on the same examples.

    Adapters with a head for labels must have the same ones, and are measured on labelled texts alone: general
    text has no labels, unless settings.general names some. Raises ConfigError for a folder that is no adapter
    of this base, or one that cannot be measured (folder_adapter.py), and for data without an example.
    """
    objective, labels = _objective(folders, base, settings)
    reading = DataSettings(settings.sequence_tokens)

    def load(source: str) -> Dataset:
        return load_dataset(source, base, objective, reading, labels=labels)

    sets = [(source, load(source)) for source in settings.sources]
    parts = [(name_of(s), s, data, _measured(data, settings.all_examples)) for s, data in sets]
    if not labels or settings.general != GENERAL:
        general = load(settings.general)
        parts.append(("general", settings.general, general, _measured(general, False)))
    for name, source, _, examples in parts:
        if len(examples) == 0:
            raise ConfigError(f"data source {source} ({name}) has no held-out example\n  give more text")
    base_losses: list[Measurement] = []
    found = []
    for folder in folders:
        model = load_folder(
            folder, base, objective, quantization=settings.quantization, device=device, threads=threads
        )
        if not base_losses:
            with model.without_adapter():
                base_losses = [model.measure(examples) for *_, examples in parts]
        rows = []
        for (name, source, data, examples), before in zip(parts, base_losses, strict=True):
            after = model.measure(examples)
            row = Row(
                *(name, source, data.digest, after.examples, before.loss, after.loss),
                *(before.accuracy, after.accuracy),
            )
            rows.append(row)
            on_row(folder.name, row)
        suite = tuple(run_prompt(model, base, prompt) for prompt in settings.suite)
        digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
        found.append(
            Evaluation(
                folder,
                digest,
                base.base_model_id.hex(),
                settings.quantization,
                tuple(rows),
                settings.general_worse_percent_max,
                suite,
            )
        )
    return found


def record(evaluation: Evaluation, forced_reason: str | None, report: Path | None = None) -> None:
    """Write evaluation.json, and add the figures to provenance and card where the folder has them."""
    text = json.dumps(evaluation.as_json(forced_reason), indent=2, allow_nan=False) + "\n"
    write_whole(report or evaluation.folder / EVALUATION_FILE, text.encode())
    provenance = read_provenance(evaluation.folder)
    if provenance is not None:
        measured = provenance.evaluated(evaluation.facts(forced_reason))
        write_provenance(evaluation.folder, measured)
        write_card(evaluation.folder, measured)


def _measured(data: Dataset, all_examples: bool) -> Examples:
    return data.whole() if all_examples else data.held_out


def _objective(
    folders: list[Path], base: BaseModel, settings: EvaluationSettings
) -> tuple[Objective, tuple[str, ...]]:
    """What the adapters predict, and their labels. All folders are read before any base is loaded."""
    found = {folder: read_folder(folder, base).labels for folder in folders}
    labels = found[folders[0]]
    if other := [folder for folder in folders if found[folder] != labels]:
        raise ConfigError(
            f"{other[0]} has other labels than {folders[0]}, so one set of data cannot measure both\n"
            "  evaluate one folder at a time"
        )
    objective = objective_of(base, has_labels=bool(labels))
    if settings.suite and objective != "causal":
        raise ConfigError(
            f"base model {base.name} writes no text, so it cannot answer the prompts of a suite\n"
            "  leave --suite out; the held-out loss is measured all the same"
        )
    return objective, labels
