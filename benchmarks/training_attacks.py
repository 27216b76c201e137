"""What do dishonest mentors cost under each rule, with and without scores and reputation?

    python benchmarks/training_attacks.py --json benchmarks/results/training_attacks.json
    python benchmarks/training_attacks.py --table benchmarks/results/training_attacks.json

Ten nodes, alpha 0.3, freeze_a, int8; 1 to 4 of them dishonest. Without scores a rule gets every delta with
the same weight, and is told the true number of dishonest ones. With scores ("scored_…") deltas are measured
at a fifth of their size by five evaluators; the dishonest among these praise each other and slander the rest,
and reputation, credibility and copies decide what reaches the rule. Share: what part of the weight before the
rule the dishonest got. Most telling first, so the run may be stopped; it goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from training_dishonest import (
    ATTACKS,
    Judge,
    attacked,
    decoded,
    drawn_evaluators,
    gram_matrix,
    improvements,
    shuffled,
    with_lies,
)
from training_scene import Book, Network, Setting, interval, make_trainer, markdown

NODES, CHECKPOINTS, ROWS = 10, 4, 12
SETTING = Setting("freeze_a", 0.01, codec="int8", steps=4)
FIRST = ("mean", "scored_mean", "multi_krum", "trimmed_mean")
OTHERS = ("geometric_median", "clipped_mean", "median", "nearest_trimmed_mean", "scored_clipped_mean")
PLANS = (
    (FIRST, (3,), (1,)),
    (FIRST, (1, 2, 4), (1,)),
    (OTHERS, (3,), (1,)),
    (FIRST, (3,), (2, 3, 4, 5)),
    (OTHERS, (1, 2, 4), (1,)),
    (FIRST, (1, 2, 4), (2, 3, 4, 5)),
    (OTHERS, (1, 2, 3, 4), (2, 3, 4, 5)),
)
"""(defences, numbers of dishonest nodes, seeds), in the order in which they are run."""


def one(network: Network, defence: str, attack: str, dishonest: int) -> dict[str, Any]:
    kinds = ["honest"] * (NODES - dishonest) + [attack] * dishonest
    is_bad = [kind != "honest" for kind in kinds]
    setting = replace(SETTING, rule=defence.removeprefix("scored_"), dishonest=dishonest)
    generator = np.random.Generator(np.random.PCG64([network.seed, dishonest, ATTACKS.index(attack)]))
    data = [
        shuffled(rows, i) if kind == "label_shuffle" else rows
        for i, (kind, rows) in enumerate(zip(kinds, network.train, strict=True))
    ]
    judge, shares = Judge(NODES), []
    for checkpoint in range(1, CHECKPOINTS + 1):
        sent = attacked(kinds, network.deltas(setting, checkpoint, data), generator)
        files = network.send(setting, checkpoint, sent)
        weights = [1] * NODES
        if defence.startswith("scored_"):
            manifest = network.moving(setting, checkpoint)
            drawn = drawn_evaluators(judge.preset, NODES, 1_000 * network.seed + checkpoint)
            deltas = decoded(network, setting, manifest, files)
            reports = with_lies(improvements(network, manifest, deltas, drawn, "scaled", ROWS), is_bad)
            order = [int(i) for i in generator.permutation(NODES)]
            weights, _, _ = judge.judge(reports, gram_matrix(network, setting, manifest, files), order)
        shares.append(sum(w for w, bad in zip(weights, is_bad, strict=True) if bad) / max(1, sum(weights)))
        network.combine(setting, checkpoint, files, weights)
    honest = NODES - dishonest
    losses = network.measure([network.adapter.tensors()] * NODES)
    own = network.trainer.losses([(network.adapter.tensors(), rows) for rows in network.held_out[:honest]])
    return {**losses, "own": float(np.mean([result.loss for result in own])), "shares": shares}


def compare(book: Book) -> None:
    trainer = make_trainer()
    for defences, numbers, seeds in PLANS:
        for seed in seeds:
            for dishonest in numbers:
                for attack in ATTACKS:
                    for defence in defences:
                        key = {"seed": seed, "dishonest": dishonest, "attack": attack, "defence": defence}
                        if not book.has(**key):
                            network = Network.make(trainer, NODES, seed)
                            book.add({**key, **one(network, defence, attack, dishonest)})


def table(book: Book) -> str:
    parts = [
        f"{NODES} nodes, {CHECKPOINTS} checkpoints of 4 steps of 4 sequences of 64 bytes, freeze_a, "
        "rate 0.01, int8; loss over all domains in nats per byte (mean over seeds, 95 % interval from 3 on); "
        "in brackets the dishonest nodes' part of the weight, mean over checkpoints"
    ]
    defences = list(dict.fromkeys(name for names, _, _ in PLANS for name in names))
    for dishonest in (1, 2, 3, 4):
        rows = []
        for defence in defences:
            cells, seeds = [], 0
            for attack in ATTACKS:
                found = book.of(dishonest=dishonest, attack=attack, defence=defence)
                seeds = max(seeds, len(found))
                cells.append(_cell(found))
            if seeds:
                rows.append([defence, *cells, str(seeds)])
        if rows:
            header = ["defence", *(attack.replace("_", " ") for attack in ATTACKS), "seeds"]
            parts.append(f"{100 * dishonest // NODES} % dishonest\n\n" + markdown(header, rows))
    return "\n\n".join(parts) + "\n"


def _cell(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    mean, half = interval(row["all"] for row in found)
    share = float(np.mean([np.mean(row["shares"]) for row in found]))
    spread = f" ± {half:.3f}" if len(found) >= 3 else ""
    return f"{mean:.3f}{spread} ({100 * share:.0f} %)"


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
