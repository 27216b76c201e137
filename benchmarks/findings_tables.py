"""Tables and plots of what findings.py has computed. Called by it.

Intervals are 95 % of the mean over seeds by Student's t; differences are paired by seed, since seeds differ
among themselves by far more than variants do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from findings import rows_of
from training_scene import cell, interval, markdown

Row = Mapping[str, Any]
FIGURES = ("all", "worst", "general")


def show_all(results: Path, plots: Path) -> None:
    """Every scenario that has results: its tables to stdout, its plots to `plots`."""
    plots.mkdir(parents=True, exist_ok=True)
    for book in sorted(results.glob("*.jsonl")):
        rows = rows_of(book)
        if not rows:
            continue
        seeds = [len(of(rows, variant)) for variant in variants(rows)]
        print(f"\n## {book.stem}: {min(seeds)} to {max(seeds)} seeds\n")
        if book.stem.startswith("attacks"):
            print(attack_tables(rows))
            continue
        print({"cadence": cadence_table, "trust": trust_table}.get(book.stem, learning_tables)(rows))
        plot_learning(rows, plots / f"{book.stem}.svg")


def cadence_table(rows: Sequence[Row]) -> str:
    """The same training in the same time, averaged more or less often."""
    header = ["variant", "checkpoints", "seconds each", "minutes", "loss at the end", "least loss"]
    header += ["checkpoints without a new version", "MB on all links"]
    return markdown(
        header,
        [
            [
                name,
                str(len(its[0]["loss"])),
                f"{np.mean([row['virtual_ms'][-1] / len(row['loss']) for row in its]) / 1e3:.1f}",
                f"{np.mean([row['virtual_ms'][-1] for row in its]) / 6e4:.1f}",
                cell(row["loss"][-1] for row in its),
                cell(min(row["loss"]) for row in its),
                f"{np.mean([sum(not each for each in row['promoted']) for row in its]):.1f}",
                f"{np.mean([row['bytes'][-1] for row in its]) / 1e6:.0f}",
            ]
            for name, its in ((name, of(rows, name)) for name in variants(rows))
        ],
    )


def trust_table(rows: Sequence[Row]) -> str:
    """Concentration, the coalition's weight, and what its drift costs the honest, paired by seed."""
    header = [
        "variant",
        "Gini of the weights, last 10",
        "coalition's weight, first 5 and last 10 checkpoints",
    ]
    header += [f"loss above the honest network's after {at}" for at in (10, 30, 60)]
    table = []
    for name in variants(rows):
        its = of(rows, name)
        ginis = cell((np.mean(row["gini_ppm"][-10:]) / 1e6 for row in its), 2)
        theirs = [np.array(row["weight_of_dishonest_ppm"]) / 1e4 for row in its]
        early, late = (
            float(np.mean([each[part] for each in theirs])) for part in (slice(5), slice(-10, None))
        )
        weight = f"{early:.0f} %, {late:.0f} %"
        harm = [paired(rows, "honest", name, lambda row, at=at: row["loss"][at - 1]) for at in (10, 30, 60)]
        table.append([name, ginis, weight, *harm])
    return markdown(header, table)


def variants(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def of(rows: Sequence[Row], variant: str) -> list[Row]:
    return sorted((row for row in rows if row["variant"] == variant), key=lambda row: row["seed"])


def learning_tables(rows: Sequence[Row]) -> str:
    """Final losses, what they cost, and differences to the first variant."""
    names = variants(rows)
    first = of(rows, names[0])
    shared = [name for name in names if name != "alone"]
    goal = max(float(np.mean([row["loss"][-1] for row in of(rows, name)])) for name in shared)
    header = ["variant", "own", "worst node", *FIGURES, "MB sent", "product error, first and last"]
    header.append(f"checkpoints, MB to a loss of {goal:.3f}")
    start = [row["start"] for row in first]
    base = [cell(each["loss"] for each in start), cell(each["worst_node"] for each in start)]
    base += [cell(each[name] for each in start) if name in start[0] else "" for name in FIGURES]
    table = [["base model", *base, "0", "", ""]]
    for name in names:
        its = of(rows, name)
        line = [name, cell(row["loss"][-1] for row in its), cell(worst_nodes(its))]
        line += [cell(row["figures"][f] for row in its) if f in its[0]["figures"] else "" for f in FIGURES]
        line.append(cell((row["bytes"][-1] / 1e6 for row in its), 2))
        errors = [row["product_error"] for row in its if row["product_error"]]
        line.append(
            f"{np.mean([e[0] for e in errors]):.3f}, {np.mean([e[-1] for e in errors]):.3f}" if errors else ""
        )
        line.append(reached(its, goal))
        table.append(line)
    text = (
        markdown(header, table) + f"\n\nDifference to `{names[0]}`, paired by seed (below zero is better)\n\n"
    )
    rest = [
        [
            name,
            paired(rows, names[0], name, lambda row: row["loss"][-1]),
            *(paired(rows, names[0], name, lambda row, f=f: row["figures"].get(f, np.nan)) for f in FIGURES),
        ]
        for name in names[1:]
    ]
    return text + markdown(["variant", "own", *FIGURES], rest)


def worst_nodes(its: Iterable[Row]) -> list[float]:
    return [row["figures"]["worst_node"] for row in its]


def paired(rows: Sequence[Row], one: str, other: str, figure: Callable[[Row], float]) -> str:
    """Mean and interval of other minus one over the seeds that both have."""
    a, b = ({row["seed"]: figure(row) for row in of(rows, name)} for name in (one, other))
    return cell((b[seed] - a[seed] for seed in sorted(set(a) & set(b))), 4)


def reached(its: Sequence[Row], goal: float) -> str:
    """Checkpoints and megabytes until the mean loss is at the goal; straight lines between checkpoints."""
    losses = np.mean([row["loss"] for row in its], axis=0)
    sent = np.mean([row["bytes"] for row in its], axis=0) / 1e6
    curve = np.concatenate([[np.mean([row["start"]["loss"] for row in its])], losses])
    below = np.flatnonzero(curve <= goal)
    if below.size == 0:
        return "not reached"
    at = int(below[0])
    if at == 0:
        return "0, 0"
    part = (curve[at - 1] - goal) / (curve[at - 1] - curve[at])
    spent = np.concatenate([[0.0], sent])
    return f"{at - 1 + part:.1f}, {spent[at - 1] + part * (spent[at] - spent[at - 1]):.1f}"


def attack_tables(rows: Sequence[Row]) -> str:
    """One table per share of dishonest nodes: loss (weight they got, honest signals left out)."""
    table: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for row in rows:
        how, _, rest = row["variant"].partition("/")
        defence, attack, share = f"{how}/{rest.split('/')[0]}", *rest.split("/")[1:]
        table.setdefault(share, {}).setdefault(attack, {}).setdefault(defence, []).append(row)
    start = np.mean([row["start"]["loss"] for row in rows])
    parts = [f"Base model {start:.3f}; loss (weight to the dishonest, honest signals left out)"]
    for share in sorted(table, key=int):
        defences = list(dict.fromkeys(d for each in table[share].values() for d in each))
        lines = [
            [attack, *(attack_cell(each.get(defence, [])) for defence in defences)]
            for attack, each in table[share].items()
        ]
        parts.append(f"{int(share) // 10_000} % dishonest\n\n" + markdown(["attack", *defences], lines))
    return "\n\n".join(parts)


def attack_cell(its: Sequence[Row]) -> str:
    if not its:
        return ""
    weight = np.mean([row["dishonest_weight_ppm"] for row in its]) / 1e4
    left_out = np.mean([row["honest_excluded_ppm"] for row in its]) / 1e4
    return f"{cell(row['loss'][-1] for row in its)} ({weight:.0f} %, {left_out:.0f} %)"


def plot_learning(rows: Sequence[Row], path: Path) -> None:
    """Loss over checkpoints and over megabytes, mean and 95 % band over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # or every run would write other ids
    from matplotlib import pyplot

    figure, (over_time, over_bytes) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name in variants(rows):
        its = of(rows, name)
        begins = "start" in its[0]
        curve = np.array([[row["start"]["loss"], *row["loss"]] if begins else row["loss"] for row in its])
        sent = np.mean([[0] * begins + row["bytes"] for row in its], axis=0) / 1e6
        stats = [interval(column) for column in curve.T]
        mean, half = np.array([s[0] for s in stats]), np.nan_to_num([s[1] for s in stats])
        steps = np.arange(len(mean)) + 1 - begins
        over_time.plot(steps, mean, marker="o", markersize=3, label=name)
        over_time.fill_between(steps, mean - half, mean + half, alpha=0.15)
        if sent[-1] > 0:
            over_bytes.plot(sent, mean, marker="o", markersize=3, label=name)
    over_time.set(xlabel="checkpoint", ylabel="loss on nodes' own held-out text (nats per byte)")
    over_bytes.set(xlabel="delta files sent (MB)")
    over_time.legend(fontsize=8)
    for axes in (over_time, over_bytes):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
