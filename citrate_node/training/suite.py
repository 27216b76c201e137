"""A regression suite: a person's own prompts, and what must hold for the answers. Called by evaluation.py.

A TOML file; see examples/regression/suite.toml. Answers are greedy, so the same adapter gives the same ones:

    [[prompt]]
    name = "a header keeps its colon"
    prompt = "Content-Type"
    completion = ": text/html"           # measured: how surprising is this text after the prompt
    loss_nats_max = 2.5                  # at most this, per token
    worse_than_base_percent_max = 5      # and at most so much above the base
    contains = ["text"]                  # the model's own answer holds each of these
    excludes = ["<script"]               # and none of these
    new_tokens_max = 32
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import encoder
from citrate_node.training.examples import Examples, load_tokenizer

if TYPE_CHECKING:
    from citrate_node.training.adapter_model import AdapterModel

PROMPTS_MAX = 1000
NEW_TOKENS_MAX = 512


@dataclass(frozen=True, slots=True)
class SuitePrompt:
    """One row of the file."""

    name: str
    prompt: str
    completion: str | None = None
    loss_nats_max: float | None = None
    worse_than_base_percent_max: float | None = None
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    new_tokens_max: int = 32


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What one prompt came to."""

    name: str
    failures: tuple[str, ...]
    """Sentences; empty: it holds."""
    answer: str | None
    loss_nats: float | None
    loss_base_nats: float | None


def read_suite(path: Path) -> tuple[SuitePrompt, ...]:
    """Read a suite. Raises ConfigError that names the prompt and the field."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the suite {path}: {error}") from None
    rows = found.get("prompt")
    if not isinstance(rows, list) or not rows or set(found) != {"prompt"}:
        raise ConfigError(f"suite {path}: it must hold [[prompt]] tables and nothing else")
    if len(rows) > PROMPTS_MAX:
        raise ConfigError(f"suite {path} has {len(rows)} prompts, the limit is {PROMPTS_MAX}")
    return tuple(_prompt(row, f"suite {path}, prompt {place}") for place, row in enumerate(rows, start=1))


def run_prompt(model: AdapterModel, base: BaseModel, prompt: SuitePrompt) -> SuiteResult:
    """Measure one prompt on the adapter that the model holds, and on the base."""
    loss = loss_base = None
    failures: list[str] = []
    if prompt.completion is not None:
        example = _example(base, prompt)
        loss = model.measure(example).loss
        with model.without_adapter():
            loss_base = model.measure(example).loss
        if prompt.loss_nats_max is not None and loss > prompt.loss_nats_max:
            failures.append(f"loss {loss:.4f} nats per token, at most {prompt.loss_nats_max} is allowed")
        bound = prompt.worse_than_base_percent_max
        if bound is not None and loss > loss_base * (1 + bound / 100):
            worse = 100 * (loss / loss_base - 1)
            failures.append(f"loss {worse:.1f} % above the base, at most {bound} % is allowed")
    answer = None
    if prompt.contains or prompt.excludes:
        answer = _answer(model, base, prompt)
        failures += [f"the answer lacks {text!r}" for text in prompt.contains if text not in answer]
        failures += [f"the answer holds {text!r}" for text in prompt.excludes if text in answer]
    return SuiteResult(prompt.name, tuple(failures), answer, loss, loss_base)


def _prompt(row: Any, where: str) -> SuitePrompt:
    kinds: dict[str, Any] = {
        **dict.fromkeys(("name", "prompt", "completion"), str),
        **dict.fromkeys(("loss_nats_max", "worse_than_base_percent_max"), (int, float)),
        **dict.fromkeys(("contains", "excludes"), list),
        "new_tokens_max": int,
    }
    for name, value in row.items():
        if name not in kinds:
            raise ConfigError(f"{where}: unknown field {name}; known are {', '.join(kinds)}")
        if isinstance(value, bool) or not isinstance(value, kinds[name]):
            raise ConfigError(f"{where}: {name} is {value!r}, which is not of its kind")
        if isinstance(value, list) and not all(isinstance(text, str) and text for text in value):
            raise ConfigError(f"{where}: {name} must be a list of texts that are not empty")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {name} is {value}, it must be a finite number")
    if not row.get("prompt") or "name" not in row:
        raise ConfigError(f"{where}: it needs a name and a prompt")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    found = SuitePrompt(**values)
    if not 1 <= found.new_tokens_max <= NEW_TOKENS_MAX:
        raise ConfigError(f"{where}: new_tokens_max must lie between 1 and {NEW_TOKENS_MAX}")
    bounds = (found.loss_nats_max, found.worse_than_base_percent_max)
    if found.completion is None and any(bound is not None for bound in bounds):
        raise ConfigError(f"{where}: a bound on the loss needs a completion to measure")
    if all(bound is None for bound in bounds) and not found.contains and not found.excludes:
        raise ConfigError(f"{where}: it asks for nothing: give a bound, contains or excludes")
    return found


def _example(base: BaseModel, prompt: SuitePrompt) -> Examples:
    encode = encoder(base)
    asked, learnt = encode(prompt.prompt.encode()), encode(str(prompt.completion).encode())
    tokens = np.concatenate([asked, learnt])[None, :]
    learns = np.arange(tokens.shape[1])[None, :] >= len(asked)
    limit = base.config.get("max_position_embeddings")
    if len(learnt) == 0 or (isinstance(limit, int) and tokens.shape[1] > limit):
        raise ConfigError(
            f"suite, prompt {prompt.name!r}: {tokens.shape[1]} tokens with a completion of {len(learnt)}; "
            f"the base reads {limit}"
        )
    return Examples(tokens.astype(np.int32), learns, np.array([-1], dtype=np.int64))


def _answer(model: AdapterModel, base: BaseModel, prompt: SuitePrompt) -> str:
    import torch

    asked = torch.from_numpy(encoder(base)(prompt.prompt.encode()).astype(np.int64))[None, :].to(model.device)
    with torch.inference_mode():
        model.model.eval()
        made = model.model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=prompt.new_tokens_max,
            do_sample=False,
            pad_token_id=0,
        )
    tokens = made[0, asked.shape[1] :].cpu().numpy()
    if base.byte_level:
        return bytes(tokens.astype(np.uint8)).decode("utf-8", errors="replace")
    return str(load_tokenizer(base.directory).decode(tokens, skip_special_tokens=True))
