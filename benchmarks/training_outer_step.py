"""Does an outer learning rate or Nesterov momentum learn more than the plain average?

    python benchmarks/training_outer_step.py --json benchmarks/results/training_outer_step.json
    python benchmarks/training_outer_step.py --table benchmarks/results/training_outer_step.json

protocol/outer_step.py, in its integers, on freeze_a with float32 deltas; eight nodes, alpha 0.3; differences
to the plain average are paired by seed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from training_scene import FIGURES, Book, Network, Setting, cell, figures_of, make_trainer, markdown, run

NODES, CHECKPOINTS, SEEDS = 8, 10, (1, 2, 3, 4, 5)
PLAIN = Setting("freeze_a", 0.01)
COMPARED = [
    PLAIN,
    *(
        Setting("freeze_a", 0.01, outer_rate=rate, outer_momentum=momentum)
        for rate, momentum in ((0.7, 0.9), (1.0, 0.3), (1.5, 0.0), (0.7, 0.5), (0.7, 0.0))
    ),
]


def compare(book: Book) -> None:
    trainer = make_trainer()
    for seed in SEEDS:
        for setting in COMPARED:
            key = {"seed": seed, **asdict(setting)}
            if not book.has(**key):
                network = Network.make(trainer, NODES, seed)
                book.add({**key, **run(network, setting, CHECKPOINTS)})


def table(book: Book) -> str:
    plain = {row["seed"]: row for row in book.of(**asdict(PLAIN))}
    rows, differences = [], []
    for setting in COMPARED:
        found = book.of(**asdict(setting))
        if not found:
            continue
        name = [f"{setting.outer_rate:g}", f"{setting.outer_momentum:g}", str(len(found))]
        rows.append([*name, *figures_of(found)])
        if setting != PLAIN:
            cells = [cell((r[f] - plain[r["seed"]][f] for r in found), 4) for f in FIGURES]
            differences.append([*name, *cells])
    header = ["outer rate", "momentum", "seeds", *FIGURES]
    return (
        f"{NODES} nodes, {CHECKPOINTS} checkpoints of 8 steps of 4 sequences of 64 bytes, freeze_a at 0.01, "
        "alpha 0.3, rank 8; nats per byte, mean and 95 % interval\n\n"
        + markdown(header, rows)
        + "\n\nDifference to the plain average, paired by seed (below zero is better)\n\n"
        + markdown(header, differences)
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
