"""Scenarios of the message engine as TOML files: a question, a world, what a pass is, and variants of these.

Every key is in _KEYS with its default; what it does stands at ClusterOptions, at Scenario, or in
simulations/README.md. Called by scenario.py, batch.py and tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import load_preset, read_toml
from ..errors import ConfigError
from ..protocol.preset import ONE_PPM, preset_from
from .adversaries import MESSAGE_ATTACKS
from .attacks import ATTACKS, kinds_of
from .cluster import ClusterOptions
from .expectations import Expectations, expectations
from .training_workload import TrainingOptions, training_options
from .variants import expanded, typed

_KEYS: dict[str, Any] = {
    "question": "",
    "preset": "minimal",
    "set": {},
    "nodes": 4,
    "checkpoints": 5,
    "within_ms": 600_000,
    "latency_ms": [5, 120],
    "loss_ppm": 0,
    "duplicate_ppm": 0,
    "faults_end_ms": -1,
    "spread": 0.5,
    "workload": "synthetic",
    "training": {},
    "training_ms": [200, 1500],
    "slow_nodes": [],
    "slow_training_ms": [20_000, 40_000],
    "late_nodes": [],
    "late_ms": 0,
    "churn_share_ppm": 0,
    "churn_period_ms": 10_000,
    "churn_down_ms": 5_000,
    "attack": "",
    "attack_share_ppm": 0,
    "sign_flippers": [],
    "withholders": [],
    "equivocators": [],
    "liars": [],
    "copiers": [],
    "forkers": [],
    "forgers": [],
    "two_faced": [],
    "boasters": [],
    "crashes": [],
    "partitions": [],
    "pass": {},
}
"""Key to default (training: see TrainingOptions); the type of the default is the type that is asked for."""
WORKLOADS = ("synthetic", "training")
_DISHONEST = (
    *("sign_flippers", "withholders", "equivocators", "liars", "copiers", "forkers"),
    *("forgers", "two_faced", "boasters"),
)
"""Keys that list node numbers; each is explained at ClusterOptions."""
_RANGES = ("latency_ms", "training_ms", "slow_training_ms")


@dataclass(frozen=True)
class Churn:
    """Again and again a part of the nodes, drawn anew, goes away for a while."""

    share_ppm: int
    period_ms: int
    down_ms: int


@dataclass(frozen=True)
class Scenario:
    """One question and the world in which it is asked."""

    name: str
    question: str
    checkpoints: int
    within_ms: int
    options: ClusterOptions
    crashes: tuple[tuple[int, int, int], ...]
    """(node, crash at ms, restart at ms); a node that comes late is crashed from the beginning."""
    partitions: tuple[tuple[int, int, frozenset[int]], ...]
    """(from ms, until ms, nodes on the one side)."""
    training: TrainingOptions | None = None
    """How nodes train real adapters; None where the task is the synthetic one."""
    source: str = ""
    """The file that it was read from, as it was given: for the command that repeats a run."""
    variant: str = ""
    """Empty where the file has none."""
    churn: Churn | None = None
    expectations: Expectations = field(default_factory=Expectations)


def load_scenarios(path: Path, seed: int) -> list[Scenario]:
    """Every variant of a file, in its order.

    Raises ConfigError naming the key that is unknown, of another type or out of range.
    """
    runs = expanded(path, read_toml(path))
    return [
        _scenario(path, f"{path}: {name}" if name else str(path), name, table, seed) for name, table in runs
    ]


def load_scenario(path: Path, seed: int, variant: str = "") -> Scenario:
    """The one scenario of a file, or one of its variants. Raises ConfigError as `load_scenarios` does."""
    found = load_scenarios(path, seed)
    if not variant and len(found) > 1:
        raise ConfigError(f"{path} has {len(found)} variants\n  name one of them")
    for scenario in found:
        if variant in ("", scenario.variant):
            return scenario
    known = ", ".join(scenario.variant for scenario in found if scenario.variant) or "none"
    raise ConfigError(f"{path} has no variant {variant!r}\n  there are: {known}")


def _scenario(path: Path, where: str, variant: str, table: Mapping[str, Any], seed: int) -> Scenario:
    values = typed(where, table, _KEYS)
    nodes = values["nodes"]
    _check_ranges(where, values)
    for key in (*_DISHONEST, "slow_nodes", "late_nodes"):
        _check_nodes(where, key, values[key], nodes)
    for crash in _tables(where, "crashes", values["crashes"], ("node", "at_ms", "until_ms")):
        _check_nodes(where, "crashes", [crash["node"]], nodes)
    for cut in _tables(where, "partitions", values["partitions"], ("nodes", "at_ms", "until_ms")):
        _check_nodes(where, "partitions", cut["nodes"], nodes)
    crashes = [(c["node"], c["at_ms"], c["until_ms"]) for c in values["crashes"]]
    crashes += [(node, 0, values["late_ms"]) for node in values["late_nodes"]]
    churn = Churn(values["churn_share_ppm"], values["churn_period_ms"], values["churn_down_ms"])
    return Scenario(
        path.stem,
        values["question"],
        values["checkpoints"],
        values["within_ms"],
        _options(where, values, seed),
        tuple(crashes),
        tuple((p["at_ms"], p["until_ms"], frozenset(p["nodes"])) for p in values["partitions"]),
        _training(where, values["workload"], values["training"]),
        str(path),
        variant,
        churn if churn.share_ppm else None,
        expectations(where, values["pass"]),
    )


def _options(where: str, values: Mapping[str, Any], seed: int) -> ClusterOptions:
    groups: dict[str, frozenset[int]] = {key: frozenset(values[key]) for key in _DISHONEST}
    delta_attackers: list[tuple[int, str]] = []
    for name in filter(None, values["attack"].split("+")):
        kinds = kinds_of(values["nodes"], name, values["attack_share_ppm"])
        attackers = [node for node, kind in enumerate(kinds) if kind == name]
        if name in ATTACKS:
            if delta_attackers:
                raise ConfigError(f"{where}: a mentor sends one delta, so only one of {', '.join(ATTACKS)}")
            delta_attackers = [(node, name) for node in attackers]
        elif name in MESSAGE_ATTACKS:
            group = MESSAGE_ATTACKS[name][0]
            groups[group] = groups.get(group, frozenset()).union(attackers)
        else:
            raise ConfigError(
                f"{where}: there is no attack {name!r}\n"
                f"  choose of {', '.join((*MESSAGE_ATTACKS, *ATTACKS))}; several joined by +"
            )
    preset = load_preset(values["preset"])
    if values["set"]:
        preset = preset_from({**asdict(preset), **values["set"]})
    return ClusterOptions(
        preset=preset,
        nodes=values["nodes"],
        seed=seed,
        latency_ms=tuple(values["latency_ms"]),
        loss_ppm=values["loss_ppm"],
        duplicate_ppm=values["duplicate_ppm"],
        faults_end_ms=None if values["faults_end_ms"] < 0 else values["faults_end_ms"],
        spread=values["spread"],
        training_ms=tuple(values["training_ms"]),
        slow_nodes=frozenset(values["slow_nodes"]),
        slow_training_ms=tuple(values["slow_training_ms"]),
        delta_attackers=tuple(delta_attackers),
        **groups,  # type: ignore[arg-type]  # names of groups and node numbers, nothing else
    )


def _training(where: str, workload: str, table: dict[str, Any]) -> TrainingOptions | None:
    """The table [training] where the workload is "training"; ConfigError where it stands without it."""
    if workload not in WORKLOADS:
        raise ConfigError(f"{where}: workload is {workload!r}, must be one of {', '.join(WORKLOADS)}")
    if workload == "training":
        return training_options(table, f"{where}: training")
    if table:
        raise ConfigError(f'{where}: a table [training] needs workload = "training"')
    return None


def _check_ranges(where: str, values: Mapping[str, Any]) -> None:
    nodes, period = values["nodes"], values["churn_period_ms"]
    if not 2 <= nodes <= 10_000:
        raise ConfigError(f"{where}: nodes is {nodes}, must lie between 2 and 10,000")
    rules = [
        ("checkpoints", 1 <= values["checkpoints"] <= 100_000, "must lie between 1 and 100,000"),
        ("within_ms", values["within_ms"] >= 1, "must be at least 1"),
        ("loss_ppm", 0 <= values["loss_ppm"] < ONE_PPM, "must lie between 0 and 999,999"),
        ("duplicate_ppm", 0 <= values["duplicate_ppm"] <= ONE_PPM, "must lie between 0 and 1,000,000"),
        ("spread", 0.0 <= values["spread"] <= 100.0, "must lie between 0 and 100"),
        ("attack_share_ppm", 0 <= values["attack_share_ppm"] < ONE_PPM, "must lie between 0 and 999,999"),
        ("late_ms", values["late_ms"] > 0 or not values["late_nodes"], "must be above 0: when they come"),
        ("churn_share_ppm", 0 <= values["churn_share_ppm"] < ONE_PPM, "must lie between 0 and 999,999"),
        ("churn_period_ms", period >= 1, "must be at least 1"),
        ("churn_down_ms", 1 <= values["churn_down_ms"] <= period, "must lie between 1 and churn_period_ms"),
    ]
    for name in _RANGES:
        pair = values[name]
        holds = len(pair) == 2 and all(type(ms) is int for ms in pair) and 0 <= pair[0] <= pair[1]
        rules.append((name, holds, "must be two whole numbers, the least and the most"))
    for name, holds, text in rules:
        if not holds:
            raise ConfigError(f"{where}: {name} {text}")


def _check_nodes(where: str, key: str, numbers: Any, nodes: int) -> None:
    if not isinstance(numbers, list) or not all(type(i) is int and 0 <= i < nodes for i in numbers):
        raise ConfigError(f"{where}: {key} must be node numbers from 0 to {nodes - 1}")


def _tables(where: str, key: str, rows: list[Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of `crashes` or `partitions`, each with exactly these keys and a time that runs forwards."""
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(names):
            raise ConfigError(f"{where}: each of {key} must have {', '.join(names)}")
        at_ms, until_ms = row["at_ms"], row["until_ms"]
        if type(at_ms) is not int or type(until_ms) is not int or not 0 <= at_ms < until_ms:
            raise ConfigError(f"{where}: {key}: at_ms must lie before until_ms")
    return rows
