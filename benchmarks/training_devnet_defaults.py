"""Which training settings make mentorship worth it in a small devnet? Real LoRA, averages in plain numpy.

An experiment about learning, not the protocol: no codec, no reputation, equal weights, one process. For
every setting it trains the nodes together (one average per checkpoint) and alone (the control: same data,
method, settings and number of phases) and prints four losses in nats per byte: a node's own mixture, all
eight domains, the worst domain, general text (forgetting).

    python benchmarks/training_devnet_defaults.py                          the settings that were compared
    python benchmarks/training_devnet_defaults.py --nodes 8 --checkpoints 10 --trial freeze_a,0.02,8,8
    ... --out benchmarks/results/training_devnet_defaults.json             add the rows to a file
    ... --table benchmarks/results/training_devnet_defaults.json           print such a file as a table
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import NodeData, Rows, domain_held_out, general_held_out, load_node_data
from citrate_node.training.initial import Tensors, initial_weights
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.settings import LoraSettings, Moving, TrainSettings

FIGURES = ("own", "all", "worst", "general")


@dataclass(frozen=True)
class Trial:
    """One setting. rate_a is the learning rate while lora_A moves."""

    method: str
    rate: float
    steps: int
    batch: int
    rate_a: float | None = None

    @classmethod
    def parse(cls, text: str) -> Trial:
        """METHOD,RATE,STEPS,BATCH[,RATE_A]"""
        method, rate, steps, batch, *rest = text.split(",")
        return cls(method, float(rate), int(steps), int(batch), float(rest[0]) if rest else None)

    def settings(self) -> TrainSettings:
        return TrainSettings(
            steps=self.steps,
            batch_sequences=self.batch,
            learning_rate=self.rate,
            learning_rate_lora_a=self.rate_a,
        )

    def moving(self, checkpoint: int) -> Moving:
        """Checkpoints count from 1, and 1 trains B: it is zero, so A has no gradient yet."""
        if self.method == "factor_mean":
            return "both"
        return "lora_B" if self.method == "freeze_a" or checkpoint % 2 == 1 else "lora_A"


COMPARED = (
    *(Trial("freeze_a", rate, 8, 8) for rate in (0.005, 0.01, 0.02, 0.04)),
    *(Trial("alternate", rate, 8, 8) for rate in (0.01, 0.02)),
    *(Trial("alternate", 0.02, 8, 8, rate_a) for rate_a in (0.005, 0.01)),
    *(Trial("factor_mean", rate, 8, 8) for rate in (0.005, 0.01)),
    Trial("freeze_a", 0.02, 16, 4),
    Trial("freeze_a", 0.02, 12, 8),
)


class Scene:
    """A trainer, the nodes' data and the text that is measured on."""

    def __init__(self, nodes: int, alpha: float, size_bytes: int, seed: int, rank: int, threads: int) -> None:
        base = BaseModel.load()
        lora = LoraSettings(rank=rank, alpha=2 * rank)
        self.trainer = LoraTrainer(base, lora, threads=threads)
        self.initial = initial_weights(base.tensor_shapes(lora), b"devnet defaults")
        self.nodes = [
            load_node_data(f"embedded:{i}/{nodes}?alpha={alpha}&bytes={size_bytes}&seed={seed}", base)
            for i in range(nodes)
        ]
        self.domains = domain_held_out(base, 16)
        self.general = general_held_out(base, 64)

    def measure(self, weights: Sequence[Tensors | None]) -> dict[str, float]:
        """Four losses of one set of weights per node. Equal sets are measured once."""
        known: dict[int, tuple[dict[str, float], float]] = {}
        own: list[float] = []
        for data, each in zip(self.nodes, weights, strict=True):
            if id(each) not in known:
                by_domain = {name: self._loss(each, rows) for name, rows in self.domains.items()}
                known[id(each)] = (by_domain, self._loss(each, self.general))
            own.append(self._loss(each, data.held_out))
        per_node = [known[id(each)] for each in weights]
        by_domain = [float(np.mean([row[0][name] for row in per_node])) for name in self.domains]
        general = float(np.mean([row[1] for row in per_node]))
        return {
            "own": float(np.mean(own)),
            "all": float(np.mean(by_domain)),
            "worst": max(by_domain),
            "general": general,
        }

    def run(self, trial: Trial, checkpoints: int) -> dict[str, dict[str, float]]:
        """Losses of the mentored adapter and of each node alone."""
        shared = self.initial
        alone = [self.initial] * len(self.nodes)
        for checkpoint in range(1, checkpoints + 1):
            trained = [self._train(trial, data, shared, i, checkpoint) for i, data in enumerate(self.nodes)]
            shared = {name: np.mean([w[name] for w in trained], axis=0, dtype=np.float64) for name in shared}
            shared = {name: array.astype(np.float32) for name, array in shared.items()}
            alone = [self._train(trial, data, alone[i], i, checkpoint) for i, data in enumerate(self.nodes)]
        return {"isolated": self.measure(alone), "mentored": self.measure([shared] * len(self.nodes))}

    def _train(self, trial: Trial, data: NodeData, start: Tensors, node: int, checkpoint: int) -> Tensors:
        moving, seed = trial.moving(checkpoint), 1_000 * node + checkpoint
        return self.trainer.train(start, data.train, trial.settings(), moving=moving, seed=seed).weights

    def _loss(self, weights: Tensors | None, rows: Rows) -> float:
        return self.trainer.loss(weights, rows, sequences_max=64).loss


def table(path: Path) -> str:
    """The rows of a result file in Markdown: one scene after the other, losses in nats per byte."""
    lines: list[str] = []
    scene = ""
    for row in json.loads(path.read_text()):
        here = f"{row['nodes']} nodes, {row['checkpoints']} checkpoints, alpha {row['alpha']}, "
        here += f"{row['bytes']} bytes per node, data seed {row['seed']}, rank {row['rank']}"
        if here != scene:
            scene = here
            lines += [
                "",
                scene,
                "",
                "| setting | weights | " + " | ".join(FIGURES) + " |",
                "|---|---|---|---|---|---|",
            ]
            lines.append("| | base | " + " | ".join(f"{row['base'][f]:.3f}" for f in FIGURES) + " |")
        rate = f"{row['rate']:g}" + (f" (A {row['rate_a']:g})" if row["rate_a"] else "")
        name = f"{row['method']}, rate {rate}, {row['steps']} steps of {row['batch']}"
        for kind in ("isolated", "mentored"):
            lines.append(f"| {name} | {kind} | " + " | ".join(f"{row[kind][f]:.3f}" for f in FIGURES) + " |")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--bytes", type=int, default=16_384)
    parser.add_argument("--seed", type=int, default=1, help="of the nodes' data")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trial", action="append", type=Trial.parse, help=Trial.parse.__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    choices = parser.parse_args()
    if choices.table is not None:
        print(table(choices.table))
        return
    scene = Scene(choices.nodes, choices.alpha, choices.bytes, choices.seed, choices.rank, choices.threads)
    keys = ("nodes", "checkpoints", "alpha", "bytes", "seed", "rank")
    setting = {key: getattr(choices, key) for key in keys}
    base = scene.measure([None] * choices.nodes)
    print(setting)
    print(
        f"{'base':<34}" + "".join(f"{base[f]:>9.4f}" for f in FIGURES) + "   (own, all, worst, general)",
        flush=True,
    )
    for trial in choices.trial or COMPARED:
        started = time.process_time()
        found = scene.run(trial, choices.checkpoints)
        seconds = time.process_time() - started
        name = f"{trial.method} {trial.rate:g} {trial.rate_a or '':<6} {trial.steps}x{trial.batch}"
        for kind, row in found.items():
            print(f"{name:<24} {kind:<9}" + "".join(f"{row[f]:>9.4f}" for f in FIGURES), flush=True)
        if choices.out is not None:
            rows = json.loads(choices.out.read_text()) if choices.out.exists() else []
            rows.append({**setting, **asdict(trial), "base": base, **found, "cpu_seconds": round(seconds, 1)})
            choices.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
