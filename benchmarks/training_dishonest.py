"""Dishonest mentors, and how the scores and reputations of the network see them.

Not a benchmark by itself. An attack turns what a node would honestly have sent into what it sends; it knows
all honest deltas of the checkpoint, as the strongest attacker would. Scores, copies, credibility, reputation
and shares are the protocol's functions, with the numbers of the devnet preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from training_scene import DELTA_LIMITS, Network, Setting, flat, unflat

from citrate_node.config import load_preset
from citrate_node.protocol.aggregation import integer_weights
from citrate_node.protocol.codecs import codec, decode_delta
from citrate_node.protocol.copies import copies
from citrate_node.protocol.gram import Gram, gram_of_deltas
from citrate_node.protocol.preset import ONE_PPM, Preset
from citrate_node.protocol.reputation import (
    agreements,
    capped_shares,
    harm_limit,
    moved,
    reference_score,
    target_ppm,
    weighted_median,
)
from citrate_node.protocol.tensors import Float32Array, Manifest, delta_from_grid
from citrate_node.simulation.attacks import collective_attacks, own_attack


def attacked(
    kinds: Sequence[str], deltas: Sequence[Float32Array], seed: int, checkpoint: int
) -> list[Float32Array]:
    """What each node sends (simulation/attacks.py). kinds: "honest" or an attack, one per node."""
    together = collective_attacks(kinds, dict(enumerate(deltas)), seed, checkpoint)
    return [
        together[node] if node in together else own_attack(kind, delta, seed, node, checkpoint)
        for node, (kind, delta) in enumerate(zip(kinds, deltas, strict=True))
    ]


def drawn_evaluators(preset: Preset, nodes: int, seed: int) -> list[list[int]]:
    """For every signal the nodes that measure it, never its mentor, each node about equally often."""
    generator = np.random.Generator(np.random.PCG64(seed))
    wanted = min(preset.evaluators_per_signal, nodes - 1)
    order = generator.permutation(nodes)
    place = {int(node): at for at, node in enumerate(order)}
    return [[int(order[(place[i] + k) % nodes]) for k in range(1, wanted + 1)] for i in range(nodes)]


def decoded(
    network: Network, setting: Setting, manifest: Manifest, files: Sequence[bytes]
) -> list[Float32Array]:
    chosen = codec(setting.codec)
    return [
        delta_from_grid(decode_delta(data, chosen, manifest, DELTA_LIMITS)).astype(np.float32)
        for data in files
    ]


def improvements(
    network: Network,
    manifest: Manifest,
    deltas: Sequence[Float32Array],
    drawn: Sequence[Sequence[int]],
    how: str,
    rows: int,
) -> dict[tuple[int, int], int]:
    """(signal, evaluator) to the improvement of the evaluator's own held-out loss in ppm.

    how: "full" or "scaled" (the delta, or a fifth of it, on the parent), or "leave_one_out" (the average of
    all against the average without this one).
    """
    parent = network.adapter.tensors()
    before = flat(parent, manifest)
    whole = np.mean(deltas, axis=0)
    if how == "leave_one_out":
        reference = before + whole
        others = len(deltas) - 1
        moved_to = [before + (whole * len(deltas) - delta) / others for delta in deltas]
    else:
        scale = 1.0 if how == "full" else 0.2
        reference, moved_to = before, [before + np.float32(scale) * delta for delta in deltas]
    start = {**parent, **unflat(reference, manifest)}
    candidates = [{**parent, **unflat(values, manifest)} for values in moved_to]
    evaluators = sorted({node for each in drawn for node in each})
    pairs = [(i, node) for i, each in enumerate(drawn) for node in each]
    losses = network.trainer.losses(
        [(start, network.held_out[node][:rows]) for node in evaluators]
        + [(candidates[i], network.held_out[node][:rows]) for i, node in pairs]
    )
    of_start = dict(zip(evaluators, losses, strict=False))
    sign = -1 if how == "leave_one_out" else 1  # without it the loss should rise
    return {
        (i, node): round(sign * (of_start[node].loss - after.loss) / of_start[node].loss * ONE_PPM)
        for (i, node), after in zip(pairs, losses[len(evaluators) :], strict=True)
    }


@dataclass
class Judge:
    """Reputation and credibility of every node, moved as the protocol moves them."""

    nodes: int
    preset: Preset = field(default_factory=lambda: load_preset("devnet"))
    reputation_ppm: list[int] = field(init=False)
    credibility_ppm: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.reputation_ppm = [self.preset.reputation_initial_ppm] * self.nodes
        self.credibility_ppm = [self.preset.credibility_initial_ppm] * self.nodes

    def voice(self, node: int) -> int:
        return self.reputation_ppm[node] * self.credibility_ppm[node]

    def scores(self, reports: Mapping[tuple[int, int], int]) -> list[int]:
        """The voice-weighted median of each signal's evaluations."""
        found = []
        for i in range(self.nodes):
            median = weighted_median([(v, self.voice(node)) for (j, node), v in reports.items() if j == i])
            assert median is not None
            found.append(median)
        return found

    def judge(
        self, reports: Mapping[tuple[int, int], int], gram: Gram, order: Sequence[int]
    ) -> tuple[list[int], list[int], dict[int, int]]:
        """Whole parts of 2^16, scores, and copies; reputations move."""
        scores = self.scores(reports)
        copied = copies(gram, order, self.preset.copy_cosine_ppm)
        raw = [self.reputation_ppm[i] if scores[i] > 0 and i not in copied else 0 for i in range(self.nodes)]
        weights = list(integer_weights(capped_shares(self.preset, raw))) if any(raw) else [0] * self.nodes
        originals = [score for i, score in enumerate(scores) if i not in copied]
        reference, harm = reference_score(originals), harm_limit(self.preset, originals)
        if reference:
            for i, score in enumerate(scores):
                target = 0 if i in copied else target_ppm(score, reference, harm)
                if target is not None:
                    self.reputation_ppm[i] = moved(self.preset, self.reputation_ppm[i], target)
        told = [(node.to_bytes(2, "big"), value, scores[i]) for (i, node), value in reports.items()]
        for key, (agreed, total) in agreements(told, self.preset.harm_deviations).items():
            node = int.from_bytes(key, "big")
            self.credibility_ppm[node] = moved(
                self.preset, self.credibility_ppm[node], agreed * ONE_PPM // total
            )
        return weights, scores, copied


def gram_matrix(network: Network, setting: Setting, manifest: Manifest, files: Sequence[bytes]) -> Gram:
    return gram_of_deltas(network.adapter, manifest, files, codec(setting.codec))


def auc(honest: Sequence[float], dishonest: Sequence[float]) -> float:
    """Chance that an honest node ranks above a dishonest one; ties count a half."""
    wins = [(h > d) + 0.5 * (h == d) for h in honest for d in dishonest]
    return float(np.mean(wins))
