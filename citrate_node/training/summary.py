"""What mentorship was worth: losses of the base model, of training alone, and of the mentored adapter.

Training alone is the control: the same nodes, data, method, settings and number of local phases, and nothing
shared. Four figures for each (design of the evaluation): a node's own mixture, all domains, the worst domain,
and general text (forgetting). Held-out data only. Called by runtime/devnet.py at the end of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import NodeData, domain_held_out, general_held_out, load_node_data
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.settings import LoraSettings, Moving, TrainSettings

Weights = Mapping[str, npt.NDArray[np.float32]]
OWN_SEQUENCES_MAX = 48
DOMAIN_SEQUENCES_MAX = 16
GENERAL_SEQUENCES_MAX = 64


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean cross entropy in nats per token; lower is better."""

    own: float
    """Mean over nodes, each on its own mixture."""
    all: float
    """Mean over domains (and nodes, where each has weights of its own)."""
    worst: float
    """The domain with the highest loss."""
    general: float
    """General text: how much was forgotten."""


def summarize(
    base: BaseModel,
    lora: LoraSettings,
    settings: TrainSettings,
    sources: Sequence[str],
    initial: Weights,
    mentored: Weights,
    phases: Sequence[Moving],
    *,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    threads: int = 2,
) -> dict[str, Losses]:
    """Losses by name: base, isolated, mentored.

    sources: one data source per node. phases: the factor that moved in each checkpoint, in order.
    on_progress gets (parts done, parts in all); what it raises ends the work.
    """
    trainer = LoraTrainer(base, lora, threads=threads)
    nodes = [load_node_data(source, base, settings.sequence_bytes) for source in sources]
    domains = domain_held_out(base, DOMAIN_SEQUENCES_MAX, settings.sequence_bytes)
    general = general_held_out(base, GENERAL_SEQUENCES_MAX, settings.sequence_bytes)
    parts = 2 + len(nodes) * 2
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        on_progress(done, parts)

    def of_one(weights: Weights | None) -> tuple[dict[str, float], float]:
        by_domain = {name: trainer.loss(weights, rows).loss for name, rows in domains.items()}
        return by_domain, trainer.loss(weights, general).loss

    def own(weights: Weights | None, data: NodeData) -> float:
        return trainer.loss(weights, data.held_out, sequences_max=OWN_SEQUENCES_MAX).loss

    def shared(weights: Weights | None) -> Losses:
        by_domain, general_loss = of_one(weights)
        step()
        own_loss = float(np.mean([own(weights, data) for data in nodes]))
        return Losses(
            own_loss, float(np.mean(list(by_domain.values()))), max(by_domain.values()), general_loss
        )

    result = {"base": shared(None), "mentored": shared(mentored)}
    alone: list[tuple[float, dict[str, float], float]] = []
    for number, data in enumerate(nodes):
        weights: Weights = initial
        for phase, moving in enumerate(phases, 1):
            weights = trainer.train(
                weights, data.train, settings, moving=moving, seed=1_000 * number + phase
            ).weights
        step()
        by_domain, general_loss = of_one(weights)
        alone.append((own(weights, data), by_domain, general_loss))
        step()
    # each node alone has weights of its own: a domain's loss is the mean over nodes
    by_domain = {name: float(np.mean([row[1][name] for row in alone])) for name in domains}
    result["isolated"] = Losses(
        float(np.mean([row[0] for row in alone])),
        float(np.mean(list(by_domain.values()))),
        max(by_domain.values()),
        float(np.mean([row[2] for row in alone])),
    )
    return result
