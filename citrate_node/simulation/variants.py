"""One scenario file, many runs: its variants, and every combination of its grid.

    [[variants]]          # each is the file with these keys changed; all get the same seeds
    name = "slow"
    latency_ms = [200, 900]
    [grid]                # every combination, with every variant; a dot leads into a table
    attack = ["noise", "ipm"]
    "set.aggregation_rule" = ["mean", "trimmed_mean"]

Called by the readers of both engines' scenarios (scenario_file.py, rounds_scenario.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def expanded(path: Path, raw: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, table) of every run that a file asks for, in its order; one with an empty name without variants.

    Raises ConfigError where variants or grid are not of their form, or two runs have one name.
    """
    plain = {key: value for key, value in raw.items() if key not in ("variants", "grid")}
    variants, grid = raw.get("variants", []), raw.get("grid", {})
    if not isinstance(variants, list) or not all(isinstance(each, dict) for each in variants):
        raise ConfigError(f"{path}: variants must be tables: [[variants]]")
    names = [each.get("name") for each in variants]
    if len(set(names)) != len(names) or not all(type(name) is str and name for name in names):
        raise ConfigError(f"{path}: every variant needs a name of its own")
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise ConfigError(f"{path}: each key of grid must be a list of values")
    cells = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    runs = []
    for variant in variants or [{"name": ""}]:
        for cell in cells:
            name = "/".join([variant["name"]] * bool(variant["name"]) + [str(v) for v in cell.values()])
            changes = {key: value for key, value in variant.items() if key != "name"} | cell
            runs.append((name, _changed(plain, changes)))
    return runs


def typed(where: str, table: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The table's values, and defaults where it has none. keys: key to default, whose type is asked for.

    Raises ConfigError naming the key that is unknown or of another type.
    """
    for key in table:
        if key not in keys:
            raise ConfigError(f"{where}: unknown key {key!r}\n  known are {', '.join(keys)}, variants, grid")
    values = {}
    for key, default in keys.items():
        value = table.get(key, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise ConfigError(f"{where}: {key} must be a {type(default).__name__}, is {value!r}")
        values[key] = value
    return values


def _changed(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with these keys changed; tables are changed key by key, and "set.codec" is one of set's."""
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for key, value in changes.items():
        table, _, inner = key.partition(".")
        if inner:
            value = {inner: value}
        if isinstance(value, dict):
            out[table] = {**out.get(table, {}), **value}
        else:
            out[key] = value
    return out
