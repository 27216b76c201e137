"""Sums of LoRA products brought back to rank 16, against PEFT's add_weighted_adapter("svd").

    python benchmarks/stack_recompression.py [--full]

--full also runs PEFT at width 4096, which takes a minute or more.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Read when numpy is loaded: one thread, and the kernels of this very processor.
os.environ.update(OPENBLAS_NUM_THREADS="1")
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from mathematics_timing import Row, below, best_seconds, compared, table  # noqa: E402

from citrate_node.protocol.stack import recompress  # noqa: E402

RANK = 16


def factors(width: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """K adapters with a common part, as adapters of one network have."""
    random = np.random.default_rng(width + count)
    shared_b, shared_a = random.standard_normal((width, RANK)), random.standard_normal((RANK, width))

    def one_of(shared: np.ndarray) -> np.ndarray:
        return (0.02 * (shared + 0.3 * random.standard_normal(shared.shape))).astype(np.float32)

    return [one_of(shared_b) for _ in range(count)], [one_of(shared_a) for _ in range(count)]


def measure(full: bool = False) -> list[Row]:
    rows = []
    for width in (2048, 4096):
        lora_b, lora_a = factors(width, 8)
        stacked_b, stacked_a = np.concatenate(lora_b, axis=1) / 8, np.concatenate(lora_a)
        seconds = best_seconds(lambda b=stacked_b, a=stacked_a: recompress(b, a, RANK))
        peft = _peft_svd(lora_b, lora_a) if width == 2048 or full else None
        rows.append(
            compared(
                f"8 adapters of width {width} to rank {RANK}",
                1 / seconds,
                "1/s",
                "PEFT svd" if width == 2048 or full else "PEFT svd (run with --full)",
                None if peft is None else 1 / peft[0],
                500,
            )
        )
        if peft is not None:
            ours = recompress(stacked_b, stacked_a, RANK)
            rows.append(
                below(
                    f"   relative error beyond PEFT's, width {width}",
                    abs(ours.relative_error - peft[1] / ours.norm),
                    "",
                    1e-5,
                )
            )
    lora_b, lora_a = factors(4096, 32)
    stacked_b, stacked_a = np.concatenate(lora_b, axis=1) / 32, np.concatenate(lora_a)
    seconds = best_seconds(lambda: recompress(stacked_b, stacked_a, RANK), repeats=5)
    rows.append(below("32 adapters of width 4096 to rank 16", 1000 * seconds, "ms", 200))
    fast, exact = recompress(stacked_b, stacked_a, RANK), recompress(stacked_b, stacked_a, RANK, "gram")
    beyond = abs(fast.relative_error - exact.relative_error)
    rows.append(below("   its relative error beyond the exact one", beyond, "", 1e-5))
    return rows


def _peft_svd(lora_b: list[np.ndarray], lora_a: list[np.ndarray]) -> tuple[float, float] | None:
    """Seconds, and the Frobenius norm of what PEFT's result lacks."""
    try:
        import peft
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    width, count = lora_b[0].shape[0], len(lora_b)
    base = torch.nn.Sequential()
    base.add_module("q", torch.nn.Linear(width, width, bias=False))
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q"])
    names = [f"a{i}" for i in range(count)]
    model = peft.get_peft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model.q
    for name, b, a in zip(names, lora_b, lora_a, strict=True):
        layer.lora_B[name].weight.data = torch.from_numpy(b)
        layer.lora_A[name].weight.data = torch.from_numpy(a)
    runs = iter(range(100))

    def run() -> None:
        model.add_weighted_adapter(
            names, [1 / count] * count, f"sum{next(runs)}", combination_type="svd", svd_rank=RANK
        )

    seconds = best_seconds(run, repeats=1, seconds_min=0)
    found = layer.get_delta_weight("sum0").detach().double().numpy()
    exact = sum(b.astype(float) @ a.astype(float) for b, a in zip(lora_b, lora_a, strict=True)) / count
    return seconds, float(np.linalg.norm(exact - found))


if __name__ == "__main__":
    print(table(measure(full="--full" in sys.argv)))
