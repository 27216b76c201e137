"""Codecs against memcpy, bitsandbytes and torch, in gigabytes of float32 per second, one thread.

    python benchmarks/codecs_speed.py

bitsandbytes is measured where it is installed (it is no dependency: pip install --no-deps bitsandbytes).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

# Read when numpy is loaded: one thread, and the kernels of this very processor.
os.environ.update(OPENBLAS_NUM_THREADS="1")
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from mathematics_timing import ROTATION, VALUES, Row, best_seconds, compared, table  # noqa: E402

from citrate_node.protocol.codecs import Codec, codec  # noqa: E402

BYTES = 4 * VALUES * ROTATION


def measure() -> list[Row]:
    random = np.random.default_rng(0)
    sources = [(random.standard_normal(VALUES) * 0.01).astype(np.float32) for _ in range(ROTATION)]
    targets = [np.empty_like(source) for source in sources]

    def rate(run: Callable[[], object]) -> float:
        return BYTES / best_seconds(run, repeats=5) / 1e9

    memcpy = rate(lambda: [np.copyto(t, s) for t, s in zip(targets, sources, strict=True)])
    rows = []
    accumulator = np.zeros(VALUES, dtype=np.int64)
    encode: dict[str, float] = {}
    for name in ("int8", "int4", "topk_1", "topk_8", "topk_48"):
        chosen = codec(name)
        payloads = [chosen.encode(source) for source in sources]
        encode[name] = rate(partial(_each, chosen.encode, sources))
        add = rate(partial(_each, partial(_accumulate, chosen, accumulator), payloads))
        if name == "int8":
            rows.append(compared("int8 encode", encode[name], "GB/s", "memcpy", memcpy, 0.4))
            rows.append(compared("int8 decode and add", add, "GB/s", "memcpy", memcpy, 0.5))
        elif name == "int4":
            rows.append(compared("int4 decode and add", add, "GB/s", "memcpy", memcpy, 0.0))
        else:
            rows.append(compared(f"{name} decode and add", add, "GB/s", "memcpy", memcpy, 0.0))
    nf4 = _nf4_rate(sources)
    rows.append(compared("int4 encode", encode["int4"], "GB/s", "bitsandbytes NF4, blocks of 64", nf4, 10))
    overall, blocks = _topk_rates(sources, VALUES // 100, 41)
    ours = encode["topk_1"]
    rows.append(compared("topk 1 % encode", ours, "GB/s", "torch.topk of the whole", overall, 5))
    rows.append(compared("topk 1 % encode", ours, "GB/s", "torch.topk of blocks of 4096", blocks, 0))
    for name, kept in (("topk_8", 320), ("topk_48", 1966)):
        overall, blocks = _topk_rates(sources, VALUES * kept // 4096, kept)
        rows.append(compared(f"{name} encode", encode[name], "GB/s", "torch.topk of the whole", overall, 1))
        rows.append(
            compared(f"{name} encode", encode[name], "GB/s", "torch.topk of blocks of 4096", blocks, 0)
        )
    return rows


def _each(call: Callable[[Any], object], items: Iterable[Any]) -> None:
    """One after the other, keeping no result: as a node does."""
    for item in items:
        call(item)


def _accumulate(chosen: Codec, accumulator: np.ndarray, payload: bytes) -> None:
    chosen.accumulate(payload, VALUES, 3, accumulator)


def _nf4_rate(sources: list[np.ndarray]) -> float | None:
    try:
        import torch
        from bitsandbytes.functional import quantize_4bit
    except ImportError:
        return None
    torch.set_num_threads(1)
    tensor = torch.from_numpy(sources[0])
    seconds = best_seconds(lambda: quantize_4bit(tensor, quant_type="nf4", blocksize=64), repeats=3)
    return 4 * VALUES / seconds / 1e9


def _topk_rates(sources: list[np.ndarray], whole: int, kept: int) -> tuple[float | None, float | None]:
    """Of the whole vector, and of blocks. Only the selection; ours also quantizes and packs."""
    try:
        import torch
    except ImportError:
        return None, None
    torch.set_num_threads(1)
    tensor = torch.from_numpy(sources[0])
    blocks = tensor.view(-1, 4096)
    at_once = best_seconds(lambda: tensor.abs().topk(whole), repeats=3)
    parts = best_seconds(lambda: blocks.abs().topk(kept, dim=1), repeats=3)
    return 4 * VALUES / at_once / 1e9, 4 * VALUES / parts / 1e9


if __name__ == "__main__":
    print(table(measure()))
