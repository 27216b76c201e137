"""Text from one frozen base and many adapters: every step of every request in one pass.

Rows of a batch belong to requests, each with its own adapter (batched_lora.StackedLora). A request enters
between two steps and leaves when it is done: nobody waits for the longest. Not for several threads; imports
torch when made. Its text is serving_text.py's. Called by runtime/serving_engine.py and benchmarks.
"""

from __future__ import annotations

import inspect
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

FinishReason = Literal["stop", "length", "cancelled"]

LIKELIEST_MAX = 5
"""Tokens whose probabilities are told beside the one that was taken."""

BASE_KEY = ""
"""Key of the base model alone, which is always loaded."""


LOGPROB_MIN = -9999.0
"""Stands for minus infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token, and how likely the model held it to be: natural logarithms at temperature 1, without top_p."""

    token: int

    logprob: float | None = None
    """None where nobody asked, and for the first token of a prompt, which follows nothing."""

    likeliest: tuple[tuple[int, float], ...] = ()
    """(token, logprob) of the likeliest ones in this place, best first."""


@dataclass(slots=True)
class Generation:
    """One request: what it asks for, and how far it is."""

    adapter: str
    """Key under which the adapter was put, or BASE_KEY."""

    prompt: Sequence[int]
    """At least one token."""

    tokens_max: int
    """0: nothing is generated; the prompt is scored, where that is asked for."""

    temperature: float = 0.0
    """0: the likeliest token, always."""

    top_p: float = 1.0

    seed: int = 0

    likeliest: int | None = None
    """How many tokens are told in each place with their probabilities, 0 to LIKELIEST_MAX. None: none is
    scored."""

    on_prompt: Callable[[list[Scored]], None] | None = None
    """Called once with the prompt's tokens, scored where `likeliest` asks for it. None: not wanted."""

    on_token: Callable[[Scored], bool] = lambda scored: False
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
        _require_keys_and_values(self._model)
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

    def admit(self, *requests: Generation) -> None:
        """Read a prompt and generate the first token of each request for it.

        Several requests must have one prompt and one adapter: it is read once, and they go on from there.
        Raises ServiceError for an adapter not loaded, or a base whose past cannot be joined row by row.
        """
        import torch
        from transformers import DynamicCache

        first = requests[0]
        if first.adapter not in self._slots:
            raise ServiceError(f"adapter {first.adapter} is not loaded")
        assert first.prompt, "a prompt has a token"
        assert all((r.adapter, r.prompt) == (first.adapter, first.prompt) for r in requests), "one prompt"
        tokens = torch.tensor([list(first.prompt)], device=self._device)
        scores = any(request.on_prompt is not None and request.likeliest is not None for request in requests)
        with torch.inference_mode():
            self._point_at([first])
            # one that simply grows, also where the base has a window: masks keep to it all the same
            output = self._model(
                input_ids=tokens, past_key_values=DynamicCache(), use_cache=True, **self._last_place(scores)
            )
            logits = output.logits[0].float().cpu()
            writing = [request for request in requests if request.tokens_max > 0]
            if writing:
                cache = [
                    (
                        layer.keys.expand(len(writing), -1, -1, -1),
                        layer.values.expand(len(writing), -1, -1, -1),
                    )
                    for layer in _layers(output.past_key_values)
                ]
                self._join(cache, torch.ones_like(tokens).expand(len(writing), -1))
        for request in requests:
            request.random = torch.Generator(device="cpu").manual_seed(request.seed)
            if request.on_prompt is not None:
                request.on_prompt(score_prompt(logits, request))
            if request.tokens_max == 0:
                request.on_end("length")
        self._rows += writing
        self._take(logits[-1:].expand(len(writing), -1), writing)

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
            if token in self._end_tokens or row.on_token(scored(scores, token, row.likeliest)):
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
        """Put rows below the others; the shorter are filled up on the left, and masked there."""
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

    def _last_place(self, all_places: bool) -> dict[str, int]:
        """Of a long prompt only the last place's logits are wanted, and with a large vocabulary the others
        are most of the memory; where the base cannot leave them out it does not matter."""
        knows = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        return {"logits_to_keep": 1} if knows and not all_places else {}

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


def scored(logits: Any, token: int, likeliest: int | None) -> Scored:
    """A token taken in a place with these logits, (vocabulary,)."""
    if likeliest is None:
        return Scored(token)
    logprobs = logits.log_softmax(-1)
    logprobs = logprobs.clamp(min=LOGPROB_MIN)
    values, tokens = logprobs.topk(min(likeliest, len(logprobs)))
    best = tuple((int(t), float(v)) for t, v in zip(tokens, values, strict=True))
    return Scored(token, float(logprobs[token]), best)


def score_prompt(logits: Any, request: Generation) -> list[Scored]:
    """The prompt's tokens, each by the logits of the place before it, (tokens, vocabulary)."""
    if request.likeliest is None:
        return [Scored(token) for token in request.prompt]
    first, *others = request.prompt
    found = [scored(row, token, request.likeliest) for row, token in zip(logits, others, strict=False)]
    return [Scored(first), *found]


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
            raise _unjoinable(type(layer).__name__)
    return list(cache.layers)


def _require_keys_and_values(model: Any) -> None:
    """Raises ServiceError for a base that keeps something else of its past (Mamba's states, say)."""
    knows = inspect.signature(model.forward).parameters
    if getattr(model, "_is_stateful", False) or not {"past_key_values", "position_ids"} <= set(knows):
        raise _unjoinable(f"state of {type(model).__name__}")


def _unjoinable(what: str) -> ServiceError:
    return ServiceError(
        f"this base keeps its past in a {what}, and rows of such cannot be joined\n"
        "  merge the adapter into the base and serve that with another server"
    )
