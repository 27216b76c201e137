"""Training moves the factor it is told to, repeats to the byte, and measures what transformers measures."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest
from short_training import SHORT, SMALL

from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import PAD, NodeData
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer, TrainingCancelled
from citrate_node.training.settings import TrainSettings


def changed(before: Tensors, after: Tensors) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("moving", ["lora_A", "lora_B", "both"])
def test_only_the_moving_factor_learns_and_all_of_it_does(
    trainer: LoraTrainer,
    node_data: NodeData,
    trained_weights: Tensors,
    moving: Literal["lora_A", "lora_B", "both"],
) -> None:
    result = trainer.train(trained_weights, node_data.train, SHORT, moving=moving, seed=3)
    expected = {name for name in trained_weights if moving == "both" or f".{moving}." in name}
    assert changed(trained_weights, result.weights) == expected
    assert result.weights.keys() == trained_weights.keys()
    assert result.examples == 12


def test_training_learns(trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors) -> None:
    """Held-out loss falls, not the training loss alone."""
    settings = TrainSettings(steps=12, batch_sequences=8, sequence_bytes=64, learning_rate=0.02)
    result = trainer.train(first_weights, node_data.train, settings, moving="lora_B", seed=1)
    before = trainer.loss(None, node_data.held_out).loss
    after = trainer.loss(result.weights, node_data.held_out).loss
    assert after < 0.98 * before
    assert (
        trainer.loss(result.weights, node_data.train).loss < 0.98 * trainer.loss(None, node_data.train).loss
    )


def test_reported_losses_are_those_of_the_batches(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors
) -> None:
    """One batch of everything: the first loss is the start's, the last one that before the last step."""
    rows = node_data.train[:8]
    settings = dataclasses.replace(SHORT, batch_sequences=8)
    shorter = dataclasses.replace(settings, steps=2)
    result = trainer.train(first_weights, rows, settings, moving="lora_B", seed=1)
    before_last = trainer.train(first_weights, rows, shorter, moving="lora_B", seed=1).weights
    assert result.loss_before == pytest.approx(trainer.loss(None, rows).loss, rel=1e-5)
    assert result.loss_after == pytest.approx(trainer.loss(before_last, rows).loss, rel=1e-5)
    assert result.loss_after < result.loss_before


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(
    trainer: LoraTrainer, base: BaseModel, node_data: NodeData, first_weights: Tensors
) -> None:
    """In a trainer made anew, as another process would make it."""
    fresh = LoraTrainer(base, SMALL)
    one = trainer.train(first_weights, node_data.train, SHORT, moving="lora_B", seed=5).weights
    two = fresh.train(first_weights, node_data.train, SHORT, moving="lora_B", seed=5).weights
    other = fresh.train(first_weights, node_data.train, SHORT, moving="lora_B", seed=6).weights
    assert changed(one, two) == set()
    assert changed(one, other) != set()


def test_an_adapter_at_its_start_leaves_the_base_as_it_is(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors
) -> None:
    assert trainer.loss(first_weights, node_data.held_out) == trainer.loss(None, node_data.held_out)


def test_measured_loss_is_the_loss_that_transformers_reports(
    trainer: LoraTrainer, base: BaseModel, node_data: NodeData
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = node_data.held_out[(node_data.held_out != PAD).all(axis=1)][:8]
    model = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32).eval()
    tokens = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        theirs = float(model(input_ids=tokens, labels=tokens).loss)
    assert trainer.loss(None, rows).loss == pytest.approx(theirs, rel=1e-5)


def test_an_update_is_alpha_over_rank_times_b_times_a(
    trainer: LoraTrainer, base: BaseModel, node_data: NodeData, trained_weights: Tensors
) -> None:
    """Folding it into the base by hand gives the same loss."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = node_data.held_out[(node_data.held_out != PAD).all(axis=1)][:8]
    model = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32).eval()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, lora_a in trained_weights.items():
            if ".lora_A." not in name:
                continue
            lora_b = trained_weights[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            modules[module].weight += torch.from_numpy(SMALL.scaling * lora_b @ lora_a)
        tokens = torch.from_numpy(rows.astype(np.int64))
        theirs = float(model(input_ids=tokens, labels=tokens).loss)
    assert trainer.loss(trained_weights, rows).loss == pytest.approx(theirs, rel=1e-4)


def test_padding_is_neither_read_nor_predicted(
    trainer: LoraTrainer, node_data: NodeData, trained_weights: Tensors
) -> None:
    rows = node_data.held_out[:4, :40]
    padded = np.pad(rows, ((0, 0), (0, 24)), constant_values=PAD)
    ours, wide = trainer.loss(trained_weights, rows), trainer.loss(trained_weights, padded)
    assert wide.loss == pytest.approx(ours.loss, rel=1e-5)
    assert wide.examples == 4


def test_losses_of_many_weights_are_the_losses_of_each(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors, trained_weights: Tensors
) -> None:
    candidates = [None, trained_weights, first_weights]
    together = trainer.losses(candidates, node_data.held_out, sequences_max=8)
    assert together == [trainer.loss(w, node_data.held_out, sequences_max=8) for w in candidates]
    assert together[1] != together[0]


def test_a_small_data_set_is_seen_again_only_after_all_of_it(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors
) -> None:
    settings = dataclasses.replace(SHORT, steps=3, batch_sequences=2)
    result = trainer.train(first_weights, node_data.train[:6], settings, moving="lora_B", seed=1)
    assert result.examples == 6


def test_progress_is_told_and_a_cancelled_run_ends_at_its_next_step(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors
) -> None:
    seen: list[tuple[int, int]] = []

    def on_step(done: int, of: int, loss: float) -> None:
        seen.append((done, of))
        assert loss > 0
        if done == 2:
            raise TrainingCancelled

    with pytest.raises(TrainingCancelled):
        trainer.train(first_weights, node_data.train, SHORT, seed=1, on_step=on_step)
    assert seen == [(1, 3), (2, 3)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors, value: float
) -> None:
    name = sorted(first_weights)[3]
    broken = {**first_weights, name: np.full_like(first_weights[name], value)}
    with pytest.raises(ValueError, match=name):
        trainer.train(broken, node_data.train, SHORT)


def test_a_run_that_diverges_is_refused(
    trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors
) -> None:
    settings = TrainSettings(steps=4, batch_sequences=2, sequence_bytes=64, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"diverged|NaN"):
        trainer.train(first_weights, node_data.train, settings, moving="both", seed=1)


def test_tensors_of_another_adapter_are_refused(
    trainer: LoraTrainer, base: BaseModel, node_data: NodeData, first_weights: Tensors
) -> None:
    name = sorted(first_weights)[0]
    with pytest.raises(ValueError, match="not the tensors of this adapter"):
        trainer.loss({n: w for n, w in first_weights.items() if n != name}, node_data.held_out)
    with pytest.raises(ValueError, match="has shape"):
        trainer.loss({**first_weights, name: np.zeros((3, 3), np.float32)}, node_data.held_out)


def test_the_rate_of_lora_a_may_differ() -> None:
    settings = TrainSettings(learning_rate=0.02, learning_rate_lora_a=0.005)
    assert settings.rate_of("x.lora_A.weight") == 0.005
    assert settings.rate_of("x.lora_B.weight") == 0.02
    assert TrainSettings(learning_rate=0.02).rate_of("x.lora_A.weight") == 0.02
