"""The summary of a run: training alone is a real control, and the four figures are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from short_training import SHORT, SMALL

from citrate_node.training import summary
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import domain_held_out, general_held_out, load_node_data
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.summary import summarize

SOURCES = ["embedded:0/2?bytes=8192&held_out=1024", "embedded:1/2?bytes=8192&held_out=1024"]


@pytest.fixture(autouse=True)
def few_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OWN_SEQUENCES_MAX", "DOMAIN_SEQUENCES_MAX", "GENERAL_SEQUENCES_MAX"):
        monkeypatch.setattr(summary, name, 4)


def test_figures_are_the_losses_of_base_of_the_adapter_and_of_each_node_alone(
    base: BaseModel, trainer: LoraTrainer, first_weights: Tensors, trained_weights: Tensors
) -> None:
    told: list[tuple[int, int]] = []
    result = summarize(
        base,
        SMALL,
        SHORT,
        SOURCES,
        first_weights,
        trained_weights,
        ["lora_B", "lora_A"],
        on_progress=lambda done, of: told.append((done, of)),
        threads=1,
    )
    assert told == [(done, 6) for done in range(1, 7)]

    domains = domain_held_out(base, 4, SHORT.sequence_bytes)
    general = general_held_out(base, 4, SHORT.sequence_bytes)
    nodes = [load_node_data(source, base, SHORT.sequence_bytes) for source in SOURCES]
    alone: list[Tensors] = []
    for number, data in enumerate(nodes):
        weights = first_weights
        for phase, moving in enumerate(("lora_B", "lora_A"), 1):
            seed = 1_000 * number + phase
            weights = trainer.train(weights, data.train, SHORT, moving=moving, seed=seed).weights  # type: ignore[arg-type]
        alone.append(weights)

    for name, weights_of_node in (
        ("base", [None, None]),
        ("mentored", [trained_weights, trained_weights]),
        ("isolated", alone),
    ):
        row = result[name]
        table = np.array([[trainer.loss(w, rows).loss for rows in domains.values()] for w in weights_of_node])
        own = [trainer.loss(w, d.held_out[:4]).loss for w, d in zip(weights_of_node, nodes, strict=True)]
        assert row.own == pytest.approx(np.mean(own))
        assert row.all == pytest.approx(table.mean())
        assert row.worst == pytest.approx(table.mean(axis=0).max())
        assert row.general == pytest.approx(np.mean([trainer.loss(w, general).loss for w in weights_of_node]))


def test_what_the_progress_callback_raises_ends_the_work(
    base: BaseModel, first_weights: Tensors, trained_weights: Tensors
) -> None:
    def stop(done: int, of: int) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        summarize(
            base,
            SMALL,
            SHORT,
            SOURCES,
            first_weights,
            trained_weights,
            ["lora_B"],
            on_progress=stop,
            threads=1,
        )
