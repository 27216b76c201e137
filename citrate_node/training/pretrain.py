"""Pretrains the embedded base model: a byte-level Llama of 0.89 million parameters.

Called by `citrate base pretrain`. The shipped assets/base came out of this function; running it
again gives the same bytes on a machine with the same instruction set (floating point sums are
blocked differently for AVX-512, AVX2 and the baseline, so elsewhere the losses agree, not the bytes).
The training text is the corpus' general part alone: the eight domains stay unseen, for the nodes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.training import corpus
from citrate_node.training.byte_tokenizer import write_tokenizer

ARCHITECTURE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": "float16",
    "eos_token_id": None,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pad_token_id": None,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 256,
}
"""config.json of the embedded base, in full: defaults of a library may move, the base may not."""

_CARD = """---
license: psf-2.0
library_name: transformers
tags: [byte-level, llama, citrate]
---
# Citrate embedded base

A byte-level Llama (4 layers, width 128, 0.89 million parameters, float16) for devnets and tests: it
needs no download. Pretrained on general text of the Python standard library by
`citrate base pretrain`, which regenerates it. Token id = byte value. It knows how Python text
looks, and nothing else.
"""


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How the embedded base is trained. The defaults are the shipped base; change one, and it is another."""

    steps: int = 700
    batch_sequences: int = 16
    sequence_bytes: int = 256
    learning_rate: float = 4e-3
    warmup_steps: int = 40
    weight_decay: float = 0.1
    seed: int = 20_261_122
    threads: int = 2


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What came out: the losses say whether the base is as good as the shipped one."""

    directory: Path
    loss_train: float
    """Nats per byte, mean of the last 20 batches."""

    loss_general: float
    """Nats per byte of general held-out text, of the float16 weights as saved."""

    parameters: int

    seconds: float

    instruction_set: str
    """Where it is the shipped base's (AVX512), the bytes are too."""


def pretrain(
    out: Path,
    settings: PretrainSettings | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> PretrainResult:
    """Train the embedded base from nothing and write a directory that transformers loads.

    on_step receives (steps done, steps in all, loss of this batch).
    """
    # before torch: threads that spin while they wait for each other crawl on a machine with other work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    started = time.perf_counter()
    settings = settings or PretrainSettings()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(LlamaConfig(**ARCHITECTURE)).float()
    optimizer = torch.optim.AdamW(_groups(model, settings.weight_decay), betas=(0.9, 0.98))
    text = np.frombuffer(corpus.SEPARATOR.join(corpus.read_documents(corpus.GENERAL_TRAIN)), dtype=np.uint8)
    starts = _batches(text.size, settings)

    losses: list[float] = []
    model.train()
    for step in range(settings.steps):
        rows = np.stack([text[s : s + settings.sequence_bytes + 1] for s in starts[step]])
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = _loss(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step + 1, settings.steps, losses[-1])

    out.mkdir(parents=True, exist_ok=True)
    model.half()
    state = {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embedding
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(
        json.dumps(ARCHITECTURE, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    (out / "README.md").write_text(_CARD, encoding="utf-8")
    write_tokenizer(out, int(ARCHITECTURE["max_position_embeddings"]))

    model.float().eval()
    held_out = np.frombuffer(
        corpus.SEPARATOR.join(corpus.read_documents(corpus.GENERAL_HELD_OUT)), dtype=np.uint8
    )
    width = settings.sequence_bytes + 1
    rows = held_out[: held_out.size // width * width].reshape(-1, width)
    with torch.no_grad():
        general = float(np.mean([float(_loss(model, part)) for part in np.array_split(rows, 8)]))
    return PretrainResult(
        directory=out,
        loss_train=float(np.mean(losses[-20:])),
        loss_general=general,
        parameters=sum(t.numel() for t in state.values()),
        seconds=time.perf_counter() - started,
        instruction_set=torch.backends.cpu.get_cpu_capability(),
    )


def _batches(size: int, settings: PretrainSettings) -> npt.NDArray[np.int64]:
    """Start of every sequence, (steps, batch): windows at random offsets, from the seed alone."""
    generator = np.random.Generator(np.random.PCG64(settings.seed))
    last = size - settings.sequence_bytes - 1
    return generator.integers(0, last, size=(settings.steps, settings.batch_sequences))


def _schedule(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then half a cosine to a twentieth of the peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]


def _loss(model: Any, rows: npt.NDArray[np.uint8]) -> Any:
    import torch

    tokens = torch.from_numpy(rows.astype(np.int64))
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
