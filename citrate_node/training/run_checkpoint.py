"""The state of an unfinished training in one safetensors file, there whole or not at all.

After kill -9 the run goes on from the last one and ends with the very bytes of a run that was never stopped:
everything that decides a later step is in here (weights, the optimizer's state, the best weights so far, the
counters), and nothing else decides one, because data order, dropout and masks follow from seed and step.
Never pickle. Called by training_run.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from citrate_node.errors import ConfigError
from citrate_node.training.provenance import write_whole

CHECKPOINT_FILE = "unfinished.safetensors"
_SCHEMA = "citrate-training-v1"


@dataclass(slots=True)
class Progress:
    """Where a run is."""

    run: str
    """Hex digest of settings, base, data and start: a checkpoint of another run is not gone on from."""

    step: int = 0
    best_step: int = 0
    """Step whose weights are kept; 0: none was validated."""
    best_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    """Training loss of every step."""
    validations: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss)."""
    stopped_early: bool = False


def save_checkpoint(
    folder: Path, progress: Progress, parameters: dict[str, Any], optimizer: Any, best: Any
) -> None:
    """Replace the folder's checkpoint.

    parameters: torch parameters by name. best: torch tensors by name, those of `best_step`, or None.
    """
    from safetensors.torch import save

    tensors = {f"weights:{name}": p.detach().cpu().contiguous().clone() for name, p in parameters.items()}
    tensors |= {f"best:{name}": t.cpu().contiguous() for name, t in (best or {}).items()}
    numbers: dict[str, Any] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if hasattr(value, "detach"):
                tensors[f"optimizer:{name}:{key}"] = value.detach().cpu().contiguous().clone()
            else:
                numbers[f"{name}:{key}"] = value
    facts = {"schema": _SCHEMA, "progress": json.dumps(asdict(progress)), "numbers": json.dumps(numbers)}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CHECKPOINT_FILE, save(tensors, metadata=facts))


def load_progress(folder: Path) -> Progress | None:
    """How far an unfinished run is, or None. Raises ConfigError for a file that is none of ours."""
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
        if facts.get("schema") != _SCHEMA:
            raise ValueError("it is not of this version")
        found = Progress(**json.loads(facts["progress"]))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be gone on from: {error}\n  begin again with --fresh") from None
    found.validations = [(int(step), float(loss)) for step, loss in found.validations]
    return found


def load_tensors(folder: Path, parameters: dict[str, Any], optimizer: Any) -> dict[str, Any] | None:
    """Put weights and the optimizer's state back; returns the best weights so far, or None."""
    import torch
    from safetensors import safe_open

    best: dict[str, Any] = {}
    with safe_open(folder / CHECKPOINT_FILE, framework="pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
        with torch.no_grad():
            for full in file.keys():  # noqa: SIM118 - safe_open's handle is no dictionary
                kind, name, *key = full.split(":")
                tensor = file.get_tensor(full)
                if kind == "weights":
                    parameters[name].copy_(tensor)
                elif kind == "best":
                    best[name] = tensor
                else:
                    place = optimizer.state[parameters[name]]
                    # AdamW counts its steps in a tensor that stays on the CPU
                    place[key[0]] = tensor if key[0] == "step" else tensor.to(parameters[name].device)
    for full, value in numbers.items():
        name, key = full.rsplit(":", 1)
        optimizer.state[parameters[name]][key] = value
    return best or None


def drop_checkpoint(folder: Path) -> None:
    """Once the adapter is written whole."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
