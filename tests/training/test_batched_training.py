"""Many adapters trained and measured in one pass give what training and measuring each of them gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from short_training import SHORT, SMALL

from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.batched import BatchedTrainer, TrainJob
from citrate_node.training.batched_lora import StackedLora
from citrate_node.training.data import PAD, NodeData, Rows, load_node_data
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer, load_base
from citrate_node.training.settings import LoraSettings, Moving, TrainSettings


@pytest.fixture(scope="module")
def batched(base: BaseModel) -> BatchedTrainer:
    return BatchedTrainer(base, SMALL)


@pytest.fixture(scope="module")
def data_of_nodes(base: BaseModel) -> list[Rows]:
    return [load_node_data(f"embedded:{i}/5?bytes=2048&held_out=1024", base, 64).train for i in range(5)]


def _largest_difference(ours: Tensors, theirs: Tensors) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


@pytest.mark.parametrize("moving", ["lora_A", "lora_B", "both"])
def test_gradients_of_stacked_adapters_are_those_of_each_alone(
    base: BaseModel, trainer: LoraTrainer, trained_weights: Tensors, node_data: NodeData, moving: Moving
) -> None:
    """Compared before the optimizer, whose first step would hide their size."""
    batched = BatchedTrainer(base, SMALL)
    adapters = [{n: w * f for n, w in trained_weights.items()} for f in (np.float32(1.0), np.float32(-0.5))]
    rows = node_data.train[:8]
    batched.lora.load(adapters)
    learning = batched.lora.learn(moving)
    batched._node_losses(rows, 2).sum().backward()
    for place, adapter in enumerate(adapters):
        trainer.load(adapter)
        theirs = dict(trainer._only_learning(moving))
        trainer._loss(rows[4 * place : 4 * place + 4]).backward()
        assert [name for name, _ in learning] == sorted(theirs)
        for name, stacked in learning:
            wanted = theirs[name].grad.numpy()
            scale = float(np.abs(wanted).max())
            assert scale > 0
            assert float(np.abs(stacked.grad[place].numpy() - wanted).max()) < 1e-4 * scale


@pytest.mark.parametrize("moving", ["lora_B", "both"])
def test_training_together_gives_what_training_one_by_one_gives(
    batched: BatchedTrainer,
    trainer: LoraTrainer,
    trained_weights: Tensors,
    data_of_nodes: list[Rows],
    moving: Moving,
) -> None:
    jobs = [TrainJob(trained_weights, data, seed) for seed, data in enumerate(data_of_nodes)]
    settings = dataclasses.replace(SHORT, gradient_norm_max=0.5, weight_decay=0.01)
    together = batched.train(jobs, settings, moving=moving)
    for job, ours in zip(jobs, together, strict=True):
        theirs = trainer.train(job.weights, job.data, settings, moving=moving, seed=job.seed)
        assert ours.examples == theirs.examples
        assert ours.loss_before == pytest.approx(theirs.loss_before, rel=1e-5)
        assert ours.loss_after == pytest.approx(theirs.loss_after, rel=1e-4)
        moved = _largest_difference(theirs.weights, trained_weights)
        # AdamW divides by the size of a gradient: where that is all but nothing, rounding decides its sign
        assert _largest_difference(ours.weights, theirs.weights) < 0.05 * moved
        still = [n for n in trained_weights if moving != "both" and f".{moving}." not in n]
        assert all(np.array_equal(ours.weights[n], trained_weights[n]) for n in still)


def test_who_shares_a_pass_does_not_change_a_single_bit(
    base: BaseModel, trained_weights: Tensors, data_of_nodes: list[Rows]
) -> None:
    """So a simulation gives one history with any number of workers."""
    jobs = [TrainJob(trained_weights, data, seed) for seed, data in enumerate(data_of_nodes)]
    narrow = BatchedTrainer(base, SMALL, tokens_per_pass=1).train(jobs, SHORT)
    wide = BatchedTrainer(base, SMALL, tokens_per_pass=4096).train(jobs, SHORT)
    assert [_largest_difference(a.weights, b.weights) for a, b in zip(narrow, wide, strict=True)] == [0.0] * 5


def test_nodes_with_too_few_examples_for_a_batch_train_on_those_they_have(
    batched: BatchedTrainer, trainer: LoraTrainer, first_weights: Tensors, data_of_nodes: list[Rows]
) -> None:
    jobs = [TrainJob(first_weights, data_of_nodes[0][:n], 3) for n in (2, 9, 3)]
    together = batched.train(jobs, SHORT, moving="lora_B")
    assert [result.examples for result in together] == [2, 9, 3]
    for job, ours in zip(jobs, together, strict=True):
        theirs = trainer.train(job.weights, job.data, SHORT, moving="lora_B", seed=3)
        assert ours.loss_after == pytest.approx(theirs.loss_after, rel=1e-4)


def test_losses_of_many_pairs_are_those_of_each(
    batched: BatchedTrainer, trainer: LoraTrainer, trained_weights: Tensors, node_data: NodeData
) -> None:
    """Rows of different width, padded rows, the base alone, and an adapter that stands in several pairs."""
    rows = node_data.held_out
    padded = np.pad(rows[:3, :40], ((0, 0), (0, 24)), constant_values=PAD)
    other = {name: array * np.float32(0.5) for name, array in trained_weights.items()}
    pairs = [
        (trained_weights, rows[:7]),
        (None, rows[:5]),
        (other, rows[2:4, :32]),
        (trained_weights, padded),
        (None, padded),
    ]
    found = batched.losses(pairs)
    for tokens in (1, 192, 1000):  # pairs are cut between passes, and that changes no bit
        assert BatchedTrainer(batched.base, SMALL, tokens_per_pass=tokens).losses(pairs) == found
    for ours, (weights, part) in zip(found, pairs, strict=True):
        theirs = trainer.loss(weights, part)
        assert ours.examples == theirs.examples
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_a_row_sees_the_adapter_that_its_index_names_whatever_its_rank_and_scale(
    base: BaseModel, trainer: LoraTrainer, trained_weights: Tensors, node_data: NodeData
) -> None:
    """As a server needs it: rank 2 at scale 2 beside the same update in rank 4 at scale 1."""
    import torch

    model = load_base(base)
    lora = StackedLora(model, base.tensor_shapes(SMALL), scaling=1.0)
    double = {
        name: np.concatenate([w, w], axis=int(".lora_B." in name)) for name, w in trained_weights.items()
    }
    lora.load([None, trained_weights, double], scalings=[1.0, 2.0, 1.0])
    lora.rows(np.array([1, 0, 2]))
    tokens = torch.from_numpy(node_data.held_out[:3].astype(np.int64))
    with torch.inference_mode():
        ours = model(input_ids=tokens, use_cache=False).logits
        lora.close()
        plain = model(input_ids=tokens, use_cache=False).logits
        trainer.load(trained_weights)
        theirs = trainer.model(input_ids=tokens, use_cache=False).logits
    assert torch.allclose(ours[[0, 2]], theirs[[0, 2]], atol=1e-4)
    assert torch.allclose(ours[1], plain[1], atol=1e-5)
    assert not torch.allclose(ours[0], plain[0], atol=1e-2)


def test_what_cannot_be_trained_is_refused_and_named(
    base: BaseModel, batched: BatchedTrainer, first_weights: Tensors, data_of_nodes: list[Rows]
) -> None:
    good = TrainJob(first_weights, data_of_nodes[0], 1)
    name = sorted(first_weights)[2]
    broken = {**first_weights, name: np.full_like(first_weights[name], np.nan)}
    with pytest.raises(ValueError, match="job 1: there is no example"):
        batched.train([good, TrainJob(first_weights, data_of_nodes[0][:0], 1)], SHORT)
    with pytest.raises(ValueError, match=name):
        batched.train([good, TrainJob(broken, data_of_nodes[0], 1)], SHORT)
    with pytest.raises(ValueError, match="not the tensors of this adapter"):
        batched.train([TrainJob({name: first_weights[name]}, data_of_nodes[0], 1)], SHORT)
    wild = TrainSettings(steps=4, batch_sequences=2, sequence_bytes=64, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"diverged|NaN"):
        batched.train([good], wild)
    with pytest.raises(ValueError, match="names an adapter"):
        batched.lora.rows(np.array([5_000]))
    with pytest.raises(ConfigError, match="dropout"):
        BatchedTrainer(base, LoraSettings(dropout=0.1))


def test_modules_of_one_adapter_may_differ_in_rank_and_one_without_its_partner_is_named(
    base: BaseModel, batched: BatchedTrainer, trained_weights: Tensors, node_data: NodeData
) -> None:
    """A zero update of rank 1 on a module is what an adapter without that module has."""
    name_b = next(name for name in sorted(trained_weights) if ".lora_B." in name)
    name_a = name_b.replace(".lora_B.", ".lora_A.")
    zero = {**trained_weights, name_b: np.zeros_like(trained_weights[name_b])}
    narrow = {**zero, name_a: zero[name_a][:1], name_b: zero[name_b][:, :1]}
    rows = node_data.held_out[:4]
    ours, theirs = batched.losses([(narrow, rows), (zero, rows)])
    assert ours == theirs
    with pytest.raises(ValueError, match="a module of rank 1 wants"):
        batched.losses([({**narrow, name_b: zero[name_b]}, rows)])
