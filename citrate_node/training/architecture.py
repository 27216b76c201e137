"""What kind of model a base is: what it learns to predict, and which of its layers carry LoRA factors.

Targets may be written as a preset ("all-linear", "attention", "q,v") or as module names; here they become
names that match those layers and no others. Free of torch itself; for layouts that base_model.py does not
know it asks PEFT through BaseModel.tensor_shapes. Called by adapter_model.py, export.py and cli/train.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import module_path
from citrate_node.training.base_model import BaseModel
from citrate_node.training.settings import ALL_LINEAR, LoraSettings

Objective = Literal["causal", "masked", "labelled"]
"""Next token; tokens that were masked (encoders); one label for the whole text (encoders, with a head)."""

ATTENTION = "attention"
QUERY_VALUE = "q,v"
PRESETS = (ALL_LINEAR, ATTENTION, QUERY_VALUE)

_QUERY = frozenset({"q_proj", "query", "q_lin", "q", "wq", "q_attn"})
_VALUE = frozenset({"v_proj", "value", "v_lin", "v", "wv"})
_AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "labelled": "AutoModelForSequenceClassification",
}


def objective_of(base: BaseModel, has_labels: bool = False) -> Objective:
    """What an adapter on this base learns.

    has_labels: the data are texts with labels. A causal model learns to write the label; an encoder gets a
    head.
    """
    names = [str(name) for name in base.config.get("architectures") or ()]
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return "causal"
    return "labelled" if has_labels else "masked" if _is_encoder(base, names) else "causal"


def _is_encoder(base: BaseModel, names: list[str]) -> bool:
    if any(name.endswith(("ForMaskedLM", "ForPreTraining", "ForSequenceClassification")) for name in names):
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    # BERT and its kin can be decoders too; a folder that does not say so is what the family is known for
    return base.config["model_type"] in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not base.config.get(
        "is_decoder"
    )


def auto_class(objective: Objective) -> Any:
    """The class of transformers that loads a base for this objective."""
    import transformers

    return getattr(transformers, _AUTO_CLASSES[objective])


def linear_modules(base: BaseModel) -> tuple[str, ...]:
    """Paths of every layer that "all-linear" gives factors to, sorted."""
    return module_paths(base.tensor_shapes(LoraSettings(rank=1)))


def module_paths(tensor_names: Iterable[str]) -> tuple[str, ...]:
    """Paths of the layers that some LoRA tensors belong to, sorted."""
    return tuple(sorted({module_path(name) for name in tensor_names}))


def resolve_targets(base: BaseModel, targets: str) -> str | tuple[str, ...]:
    """Turn "all-linear", "attention", "q,v" or "name,name" into what LoraSettings takes.

    Raises ConfigError for a preset that this base has no layers for, and for an unknown name: it lists those
    that there are.
    """
    if targets == ALL_LINEAR:
        return ALL_LINEAR
    modules = linear_modules(base)
    if targets == ATTENTION:
        return _preset(base, targets, [m for m in modules if _in_attention(m)], modules)
    if targets == QUERY_VALUE:
        last = {m: m.rsplit(".", 1)[-1] for m in modules if _in_attention(m)}
        queries = [m for m, name in last.items() if name in _QUERY]
        values = [m for m, name in last.items() if name in _VALUE]
        if not queries or not values:
            raise ConfigError(
                f"targets q,v: {base.name} has no layer of its own for queries or values, they are fused\n"
                f"  take --targets {ATTENTION}, or name a layer: {_known(modules)}"
            )
        return _preset(base, targets, queries + values, modules)
    names = tuple(sorted({name.strip() for name in targets.split(",") if name.strip()}))
    if not names:
        raise ConfigError(f"targets is empty: give one of {'; '.join(PRESETS)}, or names of layers")
    unknown = [n for n in names if not any(_matches(m, n) for m in modules)]
    if unknown:
        raise ConfigError(
            f"targets: {base.name} has no linear layer {', '.join(unknown)}\n  it has {_known(modules)}"
        )
    return names


def target_names(paths: Iterable[str], all_paths: Iterable[str]) -> tuple[str, ...]:
    """The shortest names that match these layers, as PEFT matches them (by suffix), and no others."""
    chosen = set(paths)
    others = [path for path in all_paths if path not in chosen]
    names: set[str] = set()
    for path in chosen:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[-length:])
            if length == len(parts) or not any(_matches(other, name) for other in others):
                names.add(name)
                break
    return tuple(sorted(names))


def _preset(base: BaseModel, preset: str, chosen: list[str], modules: tuple[str, ...]) -> tuple[str, ...]:
    if not chosen:
        raise ConfigError(
            f"targets {preset}: no layer of {base.name} is known to be one\n  name them: {_known(modules)}"
        )
    return target_names(chosen, modules)


def _in_attention(path: str) -> bool:
    return any("attn" in part or "attention" in part for part in path.lower().split(".")[:-1])


def _matches(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def _known(modules: tuple[str, ...]) -> str:
    return ", ".join(sorted({m.rsplit(".", 1)[-1] for m in modules}))
