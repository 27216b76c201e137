"""Runs the questions of simulations/findings/ over many seeds, and makes their tables and plots.

    python benchmarks/findings.py run [--only NAME,…] [--seeds 1..10] [--variant TEXT]
    python benchmarks/findings.py tables          # docs/findings/*.svg, and tables on stdout

Each finished run is one line of benchmarks/results/findings/NAME.jsonl, and is not computed again: stopped,
it goes on where it was. docs/findings.md says what the tables mean. Real training: hours on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

SCENARIOS = ROOT / "simulations" / "findings"
RESULTS = ROOT / "benchmarks" / "results" / "findings"
IN_TIME = ("virtual_ms", "signals", "promoted")
OF_RUN = {
    "start": "start",
    "history_hash": "history_hash",
    "gini_ppm": "gini_ppm",
    "weight_of_dishonest_ppm": "dishonest_weight_ppm",
    "dishonest_weight_ppm": "dishonest_weight_mean_ppm",
    "honest_excluded_ppm": "honest_excluded_mean_ppm",
    "auc_ppm_of_reputation": "auc_ppm_of_reputation",
    "auc_ppm_of_mean_score": "auc_ppm_of_mean_score",
    "least_honest_reputation_ppm": "least_honest_reputation_ppm",
}
"""Name in a line to name in a run's result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--only", default="", help="names of scenarios, separated by commas; all otherwise")
    parser.add_argument("--seeds", default="1..10", help="FIRST..LAST")
    parser.add_argument("--variant", default="", help="only variants whose name has this in it")
    arguments = parser.parse_args()
    if arguments.what == "tables":
        from findings_tables import show_all

        show_all(RESULTS, ROOT / "docs" / "findings")
        return
    first, last = (int(part) for part in arguments.seeds.split(".."))
    wanted = [name for name in arguments.only.split(",") if name]
    paths = [SCENARIOS / f"{name}.toml" for name in wanted] or sorted(SCENARIOS.glob("*.toml"))
    for seed in range(first, last + 1):  # seeds outermost: what is stopped early has all variants
        for path in paths:
            run_all(path, seed, arguments.variant)


def run_all(path: Path, seed: int, only: str) -> None:
    """Every variant of a scenario with one seed that has no line yet."""
    from citrate_node.simulation.batch import plan

    RESULTS.mkdir(parents=True, exist_ok=True)
    book = RESULTS / f"{path.stem}.jsonl"
    done = {(row["variant"], row["seed"]) for row in rows_of(book)}
    for job in plan([path], [seed], None):
        if (job.variant, seed) in done or only not in job.variant:
            continue
        history: list[dict[str, Any]] = []
        began = time.process_time()
        result = job.run(history.append)
        figures = [each.get("figures", {}) for each in history]
        row = {
            "variant": job.variant,
            "seed": seed,
            "loss": [round(each["loss"], 6) for each in history],
            "bytes": [each["bytes_sent"] for each in history],
            "figures": figures[-1],
            "product_error": [round(f["product_error"], 6) for f in figures if "product_error" in f],
            **{name: [each[name] for each in history] for name in IN_TIME if name in history[0]},
            **{name: result[key] for name, key in OF_RUN.items() if key in result},
            "cpu_s": round(time.process_time() - began, 1),
        }
        with book.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(path.stem, job.variant, seed, f"{result['loss']:.4f}", row["cpu_s"], flush=True)


def rows_of(book: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []


if __name__ == "__main__":
    main()
