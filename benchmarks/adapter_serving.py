"""What serving adapters costs: eight in one batch against one by one, and a merged adapter against none.

    python benchmarks/adapter_serving.py [--adapters 8] [--tokens 32] [--repeats 5] [--json FILE]

Requests per second of as many requests as there are adapters, each with its own: all rows in one pass (ours),
the same generator one request after another, and PEFT with set_adapter and transformers' generate one after
another (the peer). The limit is the base alone, the same rows in one batch, without any adapter. Then the
forward pass of the base, of base and adapter (PEFT), and of the merged model, in turns; its claim is that the
last equals the first. Medians of rounds in which all take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, from_tensors
from citrate_node.training.base_model import BaseModel
from citrate_node.training.serving import BASE_KEY, BatchedGenerator, Generation
from citrate_node.training.settings import LoraSettings

RANK, ALPHA = 8, 16
PROMPT = b"def read_the_file(path):\n    "


def adapter(base: BaseModel, seed: int) -> AdapterWeights:
    shapes = base.tensor_shapes(LoraSettings(RANK, ALPHA))
    random = np.random.default_rng(seed)
    tensors = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    names = tuple(sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in shapes}))
    return from_tensors(AdapterConfig(base.base_model_id, RANK, ALPHA, names), tensors)


def batched(generator: BatchedGenerator, keys: list[str], tokens: int) -> None:
    for key in keys:
        generator.admit(Generation(key, list(PROMPT), tokens))
    while generator.busy:
        generator.step()


def peft_model(base: BaseModel, adapters: list[AdapterWeights]) -> Any:
    import torch
    from peft import get_peft_model

    from citrate_node.training.lora import load_base, peft_config

    settings = LoraSettings(RANK, ALPHA)
    model = get_peft_model(load_base(base), peft_config(base, settings), adapter_name="0")
    for place in range(1, len(adapters)):
        model.add_adapter(str(place), peft_config(base, settings))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for place, weights in enumerate(adapters):
            for name, array in weights.tensors().items():
                stem, factor, _ = name.rsplit(".", 2)
                parameters[f"{stem}.{factor}.{place}.weight"].copy_(torch.from_numpy(array))
    return model.eval()


def peft_one_by_one(model: Any, count: int, tokens: int) -> None:
    import torch

    ids = torch.tensor([list(PROMPT)])
    for place in range(count):
        model.set_adapter(str(place))
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )


def medians(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each way, all in turns; one round before it counts."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def serving(base: BaseModel, count: int, tokens: int, repeats: int) -> dict[str, Any]:
    adapters = [adapter(base, seed) for seed in range(count)]
    generator = BatchedGenerator(base)
    for place, weights in enumerate(adapters):
        generator.put(str(place), weights)
    plain = BatchedGenerator(base)
    model = peft_model(base, adapters)
    keys = [str(place) for place in range(count)]

    def one_by_one() -> None:
        for key in keys:
            batched(generator, [key], tokens)

    found = medians(
        {
            "batched": lambda: batched(generator, keys, tokens),
            "one by one": one_by_one,
            "PEFT one by one": lambda: peft_one_by_one(model, count, tokens),
            "limit: base alone, batched": lambda: batched(plain, [BASE_KEY] * count, tokens),
        },
        repeats,
    )
    rows = {name: {"requests_per_s": round(count / seconds, 2)} for name, seconds in found.items()}
    return {
        "adapters": count,
        "tokens": tokens,
        **rows,
        "batched_over_one_by_one": round(found["one by one"] / found["batched"], 2),
        "batched_over_peft": round(found["PEFT one by one"] / found["batched"], 2),
        "batched_over_limit": round(found["limit: base alone, batched"] / found["batched"], 2),
    }


def merging(base: BaseModel, repeats: int) -> dict[str, Any]:
    import torch

    from citrate_node.training.lora import LoraTrainer, load_base

    def merged() -> tuple[Any, Any]:
        trainer = LoraTrainer(base, LoraSettings(RANK, ALPHA))
        trainer.load(adapter(base, 1).tensors())
        return trainer, trainer.model.eval()

    plain = load_base(base).eval()
    _, beside = merged()
    _, other = merged()
    whole = other.merge_and_unload(safe_merge=True).eval()
    ids = torch.tensor([list(PROMPT) * 4] * 4)

    def forward(model: Any) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(4):
                    model(input_ids=ids, use_cache=False)

        return run

    ways = {"base": forward(plain), "base and adapter": forward(beside), "merged": forward(whole)}
    found = medians(ways, 8 * repeats)
    return {
        **{name: {"ms": round(1000 * seconds / 4, 3)} for name, seconds in found.items()},
        "merged_over_base": round(found["merged"] / found["base"], 3),
        "unmerged_over_base": round(found["base and adapter"] / found["base"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base = BaseModel.load()
    rows = {
        "serving": serving(base, arguments.adapters, arguments.tokens, arguments.repeats),
        "merging": merging(base, arguments.repeats),
    }
    text = json.dumps(rows, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
