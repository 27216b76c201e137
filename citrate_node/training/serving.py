"""Text from one frozen base and many adapters: every step of every request in one pass.

Rows of a batch belong to requests, each with its own adapter (batched_lora.StackedLora). A request enters
between two steps and leaves when it is done: nobody waits for the longest. Not for several threads; imports
torch when made. Called by runtime/serving_engine.py and benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.training.base_model import BaseModel
from citrate_node.training.batched_lora import StackedLora, Weights
from citrate_node.training.data import encoder

FinishReason = Literal["stop", "length", "cancelled"]

BASE_KEY = ""
"""Key of the base model alone, which is always loaded."""


@dataclass(slots=True)
class Generation:
    """One request: what it asks for, and how far it is."""

    adapter: str
    """Key under which the adapter was put, or BASE_KEY."""

    prompt: Sequence[int]
    """At least one token."""

    tokens_max: int

    temperature: float = 0.0
    """0: the likeliest token, always."""

    top_p: float = 1.0

    seed: int = 0

    on_token: Callable[[int], bool] = lambda token: False
    """Called with every token in its turn; True ends the request with "stop"."""

    on_end: Callable[[FinishReason], None] = lambda reason: None

    tokens: list[int] = field(default_factory=list)
    """What was generated so far."""

    cancelled: bool = False
    """Set by whoever waits no longer; the row is given up before the next step."""

    random: Any = None


class BatchedGenerator:
    """One base in memory and the adapters that were put beside it."""

    def __init__(self, base: BaseModel, *, threads: int = 1, device: str = "cpu") -> None:
        from citrate_node.training.lora import load_base, quick_import

        with quick_import():
            import torch

            if device == "cpu":
                torch.set_num_threads(threads)
            self._model = load_base(base).to(device).eval()
        self.base = base
        self._device = device
        self._adapters: dict[str, AdapterWeights] = {}
        self._slots: dict[str, int] = {BASE_KEY: 0}
        self._lora: StackedLora | None = None
        self._rows: list[Generation] = []
        self._cache: list[tuple[Any, Any]] = []  # keys and values of each layer, (rows, heads, tokens, size)
        self._mask: Any = None  # (rows, tokens), 0 where a shorter row was filled up on the left

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    @property
    def busy(self) -> int:
        """Requests under way."""
        return len(self._rows)

    @cached_property
    def length_max(self) -> int:
        """Tokens that the base can attend to, prompt and answer together."""
        config = self.base.config
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 1024)

    def put(self, key: str, weights: AdapterWeights) -> None:
        """Load an adapter while requests run. Raises ConfigError for another base's."""
        if weights.config.base_model_id != self.base.base_model_id:
            raise ConfigError(
                f"the adapter is made for base model {weights.config.base_model_id.hex()}, this server has "
                f"{self.base.base_model_id.hex()}"
            )
        self._stack({**self._adapters, key: weights})

    def drop(self, key: str) -> None:
        """Forget an adapter. Raises ValueError while a request uses it."""
        if any(row.adapter == key for row in self._rows):
            raise ValueError(f"adapter {key} is in use")
        self._stack({name: weights for name, weights in self._adapters.items() if name != key})

    def admit(self, request: Generation) -> None:
        """Read the prompt and generate the first token. Raises ServiceError for an adapter not loaded."""
        import torch

        if request.adapter not in self._slots:
            raise ServiceError(f"adapter {request.adapter} is not loaded")
        assert request.prompt, "a prompt has a token"
        request.random = torch.Generator(device="cpu").manual_seed(request.seed)
        tokens = torch.tensor([list(request.prompt)], device=self._device)
        with torch.inference_mode():
            self._point_at([request])
            output = self._model(input_ids=tokens, use_cache=True)
            logits = output.logits[:, -1].float().cpu()
            cache = [(layer.keys, layer.values) for layer in _layers(output.past_key_values)]
            self._join(cache, torch.ones_like(tokens))
        self._rows.append(request)
        self._take(logits, [request])

    def step(self) -> None:
        """One token more for every request under way."""
        import torch
        from transformers import DynamicCache

        self._leave([row.cancelled for row in self._rows], "cancelled")
        if not self._rows:
            return
        last = torch.tensor([[row.tokens[-1]] for row in self._rows], device=self._device)
        places = torch.tensor(
            [[len(row.prompt) + len(row.tokens) - 1] for row in self._rows], device=self._device
        )
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        with torch.inference_mode():
            self._point_at(self._rows)
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(self._cache):
                cache.update(keys, values, layer)
            output = self._model(
                input_ids=last,
                attention_mask=self._mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            )
            self._cache = [(layer.keys, layer.values) for layer in _layers(output.past_key_values)]
            logits = output.logits[:, -1].float().cpu()
        self._take(logits, list(self._rows))

    def give_up(self) -> None:
        """End every request as cancelled."""
        self._leave([True] * len(self._rows), "cancelled")

    # ---------------------------------------------------------------- rows

    def _take(self, logits: Any, rows: list[Generation]) -> None:
        """Choose a token for each row, tell who waits, and let go of those that are done."""
        reasons: dict[int, FinishReason] = {}
        for row, scores in zip(rows, logits, strict=True):
            token = choose(scores, row)
            row.tokens.append(token)
            if token in self._end_tokens or row.on_token(token):
                reasons[id(row)] = "stop"
            elif len(row.tokens) >= row.tokens_max:
                reasons[id(row)] = "length"
        for reason in set(reasons.values()):
            self._leave([reasons.get(id(row)) == reason for row in self._rows], reason)

    def _leave(self, gone: list[bool], reason: FinishReason) -> None:
        """Take rows out of the batch, and the filling that only they needed."""
        import torch

        if not any(gone):
            return
        left = [row for row, is_gone in zip(self._rows, gone, strict=True) if is_gone]
        stay = [place for place, is_gone in enumerate(gone) if not is_gone]
        self._rows = [self._rows[place] for place in stay]
        if stay:
            index = torch.tensor(stay, device=self._device)
            self._mask = self._mask[index]
            unused = int((self._mask.sum(dim=0) == 0).sum())  # the filling is at the left alone
            self._mask = self._mask[:, unused:]
            self._cache = [(k[index][:, :, unused:], v[index][:, :, unused:]) for k, v in self._cache]
        else:
            self._cache, self._mask = [], None
        for row in left:
            row.on_end(reason)

    def _join(self, cache: list[tuple[Any, Any]], mask: Any) -> None:
        """Put one more row below the others; the shorter are filled up on the left, and masked there."""
        import torch

        if not self._rows:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])

        def filled(tensor: Any, axis: int) -> Any:
            missing = width - tensor.shape[axis]
            pads = (missing, 0) if axis == 1 else (0, 0, missing, 0)
            return torch.nn.functional.pad(tensor, pads)

        self._mask = torch.cat([filled(self._mask, 1), filled(mask, 1)])
        self._cache = [
            (torch.cat([filled(k, 2), filled(key, 2)]), torch.cat([filled(v, 2), filled(value, 2)]))
            for (k, v), (key, value) in zip(self._cache, cache, strict=True)
        ]

    # ---------------------------------------------------------------- adapters

    def _point_at(self, rows: Sequence[Generation]) -> None:
        if self._lora is not None:
            self._lora.rows(np.array([self._slots[row.adapter] for row in rows], dtype=np.int64))

    def _stack(self, adapters: dict[str, AdapterWeights]) -> None:
        """Hold these, each filled up to the largest rank and to every module that one of them has."""
        shapes: dict[str, tuple[int, int]] = {}
        rank = max((weights.config.rank for weights in adapters.values()), default=1)
        for weights in adapters.values():
            for spec in weights.manifest.specs:
                rows, columns = spec.shape
                shapes[spec.name] = (rank, columns) if ".lora_A." in spec.name else (rows, rank)
        tensors = [_filled(weights, shapes) for weights in adapters.values()]
        scalings = [weights.config.alpha / weights.config.rank for weights in adapters.values()]
        lora = None
        if adapters:
            lora = StackedLora(self._model, shapes, 1.0)
            try:
                lora.load([None, *tensors], [1.0, *scalings])
            except BaseException:
                lora.close()
                raise
        if self._lora is not None:
            self._lora.close()
        self._lora, self._adapters = lora, adapters
        self._slots = {BASE_KEY: 0, **{key: place for place, key in enumerate(adapters, 1)}}

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        end = getattr(self._model.generation_config, "eos_token_id", None)
        return frozenset(end if isinstance(end, list) else [] if end is None else [end])


def choose(scores: Any, row: Generation) -> int:
    """A token from one row of logits: the likeliest, or drawn at a temperature from the top_p likeliest.

    Source: nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751.
    """
    import torch

    if row.temperature == 0.0:
        return int(scores.argmax())
    likely = torch.softmax(scores / row.temperature, dim=-1)
    if row.top_p < 1.0:
        ordered, index = likely.sort(descending=True)
        kept = ordered.cumsum(0) - ordered < row.top_p  # the token that crosses the line is in
        likely = torch.zeros_like(likely).scatter(0, index, ordered * kept)
    return int(torch.multinomial(likely, 1, generator=row.random))


class TokenText:
    """Between text and tokens: for the embedded base by bytes, for any other by its own tokenizer."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._tokenizer: Any = None

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in encoder(self._base)(text.encode())]

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no whole character become U+FFFD."""
        if self._base.byte_level:
            return bytes(tokens).decode("utf-8", errors="replace")
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(
                str(self._base.directory), trust_remote_code=False, local_files_only=True
            )
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class TextStream:
    """Tokens of one answer to pieces of text: no half characters, and nothing from a stop text on."""

    def __init__(self, text: TokenText, stops: Sequence[str]) -> None:
        self._text = text
        self._stops = [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> tuple[str, bool]:
        """(the text that is certain now, whether a stop text has come)."""
        self._tokens.append(token)
        whole = self._text.decode(self._tokens)
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if found:
            return self._give(whole[: min(found)]), True
        certain = whole.rstrip("\ufffd")  # may be the first bytes of a character
        held = max(
            (n for stop in self._stops for n in range(1, len(stop)) if certain.endswith(stop[:n])), default=0
        )
        return self._give(certain[: len(certain) - held]), False

    def rest(self) -> str:
        """What was held back, once no token will follow."""
        return self._give(self._text.decode(self._tokens))

    def _give(self, text: str) -> str:
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece


def _filled(weights: AdapterWeights, shapes: dict[str, tuple[int, int]]) -> Weights:
    """The adapter's tensors, and zeros of rank 1 for modules that it leaves alone."""
    own = weights.tensors()
    missing: dict[str, npt.NDArray[np.float32]] = {}
    for name, (rows, columns) in shapes.items():
        if name not in own:
            shape = (1, columns) if ".lora_A." in name else (rows, 1)
            missing[name] = np.zeros(shape, dtype=np.float32)
    return {**own, **missing}


def _layers(cache: Any) -> list[Any]:
    """Layers of keys and values that simply grow: only those can be joined row by row."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer) is not DynamicLayer:
            raise ServiceError(
                f"this base keeps its past in a {type(layer).__name__}, and rows of such cannot be joined\n"
                "  merge the adapter into the base and serve that with another server"
            )
    return list(cache.layers)
