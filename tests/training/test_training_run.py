"""`citrate train` underneath: any family of models, every variant, and a run that can be stopped anywhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bases import bert, gpt2, llama

from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterLimits, decode_adapter
from citrate_node.training.adapter_model import AdapterModel
from citrate_node.training.architecture import linear_modules, objective_of, resolve_targets
from citrate_node.training.base_model import BaseModel
from citrate_node.training.examples import DataSettings, load_dataset
from citrate_node.training.export import import_adapter
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.provenance import read_provenance
from citrate_node.training.run_checkpoint import CHECKPOINT_FILE
from citrate_node.training.run_settings import NetworkRefusal, RunSettings, network_alpha
from citrate_node.training.settings import LoraSettings
from citrate_node.training.training_run import Run, check_run, train

SHORT = RunSettings(
    lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
    steps=6,
    batch_sequences=4,
    sequence_tokens=48,
    learning_rate=0.02,
    warmup_steps=2,
    validate_every_steps=2,
    checkpoint_every_steps=3,
)
WEIGHTS = "adapter_model.safetensors"


def lines(path: Path, labelled: bool = False) -> str:
    """Texts about two things, with the thing as their label where asked."""
    random = np.random.default_rng(1)
    words = {
        "sea": ["wave", "sail", "salt", "gull", "tide"],
        "hill": ["moss", "goat", "snow", "peak", "path"],
    }
    with path.open("w") as file:
        for number in range(120):
            label = ("sea", "hill")[number % 2]
            text = " ".join(random.choice(words[label], 9)) + f" {number}"
            file.write(json.dumps({"text": text, **({"label": label} if labelled else {})}) + "\n")
    return str(path)


def run_of(base: BaseModel, source: str, out: Path, settings: RunSettings = SHORT, **more: Any) -> Run:
    objective = objective_of(base, has_labels=more.pop("labelled", False))
    dataset = load_dataset(source, base, objective, DataSettings(settings.sequence_tokens))
    return Run(base, dataset, objective, settings, out, **more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lines(tmp_path_factory.mktemp("data") / "lines.jsonl")


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_run_killed_anywhere_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, base: BaseModel, data: str, stop_after: int
) -> None:
    train(run_of(base, data, tmp_path / "whole"))

    def kill(facts: dict[str, Any]) -> None:
        if facts["type"] == "step" and facts["step"] == stop_after + 1:
            raise Killed

    broken = run_of(base, data, tmp_path / "broken")
    with pytest.raises(Killed):
        train(broken, notify=kill)
    assert not (tmp_path / "broken" / WEIGHTS).exists()
    result = train(broken)
    assert result.resumed_at_step == stop_after // 3 * 3
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "broken" / file.name).read_bytes()
    assert not (tmp_path / "broken" / CHECKPOINT_FILE).exists()


def test_a_folder_that_holds_another_run_is_not_gone_on_from(
    tmp_path: Path, base: BaseModel, data: str
) -> None:
    def kill(facts: dict[str, Any]) -> None:
        if facts["type"] == "step" and facts["step"] == 4:
            raise Killed

    with pytest.raises(Killed):
        train(run_of(base, data, tmp_path), notify=kill)
    other = run_of(base, data, tmp_path, dataclasses.replace(SHORT, seed=1))
    with pytest.raises(ConfigError, match="other settings, data or start"):
        check_run(other, fresh=False)
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot be gone on from"):
        check_run(other, fresh=False)
    assert check_run(other, fresh=True).step == 0
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_training_stops_early_and_keeps_the_best_weights(tmp_path: Path, base: BaseModel, data: str) -> None:
    """At a rate where the loss climbs, the first validation stays the best."""
    settings = dataclasses.replace(
        SHORT, steps=40, learning_rate=1.0, warmup_steps=0, validate_every_steps=1, patience=3
    )
    seen: list[tuple[int, float]] = []

    def note(facts: dict[str, Any]) -> None:
        if facts["type"] == "validated":
            seen.append((facts["step"], facts["loss_validation"]))

    run = run_of(base, data, tmp_path, settings)
    result = train(run, notify=note)
    best_step, best_loss = min(seen, key=lambda row: row[1])
    assert result.stopped_early
    assert (result.steps, result.best_step) == (best_step + 3, best_step)
    _, weights = import_adapter(tmp_path, base)
    model = AdapterModel(base, settings, "causal")
    model.load(weights)
    assert model.measure(run.dataset.validation).loss == pytest.approx(best_loss, abs=1e-5)


def test_the_network_takes_the_folder_as_it_is_and_it_says_where_it_is_from(
    tmp_path: Path, base: BaseModel, data: str
) -> None:
    run = run_of(base, data, tmp_path, data_licence="cc0-1.0", description="sea and hill")
    train(run)
    content = (tmp_path / WEIGHTS).read_bytes()
    assert decode_adapter(content, AdapterLimits(1 << 20)).encode() == content
    found = read_provenance(tmp_path)
    assert found is not None
    assert found.training is not None
    facts = found.training
    assert (facts.method, facts.seed, facts.learning_rate) == ("local", "0", 0.02)
    assert facts.data[0].digest == run.dataset.digest
    assert facts.data[0].licence == "cc0-1.0"
    assert facts.data[0].description.startswith("sea and hill; 120 documents, 120 of 120 passages kept")


def test_a_refresh_goes_on_from_the_earlier_weights(tmp_path: Path, base: BaseModel, data: str) -> None:
    first = train(run_of(base, data, tmp_path / "one"))
    again = run_of(base, data, tmp_path / "two", start=tmp_path / "one")
    validation: list[float] = []
    train(again, notify=lambda facts: validation.append(facts.get("loss_validation", 0.0)))
    found = read_provenance(tmp_path / "two")
    assert found is not None
    assert found.training is not None
    assert found.training.started_from == first.provenance.weights.sha256
    wider = dataclasses.replace(SHORT, lora=LoraSettings(rank=8, alpha=8))
    with pytest.raises(ConfigError, match="has rank 4 and alpha 8, this run wants rank 8"):
        train(run_of(base, data, tmp_path / "three", wider, start=tmp_path / "one"))


def test_both_trainers_measure_the_same_loss(base: BaseModel, data: str, trainer: LoraTrainer) -> None:
    held_out = load_dataset(data, base, "causal", DataSettings(48)).held_out
    model = AdapterModel(base, SHORT, "causal")
    with model.without_adapter():
        assert model.measure(held_out).loss == trainer.loss(None, held_out.tokens).loss


@pytest.mark.parametrize("make", [gpt2, llama, bert])
def test_any_family_trains_and_comes_back_through_peft(tmp_path: Path, make: Any, data: str) -> None:
    """Conv1D with fused projections, ordinary linear layers, and an encoder that fills masks in."""
    from peft import PeftModel
    from safetensors.numpy import load_file

    base = make(tmp_path / "base")
    run = run_of(base, data, tmp_path / "out", dataclasses.replace(SHORT, steps=4))
    result = train(run)
    assert run.objective == ("masked" if make is bert else "causal")
    assert result.for_the_network
    from citrate_node.training.loading import load_model

    theirs = PeftModel.from_pretrained(load_model(base, run.objective), tmp_path / "out")
    loaded = {
        name.replace(".default.", "."): p.detach().numpy()
        for name, p in theirs.named_parameters()
        if ".lora_" in name
    }
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert {n: w.tobytes() for n, w in loaded.items()} == {n: w.tobytes() for n, w in written.items()}
    settings, _ = import_adapter(tmp_path / "out", base)
    assert settings.rank == 4


def test_attention_targets_leave_the_other_layers_alone(tmp_path: Path) -> None:
    base = gpt2(tmp_path / "gpt2")
    assert resolve_targets(base, "attention") == ("attn.c_proj", "c_attn")
    with pytest.raises(ConfigError, match="they are fused"):
        resolve_targets(base, "q,v")
    encoder = bert(tmp_path / "bert")
    assert resolve_targets(encoder, "q,v") == ("query", "value")
    assert resolve_targets(encoder, "attention") == ("attention.output.dense", "key", "query", "value")
    with pytest.raises(ConfigError, match="has no linear layer wq"):
        resolve_targets(encoder, "query,wq")


def test_attention_targets_of_gpt2_make_an_adapter_that_names_them(tmp_path: Path, data: str) -> None:
    base = gpt2(tmp_path / "gpt2")
    targets = resolve_targets(base, "attention")
    lora = LoraSettings(2, 4, targets)
    train(run_of(base, data, tmp_path / "out", dataclasses.replace(SHORT, steps=2, lora=lora)))
    weights = decode_adapter((tmp_path / "out" / WEIGHTS).read_bytes(), AdapterLimits(1 << 20))
    assert weights.config.targets == ("attn.c_proj", "c_attn")
    assert len(linear_modules(base)) == 4


def test_an_encoder_learns_labels_through_a_head_that_stays_off_the_network(tmp_path: Path) -> None:
    base = bert(tmp_path / "bert")
    source = lines(tmp_path / "labelled.jsonl", labelled=True)
    settings = dataclasses.replace(SHORT, steps=30, batch_sequences=8, lora=LoraSettings(4, 8))
    refused = run_of(base, source, tmp_path / "out", settings, labelled=True)
    with pytest.raises(ConfigError, match="the head that names them"):
        check_run(refused, fresh=False)
    run = dataclasses.replace(refused, local_only=True)
    result = train(run)
    assert not result.for_the_network
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["hill", "sea"]
    assert result.loss_validation < result.loss_validation_base


def test_an_encoder_without_its_head_cannot_fill_masks_in(tmp_path: Path, data: str) -> None:
    base = bert(tmp_path / "bert", with_head=False)
    with pytest.raises(ConfigError, match="it cannot predict tokens"):
        train(run_of(base, data, tmp_path / "out"))


def test_a_variant_is_for_the_network_exactly_where_it_is_plain_lora() -> None:
    at_rank = {rank: RunSettings(lora=LoraSettings(rank, 8), variant="rslora") for rank in (1, 4, 8, 16, 64)}
    assert [network_alpha(at_rank[rank]) for rank in (1, 4, 16, 64)] == [8, 16, 32, 64]
    with pytest.raises(NetworkRefusal, match="8/√8"):
        network_alpha(at_rank[8])
    with pytest.raises(NetworkRefusal, match="variant dora: it divides by the norm"):
        network_alpha(RunSettings(variant="dora"))


def test_rslora_of_a_square_rank_computes_the_same_as_the_plain_folder(
    tmp_path: Path, base: BaseModel, data: str
) -> None:
    settings = dataclasses.replace(SHORT, variant="rslora", steps=4)
    run = run_of(base, data, tmp_path, settings)
    result = train(run)
    plain, weights = import_adapter(tmp_path, base)
    assert (plain.rank, plain.alpha) == (4, 16)
    measured = LoraTrainer(base, plain).loss(weights, run.dataset.validation.tokens).loss
    assert measured == pytest.approx(result.loss_validation, abs=1e-5)


@pytest.mark.parametrize(("variant", "rank"), [("dora", 4), ("rslora", 8)])
def test_other_variants_are_folders_for_peft_and_refused_by_name(
    tmp_path: Path, base: BaseModel, data: str, variant: Any, rank: int
) -> None:
    from citrate_node.runtime.adapters_files import NotAnAdapter, read_adapter

    settings = dataclasses.replace(SHORT, variant=variant, steps=2, lora=LoraSettings(rank, 8))
    run = run_of(base, data, tmp_path, settings)
    with pytest.raises(NetworkRefusal, match=f"variant {variant}"):
        check_run(run, fresh=False)
    result = train(dataclasses.replace(run, local_only=True))
    assert result.provenance.weights.variant == variant
    assert result.provenance.weights.cid is None
    with pytest.raises(NotAnAdapter, match=f"use_{variant}"):
        read_adapter(tmp_path, AdapterLimits(1 << 20), base.base_model_id)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_qlora_trains_beside_a_base_in_four_bits(tmp_path: Path, data: str, dtype: Any) -> None:
    import torch

    base = llama(tmp_path / "base")
    settings = dataclasses.replace(SHORT, steps=20, quantization="nf4", adapter_dtype=dtype)
    run = run_of(base, data, tmp_path / "out", settings)
    model = AdapterModel(base, settings, "causal")
    frozen = [p for n, p in model.model.named_parameters() if n.endswith("q_proj.base_layer.weight")]
    assert {p.dtype for p in frozen} == {torch.uint8}
    assert {p.dtype for n, p in model.parameters.items()} == {getattr(torch, dtype)}
    result = train(run)
    assert result.loss_validation < result.loss_validation_base
    assert result.for_the_network
    found = read_provenance(tmp_path / "out")
    assert found is not None
    assert found.training is not None
    assert found.training.quantization == "nf4"


def test_too_little_data_is_told_before_training(tmp_path: Path, base: BaseModel) -> None:
    (tmp_path / "little.txt").write_text("One short text and no more than that.")
    with pytest.raises(ConfigError, match="leaves no example"):
        check_run(run_of(base, str(tmp_path / "little.txt"), tmp_path / "out"), fresh=False)
