"""How commands speak: one JSON object per line for scripts, short lines for people. Called by cli/ alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]


def print_json(facts: dict[str, Any]) -> None:
    """One object, one line, at once: a reader on a pipe must not wait for a buffer to fill."""
    sys.stdout.write(json.dumps(facts, separators=(", ", ": ")) + "\n")
    sys.stdout.flush()


def reporter(json_lines: bool, name: str) -> Report:
    """A function that shows one fact: JSON with the node's name, or `name  what  fact value ...`."""
    if json_lines:
        return lambda facts: print_json({**facts, "node": name, "time": round(time.time(), 3)})

    def show(facts: dict[str, Any]) -> None:
        rest = "  ".join(f"{key} {_short(value)}" for key, value in facts.items() if key != "type")
        print(f"{name}  {facts['type']:<10} {rest}", flush=True)

    return show


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
