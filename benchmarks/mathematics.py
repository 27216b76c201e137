"""Every ratio of the exact mathematics in one run: codecs, aggregation, recompression.

    python benchmarks/mathematics.py [--full] [--json FILE]

Ours, the peer and the limit are measured in the same run, on one thread. Peers that are not installed are
named as such. Takes about a minute, with --full a few.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

# Read when numpy is loaded: one thread, and the kernels of this very processor.
os.environ.update(OPENBLAS_NUM_THREADS="1")
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import aggregation_speed  # noqa: E402
import codecs_speed  # noqa: E402
import stack_recompression  # noqa: E402
from mathematics_timing import as_json, table  # noqa: E402


def main(arguments: list[str]) -> int:
    load_before = os.getloadavg()[0]  # figures taken on a busy machine say so
    rows = [
        *codecs_speed.measure(),
        *aggregation_speed.measure(),
        *stack_recompression.measure(full="--full" in arguments),
    ]
    print(table(rows))
    if "--json" in arguments:
        target = Path(arguments[arguments.index("--json") + 1])
        machine = platform.processor() or platform.machine()
        result = {"machine": machine, "load_before": load_before, "rows": as_json(rows)}
        target.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
