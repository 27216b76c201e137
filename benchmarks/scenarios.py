"""Runs every scenario of the message engine in simulations/ with one seed, and prints what passed as tables.

    python benchmarks/scenarios.py --json benchmarks/results/scenarios.json [--seed 1]
    python benchmarks/scenarios.py --table benchmarks/results/scenarios.json

benchmarks/results/scenarios.md has the tables, and what to make of them. About ten minutes; scenarios with
real training are left out (tests/simulation/test_scenarios.py has them).
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from training_scene import Book, markdown  # noqa: E402

from citrate_node.simulation.scenario import run_scenario  # noqa: E402
from citrate_node.simulation.scenario_file import Scenario, load_scenarios  # noqa: E402

ATTACKS = "attacks"
"""The scenario with a grid of shares, which has a table of its own."""


def run(scenario: Scenario, seed: int) -> dict[str, Any]:
    history: list[dict[str, Any]] = []
    result = run_scenario(scenario, None, history.append)
    figures = result["figures"]
    times = [0, *(each["virtual_ms"] for each in history)]
    return {
        "name": f"{scenario.name}:{scenario.variant}".rstrip(":"),
        "seed": seed,
        "loss_ratio": result["loss"] / result["loss_before"],
        "longest_ms": max(after - before for before, after in pairwise(times)),
        "withheld": sum(each.get("withheld", 0) for each in history),
        "equivocations": sum(each.get("equivocations", 0) for each in history),
        "weight_to_share": figures.get("dishonest_weight_to_share"),
        "honest_reputation_ppm": figures.get("honest_reputation_ppm"),
        "dishonest_reputation_ppm": figures.get("dishonest_reputation_ppm"),
        "failures": result["failures"],
    }


def millionths(row: dict[str, Any]) -> str:
    """Median reputation of the honest / of the dishonest, in parts of one."""
    both = (row["honest_reputation_ppm"], row["dishonest_reputation_ppm"])
    return " / ".join(f"{value / 1e6:.2f}" for value in both if value is not None)


def tables(book: Book) -> str:
    plain = [row for row in book.rows if not row["name"].startswith(f"{ATTACKS}:")]
    attacks = [row for row in book.rows if row["name"].startswith(f"{ATTACKS}:")]
    lines = []
    for row in plain:
        weight = row["weight_to_share"]
        lines.append(
            [
                row["name"],
                f"{row['loss_ratio']:.2f}",
                f"{row['longest_ms'] / 1000:.0f}",
                str(row["withheld"]),
                str(row["equivocations"]),
                "" if weight is None else f"{weight:.2f}",
                millionths(row),
                "**no**" if row["failures"] else "yes",
            ]
        )
    cells: dict[str, dict[int, str]] = {}
    for row in attacks:
        name, _, share = row["name"].removeprefix(f"{ATTACKS}:").partition("/")
        cell = f"{row['loss_ratio']:.2f}; {row['weight_to_share']:.2f}; {millionths(row)}"
        cells.setdefault(name, {})[int(share)] = cell + (" **no**" if row["failures"] else "")
    shares = sorted({share for each in cells.values() for share in each})
    header = ["scenario", "part of the first loss", "longest checkpoint, s", "withheld", "equivocations"]
    header += ["weight / share", "reputation honest / dishonest (median)", "pass"]
    failed = [f"- `{row['name']}`: {'; '.join(row['failures'])}" for row in book.rows if row["failures"]]
    return "\n\n".join(
        [
            markdown(header, lines),
            markdown(
                ["attack", *(f"{share // 10_000} %" for share in shares)],
                [[name, *(each.get(share, "") for share in shares)] for name, each in cells.items()],
            ),
            "\n".join(failed),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="add rows to this file; those it has are not run again")
    parser.add_argument("--table", type=Path, help="print such a file as tables")
    parser.add_argument("--seed", type=int, default=1)
    choices = parser.parse_args()
    if choices.table is None:
        book = Book(choices.json)
        for path in sorted((ROOT / "simulations").glob("*.toml")):
            for scenario in load_scenarios(path, choices.seed):
                name = f"{scenario.name}:{scenario.variant}".rstrip(":")
                if scenario.training is None and not book.has(name=name, seed=choices.seed):
                    book.add(run(scenario, choices.seed))
    else:
        book = Book(choices.table)
    print(tables(book))


if __name__ == "__main__":
    main()
