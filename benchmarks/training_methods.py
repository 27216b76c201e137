"""Which aggregation method learns most, per checkpoint and per byte? All four, and training alone.

    python benchmarks/training_methods.py --json benchmarks/results/training_methods.json
    python benchmarks/training_methods.py --table benchmarks/results/training_methods.json

Learning rates are tuned for each method on seed 0 (by the loss over all domains), then compared on seeds
1 to 5. Eight nodes, Dirichlet alpha 0.3, float32 deltas, equal weights. About 12 minutes of one core.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from training_scene import (
    FIGURES,
    Book,
    Network,
    Setting,
    cell,
    figures_of,
    make_trainer,
    markdown,
    run,
    run_alone,
)

NODES, CHECKPOINTS, SEEDS = 8, 10, (1, 2, 3, 4, 5)
TUNED = [
    *(Setting("freeze_a", rate) for rate in (0.005, 0.01, 0.02, 0.04)),
    *(Setting("alternate", rate, rate_a) for rate in (0.01, 0.02, 0.04) for rate_a in (0.003, 0.01)),
    *(Setting("factor_mean", rate, rate_a) for rate in (0.005, 0.01, 0.02) for rate_a in (None, 0.003)),
    *(Setting("stack", rate, rate_a) for rate in (0.005, 0.01, 0.02) for rate_a in (None, 0.003)),
]


def tuned(book: Book, method: str) -> Setting:
    """The setting with the least loss over all domains on the tuning seed."""
    rows = book.of(kind="tuning", method=method)
    best = min(rows, key=lambda row: row["all"])
    return Setting(method, best["rate"], best["rate_a"])


def compare(book: Book) -> None:
    trainer = make_trainer()

    def row(kind: str, seed: int, setting: Setting) -> None:
        key = {"kind": kind, "seed": seed, **asdict(setting)}
        if book.has(**key):
            return
        network = Network.make(trainer, NODES, seed)
        losses = (
            run_alone(network, setting, CHECKPOINTS)
            if kind == "alone"
            else run(network, setting, CHECKPOINTS)
        )
        sent = network.signal_bytes
        extra = {"signal_bytes": sum(sent) / len(sent)} if sent else {}
        book.add({**key, **losses, **extra})

    for setting in TUNED:
        row("tuning", 0, setting)
    for seed in SEEDS:
        if not book.has(kind="base", seed=seed):
            network = Network.make(trainer, NODES, seed)
            book.add({"kind": "base", "seed": seed, **network.measure([None] * NODES)})
        for method in ("freeze_a", "alternate", "stack", "factor_mean"):
            setting = tuned(book, method)
            row("mentored", seed, setting)
            if method != "stack":  # alone, both factors train as they do for factor_mean
                row("alone", seed, replace(setting))


def table(book: Book) -> str:
    header = ["method", "learning rate (of A)", "weights", *FIGURES, "bytes per signal (float32)"]
    rows: list[list[str]] = [["", "", "base", *figures_of(book.of(kind="base")), ""]]
    for method in ("freeze_a", "alternate", "stack", "factor_mean"):
        for kind in ("alone", "mentored"):
            found: list[dict[str, Any]] = book.of(kind=kind, method=method)
            if found:
                rate = f"{found[0]['rate']:g}" + (f" ({found[0]['rate_a']:g})" if found[0]["rate_a"] else "")
                sent = f"{found[0]['signal_bytes']:,.0f}" if kind == "mentored" else ""
                rows.append([method, rate, kind, *figures_of(found), sent])
    paired = []
    for method in ("alternate", "stack", "factor_mean"):
        cells = []
        for figure in FIGURES:
            ours = {row["seed"]: row[figure] for row in book.of(kind="mentored", method=method)}
            reference = {row["seed"]: row[figure] for row in book.of(kind="mentored", method="freeze_a")}
            cells.append(cell((ours[s] - reference[s] for s in ours if s in reference), 4))
        paired.append([method, *cells])
    return (
        f"{NODES} nodes, {CHECKPOINTS} checkpoints of 8 steps of 4 sequences of 64 bytes, alpha 0.3, rank 8, "
        f"seeds {SEEDS[0]} to {SEEDS[-1]}; nats per byte, mean and 95 % interval\n\n"
        + markdown(header, rows)
        + "\n\nDifference to `freeze_a`, paired by seed (below zero is better)\n\n"
        + markdown(["method", *FIGURES], paired)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="add rows to this file, and the table beside it")
    parser.add_argument("--table", type=Path, help="print such a file as a table")
    choices = parser.parse_args()
    if choices.table is not None:
        print(table(Book(choices.table)))
        return
    book = Book(choices.json)
    compare(book)
    print(table(book))
    if choices.json is not None:
        choices.json.with_suffix(".md").write_text(table(book))


if __name__ == "__main__":
    main()
