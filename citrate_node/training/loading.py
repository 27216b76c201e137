"""Loads a base for training or measuring by one person: any objective, in float32 or in 4 bits, on CPU or
CUDA.

Safetensors only, and no code of the folder runs. 4-bit bases are bitsandbytes' business (NF4 with double
quantization, Dettmers et al. 2023, arXiv:2305.14314); the extra `quantized` brings it. Called by
adapter_model.py.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training.architecture import Objective, auto_class
from citrate_node.training.base_model import BaseModel
from citrate_node.training.run_settings import Quantization

DEVICES = ("auto", "cpu", "cuda")


def load_model(
    base: BaseModel,
    objective: Objective,
    *,
    quantization: Quantization = "none",
    labels: tuple[str, ...] = (),
    device: str = "cpu",
) -> Any:
    """The frozen base as a transformers model.

    Raises ServiceError where transformers or bitsandbytes cannot load it, ConfigError where the folder lacks
    the head that the objective needs.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # "newly initialized" is told by our own check below
    options: dict[str, Any] = {"dtype": _compute_dtype(quantization, device)}
    if objective == "labelled":
        options |= {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,  # a head for other labels is made anew
        }
    if quantization == "nf4":
        options |= {"quantization_config": _nf4(device)}
    if quantization == "nf4" or "quantization_config" in base.config:  # such a model is not moved afterwards
        require_bitsandbytes()
        options |= {"device_map": {"": device}}
    try:
        model, info = auto_class(objective).from_pretrained(
            base.directory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ServiceError(f"transformers cannot load base model {base.name}: {error}") from error
    if objective != "labelled" and info["missing_keys"]:
        raise ConfigError(
            f"base model {base.name} has no {sorted(info['missing_keys'])[0]}: it cannot predict tokens\n"
            "  give the folder with its language model head, or texts with labels"
        )
    model.requires_grad_(False)
    if quantization == "none" and "quantization_config" not in base.config:
        return model.to(device)
    for module in model.modules():
        # on some CPUs bitsandbytes packs a layer anew, in bfloat16, when it is first used for measuring:
        # training would go on from other numbers than it began with, and layers narrower than 64 fail
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def resolve_device(device: str) -> str:
    """ "auto" is CUDA where torch sees one. Raises ConfigError for CUDA where there is none."""
    import torch

    if device not in DEVICES:
        raise ConfigError(f"device is {device}, it must be one of {', '.join(DEVICES)}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and torch sees no CUDA device here\n  take --device cpu")
    return device


def make_optimizer(
    parameters: list[Any], *, weight_decay: float, quantization: Quantization, device: str
) -> Any:
    """AdamW; beside a 4-bit base on CUDA its states are paged out of the card's memory where that is full."""
    import torch

    if quantization == "nf4" and device == "cuda":
        require_bitsandbytes()
        from bitsandbytes.optim import PagedAdamW32bit

        return PagedAdamW32bit(parameters, lr=1.0, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=1.0, weight_decay=weight_decay)


def require_bitsandbytes() -> None:
    """Raises ServiceError where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ServiceError(
            "quantization nf4: bitsandbytes is not installed\n"
            "  pip install --no-deps 'bitsandbytes>=0.50,<0.51'"
        )


def _nf4(device: str) -> Any:
    require_bitsandbytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_compute_dtype("nf4", device),
        )


def _compute_dtype(quantization: Quantization, device: str) -> Any:
    """float32, but bfloat16 for 4-bit matrices on CUDA, where it is many times faster."""
    import torch

    return torch.bfloat16 if quantization == "nf4" and device == "cuda" else torch.float32
