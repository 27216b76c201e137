"""Merge an adapter into its base: one model, no LoRA layers left, the same logits.

PEFT does the merging; here it is proved to have changed nothing, and its provenance is carried along. Imports
torch when called. Called by cli/adapter_use.py.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.training.architecture import objective_of
from citrate_node.training.base_model import BaseModel
from citrate_node.training.provenance import PROVENANCE_FILE, Provenance, to_json
from citrate_node.training.run_settings import RunSettings
from citrate_node.training.settings import LoraSettings

Dtype = Literal["float32", "float16", "bfloat16"]

MERGE_FILE = "merge.json"

TOLERANCE = 1e-4
"""Of a logit, relative to the largest one: float32 rounds W + sBA once, and Wx + sB(Ax) at every step."""

_PROBE_ROWS, _PROBE_TOKENS = 4, 32
_ROUNDED = {"float32": TOLERANCE, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What merge.json says beside the names of base and adapter."""

    base_model_id: str
    adapter_weights_sha256: str
    merged_base_model_id: str
    """Id of the merged model: an adapter of the base does not fit it, and this says so."""
    dtype: str
    logits_difference_relative: float
    """Largest difference of a logit between base + adapter and the merged model, over the largest logit."""


def merge_adapter(
    base: BaseModel, weights: AdapterWeights, provenance: Provenance, out: Path, dtype: Dtype = "float32"
) -> MergeResult:
    """Write the merged model as safetensors into `out`, which must be absent or empty.

    Raises ConfigError for another base or a folder in use, ServiceError where the logits are not the same
    (relative to the largest: 1e-4 in float32; 2e-2 and 1e-1 where float16 and bfloat16 round the weights).
    """
    import torch

    from citrate_node.training.adapter_model import AdapterModel

    config = weights.config
    if config.base_model_id != base.base_model_id:
        raise ConfigError(
            f"the adapter is made for base model {config.base_model_id.hex()}, {base.name} is "
            f"{base.base_model_id.hex()}\n  give the base that it was trained on with --base"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already and not an empty folder\n  give another --out")
    settings = RunSettings(lora=LoraSettings(config.rank, config.alpha, config.targets))
    beside = AdapterModel(base, settings, objective_of(base))
    beside.load(weights.tensors())
    probe = _probe(int(beside.model.get_input_embeddings().num_embeddings))
    with torch.inference_mode():
        before = beside.model.eval()(input_ids=probe).logits
    merged = beside.model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype)).eval()
    with torch.inference_mode():
        after = merged(input_ids=probe).logits.float()
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= _ROUNDED[dtype]:
        raise ServiceError(
            f"merged logits differ by {difference:.2e} of the largest, more than {_ROUNDED[dtype]}\n"
            "  nothing was written; serve the adapter beside its base instead"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        merged.save_pretrained(part, safe_serialization=True)
        _copy_tokenizer(base.directory, part)
        (part / "README.md").write_text(_card(base, provenance), encoding="utf-8")
        (part / PROVENANCE_FILE).write_text(to_json(provenance), encoding="utf-8")
        result = MergeResult(
            base_model_id=base.base_model_id.hex(),
            adapter_weights_sha256=weights.digest().hex(),
            merged_base_model_id=BaseModel.load(str(part)).base_model_id.hex(),
            dtype=dtype,
            logits_difference_relative=difference,
        )
        (part / MERGE_FILE).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
        _sync(part)
        if out.exists():
            out.rmdir()
        os.chmod(part, 0o755)
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return result


def _probe(vocabulary: int) -> Any:
    """Fixed token ids from all over the vocabulary."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (_PROBE_ROWS, _PROBE_TOKENS), generator=generator)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Everything small that is not weights, config or card: the tokenizer's and the generation's files."""
    for file in sorted(source.iterdir()):
        kept = file.suffix in (".json", ".txt", ".model", ".jinja") and not file.name.endswith(".index.json")
        if file.is_file() and kept and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _card(base: BaseModel, provenance: Provenance) -> str:
    rows = [
        "---",
        f"base_model: {json.dumps(provenance.base.name)}",
        "library_name: transformers",
        f"license: {json.dumps(provenance.licence)}",
        'tags: ["citrate", "merged"]',
        "---",
        "# Merged model",
        "",
        f"Base model `{base.base_model_id.hex()}` with the LoRA adapter of weights sha256 "
        f"`{provenance.weights.sha256}` merged in.",
        f"{PROVENANCE_FILE} is the adapter's own; {MERGE_FILE} says what was merged and how exactly.",
    ]
    return "\n".join(rows) + "\n"


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
