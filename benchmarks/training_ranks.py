"""What the rank of an adapter is worth: held-out loss of three kinds of task on the embedded base.

    python benchmarks/training_ranks.py [--steps 60] [--seeds 3] [--ranks 1 2 4 8 16 32] [--variants]
        [--tasks format domain domains] [--json FILE]

    format     made-up records to be written as JSON: a small task that the base cannot do at all
    domain     one domain of the embedded corpus, which the base knows a little
    domains    all eight domains at once: much new material

Every row trains the same examples for the same steps in the same batches; only the adapter differs. The peer
is the base alone, the limit the lowest loss that any row reached on that task ("gained" is the share of the
way there). The learning rate of a task is the one of --rates that does best at rank 8 on the validation part
with a seed of its own, and is the same for all ranks. --variants adds other targets and variants on `domain`.
Seed after seed all rows are trained, and the file is written after each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from citrate_node.training.adapter_model import AdapterModel
from citrate_node.training.architecture import resolve_targets
from citrate_node.training.base_model import BaseModel
from citrate_node.training.evaluation import load_folder
from citrate_node.training.examples import Dataset, DataSettings, load_dataset
from citrate_node.training.run_settings import RunSettings
from citrate_node.training.settings import LoraSettings
from citrate_node.training.training_run import Run, RunResult, train

DOMAINS = "embedded:0/1?alpha=1000000&bytes=200000&held_out=24000"
RATE_SEED = 99
WIDTH_TOKENS, BATCH = 96, 4
MEASURED_MAX = 64  # sequences of each set: what costs the time is meant to be the training
VARIANTS = (
    (8, "attention", "lora"),
    (8, "q,v", "lora"),
    (8, "all-linear", "rslora"),
    (8, "all-linear", "dora"),
)
_SYLLABLES = ("ba", "den", "ir", "ko", "lum", "mar", "nis", "or", "pel", "ru", "sat", "tov", "ul", "ven")


@dataclass
class Row:
    task: str
    rank: int
    targets: str = "all-linear"
    variant: str = "lora"
    parameters: int = 0
    file_bytes: int = 0
    loss_own: list[float] = field(default_factory=list)
    loss_general: list[float] = field(default_factory=list)


def write_records(path: Path, count: int = 600) -> None:
    """Prompt and completion: a made-up record, and the same as JSON."""
    draw = random.Random(7)

    def word() -> str:
        return "".join(draw.choices(_SYLLABLES, k=draw.randint(2, 3))).capitalize()

    with path.open("w") as stream:
        for _ in range(count):
            name, town, age = f"{word()} {word()}", word(), draw.randint(18, 90)
            prompt = f"{name}, {age}, of {town}\n"
            completion = json.dumps({"name": name, "town": town, "age": age}) + "\n"
            stream.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


class Bench:
    def __init__(self, folder: Path, steps: int, tasks: list[str]) -> None:
        self.base = BaseModel.load()
        self.folder, self.steps = folder, steps
        write_records(folder / "records.jsonl")
        sources = {"format": str(folder / "records.jsonl"), "domain": "domain:web", "domains": DOMAINS}
        settings = DataSettings(WIDTH_TOKENS)

        def load(source: str) -> Dataset:
            data = load_dataset(source, self.base, "causal", settings)
            fewer = {
                name: getattr(data, name).take(slice(MEASURED_MAX)) for name in ("validation", "held_out")
            }
            return replace(data, **fewer)

        self.data = {name: load(sources[name]) for name in tasks}
        self.general = load("general").held_out
        plain = AdapterModel(self.base, RunSettings(lora=LoraSettings(1, 1)), "causal")
        self.general_base = plain.measure(self.general).loss
        self.bases = {name: plain.measure(data.held_out).loss for name, data in self.data.items()}

    def train(self, row: Row, rate: float, seed: int, out: Path) -> RunResult:
        settings = RunSettings(
            lora=LoraSettings(row.rank, 2 * row.rank, resolve_targets(self.base, row.targets)),
            variant=row.variant,  # type: ignore[arg-type]
            steps=self.steps,
            batch_sequences=BATCH,
            sequence_tokens=WIDTH_TOKENS,
            learning_rate=rate,
            validate_every_steps=self.steps,  # at the end: the weights of the last step count
            seed=seed,
        )
        return train(Run(self.base, self.data[row.task], "causal", settings, out, local_only=True))

    def rate_of(self, task: str, rates: list[float]) -> float:
        """The rate with the lowest validation loss at rank 8."""
        found = {}
        for rate in rates if len(rates) > 1 else []:
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                found[rate] = self.train(Row(task, 8), rate, RATE_SEED, Path(scratch) / "out").loss_validation
        return min(found, key=lambda rate: found[rate]) if found else rates[0]

    def measure(self, row: Row, rate: float, seed: int) -> None:
        """Train one more seed of a row, and note what was held out."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            result = self.train(row, rate, seed, Path(scratch) / "out")
            model = load_folder(result.folder, self.base, "causal")
        row.loss_own.append(model.measure(self.data[row.task].held_out).loss)
        row.loss_general.append(model.measure(self.general).loss)
        row.parameters = sum(p.numel() for p in model.parameters.values())
        row.file_bytes = result.provenance.weights.size_bytes

    def table(self, rows: list[Row]) -> list[dict[str, Any]]:
        total = sum(tensor.size_bytes // 2 for tensor in self.base.tensors.values())  # float16
        means = [statistics.mean(row.loss_own) for row in rows]
        best = {
            name: min(m for m, r in zip(means, rows, strict=True) if r.task == name) for name in self.data
        }
        return [
            {
                **asdict(row),
                "share_percent": round(100 * row.parameters / total, 2),
                "loss_own_mean": round(mean, 4),
                "loss_own_deviation": round(statistics.stdev(row.loss_own), 4)
                if len(row.loss_own) > 1
                else None,
                "loss_general_mean": round(statistics.mean(row.loss_general), 4),
                "gained_percent": round(
                    100 * (self.bases[row.task] - mean) / (self.bases[row.task] - best[row.task]), 1
                ),
            }
            for row, mean in zip(rows, means, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.005, 0.015])
    parser.add_argument("--tasks", nargs="+", default=["format", "domain", "domains"])
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.steps, options.tasks)
        rates = {task: bench.rate_of(task, options.rates) for task in bench.data}
        print(json.dumps({"rates": rates, "base": bench.bases, "general": bench.general_base}), flush=True)
        rows = [Row(task, rank) for task in bench.data for rank in options.ranks]
        rows += [Row("domain", *variant) for variant in VARIANTS] if options.variants else []
        for seed in range(options.seeds):
            for row in rows:
                bench.measure(row, rates[row.task], seed)
                print(f"seed {seed}   {row}", flush=True)
            result = {
                "steps": options.steps,
                "batch": [BATCH, WIDTH_TOKENS],
                "seeds": seed + 1,
                "learning_rates": rates,
                "loss_base": {name: round(loss, 4) for name, loss in bench.bases.items()},
                "loss_general_base": round(bench.general_base, 4),
                "rows": bench.table(rows),
                "load_average": os.getloadavg()[0],
            }
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    for entry in result["rows"]:
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
