"""Text from many adapters in one batch is the text that each gives alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from citrate_node.training.base_model import BaseModel
from citrate_node.training.serving import (
    BASE_KEY,
    BatchedGenerator,
    Generation,
    Scored,
)
from citrate_node.training.serving_text import TextStream, TokenNames, TokenText
from citrate_node.training.settings import ALL_LINEAR, LoraSettings


def adapter(base: BaseModel, seed: int, rank: int, targets: str | tuple[str, ...]) -> AdapterWeights:
    shapes = base.tensor_shapes(LoraSettings(rank, 2 * rank, targets))
    random = np.random.default_rng(seed)
    tensors = {name: random.normal(0, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}
    names = tuple(sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in shapes}))
    return from_tensors(AdapterConfig(base.base_model_id, rank, 2 * rank, names), tensors)


@pytest.fixture(scope="module")
def adapters(base: BaseModel) -> dict[str, AdapterWeights]:
    return {
        "all": adapter(base, 1, 4, ALL_LINEAR),
        "few": adapter(base, 2, 2, ("q_proj", "v_proj")),
        "wide": adapter(base, 3, 8, ("down_proj",)),
    }


@pytest.fixture(scope="module")
def generator(base: BaseModel, adapters: dict[str, AdapterWeights]) -> BatchedGenerator:
    made = BatchedGenerator(base)
    for key, weights in adapters.items():
        made.put(key, weights)
    return made


def run(generator: BatchedGenerator, requests: list[Generation], every: int = 0) -> None:
    """All at once, or a new one every few steps."""
    waiting = list(requests)
    while waiting or generator.busy:
        while waiting:
            generator.admit(waiting.pop(0))
            if every:
                break
        for _ in range(max(1, every)):
            generator.step()


def request(key: str, prompt: bytes, tokens: int = 12, **more: object) -> Generation:
    return Generation(key, list(prompt), tokens, **more)  # type: ignore[arg-type]


def of_peft(base: BaseModel, weights: AdapterWeights | None, prompt: bytes, count: int) -> list[int]:
    """Greedy text by PEFT and transformers' own generate, one adapter and one prompt at a time."""
    import torch

    from citrate_node.training.lora import LoraTrainer, load_base

    if weights is None:
        model = load_base(base)
    else:
        config = weights.config
        trainer = LoraTrainer(base, LoraSettings(config.rank, config.alpha, config.targets))
        trainer.load(weights.tensors())
        model = trainer.model
    model.eval()
    with torch.no_grad():
        ids = torch.tensor([list(prompt)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    return [int(token) for token in out[0, len(prompt) :]]


@pytest.mark.parametrize("every", [0, 3])
def test_each_row_gives_what_peft_gives_for_its_adapter_alone(
    base: BaseModel, adapters: dict[str, AdapterWeights], generator: BatchedGenerator, every: int
) -> None:
    """Prompts of several lengths, entering together or one by one; another implementation as the oracle."""
    prompts = [b"import os\n", b"def f(x):", b"The", b"class A:\n    def __init__(self"]
    keys = [BASE_KEY, "all", "few", "wide"]
    requests = [request(key, prompt) for key, prompt in zip(keys, prompts, strict=True)]
    run(generator, requests, every)
    for key, prompt, done in zip(keys, prompts, requests, strict=True):
        assert done.tokens == of_peft(base, adapters.get(key), prompt, 12), key
    assert len({tuple(done.tokens) for done in requests}) == 4
    assert generator.busy == 0


def test_one_prompt_through_four_adapters_gives_four_texts(generator: BatchedGenerator) -> None:
    requests = [request(key, b"import os\n", 24) for key in (BASE_KEY, "all", "few", "wide")]
    run(generator, requests)
    assert len({tuple(done.tokens) for done in requests}) >= 3


def test_an_adapter_is_loaded_and_dropped_while_others_answer(
    base: BaseModel, adapters: dict[str, AdapterWeights]
) -> None:
    generator = BatchedGenerator(base)
    generator.put("all", adapters["all"])
    first = request("all", b"import os\n", 12)
    generator.admit(first)
    generator.step()
    generator.put("wide", adapters["wide"])
    second = request("wide", b"The", 6)
    generator.admit(second)
    with pytest.raises(ValueError, match="in use"):
        generator.drop("wide")
    while generator.busy:
        generator.step()
    assert first.tokens == of_peft(base, adapters["all"], b"import os\n", 12)
    assert second.tokens == of_peft(base, adapters["wide"], b"The", 6)
    generator.drop("wide")
    assert generator.adapters == ("all",)
    with pytest.raises(ServiceError, match="not loaded"):
        generator.admit(request("wide", b"x"))


def test_an_adapter_of_another_base_is_refused(
    generator: BatchedGenerator, adapters: dict[str, AdapterWeights]
) -> None:
    known = adapters["few"]
    config = AdapterConfig(b"\x09" * 32, known.config.rank, known.config.alpha, known.config.targets)
    with pytest.raises(ConfigError, match="made for base model 0909"):
        generator.put("foreign", AdapterWeights(config, known.manifest, known.values.copy()))


def test_a_seed_decides_what_is_drawn_whoever_else_is_in_the_batch(generator: BatchedGenerator) -> None:
    def drawn(seed: int, others: int) -> list[int]:
        wanted = request("all", b"def ", 16, temperature=0.9, top_p=0.9, seed=seed)
        run(generator, [*(request("few", b"x" * (n + 1), 8) for n in range(others)), wanted])
        return wanted.tokens

    assert drawn(1, 0) == drawn(1, 3)
    assert drawn(1, 0) != drawn(2, 0)


def test_who_waits_no_longer_is_given_up(generator: BatchedGenerator) -> None:
    ends: list[str] = []
    gone = request("all", b"def ", 50, on_end=ends.append)
    stays = request("few", b"def ", 5, on_end=ends.append)
    generator.admit(gone)
    generator.admit(stays)
    gone.cancelled = True
    while generator.busy:
        generator.step()
    assert (ends, len(gone.tokens), len(stays.tokens)) == (["cancelled", "length"], 1, 5)


def test_a_base_with_learnt_positions_is_served_as_well(tmp_path: Path) -> None:
    """GPT-2: absolute positions show a row that was filled up on the wrong side."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = None
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    base = BaseModel.load(str(tmp_path))
    generator = BatchedGenerator(base)
    assert generator.length_max == 64
    prompts = [b"abcdefgh", b"x", b"12345"]
    requests = [request(BASE_KEY, prompt, count) for prompt, count in zip(prompts, (4, 12, 8), strict=True)]
    run(generator, requests, every=2)
    for prompt, done in zip(prompts, requests, strict=True):
        assert done.tokens == of_peft(base, None, prompt, done.tokens_max)


def test_a_base_whose_past_cannot_be_joined_is_refused_by_name(tmp_path: Path) -> None:
    """Mamba keeps a state instead of keys and values."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=256, hidden_size=32, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ServiceError, match="rows of such cannot be joined"):
        BatchedGenerator(BaseModel.load(str(tmp_path))).admit(request(BASE_KEY, b"x"))


def test_choices_of_one_prompt_are_what_each_gives_alone(generator: BatchedGenerator) -> None:
    """The prompt is read once; afterwards each has its own seed, and may end before the others."""

    def drawn(seeds: tuple[int, ...]) -> list[list[int]]:
        wanted = [request("all", b"def ", 8 + seed, temperature=0.9, top_p=0.9, seed=seed) for seed in seeds]
        generator.admit(*wanted)
        while generator.busy:
            generator.step()
        return [each.tokens for each in wanted]

    together = drawn((1, 2, 3))
    assert together == [*drawn((1,)), *drawn((2,)), *drawn((3,))]
    assert len({tuple(tokens[:8]) for tokens in together}) == 3


def test_probabilities_are_those_of_one_pass_over_prompt_and_answer(
    base: BaseModel, adapters: dict[str, AdapterWeights], generator: BatchedGenerator
) -> None:
    """Another implementation as the oracle: PEFT, without a cache, in one pass."""
    import torch

    from citrate_node.training.lora import LoraTrainer

    told: list[Scored] = []

    def on_token(scored: Scored) -> bool:
        told.append(scored)
        return False

    prompt = b"import os\n"
    wanted = request("all", prompt, 6, likeliest=2, on_prompt=told.extend, on_token=on_token, seed=3)
    wanted.temperature = 0.7
    run(generator, [request("few", b"x", 9), wanted])
    config = adapters["all"].config
    trainer = LoraTrainer(base, LoraSettings(config.rank, config.alpha, config.targets))
    trainer.load(adapters["all"].tensors())
    tokens = [*prompt, *wanted.tokens]
    with torch.no_grad():
        logprobs = trainer.model.eval()(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert [each.token for each in told] == tokens
    assert (told[0].logprob, told[0].likeliest) == (None, ())
    for place, each in enumerate(told[1:]):
        row = logprobs[place]
        assert each.logprob == pytest.approx(float(row[tokens[place + 1]]), abs=1e-4)
        values = [value for _, value in each.likeliest]
        assert values == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_a_prompt_is_scored_without_writing_anything(generator: BatchedGenerator) -> None:
    told: list[Scored] = []
    ends: list[str] = []
    generator.admit(request("few", b"abc", 0, likeliest=0, on_prompt=told.extend, on_end=ends.append))
    assert (generator.busy, ends) == (0, ["length"])
    assert [(each.token, each.likeliest) for each in told] == [(97, ()), (98, ()), (99, ())]
    assert all(each.logprob is not None and each.logprob < 0 for each in told[1:])


def test_pieces_of_text_hold_no_half_characters_and_end_at_a_stop_text(base: BaseModel) -> None:
    stream = TextStream(TokenText(base), ["END"])
    pieces = [stream.push(byte) for byte in "a€bENxEND!".encode()]
    assert "".join(text for text, _ in pieces) == "a€bENx"
    assert [stop for _, stop in pieces].index(True) == len("a€bENxEND".encode()) - 1
    assert pieces[1] == ("", False)
    rest = TextStream(TokenText(base), ["END"])
    assert [rest.push(byte)[0] for byte in b"xEN"] == ["x", "", ""]
    assert rest.rest() == "EN"


def test_tokens_are_named_by_what_they_add_to_the_text(base: BaseModel) -> None:
    """Parts of a character by their byte; the places are those of the characters."""
    names = TokenNames(TokenText(base))
    text = "né🍋x"
    found = [names.push(byte) for byte in text.encode()]
    assert found == [
        ("n", 0),
        ("bytes:\\xc3", 1),
        ("é", 1),
        ("bytes:\\xf0", 2),
        ("bytes:\\x9f", 2),
        ("bytes:\\x8d", 2),
        ("🍋", 2),
        ("x", 3),
    ]
    assert names.of(ord("y")) == "y"
    assert names.push(5000) == ("token:5000", 4)  # a vocabulary may be larger than the tokenizer's
