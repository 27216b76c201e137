"""The mean of deltas against memory bandwidth and Flower, its memory at 1,000 signals, and the rules' cost.

    python benchmarks/aggregation_speed.py [--json FILE]

Flower is measured where it is installed (it is no dependency). mathematics.py runs this among others.
"""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

# Read when numpy is loaded: one thread, and the kernels of this very processor.
os.environ.update(OPENBLAS_NUM_THREADS="1")
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from mathematics_timing import VALUES, Row, as_json, below, best_seconds, compared, table  # noqa: E402

from citrate_node.protocol.adapter import AdapterConfig, AdapterWeights, factor_names, from_tensors  # noqa: E402
from citrate_node.protocol.aggregation import BATCH_BYTES_MAX, integer_weights, weighted_mean  # noqa: E402
from citrate_node.protocol.codecs import codec, encode_delta  # noqa: E402
from citrate_node.protocol.rules import Deltas, rule  # noqa: E402

SIGNALS = 32
INT8 = codec("int8")


def large_adapter(width: int = 2048) -> AdapterWeights:
    """24 layers, query and value, rank 16; of width 2048 its B and A have VALUES values together, of width
    4096 its B alone."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(24):
        for name in ("q_proj", "v_proj"):
            name_a, name_b = factor_names(f"model.layers.{layer}.self_attn.{name}")
            tensors[name_a] = (random.standard_normal((16, width)) * 0.02).astype(np.float32)
            tensors[name_b] = (random.standard_normal((width, 16)) * 0.02).astype(np.float32)
    return from_tensors(AdapterConfig(bytes(32), 16, 32, ("q_proj", "v_proj")), tensors)


def measure() -> list[Row]:
    parent = large_adapter()
    random = np.random.default_rng(1)
    values = [(random.standard_normal(VALUES) * 0.01).astype(np.float32) for _ in range(SIGNALS)]
    files = [encode_delta(INT8, parent.manifest, each) for each in values]
    weights = integer_weights([1] * SIGNALS)
    entries = list(zip(weights, files, strict=True))
    seconds = best_seconds(lambda: weighted_mean(parent, parent.manifest, entries, INT8))
    ours = SIGNALS * VALUES / seconds / 1e9
    name, unit = "mean of 32 int8 deltas", "Gvalue/s"
    return [
        compared(name, ours, unit, "reading their codes once", _reading(), 0.25),
        compared(name, ours, unit, "Flower, float32, all records held", _flower(values), 10),
        _memory_row(parent, files[0]),
        *_rule_rows(large_adapter(4096)),
    ]


def _reading() -> float:
    """Values per second if the codes were only read: as many bytes in one pass of the fastest sum."""
    size = SIGNALS * VALUES
    try:
        import torch
    except ImportError:
        words = np.ones(size // 8, dtype=np.int64)
        return size / best_seconds(lambda: np.bitwise_or.reduce(words)) / 1e9
    torch.set_num_threads(1)
    floats = torch.ones(size // 4)
    return size / best_seconds(floats.sum) / 1e9


def _flower(values: list[np.ndarray]) -> float | None:
    try:
        from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
        from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    except ImportError:
        return None
    records = []
    for each in values:
        arrays = {str(i): Array(part) for i, part in enumerate(np.split(each, 96))}
        records.append(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"n": 1.0})}))
    seconds = best_seconds(lambda: aggregate_arrayrecords(records, "n"), repeats=3)
    return SIGNALS * VALUES / seconds / 1e9


def _memory_row(parent: AdapterWeights, data: bytes) -> Row:
    """What is allocated at the peak beyond the parent, for 1,000 files read one after the other."""
    weights = integer_weights([1] * 1000)

    def files() -> Iterator[tuple[int, bytes]]:
        for weight in weights:
            yield weight, bytes(bytearray(data))  # another copy, as if it came from disk

    tracemalloc.start()
    weighted_mean(parent, parent.manifest, files(), INT8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    decoded = 8 * VALUES
    constant = BATCH_BYTES_MAX + len(data) + (8 << 20)
    return below("peak memory of 1,000 signals", (peak - constant) / decoded, "decoded", 2.0)


def _rule_rows(parent: AdapterWeights) -> list[Row]:
    """32 deltas of one factor, VALUES values, against Flower's rules on as many of float32, in the same run.

    Krum works on updates, through the factor that stands still; Flower's works on the values themselves.
    """
    moving = parent.manifest.subset("lora_B")
    assert moving.count == VALUES
    random = np.random.default_rng(2)
    values = [(random.standard_normal(moving.count) * 0.01).astype(np.float32) for _ in range(SIGNALS)]
    deltas = tuple(encode_delta(INT8, moving, each) for each in values)
    rows = []
    for name, target in (("krum", 20), ("trimmed_mean", 1), ("median", 1)):

        def run(chosen: str = name) -> object:
            return rule(chosen)(Deltas(parent, moving, INT8, deltas, (1,) * SIGNALS, 8))

        ours = 1 / best_seconds(run, 2)
        what = f"{name} of 32 int8 deltas, {moving.count / 1e6:.2f} million values"
        rows.append(compared(what, ours, "1/s", "Flower, float32", _flower_rule(name, values), target))
    return rows


def _flower_rule(name: str, values: list[np.ndarray]) -> float | None:
    """How often a second; the same f of 8."""
    try:
        from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
    except ImportError:
        return None
    results = [([each], 1) for each in values]
    calls = {
        "krum": lambda: aggregate_krum(results, 8, 0),
        "trimmed_mean": lambda: aggregate_trimmed_avg(results, 8 / SIGNALS),
        "median": lambda: aggregate_median(results),
    }
    return 1 / best_seconds(calls[name], 2)


if __name__ == "__main__":
    load_before = os.getloadavg()[0]
    measured = measure()
    print(table(measured))
    if "--json" in sys.argv:
        result = {"load_before": load_before, "load_after": os.getloadavg()[0], "rows": as_json(measured)}
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(result, indent=1) + "\n")
