"""How small may a signal be before the network learns less? Every codec, with and without error feedback.

    python benchmarks/training_codecs.py --json benchmarks/results/training_codecs.json
    python benchmarks/training_codecs.py --table benchmarks/results/training_codecs.json

Method freeze_a at the rate that training_methods.py chose, eight nodes, alpha 0.3, seeds 1 to 5; differences
to float32 deltas are paired by seed. Targets: 1/16 of the float32 bytes without loss, 1/64 within 1 %.
About 15 minutes of one core.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from training_scene import FIGURES, Book, Network, Setting, cell, figures_of, make_trainer, markdown, run

NODES, CHECKPOINTS, SEEDS = 8, 10, (1, 2, 3, 4, 5)
RATE = 0.01
COMPARED = [
    Setting("freeze_a", RATE),
    *(
        Setting("freeze_a", RATE, codec=name)
        for name in ("int8", "int4", "topk_48", "topk_8", "topk_12", "topk_3", "topk", "topk_1")
    ),
    *(Setting("freeze_a", RATE, codec=n, feedback=False) for n in ("int4", "topk_48", "topk_8")),
    *(Setting("freeze_a", RATE, codec=n, feedback_keep=0.8) for n in ("topk_48", "topk_8")),
]


def compare(book: Book) -> None:
    trainer = make_trainer()
    for setting in COMPARED:
        for seed in SEEDS:
            key = {"seed": seed, "checkpoints": CHECKPOINTS, **asdict(setting)}
            if book.has(**key):
                continue
            network = Network.make(trainer, NODES, seed)
            losses = run(network, setting, CHECKPOINTS)
            sent = network.signal_bytes
            book.add({**key, **losses, "signal_bytes": sum(sent) / len(sent)})


def table(book: Book) -> str:
    whole = book.of(codec="float32")
    reference = {row["seed"]: row for row in whole}
    rows, differences = [], []
    for setting in COMPARED:
        found = book.of(**asdict(setting))
        if not found:
            continue
        sent = sum(row["signal_bytes"] for row in found) / len(found)
        feedback = f"keeps {setting.feedback_keep:g}" if setting.feedback else "none"
        name = [setting.codec, feedback, str(len(found))]
        part = f"1/{whole[0]['signal_bytes'] / sent:.1f}"
        rows.append([*name, f"{sent:,.0f}", part, *figures_of(found)])
        if setting.codec != "float32":
            cells = [
                cell((100 * (r[f] / reference[r["seed"]][f] - 1) for r in found if r["seed"] in reference), 2)
                for f in FIGURES
            ]
            differences.append([*name, *cells])
    return (
        f"{NODES} nodes, {CHECKPOINTS} checkpoints of 8 steps of 4 sequences of 64 bytes, "
        f"freeze_a at {RATE:g}, alpha 0.3, rank 8, seeds {SEEDS[0]} to {SEEDS[-1]}; "
        "nats per byte, mean and 95 % interval\n\n"
        + markdown(
            ["codec", "error feedback", "seeds", "bytes per signal", "of float32", *FIGURES],
            rows,
        )
        + "\n\nLoss against float32 deltas in per cent, paired by seed (above zero is worse)\n\n"
        + markdown(["codec", "error feedback", "seeds", *FIGURES], differences)
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
