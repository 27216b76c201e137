"""One base with one adapter, for one person's training and measuring: any objective, variant and precision.

LoraTrainer (lora.py) is the network's: plain LoRA on a causal base, bit by bit. This one serves `citrate
train` and `citrate evaluate`; on the same base, adapter and rows the two compute the same loss. Called by
training_run.py and evaluation.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError
from citrate_node.training.architecture import Objective, module_paths
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import PAD
from citrate_node.training.examples import Examples, load_tokenizer
from citrate_node.training.initial import Tensors, initial_weights
from citrate_node.training.loading import load_model, make_optimizer, resolve_device
from citrate_node.training.lora import EVALUATION_SEQUENCES, quick_import
from citrate_node.training.run_settings import RunSettings

_IGNORED = -100  # torch's own mark for "no target here"
_MASKED_SHARE = 0.15
_MEASURING_SEED = 20_261_124  # the masks of a measurement: the same for base and adapter


@dataclass(frozen=True, slots=True)
class Measurement:
    """Mean cross entropy in nats per token to be predicted (or per text, for labels)."""

    loss: float
    examples: int
    accuracy: float | None = None
    """Share of right labels; None where there are none."""


class AdapterModel:
    """A base in memory with one set of factors. Not for several threads."""

    def __init__(
        self,
        base: BaseModel,
        settings: RunSettings,
        objective: Objective,
        *,
        labels: tuple[str, ...] = (),
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        os.environ.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # before torch: spinning threads crawl beside others
        with quick_import():
            import torch

            self.device = resolve_device(device)
            torch.set_num_threads(threads)
            torch.manual_seed(settings.seed)  # a new head for labels is drawn at random
            self.base, self.settings, self.objective, self.labels = base, settings, objective, labels
            model = load_model(
                base, objective, quantization=settings.quantization, labels=labels, device=self.device
            )
            self.model = _inject(model, base, settings, objective)
        if settings.recompute_activations:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._parameters = {
            name.replace(".default.", ".").replace(
                "lora_magnitude_vector.default", "lora_magnitude_vector"
            ): p
            for name, p in sorted(self.model.named_parameters())
            if p.requires_grad
        }
        if settings.adapter_dtype == "bfloat16":
            for name, parameter in self._parameters.items():
                if ".lora_" in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
        self._mask_token: int = -1
        self._fixed_tokens: tuple[int, ...] = ()
        if objective == "masked":
            self._mask_token, self._fixed_tokens = self._masking()
        self.load({**self.weights(), **initial_weights(self._factor_shapes(), str(settings.seed).encode())})

    @property
    def parameters(self) -> dict[str, Any]:
        """torch parameters that learn, by PEFT's saved name, sorted."""
        return self._parameters

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Layers of the base that carry factors."""
        return module_paths(self._factor_shapes())

    def weights(self) -> Tensors:
        """A float32 copy of everything that learns."""
        return {name: p.detach().float().cpu().numpy().copy() for name, p in self._parameters.items()}

    def factors(self) -> Tensors:
        """Of `weights`, lora_A and lora_B alone."""
        return {name: w for name, w in self.weights().items() if ".lora_A." in name or ".lora_B." in name}

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Put weights in. Raises ConfigError for another adapter's tensors, or numbers not finite."""
        import torch

        expected = {name: tuple(p.shape) for name, p in self._parameters.items()}
        found = {name: tuple(w.shape) for name, w in weights.items()}
        if odd := sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n)):
            raise ConfigError(
                f"the weights do not fit these settings: {odd[0]} is {found.get(odd[0], 'absent')}, "
                f"wanted {expected.get(odd[0], 'none')}\n"
                "  rank, targets and variant must be those of the adapter"
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if not np.isfinite(weights[name]).all():
                    raise ConfigError(f"the weights hold NaN or infinity in {name}")
                parameter.copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))

    def optimizer(self) -> Any:
        """AdamW over what learns, its rate set by the caller in every step."""
        return make_optimizer(
            list(self._parameters.values()),
            weight_decay=self.settings.weight_decay,
            quantization=self.settings.quantization,
            device=self.device,
        )

    def loss(self, examples: Examples, step: int) -> Any:
        """Training loss of one batch, with its graph. The step decides masks, so a repeated step is the
        same.
        """
        return self._forward(examples, [self.settings.seed, step])[0] / max(1, self.targets(examples))

    def measure(self, examples: Examples, on_batch: Callable[[], None] = lambda: None) -> Measurement:
        """Loss of the adapter as it stands. Raises ConfigError where there is nothing to measure on."""
        import torch

        if len(examples) == 0:
            raise ConfigError("there is no example to measure on: give more text")
        total, targets, right = 0.0, 0, 0
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(examples), EVALUATION_SEQUENCES):
                part = examples.take(slice(start, start + EVALUATION_SEQUENCES))
                loss, count, hits = self._forward(part, [_MEASURING_SEED, start])
                total, targets, right = total + float(loss), targets + count, right + hits
                on_batch()
        accuracy = right / len(examples) if self.objective == "labelled" else None
        return Measurement(total / max(1, targets), len(examples), accuracy)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base alone, its own head included."""
        with self.model.disable_adapter():
            yield

    def targets(self, examples: Examples) -> int:
        """Tokens that `loss` averages over, before masking."""
        if self.objective == "labelled":
            return len(examples)
        if self.objective == "causal":
            return int(np.count_nonzero(examples.learns[:, 1:]))
        return max(1, round(_MASKED_SHARE * int(np.count_nonzero(examples.learns))))

    def _forward(self, examples: Examples, seed: list[int]) -> tuple[Any, int, int]:
        """(sum of cross entropies, targets, right labels)."""
        import torch

        tokens = torch.from_numpy(np.where(examples.tokens == PAD, 0, examples.tokens).astype(np.int64))
        if self.objective == "causal":
            wanted = np.where(examples.learns, examples.tokens, _IGNORED)[:, 1:]
            # padding stands at the end alone, and attention looks back only: no mask is needed
            logits = self.model(input_ids=tokens[:, :-1].to(self.device), use_cache=False).logits
            return self._cross_entropy(logits, wanted)
        present = torch.from_numpy((examples.tokens != PAD).astype(np.int64)).to(self.device)
        if self.objective == "labelled":
            logits = self.model(input_ids=tokens.to(self.device), attention_mask=present).logits
            loss, count, _ = self._cross_entropy(logits, examples.labels)
            chosen = logits.detach().float().argmax(-1).cpu().numpy()
            return loss, count, int(np.count_nonzero(chosen == examples.labels))
        shown, wanted = self._hide(examples, seed)
        logits = self.model(input_ids=torch.from_numpy(shown).to(self.device), attention_mask=present).logits
        return self._cross_entropy(logits, wanted)

    def _cross_entropy(self, logits: Any, wanted: npt.NDArray[Any]) -> tuple[Any, int, int]:
        import torch

        targets = torch.from_numpy(wanted.astype(np.int64)).to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            targets.reshape(-1),
            ignore_index=_IGNORED,
            reduction="sum",
        )
        return loss, int(np.count_nonzero(wanted != _IGNORED)), 0

    def _hide(
        self, examples: Examples, seed: list[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens with some hidden, and what they were.

        Of 15 % of the places, 8 in 10 show the mask, 1 a random token and 1 what it is.
        Source: Devlin et al. 2019 (BERT), section 3.1.
        """
        generator = np.random.Generator(np.random.PCG64(seed))
        tokens = np.where(examples.tokens == PAD, 0, examples.tokens).astype(np.int64)
        allowed = examples.learns & ~np.isin(tokens, self._fixed_tokens)
        draws = np.where(allowed, generator.random(tokens.shape), 2.0)
        # a row always hides at least one token: no batch is without a target
        chosen = (draws < _MASKED_SHARE) | (allowed & (draws == draws.min(axis=1, keepdims=True)))
        how = generator.random(tokens.shape)
        other = generator.integers(0, self.base.config["vocab_size"], tokens.shape)
        shown = np.where(chosen & (how < 0.8), self._mask_token, tokens)
        shown = np.where(chosen & (how >= 0.9), other, shown)
        return shown.astype(np.int64), np.where(chosen, tokens, _IGNORED)

    def _masking(self) -> tuple[int, tuple[int, ...]]:
        tokenizer = load_tokenizer(self.base.directory)
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                f"the tokenizer of base model {self.base.name} has no mask token: give labelled texts"
            )
        return int(tokenizer.mask_token_id), tuple(int(token) for token in tokenizer.all_special_ids)

    def _factor_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(p.shape)
            for name, p in self._parameters.items()
            if ".lora_A." in name or ".lora_B." in name
        }


def lora_config(base: BaseModel, settings: RunSettings, objective: Objective) -> Any:
    """PEFT's configuration of this adapter."""
    from peft import LoraConfig

    kinds = {"causal": "CAUSAL_LM", "masked": None, "labelled": "SEQ_CLS"}  # PEFT has no type for masked
    targets = settings.lora.targets
    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.variant == "dora",
        use_rslora=settings.variant == "rslora",
        task_type=kinds[objective],
        base_model_name_or_path=str(base.directory),
    )


def _inject(model: Any, base: BaseModel, settings: RunSettings, objective: Objective) -> Any:
    from peft import get_peft_model, prepare_model_for_kbit_training

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers, about PEFT's own code
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT sees GPT-2's Conv1D itself
            if settings.quantization == "nf4":
                model = prepare_model_for_kbit_training(
                    model, use_gradient_checkpointing=settings.recompute_activations
                )
            return get_peft_model(model, lora_config(base, settings, objective))
    except ValueError as error:
        raise ConfigError(f"PEFT cannot inject LoRA into base model {base.name}: {error}") from error
