"""Memory of QLoRA against plain LoRA on the same base: a random Llama of 100 million parameters or more.

    python benchmarks/training_qlora_memory.py [--hidden 896] [--layers 12] [--steps 3] [--json FILE]

Every run is a process of its own, so that its peak (VmHWM) is its own. The limit is the bytes that the base's
tensors need, and nothing else ("tensors"); "loaded" and "trained" are the process's own pages in use;
"imports" is the same process with torch, transformers and PEFT and no model.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def make_base(folder: Path, hidden: int, layers: int) -> int:
    """Write the base; returns its parameters."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    from citrate_node.training.byte_tokenizer import write_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.half().save_pretrained(folder)  # as hubs hold models; float32 files are mapped, not copied
    write_tokenizer(folder, 512)
    return sum(p.numel() for p in model.parameters())


def memory_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def by_kind_of_page() -> dict[str, int]:
    """What the process holds: own pages, those of mapped files, and own ones once free memory went back."""
    held = {"anonymous_bytes": memory_bytes("RssAnon"), "file_bytes": memory_bytes("RssFile")}
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return {**held, "in_use_bytes": memory_bytes("RssAnon")}


def measure(folder: str, kind: str, steps: int) -> dict[str, Any]:
    """In this process: load, train some steps, and say what memory it took."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import numpy as np
    import peft  # noqa: F401 - its memory belongs to every run
    import torch
    import transformers  # noqa: F401

    if kind == "imports":
        return {"kind": kind, "peak_bytes": memory_bytes("VmHWM"), "loaded": by_kind_of_page()}
    from citrate_node.training.adapter_model import AdapterModel
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.examples import Examples
    from citrate_node.training.run_settings import RunSettings

    settings = RunSettings(
        quantization="nf4" if kind.startswith("nf4") else "none",
        adapter_dtype="bfloat16" if kind.endswith("bfloat16") else "float32",
    )
    model = AdapterModel(BaseModel.load(folder), settings, "causal")
    loaded = by_kind_of_page()
    optimizer = model.optimizer()
    rows = np.random.default_rng(0).integers(0, 256, (4, 64)).astype(np.int32)
    started, losses = time.perf_counter(), []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        loss = model.loss(Examples.of_rows(rows), step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    tensors = (*model.model.parameters(), *model.model.buffers())
    return {
        "kind": kind,
        "peak_bytes": memory_bytes("VmHWM"),
        "loaded": loaded,
        "trained": by_kind_of_page(),
        "tensor_bytes": sum(t.numel() * t.element_size() for t in tensors),
        "seconds_per_step": (time.perf_counter() - started) / steps,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=896, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("result " + json.dumps(measure(*options.one, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_base(Path(folder), options.hidden, options.layers)
        runs = []
        for kind in ("imports", "none", "nf4", "nf4-bfloat16"):
            command = [sys.executable, __file__, "--steps", str(options.steps), "--one", folder, kind]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            line = next(line for line in output.splitlines() if line.startswith("result "))
            runs.append(json.loads(line.removeprefix("result ")))
    by_kind = {run["kind"]: run for run in runs}
    imports = by_kind["imports"]
    used = {
        kind: {
            "peak": run["peak_bytes"] - imports["peak_bytes"],
            **{w: run[w]["in_use_bytes"] - imports["loaded"]["in_use_bytes"] for w in ("loaded", "trained")},
            "tensors": run["tensor_bytes"],
        }
        for kind, run in by_kind.items()
        if kind != "imports"
    }
    print(f"base of {parameters / 1e6:.0f} million parameters; MB beyond a process that only imports")
    for kind, row in used.items():
        run = by_kind[kind]
        figures = "   ".join(f"{name} {value / 1e6:6.0f}" for name, value in row.items())
        print(
            f"{kind:<13} {figures}   {run['seconds_per_step']:.2f} s per step   "
            f"loss {run['loss_first']:.3f} to {run['loss_last']:.3f}"
        )
    ratios = {name: used["nf4"][name] / used["none"][name] for name in used["none"]}
    ratios["seconds_per_step"] = by_kind["nf4"]["seconds_per_step"] / by_kind["none"]["seconds_per_step"]
    print("nf4 / float32: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    result = {
        "parameters": parameters,
        "limit_float32_bytes": 4 * parameters,
        "beyond_imports_bytes": used,
        "nf4_to_float32": ratios,
        "runs": runs,
        "load_average": os.getloadavg()[0],
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
