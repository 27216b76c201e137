"""Screening an adapter from a stranger: what is odd about it, before anything loads it.

Reads the raw safetensors header and the values with numpy: no torch, no pickle, nothing of the folder runs.
It finds what is broken, oversized or far from the adapters known for the base. It cannot find a small and
well-made adapter that does something bad. Called by cli/adapter_use.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CitrateError
from ..protocol.adapter import AdapterLimits, factor_names, module_path
from ..protocol.tensors import FormatError
from ..training.provenance import ProvenanceError, read_provenance
from .adapters_files import CONFIG_BYTES_MAX, CONFIG_FILE, WEIGHTS_FILE, read_adapter, tensor_array

RUNNABLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so", ".joblib", ".npy")
"""Files that run code when they are opened the usual way, or are code."""

KNOWN_MIN = 4
"""Adapters that a norm must be compared with before it can be called an outlier."""

OUTLIER_DEVIATIONS = 6.0
"""Robust deviations (1.4826 MAD) of log norm from the median of the known ones."""

OUTLIER_SPREAD_MIN = 0.1
"""Least deviation of log norm that is assumed: adapters of one kind would else condemn any other."""

OWN_RATIO = 100.0
"""Of a module's norm to the median of the adapter's own modules: a single module that shouts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is odd."""

    kind: str
    """One word, for scripts: "size", "rank", "dtype", "not_finite", "outlier", "target", "file" ..."""

    place: str
    """Tensor, module or file."""

    text: str


@dataclass(frozen=True, slots=True)
class ScreenReport:
    """Nothing found: `findings` is empty."""

    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]


Norms = Mapping[str, float]
"""Module to the Frobenius norm of its update, (alpha / rank) · B · A."""


def screen(folder: Path, limits: AdapterLimits, known: Sequence[Norms] = ()) -> ScreenReport:
    """Look at a PEFT folder. known: norms of other adapters of the same base (`norms_of`).

    Raises nothing for what is in the folder: whatever is wrong there is a finding.
    """
    found: list[Finding] = []
    found += _files(folder)
    config = _config(folder, found)
    tensors = _tensors(folder / WEIGHTS_FILE, limits, found)
    facts: dict[str, Any] = {
        "tensors": len(tensors),
        "values": sum(array.size for array in tensors.values()),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "known": len(known),
    }
    modules = _modules(tensors, config, limits, found)
    if not found:  # the judgement of `create` and `serve`, for whatever has no name above
        found += _as_others_read_it(folder, limits)
    norms = _norms(tensors, modules, _scale(config))
    facts["norms"] = {name: round(norm, 6) for name, norm in norms.items()}
    found += _outliers(norms, known)
    return ScreenReport(facts, tuple(found))


def norms_of(tensors: Mapping[str, npt.NDArray[np.float32]], alpha: float, rank: int) -> Norms:
    """Norm of every module's update: what a known adapter is compared by."""
    return _norms(tensors, sorted({module_path(name) for name in tensors}), alpha / rank)


def _files(folder: Path) -> list[Finding]:
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            found.append(Finding("file", file.name, "is a symbolic link"))
        elif file.suffix.lower() in RUNNABLE:
            found.append(Finding("file", file.name, "may run code when it is opened; safetensors does not"))
    return found


def _config(folder: Path, found: list[Finding]) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ValueError(f"has more than {CONFIG_BYTES_MAX} bytes")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        found.append(Finding("config", CONFIG_FILE, f"cannot be read: {error}"))
        return {}
    if config.get("peft_type") != "LORA":
        found.append(Finding("config", CONFIG_FILE, f"peft_type is {config.get('peft_type')!r}, not 'LORA'"))
    for name in ("auto_mapping", "modules_to_save", "layer_replication", "trainable_token_indices"):
        if config.get(name):
            found.append(Finding("config", name, "changes more of the model than LoRA factors do"))
    return config


def _tensors(file: Path, limits: AdapterLimits, found: list[Finding]) -> dict[str, npt.NDArray[np.float32]]:
    from safetensors import SafetensorError, deserialize

    try:
        size = file.stat().st_size
        if size > limits.size_bytes_max:
            found.append(Finding("size", file.name, f"has {size} bytes, limit {limits.size_bytes_max}"))
            return {}
        raw = dict(deserialize(file.read_bytes()))  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        found.append(Finding("format", file.name, f"is no safetensors file: {error}"))
        return {}
    if len(raw) > limits.tensors_max:
        found.append(Finding("size", file.name, f"holds {len(raw)} tensors, limit {limits.tensors_max}"))
        return {}
    tensors = {}
    for name, entry in sorted(raw.items()):
        try:
            array = tensor_array(name, entry)
        except FormatError as error:
            found.append(Finding("dtype", name, str(error)))
            continue
        odd = int(np.count_nonzero(~np.isfinite(array)))
        if odd:
            found.append(Finding("not_finite", name, f"{odd} of {array.size} values are NaN or infinity"))
        tensors[name] = array
    return tensors


def _modules(
    tensors: Mapping[str, npt.NDArray[np.float32]],
    config: Mapping[str, Any],
    limits: AdapterLimits,
    found: list[Finding],
) -> list[str]:
    """Modules with both factors of one rank; what else there is becomes a finding."""
    declared = config.get("target_modules")
    names = [str(each) for each in declared] if isinstance(declared, list) else None
    rank = config.get("r")
    if isinstance(rank, int) and not 1 <= rank <= limits.rank_max:
        found.append(Finding("rank", CONFIG_FILE, f"rank {rank}, limit {limits.rank_max}"))
    modules: list[str] = []
    seen: set[str] = set()
    for name in tensors:
        try:
            path = module_path(name)
        except FormatError:
            found.append(Finding("target", name, "is no LoRA factor"))
            continue
        if path in seen:
            continue
        seen.add(path)
        name_a, name_b = factor_names(path)
        if name_a not in tensors or name_b not in tensors:
            found.append(Finding("shape", path, "has only one factor"))
            continue
        a, b = tensors[name_a].shape, tensors[name_b].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != rank:
            found.append(Finding("rank", path, f"A {list(a)} and B {list(b)} for declared rank {rank}"))
            continue
        if names is not None and not any(path == each or path.endswith("." + each) for each in names):
            found.append(Finding("target", path, f"is none of the declared targets {', '.join(names)}"))
        modules.append(path)
    return sorted(modules)


def _as_others_read_it(folder: Path, limits: AdapterLimits) -> list[Finding]:
    try:
        provenance = read_provenance(folder)
        base = bytes.fromhex(provenance.base.base_model_id) if provenance is not None else None
        read_adapter(folder, limits, base or bytes(32))
    except ProvenanceError as error:
        return [Finding("provenance", "provenance.json", str(error).splitlines()[0])]
    except (CitrateError, ValueError) as error:
        text = str(error).splitlines()[0]
        if base is None and "is made for base model" in text:
            return []  # it names its base itself, and nothing here says another
        return [Finding("format", WEIGHTS_FILE, text)]
    return []


def _scale(config: Mapping[str, Any]) -> float:
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if isinstance(alpha, int | float) and isinstance(rank, int) and rank > 0:
        return float(alpha) / rank
    return 1.0


def _norms(
    tensors: Mapping[str, npt.NDArray[np.float32]], modules: Sequence[str], scale: float
) -> dict[str, float]:
    """Without forming a product: |BA|² = sum of (BᵀB) ∘ (AAᵀ)."""
    norms = {}
    for path in modules:
        name_a, name_b = factor_names(path)
        a, b = tensors[name_a].astype(np.float64), tensors[name_b].astype(np.float64)
        with np.errstate(all="ignore"):
            norms[path] = abs(scale) * float(np.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))))
    return norms


def _outliers(norms: Norms, known: Sequence[Norms]) -> list[Finding]:
    found = []
    positive = [norm for norm in norms.values() if np.isfinite(norm) and norm > 0]
    median = float(np.median(positive)) if positive else 0.0
    for path, norm in norms.items():
        others = [each[path] for each in known if each.get(path, 0.0) > 0]
        if not np.isfinite(norm):
            continue  # named already
        if median and norm > OWN_RATIO * median:
            text = f"norm {norm:.4g} is {norm / median:.0f} times the median of this adapter's modules"
            found.append(Finding("outlier", path, text))
        elif len(others) >= KNOWN_MIN and norm > 0:
            logs = np.log(others)
            middle = float(np.median(logs))
            spread = max(OUTLIER_SPREAD_MIN, 1.4826 * float(np.median(np.abs(logs - middle))))
            deviations = (float(np.log(norm)) - middle) / spread
            if deviations > OUTLIER_DEVIATIONS:
                text = (
                    f"norm {norm:.4g}, {len(others)} known adapters have {np.exp(middle):.4g} in the middle: "
                    f"{deviations:.1f} deviations above, limit {OUTLIER_DEVIATIONS:g}"
                )
                found.append(Finding("outlier", path, text))
    return found
