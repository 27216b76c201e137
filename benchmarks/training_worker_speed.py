"""What a node's training process costs: CPU seconds to start, to train, to evaluate and to measure.

    python benchmarks/training_worker_speed.py [--nodes 4] [--json FILE]

Starts as many workers as a devnet has nodes, at once, as `citrate devnet up` does. CPU seconds are the
worker's own (from /proc), so a busy machine changes them little; wall seconds are for all workers together.
The limit that each is compared with: `import torch` alone for the start, the base model's forward pass alone
for an evaluation. The summary of a run of three checkpoints comes last, in this process on two threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from citrate_node.training.base_model import BaseModel
from citrate_node.training.initial import Tensors, initial_weights
from citrate_node.training.settings import LoraSettings, TrainSettings
from citrate_node.training.worker import TrainingWorker

TORCH_ALONE = "import time; import torch; print(time.process_time())"
FORWARD_ALONE = """
import time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained({base!r}, dtype=torch.float32).eval()
tokens = torch.randint(0, 256, (48, 127))
with torch.inference_mode():
    model(input_ids=tokens, use_cache=False)
    started = time.process_time()
    for _ in range(4):
        model(input_ids=tokens, use_cache=False)
print(time.process_time() - started)
"""


def cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(process_id: int) -> float:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def alone(code: str) -> float:
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(shown.stdout)


async def timed(
    workers: list[TrainingWorker], action: Callable[[TrainingWorker], Awaitable[Any]]
) -> dict[str, float]:
    """Mean CPU seconds per worker, and wall seconds for all at once."""
    before = [0.0 if w.process_id is None else cpu_seconds(w.process_id) for w in workers]
    started = time.perf_counter()
    await asyncio.gather(*(action(worker) for worker in workers))
    wall = time.perf_counter() - started
    used = [cpu_seconds(w.process_id or 0) - b for w, b in zip(workers, before, strict=True)]
    return {"cpu_seconds": round(sum(used) / len(used), 2), "wall_seconds_all": round(wall, 2)}


async def run(nodes: int) -> dict[str, Any]:
    base, lora = BaseModel.load(), LoraSettings()
    shapes = base.tensor_shapes(lora)
    first = initial_weights(shapes, b"benchmark")
    delta = {n: w + 0.001 for n, w in first.items() if ".lora_B." in n}
    deltas = {bytes([i]): {n: w * (i + 1) for n, w in delta.items()} for i in range(3)}
    workers = [TrainingWorker("embedded", lora, f"embedded:{i}/{nodes}") for i in range(nodes)]
    rows: dict[str, Any] = {"nodes": nodes}
    try:
        rows["start"] = await timed(workers, lambda w: w.start())
        settings = TrainSettings()
        rows["train 8 steps of 8"] = await timed(
            workers, lambda w: w.train(first, settings, moving="lora_B", seed=1)
        )
        rows["evaluate 3 signals"] = await timed(workers, lambda w: w.evaluate(first, deltas, scale=0.2))
        rows["measure against the base"] = await timed(workers, lambda w: w.measure({**first, **delta}))
        rows["peak_megabytes"] = round(max(peak_megabytes(w.process_id or 0) for w in workers))
    finally:
        for worker in workers:
            await worker.stop()
    rows["limit: import torch"] = {"cpu_seconds": round(alone(TORCH_ALONE), 2)}
    rows["limit: 4 passes of 48 examples"] = {
        "cpu_seconds": round(alone(FORWARD_ALONE.format(base=str(base.directory))), 2)
    }
    rows["summary of 3 checkpoints"] = _summary(base, lora, first, nodes)
    return rows


def _summary(base: BaseModel, lora: LoraSettings, first: Tensors, nodes: int) -> dict[str, float]:
    from citrate_node.training.summary import summarize

    cpu, started = time.process_time(), time.perf_counter()
    sources = [f"embedded:{i}/{nodes}" for i in range(nodes)]
    summarize(base, lora, TrainSettings(), sources, first, first, ["lora_B"] * 3)
    return {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "wall_seconds": round(time.perf_counter() - started, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--json", type=Path)
    choices = parser.parse_args()
    rows = asyncio.run(run(choices.nodes))
    for name, row in rows.items():
        print(f"{name:<32} {json.dumps(row)}")
    if choices.json is not None:
        choices.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
