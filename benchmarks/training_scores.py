"""Can evaluations tell honest mentors from dishonest ones when no two have the same data?

    python benchmarks/training_scores.py --json benchmarks/results/training_scores.json
    python benchmarks/training_scores.py --table benchmarks/results/training_scores.json

16 honest nodes (Dirichlet alpha 0.3), 2 copiers, 3 sign flippers, 3 with noise, 2 with shuffled text; five
evaluators per signal. Three ways to measure a delta are compared on the same deltas; the averages are those
of the second, with the reputations of the devnet preset. AUC: the chance that an honest node ranks above a
dishonest one. Dishonest evaluators report what they measure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from training_dishonest import (
    Judge,
    attacked,
    auc,
    decoded,
    drawn_evaluators,
    gram_matrix,
    improvements,
)
from training_scene import Book, Network, Setting, cell, make_trainer, markdown

from citrate_node.simulation.training_workload import shuffled

KINDS = [*["honest"] * 16, *["copier"] * 2, *["sign_flip"] * 3, *["noise"] * 3, *["label_shuffle"] * 2]
HOW = ("full", "scaled", "leave_one_out")
CHECKPOINTS, SEEDS, ROWS = 6, (1, 2, 3, 4, 5), 16
COMPARED_AT = (1, 3, 6)
SETTING = Setting("freeze_a", 0.01, codec="int8", steps=4)


def one_seed(network: Network, seed: int) -> dict[str, Any]:
    count = len(KINDS)
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    data = [
        shuffled(rows, i) if kind == "label_shuffle" else rows
        for i, (kind, rows) in enumerate(zip(KINDS, network.train, strict=True))
    ]
    judge = Judge(count)
    table: dict[str, list[list[int]]] = {how: [] for how in HOW}
    cosines: list[tuple[int, int]] = []
    shares, honest_helpful = [], []
    honest = [i for i, kind in enumerate(KINDS) if kind == "honest"]
    bad = [i for i, kind in enumerate(KINDS) if kind != "honest"]
    for checkpoint in range(1, CHECKPOINTS + 1):
        manifest = network.moving(SETTING, checkpoint)
        sent = attacked(KINDS, network.deltas(SETTING, checkpoint, data), seed, checkpoint)
        files = network.send(SETTING, checkpoint, sent)
        deltas = decoded(network, SETTING, manifest, files)
        drawn = drawn_evaluators(judge.preset, count, 1_000 * seed + checkpoint)
        gram = gram_matrix(network, SETTING, manifest, files)
        reports = {}
        for how in HOW:
            if how == "scaled" or checkpoint in COMPARED_AT:
                reports[how] = improvements(network, manifest, deltas, drawn, how, ROWS)
                if checkpoint in COMPARED_AT:
                    table[how].append(judge.scores(reports[how]))
        order = [int(i) for i in generator.permutation(count)]
        weights, scores, _ = judge.judge(reports["scaled"], gram, order)
        pairs = [gram.cosine_ppm(i, j) for i in honest for j in honest if i < j]
        of_copies = [max(gram.cosine_ppm(i, j) for j in honest) for i, k in enumerate(KINDS) if k == "copier"]
        cosines.append((max(pairs), min(of_copies)))
        shares.append(sum(weights[i] for i in bad) / max(1, sum(weights)))
        honest_helpful.append(sum(scores[i] > 0 for i in honest))
        network.combine(SETTING, checkpoint, files, weights)
    without_copiers = [i for i in bad if KINDS[i] != "copier"]
    row: dict[str, Any] = {"seed": seed}
    for how in HOW:
        mean = np.mean(table[how], axis=0)
        each = [auc([s[i] for i in honest], [s[i] for i in without_copiers]) for s in table[how]]
        row[how] = {
            "auc_of_one_checkpoint": float(np.mean(each)),
            "auc_of_mean_score": auc([mean[i] for i in honest], [mean[i] for i in without_copiers]),
            "auc_with_copiers": auc([mean[i] for i in honest], [mean[i] for i in bad]),
            "honest_above_zero": float(np.mean([[s[i] > 0 for i in honest] for s in table[how]])),
            "dishonest_above_zero": float(np.mean([[s[i] > 0 for i in without_copiers] for s in table[how]])),
        }
    row["reputations_ppm"] = judge.reputation_ppm
    row["auc_of_reputation"] = auc(
        [judge.reputation_ppm[i] for i in honest], [judge.reputation_ppm[i] for i in without_copiers]
    )
    row["least_honest_reputation_ppm"] = min(judge.reputation_ppm[i] for i in honest)
    row["largest_honest_cosine_ppm"] = max(pair[0] for pair in cosines)
    row["least_copy_cosine_ppm"] = min(pair[1] for pair in cosines)
    row["dishonest_share_of_weight"] = shares
    row["losses"] = network.mentored()
    return row


def table(book: Book) -> str:
    names = list(book.rows[0]["full"])
    rows = [[how, *(cell(row[how][name] for row in book.rows) for name in names)] for how in HOW]
    facts = [
        [
            "AUC of the reputation at the end, copiers left out",
            cell(r["auc_of_reputation"] for r in book.rows),
        ],
        [
            "least reputation of an honest node at the end, ppm (floor 10,000)",
            ", ".join(f"{r['least_honest_reputation_ppm']:,}" for r in book.rows),
        ],
        [
            "largest cosine of two honest updates, ppm",
            f"{max(r['largest_honest_cosine_ppm'] for r in book.rows):,}",
        ],
        ["least cosine of a copy, ppm", f"{min(r['least_copy_cosine_ppm'] for r in book.rows):,}"],
        [
            "share of the weight that dishonest nodes got, mean over checkpoints",
            cell(np.mean(r["dishonest_share_of_weight"]) for r in book.rows),
        ],
    ]
    return (
        f"{len(KINDS)} nodes, {CHECKPOINTS} checkpoints, {ROWS} held-out rows of 64 bytes per evaluation, "
        f"{len(book.rows)} seeds; mean and 95 % interval\n\n"
        + markdown(["measured by", *(name.replace("_", " ") for name in names)], rows)
        + "\n\n"
        + markdown(["fact", "value"], facts)
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
    trainer = make_trainer()
    for seed in SEEDS:
        if not book.has(seed=seed):
            book.add(one_seed(Network.make(trainer, len(KINDS), seed), seed))
            if choices.json is not None:
                choices.json.with_suffix(".md").write_text(table(book))
    print(table(book))


if __name__ == "__main__":
    main()
