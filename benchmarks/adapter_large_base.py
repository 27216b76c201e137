"""An adapter's whole life on a base of GPT-2's size: train, evaluate, merge, serve; throughput and memory.

    python benchmarks/adapter_large_base.py [--device cuda] [--layers 12] [--steps 4] [--threads 1]
        [--json FILE]

The base is GPT-2's own configuration (124 million parameters, 50,257 tokens, width 768, 12 layers) with
random weights and a byte-level tokenizer, written into a local folder as a hub would hold it: no hub is
needed. Random weights say nothing about what is learnt; they cost as much as trained ones. The peer of a
training step is the forward pass of the base alone on the same batch; the limit of memory is what the base's
tensors need in float32. On the CPU seconds are those that the process had the CPU (of all its threads), on a
card those of the clock. Every stage is a process of its own, so that its peak (VmHWM) is its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("train", "evaluate", "merge", "serve")
WIDTH_TOKENS, BATCH, NEW_TOKENS, ROWS = 64, 4, 16, 4


def make_base(folder: Path, layers: int) -> int:
    """Write the base; returns its parameters."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from citrate_node.training.byte_tokenizer import write_tokenizer

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, bos_token_id=None, eos_token_id=None))
    model.save_pretrained(folder)
    write_tokenizer(folder, 1024)
    return int(sum(p.numel() for p in model.parameters()))


def write_text(file: Path) -> None:
    """Some of the embedded corpus: what it says does not matter here."""
    from citrate_node.training.corpus import read_documents

    file.write_bytes(b"\n".join(read_documents("web"))[:8_000])


def clock(device: str) -> float:
    """Seconds of this process on the CPU, which a busy machine changes little; of the clock beside a card."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(stage: str, folder: Path, steps: int, device: str, threads: int) -> dict[str, Any]:
    """One stage in this process."""
    from citrate_node.training.base_model import BaseModel

    started = clock(device)
    base = BaseModel.load(str(folder / "base"))
    found: dict[str, Any] = {"identify_seconds": clock(device) - started}
    found |= {"train": _train, "evaluate": _evaluate, "merge": _merge, "serve": _serve}[stage](
        base, folder, steps, device, threads
    )
    found["peak_bytes"] = peak_bytes()
    if device == "cuda":
        import torch

        found["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _train(base: Any, folder: Path, steps: int, device: str, threads: int) -> dict[str, Any]:
    import torch

    from citrate_node.training.adapter_model import AdapterModel
    from citrate_node.training.examples import DataSettings, load_dataset
    from citrate_node.training.run_settings import RunSettings
    from citrate_node.training.training_run import Run, train

    settings = RunSettings(
        steps=steps,
        batch_sequences=BATCH,
        sequence_tokens=WIDTH_TOKENS,
        warmup_steps=1,
        validate_every_steps=steps,
        checkpoint_every_steps=steps,
    )
    data = load_dataset(str(folder / "text.txt"), base, "causal", DataSettings(WIDTH_TOKENS))
    stamps: list[float] = []

    def notify(facts: dict[str, Any]) -> None:
        if facts["type"] in ("started", "step"):
            stamps.append(clock(device))

    run = Run(base, data, "causal", settings, folder / "adapter")
    result = train(run, fresh=True, device=device, threads=threads, notify=notify)
    per_step = sorted(after - before for before, after in itertools.pairwise(stamps))
    step_seconds = per_step[len(per_step) // 2]
    model = AdapterModel(base, settings, "causal", device=device, threads=threads)
    batch, forward = data.train.take(slice(0, BATCH)), []
    with torch.inference_mode(), model.without_adapter():
        for _ in range(3):
            before = clock(device)
            float(model.loss(batch, 1))
            forward.append(clock(device) - before)
    return {
        "parameters_learning": sum(p.numel() for p in model.parameters.values()),
        "adapter_bytes": result.provenance.weights.size_bytes,
        "step_seconds": step_seconds,
        "tokens_per_second": BATCH * WIDTH_TOKENS / step_seconds,
        "base_forward_seconds": sorted(forward)[1],
        "step_over_base_forward": step_seconds / sorted(forward)[1],
        "loss_validation_base": result.loss_validation_base,
        "loss_validation": result.loss_validation,
    }


def _evaluate(base: Any, folder: Path, steps: int, device: str, threads: int) -> dict[str, Any]:
    from citrate_node.training.evaluation import EvaluationSettings, evaluate

    source = str(folder / "text.txt")
    settings = EvaluationSettings((source,), source, 1e9, sequence_tokens=WIDTH_TOKENS)
    started = clock(device)
    (found,) = evaluate([folder / "adapter"], base, settings, device=device, threads=threads)
    examples = 4 * found.rows[0].examples  # domain and general, base and adapter
    seconds = clock(device) - started
    return {
        "seconds": seconds,
        "sequences_per_second": examples / seconds,
        "loss_base": found.rows[0].loss_base,
        "loss": found.rows[0].loss,
    }


def _merge(base: Any, folder: Path, steps: int, device: str, threads: int) -> dict[str, Any]:
    from citrate_node.protocol.adapter import AdapterLimits, decode_adapter
    from citrate_node.training.merge import merge_adapter
    from citrate_node.training.provenance import read_provenance

    weights = decode_adapter(
        (folder / "adapter" / "adapter_model.safetensors").read_bytes(), AdapterLimits(1 << 28)
    )
    provenance = read_provenance(folder / "adapter")
    assert provenance is not None
    started = clock(device)
    result = merge_adapter(base, weights, provenance, folder / "merged")
    return {
        "seconds": clock(device) - started,
        "logits_difference_relative": result.logits_difference_relative,
    }


def _serve(base: Any, folder: Path, steps: int, device: str, threads: int) -> dict[str, Any]:
    """Rows in one batch, half of them through the adapter, against one row alone."""
    from citrate_node.protocol.adapter import AdapterLimits, decode_adapter
    from citrate_node.training.serving import BASE_KEY, BatchedGenerator, Generation

    data = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    generator = BatchedGenerator(base, threads=threads, device=device)
    generator.put("own", decode_adapter(data, AdapterLimits(1 << 28)))
    prompt = list(b"def read_the_file(path):\n")
    seconds = {}
    for rows in (1, ROWS):
        started = clock(device)
        for row in range(rows):
            generator.admit(Generation("own" if row % 2 == 0 else BASE_KEY, prompt, NEW_TOKENS))
        while generator.busy:
            generator.step()
        seconds[rows] = clock(device) - started
    return {
        "tokens_per_second_alone": NEW_TOKENS / seconds[1],
        f"tokens_per_second_{ROWS}_rows": ROWS * NEW_TOKENS / seconds[ROWS],
        "batched_over_alone": ROWS * seconds[1] / seconds[ROWS],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; merging is done on the cpu")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    common = (options.steps, options.device, options.threads)
    if options.one:
        stage, place = options.one
        print("result " + json.dumps(measure(stage, Path(place), *common)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        parameters = make_base(Path(scratch) / "base", options.layers)
        write_text(Path(scratch) / "text.txt")
        result: dict[str, Any] = {
            "parameters": parameters,
            "limit_float32_bytes": 4 * parameters,
            "device": options.device,
            "threads": options.threads,
            "batch": [BATCH, WIDTH_TOKENS],
        }
        for stage in STAGES:
            command = [sys.executable, __file__, "--one", stage, scratch, "--steps", str(options.steps)]
            command += ["--device", options.device, "--threads", str(options.threads)]
            started = time.perf_counter()
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            line = next(line for line in output.splitlines() if line.startswith("result "))
            result[stage] = json.loads(line.removeprefix("result "))
            result[stage]["peak_over_limit"] = round(result[stage]["peak_bytes"] / (4 * parameters), 2)
            result[stage]["wall_seconds"] = round(time.perf_counter() - started, 1)
            result[stage]["load_average"] = os.getloadavg()[0]
            print(stage, json.dumps(result[stage]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
