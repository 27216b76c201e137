"""Many nodes' LoRA in one pass of the base against one node after the other. CPU time of one thread.

    python benchmarks/training_batched.py [--nodes 128] [--device cpu] [--shape SEQUENCES,BYTES] [--json FILE]

Ours: training/batched.py. Peer: training/lora.py (PEFT), which trains one node at a time. Limit: the base's
own matrix products for the same tokens, forward and back to the inputs, without anything else. Ratios are
peer / ours; where one node's batch fills the core there is nothing to win, and no more than 10 % may be lost.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from citrate_node.training.base_model import BaseModel
from citrate_node.training.batched import BatchedTrainer, TrainJob
from citrate_node.training.data import load_node_data
from citrate_node.training.initial import Tensors, initial_weights
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.settings import LoraSettings, TrainSettings

SHAPES = ((1, 32), (1, 64), (1, 128), (8, 128), (32, 128))
"""(sequences, bytes per sequence) of one node's batch."""

STEPS = 2
REPEATS = 2


def seconds(work: Callable[[], Any], device: str) -> float:
    """The least of a few runs: CPU time, on a GPU the time on the wall."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(REPEATS):
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def products_limit(base: BaseModel, tokens: int) -> Callable[[], None]:
    """All matrix products of one step on the frozen base: forward, and back to the inputs."""
    import torch

    layers = list(base.tensor_shapes(LoraSettings(rank=1, alpha=1)).items())
    outs = [shape[0] for name, shape in layers if ".lora_B." in name]
    ins = [shape[1] for name, shape in layers if ".lora_A." in name]
    sizes = [*zip(outs, ins, strict=True), (int(base.config["vocab_size"]), int(base.config["hidden_size"]))]
    weights = [torch.randn(size) for size in sizes]
    inputs = [torch.randn(tokens, size[1]) for size in sizes]

    def work() -> None:
        for weight, x in zip(weights, inputs, strict=True):
            (x @ weight.T) @ weight

    return work


def compare(nodes: int, device: str, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    base, lora = BaseModel.load(), LoraSettings()
    first = initial_weights(base.tensor_shapes(lora), b"benchmark")
    data = [
        load_node_data(f"embedded:{i}/{nodes}?bytes=8192&held_out=1024&alpha=0.3", base) for i in range(nodes)
    ]
    jobs = [TrainJob(first, each.train, i) for i, each in enumerate(data)]
    one, many = LoraTrainer(base, lora), BatchedTrainer(base, lora, device=device)
    rows = []
    for sequences, width in shapes:
        settings = TrainSettings(steps=STEPS, batch_sequences=sequences, sequence_bytes=width)
        count = nodes if sequences * width <= 256 else max(8, nodes // 8)

        def loop(settings: TrainSettings = settings, count: int = count) -> list[Tensors]:
            return [
                one.train(j.weights, j.data, settings, moving="lora_B", seed=j.seed).weights
                for j in jobs[:count]
            ]

        def batch(settings: TrainSettings = settings, count: int = count) -> list[Tensors]:
            return [result.weights for result in many.train(jobs[:count], settings, moving="lora_B")]

        ours, theirs = seconds(batch, device), seconds(loop, "cpu")
        least = min(many.tokens_per_pass, count * sequences * width)
        limit = seconds(products_limit(base, least), "cpu") * STEPS * count * sequences * width / least
        moved = max(float(np.abs(w[n] - first[n]).max()) for w in loop() for n in first)
        apart = max(
            float(np.abs(a[n] - b[n]).max()) for a, b in zip(batch(), loop(), strict=True) for n in first
        )
        per_node = 1000 / STEPS / count
        rows.append(
            {
                "nodes": count,
                "sequences": sequences,
                "sequence_bytes": width,
                "ours_ms_per_node_step": round(ours * per_node, 2),
                "peer_ms_per_node_step": round(theirs * per_node, 2),
                "limit_ms_per_node_step": round(limit * per_node, 2),
                "peer_by_ours": round(theirs / ours, 2),
                "ours_by_limit": round(ours / limit, 2),
                "largest_difference_by_largest_move": round(apart / moved, 5),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(nodes: int) -> dict[str, Any]:
    """Peak memory of a process that trains few and then many nodes, beside the bytes of an adapter."""
    base, lora = BaseModel.load(), LoraSettings()
    first = initial_weights(base.tensor_shapes(lora), b"benchmark")
    data = load_node_data("embedded:0/1?bytes=8192&held_out=1024", base)
    trainer = BatchedTrainer(base, lora)
    settings = TrainSettings(steps=1, batch_sequences=1, sequence_bytes=64)
    peaks = {}
    kept = []
    for count in (trainer.tokens_per_pass // 64, nodes):
        kept.append(trainer.train([TrainJob(first, data.train, i) for i in range(count)], settings))
        peaks[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    few, many = sorted(peaks)
    adapter = sum(array.nbytes for array in first.values()) / 2**20
    return {
        "peak_megabytes": {str(count): round(peak) for count, peak in peaks.items()},
        "megabytes_per_further_node": round((peaks[many] - peaks[few]) / many, 3),
        "megabytes_of_one_adapter": round(adapter, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", help="SEQUENCES,BYTES: this batch alone, and no memory")
    parser.add_argument("--json", type=Path)
    choices = parser.parse_args()
    if choices.shape is not None:
        sequences, width = (int(part) for part in choices.shape.split(","))
        compare(choices.nodes, choices.device, [(sequences, width)])
        return
    grown = memory(4 * choices.nodes)  # first, while the peak is its own
    print(json.dumps(grown), flush=True)
    result = {
        "device": choices.device,
        "speed": compare(choices.nodes, choices.device, SHAPES),
        "memory": grown,
    }
    if choices.json is not None:
        choices.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
