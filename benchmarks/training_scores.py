"""Which way to measure a delta tells honest mentors from dishonest ones, when no two nodes have like data?

    python benchmarks/training_scores.py --json benchmarks/results/training_scores.json
    python benchmarks/training_scores.py --table benchmarks/results/training_scores.json

The network of simulations/findings/ranking.toml (16 honest nodes, Dirichlet alpha 0.3, 2 copiers, 3 sign
flippers, 3 with noise, 2 with shuffled text) runs in the rounds engine, with half of that scenario's
held-out text. At some of its checkpoints the same evaluators measure the same deltas in other ways too:
whole, at other scales, and by leaving each out of the average. Scores are the protocol's weighted median.
AUC: the chance that an honest node ranks above a dishonest one, ties by half.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from training_scene import Book, cell, markdown  # noqa: E402

from citrate_node.protocol.codecs import decode_delta  # noqa: E402
from citrate_node.protocol.gram import gram_of_deltas  # noqa: E402
from citrate_node.protocol.messages import MentorshipSignal  # noqa: E402
from citrate_node.protocol.preset import ONE_PPM  # noqa: E402
from citrate_node.protocol.reputation import weighted_median  # noqa: E402
from citrate_node.protocol.state import NetworkState  # noqa: E402
from citrate_node.protocol.state_transition import CheckpointInputs, Outcome  # noqa: E402
from citrate_node.protocol.tensors import (  # noqa: E402
    Float32Array,
    delta_from_grid,
    weights_from_float32,
    weights_to_float32,
)
from citrate_node.simulation.attacks import HONEST  # noqa: E402
from citrate_node.simulation.round_nodes import LIMITS  # noqa: E402
from citrate_node.simulation.round_options import Round, RoundsOptions  # noqa: E402
from citrate_node.simulation.round_tally import COPIER, Tally, auc_ppm  # noqa: E402
from citrate_node.simulation.rounds import Here, Rounds  # noqa: E402
from citrate_node.simulation.rounds_scenario import load_rounds  # noqa: E402
from citrate_node.simulation.workload import EvaluateRequest  # noqa: E402

SCENARIO = ROOT / "simulations" / "findings" / "ranking.toml"
SCALES = {"full": 1.0, "scaled by 0.2": 0.2, "scaled by 0.1": 0.1, "scaled by 0.05": 0.05}
LEAVE_ONE_OUT = "leave one out"
HOW = (*SCALES, LEAVE_ONE_OUT)
COMPARED_AT, SEEDS, HELD_OUT_BYTES = (1, 3, 6), (1, 2, 3, 4, 5), 3072

Scores = dict[int, int]
"""Node number to score in ppm."""


@dataclass
class Comparison:
    """What the other ways make of the signals of a run, gathered while it goes on."""

    engine: Rounds
    scores: dict[str, list[Scores]] = field(default_factory=lambda: {how: [] for how in HOW})
    honest_cosines: list[int] = field(default_factory=list)
    copy_cosines: list[int] = field(default_factory=list)
    copies: list[tuple[bool, bool]] = field(default_factory=list)
    """Of each copy found: whether its mentor is a copier, and whether it was the first checkpoint."""

    def __post_init__(self) -> None:
        assert self.engine.state is not None
        self._before: NetworkState = self.engine.state

    def on_outcome(self, number: int, outcome: Outcome, inputs: CheckpointInputs) -> None:
        state, self._before = self._before, outcome.state
        kinds, place = self.engine.options.kinds, self.engine.speakers.place
        mentors = [place[message.author] for message in inputs.signals]
        files = []
        for message in inputs.signals:
            assert isinstance(message.body, MentorshipSignal)
            files.append(inputs.deltas[message.body.delta_hash])
        for each in outcome.aggregation.outcomes:
            if each.copy_of is not None:
                self.copies.append((kinds[place[each.mentor]] == COPIER, number == 1))
        gram = gram_of_deltas(state.weights, state.moving_manifest, files, state.codec)
        honest = [i for i, node in enumerate(mentors) if kinds[node] == HONEST]
        self.honest_cosines.append(max(gram.cosine_ppm(i, j) for i in honest for j in honest if i < j))
        self.copy_cosines.extend(
            max(gram.cosine_ppm(i, j) for j in honest)
            for i, node in enumerate(mentors)
            if kinds[node] == COPIER
        )
        if number in COMPARED_AT:
            decoded = [decode_delta(data, state.codec, state.moving_manifest, LIMITS) for data in files]
            deltas = {n: delta_from_grid(d).astype(np.float32) for n, d in zip(mentors, decoded, strict=True)}
            for how in HOW:
                self.scores[how].append(self._scored(state, deltas, how))

    def _scored(self, state: NetworkState, deltas: dict[int, Float32Array], how: str) -> Scores:
        """The scores that the evaluators drawn for these mentors give them, measured in this way."""
        number, manifest = state.next_number, state.moving_manifest
        keys = [identity.node_key for identity in self.engine.speakers.identities]
        pairs = [
            (self.engine.speakers.place[key], mentor)
            for mentor in deltas
            for key in sorted(state.evaluators[keys[mentor]])
        ]
        requests = []
        if how == LEAVE_ONE_OUT:
            start = weights_to_float32(state.weights.select(manifest))
            whole = np.mean(list(deltas.values()), axis=0)
            parents, steps = {}, {}
            for mentor, delta in deltas.items():
                others = (whole * len(deltas) - delta) / np.float32(len(deltas) - 1)
                parents[mentor] = state.weights.with_values(manifest, weights_from_float32(start + others))
                steps[mentor] = whole - others
            for node, mentor in pairs:
                step = {keys[mentor]: steps[mentor]}
                requests.append(EvaluateRequest(node, number, parents[mentor], manifest, step, 1.0))
        else:
            for node in sorted({node for node, _ in pairs}):
                mine = {keys[mentor]: deltas[mentor] for other, mentor in pairs if other == node}
                requests.append(EvaluateRequest(node, number, state.weights, manifest, mine, SCALES[how]))
        answers = self.engine.shards.ask({0: ("evaluate", (requests,))})[0]
        reports: dict[bytes, list[tuple[int, int]]] = {}
        for request, answer in zip(requests, answers, strict=True):
            for key, (improvement, _) in answer.items():
                reports.setdefault(key, []).append((improvement, state.voice_of(keys[request.node])))
        scores: Scores = {}
        for key, given in reports.items():
            median = weighted_median(given)
            assert median is not None
            scores[self.engine.speakers.place[key]] = median
        return scores


def one_seed(options: RoundsOptions) -> dict[str, Any]:
    engine, tally = Rounds(options, Here(options.shard())), Tally()
    comparison = Comparison(engine)
    engine.on_outcome = comparison.on_outcome
    last: Round | None = None
    for last in engine.checkpoints():
        tally.add(last)
    assert last is not None
    honest = [node for node, kind in enumerate(options.kinds) if kind == HONEST]
    others = [node for node, kind in enumerate(options.kinds) if kind not in (HONEST, COPIER)]

    def auc(scores: dict[int, float]) -> float:
        ppm = auc_ppm([scores[i] for i in honest], [scores[i] for i in others])
        assert ppm is not None
        return ppm / ONE_PPM

    row: dict[str, Any] = {"seed": options.seed}
    for how, each in comparison.scores.items():
        mean = {node: float(np.mean([scores[node] for scores in each])) for node in range(options.nodes)}
        row[how] = {
            "auc_of_one_checkpoint": float(np.mean([auc(dict(scores)) for scores in each])),
            "auc_of_mean_score": auc(mean),
            "honest_above_zero": float(np.mean([[scores[i] > 0 for i in honest] for scores in each])),
            "dishonest_above_zero": float(np.mean([[scores[i] > 0 for i in others] for scores in each])),
        }
    figures = tally.figures()
    later = [of_copier for of_copier, is_first in comparison.copies if not is_first]
    return row | {
        "figures": figures,
        "loss": last.loss,
        "largest_honest_cosine_ppm": max(comparison.honest_cosines),
        "least_copy_cosine_ppm": min(comparison.copy_cosines),
        "copies_found_after_the_first_checkpoint": len(later),
        "of_them_the_copier": sum(later),
    }


def table(book: Book) -> str:
    names = list(book.rows[0]["full"])
    rows = [[how, *(cell(row[how][name] for row in book.rows) for name in names)] for how in HOW]
    figures = [row["figures"] for row in book.rows]

    def millionths(name: str) -> str:
        return cell(each[name] / ONE_PPM for each in figures)

    facts = [
        [
            "AUC of the mean score over all checkpoints, as the network ran",
            millionths("auc_ppm_of_mean_score"),
        ],
        [
            "AUC of the reputation at the end, copiers among the dishonest",
            millionths("auc_ppm_of_reputation"),
        ],
        [
            "least reputation of an honest node at the end, ppm (floor 10,000)",
            f"{min(each['least_honest_reputation_ppm'] for each in figures):,}",
        ],
        [
            "share of the weight that the ten dishonest nodes got",
            cell(each["dishonest_weight_mean_ppm"] / ONE_PPM for each in figures),
        ],
        ["share of honest signals left out of the average", millionths("honest_excluded_mean_ppm")],
        [
            "largest cosine of two honest updates, ppm",
            f"{max(r['largest_honest_cosine_ppm'] for r in book.rows):,}",
        ],
        ["least cosine of a copy, ppm", f"{min(r['least_copy_cosine_ppm'] for r in book.rows):,}"],
        [
            "copies after the first checkpoint in which the copier, not the original, was found",
            f"{sum(r['of_them_the_copier'] for r in book.rows)} of "
            f"{sum(r['copies_found_after_the_first_checkpoint'] for r in book.rows)}",
        ],
    ]
    return (
        f"26 nodes, 6 checkpoints, {HELD_OUT_BYTES // 64} held-out rows of 64 bytes per evaluation, 8 "
        f"evaluators per signal, {len(book.rows)} seeds; mean and 95 % interval. Copiers are left out of the "
        "first table: a copy scores like its original.\n\n"
        + markdown(["measured", *(name.replace("_", " ") for name in names)], rows)
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
    for seed in SEEDS:
        if not book.has(seed=seed):
            options = load_rounds(SCENARIO, seed)[0].options
            assert options.training is not None
            training = replace(options.training, held_out_bytes=HELD_OUT_BYTES)
            book.add(one_seed(replace(options, training=training)))
            if choices.json is not None:
                choices.json.with_suffix(".md").write_text(table(book))
    print(table(book))


if __name__ == "__main__":
    main()
