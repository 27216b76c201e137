"""Writes what `citrate train` trained: in the network's spelling where it can be, else as PEFT itself saves
it.

A DoRA adapter, an rsLoRA one whose rank is no square, and one with a head for labels are good PEFT folders
that this network cannot hold: they carry no content id, and `citrate adapter create` refuses them by name.
Called by training_run.py.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from citrate_node.errors import ConfigError
from citrate_node.training.architecture import linear_modules, target_names
from citrate_node.training.base_model import BaseModel
from citrate_node.training.card import write_card
from citrate_node.training.export import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    export_adapter,
    import_adapter,
    public_name,
)
from citrate_node.training.initial import Tensors
from citrate_node.training.provenance import (
    BaseFacts,
    Provenance,
    TrainingFacts,
    WeightsFacts,
    write_provenance,
    write_whole,
)
from citrate_node.training.run_settings import NetworkRefusal, RunSettings, network_alpha

if TYPE_CHECKING:
    from citrate_node.training.adapter_model import AdapterModel

LABELS_FILE = "labels.json"


def export_run(
    out: Path,
    model: AdapterModel,
    training: TrainingFacts,
    labels: tuple[str, ...],
    local_only: bool,
    licence: str | None,
) -> Provenance:
    """Write the folder; the weights file comes last. Returns its provenance."""
    if model.objective != "labelled":
        try:
            alpha = network_alpha(model.settings)
        except NetworkRefusal:
            if not local_only:
                raise
        else:
            lora = replace(model.settings.lora, alpha=alpha)
            return export_adapter(out, model.base, lora, model.factors(), training, licence=licence)
    return _export_for_peft(out, model, training, labels, licence)


def start_weights(folder: Path, base: BaseModel, settings: RunSettings) -> Tensors:
    """Weights to go on from. Raises ConfigError where the folder's adapter is another one than is asked
    for.
    """
    found, weights = import_adapter(folder, base)
    if (found.rank, found.alpha) != (settings.lora.rank, network_alpha(settings)):
        raise ConfigError(
            f"{folder} has rank {found.rank} and alpha {found.alpha}, this run wants rank "
            f"{settings.lora.rank} and alpha {network_alpha(settings)}\n"
            "  give the same --rank, --alpha and --targets to go on from it"
        )
    return weights


def _export_for_peft(
    out: Path, model: AdapterModel, training: TrainingFacts, labels: tuple[str, ...], licence: str | None
) -> Provenance:
    settings, base = model.settings, model.base
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.model.float().save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        content = (Path(folder) / WEIGHTS_FILE).read_bytes()
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    targets = target_names(model.module_paths, linear_modules(base))
    config |= {"base_model_name_or_path": base.name, "target_modules": list(targets), "inference_mode": True}
    provenance = Provenance(
        base=BaseFacts(public_name(base), base.base_model_id.hex(), base.licence),
        weights=WeightsFacts(
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            rank=settings.lora.rank,
            alpha=settings.lora.alpha,
            targets=targets,
            cid=None,
            variant=settings.variant,
        ),
        training=training,
        licence=licence or base.licence,
    )
    write_whole(out / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    if labels:
        write_whole(out / LABELS_FILE, (json.dumps(list(labels), ensure_ascii=False) + "\n").encode())
    write_provenance(out, provenance)
    write_card(out, provenance)
    write_whole(out / WEIGHTS_FILE, content)
    return provenance
