"""Models of other families than the embedded one go the whole road: train, PEFT, evaluate, merge, serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_bases
from test_training_run import SHORT, WEIGHTS, lines, run_of

from citrate_node.protocol.adapter import AdapterLimits, AdapterWeights, decode_adapter
from citrate_node.training.architecture import linear_modules
from citrate_node.training.base_model import BaseModel
from citrate_node.training.evaluation import EvaluationSettings, evaluate
from citrate_node.training.loading import load_model
from citrate_node.training.merge import merge_adapter
from citrate_node.training.serving import BASE_KEY, BatchedGenerator, Generation
from citrate_node.training.settings import LoraSettings
from citrate_node.training.training_run import RunResult, train

LLAMA_LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
FAMILIES: dict[str, tuple[Callable[[Path], BaseModel], tuple[str, ...], int]] = {
    # how it is made, the names of the layers that carry factors, and how many there are
    "gpt2": (tiny_bases.gpt2, ("c_attn", "c_fc", "c_proj"), 4),
    "llama": (tiny_bases.llama, LLAMA_LAYERS, 7),
    "mistral": (tiny_bases.mistral, LLAMA_LAYERS, 14),
    "qwen2": (tiny_bases.qwen2, LLAMA_LAYERS, 14),
    "opt": (
        tiny_bases.opt,
        ("fc1", "fc2", "k_proj", "out_proj", "project_in", "project_out", "q_proj", "v_proj"),
        14,
    ),
    "gpt_neox": (tiny_bases.gpt_neox, ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"), 8),
    "bert": (tiny_bases.bert, ("dense", "key", "query", "value"), 7),
}
SETTINGS = dataclasses.replace(SHORT, steps=6, lora=LoraSettings(4, 8))


@dataclasses.dataclass(frozen=True)
class Trained:
    family: str
    base: BaseModel
    folder: Path
    result: RunResult
    data: str

    @property
    def weights(self) -> AdapterWeights:
        return decode_adapter((self.folder / WEIGHTS).read_bytes(), AdapterLimits(1 << 20))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    import torch

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    base = FAMILIES[request.param][0](folder / "base")
    data = lines(folder / "lines.jsonl")
    return Trained(
        request.param, base, folder / "out", train(run_of(base, data, folder / "out", SETTINGS)), data
    )


def test_every_linear_layer_but_the_output_is_found_and_learns(trained: Trained) -> None:
    _, names, count = FAMILIES[trained.family]
    assert len(linear_modules(trained.base)) == count
    assert trained.weights.config.targets == names
    assert trained.result.for_the_network
    moved = {name for name, array in trained.weights.tensors().items() if ".lora_B." in name and array.any()}
    assert len(moved) == count


def test_peft_loads_the_folder_and_merging_keeps_its_logits(trained: Trained, tmp_path: Path) -> None:
    """PEFT's own loading, and ours merged and loaded by transformers alone, on tokens nobody trained on."""
    import torch
    from peft import PeftModel

    kind = "masked" if trained.family == "bert" else "causal"
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, 24)))
    plain = load_model(trained.base, kind).eval()
    with torch.no_grad():
        before = plain(input_ids=tokens).logits
        beside = PeftModel.from_pretrained(plain, trained.folder).eval()(input_ids=tokens).logits
    result = merge_adapter(trained.base, trained.weights, trained.result.provenance, tmp_path / "merged")
    merged = BaseModel.load(str(tmp_path / "merged"))
    with torch.no_grad():
        after = load_model(merged, kind).eval()(input_ids=tokens).logits
    largest = float(beside.abs().max())
    assert float((after - beside).abs().max()) < 1e-4 * largest
    assert float((before - beside).abs().max()) > 1e-3 * largest
    assert result.merged_base_model_id == merged.base_model_id.hex()


def test_it_is_measured_against_its_base(trained: Trained) -> None:
    settings = EvaluationSettings((trained.data,), trained.data, 1e9, sequence_tokens=SHORT.sequence_tokens)
    (found,) = evaluate([trained.folder], trained.base, settings)
    assert found.rows[0].loss < found.rows[0].loss_base


def test_it_is_served_with_the_tokens_that_peft_gives(trained: Trained) -> None:
    """Two rows of different lengths: beside the adapter's own row one of the base, filled up or not."""
    import torch
    from peft import PeftModel

    if trained.family == "bert":
        pytest.skip("an encoder writes no text")
    generator = BatchedGenerator(trained.base)
    generator.put("own", trained.weights)
    prompts = {"own": list(b"wave sail salt gull"), BASE_KEY: list(b"moss")}
    requests = [Generation(key, prompt, 16) for key, prompt in prompts.items()]
    for each in requests:
        generator.admit(each)
    while generator.busy:
        generator.step()
    model = PeftModel.from_pretrained(load_model(trained.base, "causal"), trained.folder).eval()
    for each in requests:
        tokens = list(each.prompt)
        for _ in range(16):  # no cache and no filling: the plainest way there is
            with torch.no_grad():
                if each.adapter == BASE_KEY:
                    with model.disable_adapter():
                        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
                else:
                    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert each.tokens == tokens[len(each.prompt) :], each.adapter
