"""OpenAI's completions as this server takes and gives them: a body that is checked, an answer as it grows.

A parameter of OpenAI's that is not carried out is refused by name, with what to do, unless it asks for
nothing. Free of the network. Called by runtime/serving_http.py.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..training.serving import LIKELIEST_MAX
from .serving_config import ServeLimits
from .serving_engine import NamedToken, Piece

_NOT_CARRIED_OUT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "suffix": ((None, ""), "these bases continue a text and fill none in"),
    "presence_penalty": ((0, None), "lower top_p or raise temperature instead"),
    "frequency_penalty": ((0, None), "lower top_p or raise temperature instead"),
    "logit_bias": ((None, {}), "no token can be favoured here"),
}
"""Parameters of OpenAI's that this server does not carry out: values that ask for nothing, and why not."""

_KNOWN = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
    *("n", "best_of", "logprobs", "echo", "user", *_NOT_CARRIED_OUT),
}

STOPS_MAX = 4


class RequestError(Exception):
    """A request that gets an error, in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        usual = "invalid_request_error" if status < 500 else "server_error"
        self.body = {
            "error": {
                "message": message,
                "type": kind.get(status, usual),
                "param": param,
                "code": code,
            }
        }


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A body that was checked."""

    model: str
    prompt: str
    tokens_max: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]
    stream: bool
    usage_in_stream: bool
    choices: int = 1
    logprobs: int | None = None
    """Likeliest tokens to tell in each place, beside the one that was taken; None: no probabilities."""
    echo: bool = False


def parse_completion(body: Any, limits: ServeLimits) -> CompletionRequest:
    """Raises RequestError, naming the parameter, its limit, and what to do."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object")
    if unknown := sorted(set(map(str, body)) - _KNOWN):
        raise RequestError(400, f"unknown parameter {unknown[0]!r}", param=unknown[0])
    for name, (neutral, why) in _NOT_CARRIED_OUT.items():
        if name in body and body[name] not in neutral:
            raise RequestError(
                400, f"{name} is not supported by this server: {why}; leave it out", param=name
            )
    if not isinstance(body.get("model"), str):
        raise RequestError(400, "model must be a text: GET /v1/models names some", param="model")
    choices = int(_number(body, "n", 1, 1, limits.choices_max, whole=True))
    if body.get("best_of") not in (None, choices):
        raise RequestError(
            400, f"best_of must be n ({choices}): every text that is made is given; take n", param="best_of"
        )
    echo = _flag(body, "echo")
    seed = body.get("seed")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "stream_options must be an object", param="stream_options")
    return CompletionRequest(
        model=body["model"],
        prompt=_prompt(body),
        tokens_max=int(_number(body, "max_tokens", 16, 0 if echo else 1, limits.tokens_max, whole=True)),
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 1e-6, 1.0),
        seed=secrets.randbits(63)
        if seed is None
        else int(_number(body, "seed", 0, -(2**63), 2**63 - 1, whole=True)),
        stops=_stops(body),
        stream=_flag(body, "stream"),
        usage_in_stream=_flag(options, "include_usage"),
        choices=choices,
        logprobs=None
        if body.get("logprobs") is None
        else int(_number(body, "logprobs", 0, 0, LIKELIEST_MAX, whole=True)),
        echo=echo,
    )


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError(
            400, "prompt must be one text; send a request for each: they share a batch", param="prompt"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError(400, "prompt holds half of a surrogate pair", param="prompt") from None
    return prompt


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    texts = isinstance(stops, list) and all(isinstance(each, str) for each in stops)
    if not texts or len(stops) > STOPS_MAX:
        raise RequestError(400, f"stop must be a text, or a list of at most {STOPS_MAX}", param="stop")
    return tuple(stops)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"{name} must be true or false", param=name)
    return bool(value)


def _number(
    body: Mapping[str, Any], name: str, usual: float, least: float, most: float, *, whole: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise RequestError(400, f"{name} must be a {'whole ' if whole else ''}number", param=name)
    if not least <= value <= most:
        raise RequestError(400, f"{name} is {value}, it must lie from {least} to {most}", param=name)
    return value


@dataclass(slots=True)
class _Text:
    """One choice, as far as it is."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    named: list[NamedToken] = field(default_factory=list)


class Answer:
    """One completion, as it grows. facts: what produced it. caller: the name of the key, if any."""

    def __init__(
        self,
        asked: CompletionRequest,
        model: str,
        facts: Mapping[str, object],
        caller: str | None,
        prompt_tokens: int,
    ) -> None:
        self._asked, self._model, self._facts, self._caller = asked, model, facts, caller
        self._prompt_tokens = prompt_tokens
        self._id = "cmpl-" + secrets.token_hex(12)
        self._created = time.time()
        self._started = time.perf_counter()
        self._texts = [_Text() for _ in range(asked.choices)]
        self.ended = "error"
        """How the request ended: "done", "cancelled", "timeout" or "error"."""

    def add(self, piece: Piece) -> None:
        text = self._texts[piece.choice]
        text.text += piece.text
        text.tokens, text.finish_reason = piece.tokens, piece.finish_reason
        text.named += piece.named

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One event of a stream."""
        choice = self._choice(piece.choice, piece.text, piece.named, piece.finish_reason)
        return {**self._head(), "choices": [choice]}

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(number, each.text, each.named, each.finish_reason)
            for number, each in enumerate(self._texts)
        ]
        return {**self._head(), "choices": choices, "usage": self._usage()}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head(), "choices": [], "usage": self._usage()}

    def record(self) -> dict[str, Any]:
        """Who asked what produced which texts; the texts themselves only as hashes, without an echo."""
        asked = self._asked
        before = len(asked.prompt) if asked.echo else 0
        choices = [
            {
                "completion_sha256": hashlib.sha256(each.text[before:].encode()).hexdigest(),
                "completion_tokens": each.tokens,
                "finish_reason": each.finish_reason,
            }
            for each in self._texts
        ]
        return {
            "time": round(self._created, 3),
            "id": self._id,
            "caller": self._caller,
            "model": asked.model,
            **self._facts,
            **self._usage(),
            "prompt_sha256": hashlib.sha256(asked.prompt.encode()).hexdigest(),
            "choices": choices,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "seed": asked.seed,
            "ended": self.ended,
            "seconds": round(time.perf_counter() - self._started, 4),
        }

    def _choice(
        self, number: int, text: str, named: list[NamedToken] | tuple[NamedToken, ...], reason: str | None
    ) -> dict[str, Any]:
        logprobs = None if self._asked.logprobs is None else _logprobs(named)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": int(self._created),
            "model": self._model,
            "citrate": self._facts,
        }

    def _usage(self) -> dict[str, int]:
        made = sum(each.tokens for each in self._texts)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
        }


def event(facts: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(facts, separators=(",", ":")).encode() + b"\n\n"


def _logprobs(named: list[NamedToken] | tuple[NamedToken, ...]) -> dict[str, Any]:
    """Four lists of one length, as OpenAI's completions have them."""
    return {
        "tokens": [each.text for each in named],
        "token_logprobs": [each.logprob for each in named],
        "top_logprobs": [each.likeliest for each in named],
        "text_offset": [each.place for each in named],
    }
