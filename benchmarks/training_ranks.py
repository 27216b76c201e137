"""What rank, targets and variant are worth on the embedded base: loss on one domain and on general text.

    python benchmarks/training_ranks.py [--steps 60] [--seeds 2] [--json FILE]

Every row trains the same domain for the same steps with the same batches; only the adapter differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from citrate_node.training.adapter_model import AdapterModel
from citrate_node.training.architecture import resolve_targets
from citrate_node.training.base_model import BaseModel
from citrate_node.training.examples import load_dataset
from citrate_node.training.run_settings import RunSettings
from citrate_node.training.settings import LoraSettings
from citrate_node.training.training_run import Run, train

ROWS = (
    (1, "all-linear", "lora"),
    (2, "all-linear", "lora"),
    (4, "all-linear", "lora"),
    (8, "all-linear", "lora"),
    (16, "all-linear", "lora"),
    (64, "all-linear", "lora"),
    (8, "attention", "lora"),
    (8, "q,v", "lora"),
    (16, "all-linear", "rslora"),
    (8, "all-linear", "dora"),
)


def measure(domain: str, steps: int, seeds: int) -> dict[str, Any]:
    base = BaseModel.load()
    data, general = (load_dataset(s, base, "causal") for s in (f"domain:{domain}", "general"))
    total = sum(tensor.size_bytes // 2 for tensor in base.tensors.values())  # float16
    rows = []
    before: dict[str, float] = {}
    for rank, targets, variant in ROWS:
        own, forgotten, parameters = [], [], 0
        for seed in range(seeds):
            settings = RunSettings(
                lora=LoraSettings(rank, 2 * rank, resolve_targets(base, targets)),
                variant=variant,  # type: ignore[arg-type]
                steps=steps,
                learning_rate=0.005,
                validate_every_steps=steps,
                seed=seed,
            )
            with tempfile.TemporaryDirectory() as folder:
                run = Run(base, data, "causal", settings, Path(folder) / "out", local_only=True)
                train(run)
                model = AdapterModel(base, settings, "causal")
                parameters = sum(p.numel() for p in model.parameters.values())
                from safetensors.torch import load_file

                tensors = load_file(Path(folder) / "out" / "adapter_model.safetensors")
                model.load({_name(name): t.float().numpy() for name, t in tensors.items()})
                if not before:
                    with model.without_adapter():
                        before = {
                            "own": model.measure(data.held_out).loss,
                            "general": model.measure(general.held_out).loss,
                        }
                own.append(model.measure(data.held_out).loss)
                forgotten.append(model.measure(general.held_out).loss)
        rows.append(
            {
                "rank": rank,
                "targets": targets,
                "variant": variant,
                "parameters": parameters,
                "share_percent": 100 * parameters / total,
                "loss_own": statistics.mean(own),
                "loss_general": statistics.mean(forgotten),
                "seeds": seeds,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"domain": domain, "steps": steps, "base": before, "rows": rows}


def _name(saved: str) -> str:
    """PEFT saves DoRA's magnitudes under a name without its `.weight`."""
    return saved + ".weight" if saved.endswith("lora_magnitude_vector") else saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", default="web")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.domain, options.steps, options.seeds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
