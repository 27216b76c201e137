"""An adapter server with OpenAI's completions interface: one base, an adapter per request.

    GET  /v1/models         the base and the adapters that are loaded
    POST /v1/completions    model: the base's name, ID, ID@VERSION or ID@latest; also streamed (SSE)
    GET  /health

Every answer has a `citrate` object that names base, adapter, version and hash, and every request leaves a
line in the runtime record. Errors have OpenAI's shape. Called by cli/adapter_serve.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import CitrateError, ConfigError, ServiceError
from .adapters_files import BaseModelMismatch
from .serving_adapters import Loaded, NoRoom, NotAllowed, ServedAdapters, UnknownModel
from .serving_config import CallerKey, ServeConfig
from .serving_engine import ServingEngine, Wanted

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "logprobs": (None,),
    "suffix": (None, ""),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
}
"""Parameters of OpenAI's that this server does not carry out, and the values that ask for nothing."""

_KNOWN = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
    *("user", *_NEUTRAL),
}


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


class AdapterServer:
    """Listens between `start` and `stop`. adapters: where models come from."""

    def __init__(self, engine: ServingEngine, adapters: ServedAdapters, config: ServeConfig) -> None:
        config.require_safe()
        self._engine = engine
        self._adapters = adapters
        self._config = config
        self._running = 0
        self._started_at = int(time.time())
        self._runner: web.AppRunner | None = None
        self._record = Path(config.server.record) if config.server.record else None

    @property
    def address(self) -> str:
        """Where it listens, as a URL, once started."""
        assert self._runner is not None, "the server is not started"
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        """Raises ServiceError where the address cannot be had."""
        app = web.Application(
            client_max_size=self._config.limits.body_bytes_max, middlewares=[_errors_as_openai]
        )
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._model)
        app.router.add_post("/v1/completions", self._completions)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=30, handler_cancellation=True)
        await runner.setup()
        place = self._config.server
        try:
            await web.TCPSite(runner, place.host, place.port).start()
        except OSError as error:
            await runner.cleanup()
            raise ServiceError(
                f"cannot listen on {place.host}:{place.port}: {error.strerror}\n  choose another with --port"
            ) from None
        self._runner = runner

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # ---------------------------------------------------------------- handlers

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "running": self._running})

    async def _models(self, request: web.Request) -> web.Response:
        self._caller(request)
        rows = [self._row(Loaded("")), *(self._row(each) for each in self._adapters.loaded)]
        return web.json_response({"object": "list", "data": rows})

    async def _model(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        async with self._model_of(request.match_info["model"], caller) as found:
            return web.json_response(self._row(found))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        limits = self._config.limits
        if self._running >= limits.requests_max:
            raise RequestError(
                429, f"{self._running} requests are under way, the limit; try again", code="busy"
            )
        self._running += 1
        try:
            asked = parse_completion(await self._body(request), limits.tokens_max)
            async with self._model_of(asked.model, caller) as found:
                return await self._answer(request, asked, found, caller)
        finally:
            self._running -= 1

    async def _answer(
        self, request: web.Request, asked: CompletionRequest, found: Loaded, caller: CallerKey | None
    ) -> web.StreamResponse:
        prompt = self._tokens(asked)
        answer = _Answer(self, asked, found, caller, len(prompt))
        wanted = Wanted(
            found.key,
            prompt,
            asked.tokens_max,
            asked.temperature,
            asked.top_p,
            asked.seed,
            asked.stops,
        )
        pieces = self._engine.generate(wanted)
        response: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(self._config.limits.request_seconds_max):
                async for piece in pieces:
                    answer.add(piece.text, piece.tokens, piece.finish_reason)
                    if asked.stream:
                        if response is None:
                            response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
                            response.content_type = "text/event-stream"
                            await response.prepare(request)
                        await response.write(_event(answer.chunk(piece.text, piece.finish_reason)))
            if response is None:
                return web.json_response(answer.whole())
            if asked.usage_in_stream:
                await response.write(_event(answer.usage_chunk()))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
            return response
        except (TimeoutError, ServiceError) as error:
            if isinstance(error, TimeoutError):
                seconds = self._config.limits.request_seconds_max
                refused = RequestError(504, f"no answer within {seconds:g} s, the limit", code="timeout")
            else:
                refused = RequestError(503, str(error))
            answer.finish_reason = "timeout" if refused.status == 504 else "error"
            if response is None:
                raise refused from None
            await response.write(_event(refused.body))  # the status is sent already
            return response
        except (asyncio.CancelledError, ConnectionError):
            answer.finish_reason = "cancelled"  # the caller went away
            raise
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # an async generator, typed as an iterator
            self._keep(answer.record())

    # ---------------------------------------------------------------- parts

    def _caller(self, request: web.Request) -> CallerKey | None:
        access = self._config.access
        if not access.keys:
            return None
        caller = access.caller(request.headers.get("Authorization"))
        if caller is None:
            raise RequestError(
                401, "no such API key; send it as `Authorization: Bearer KEY`", code="invalid_api_key"
            )
        return caller

    async def _body(self, request: web.Request) -> Any:
        limit = self._config.limits.body_bytes_max
        try:
            async with asyncio.timeout(self._config.limits.request_seconds_max):
                raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise RequestError(413, f"the body is larger than {limit} bytes", code="body_too_large") from None
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is no JSON: {error}") from None

    def _model_of(self, model: str, caller: CallerKey | None) -> Any:
        return _named(self._adapters.use(model, caller))

    def _tokens(self, asked: CompletionRequest) -> list[int]:
        tokens = self._engine.text.encode(asked.prompt)
        limit = min(self._config.limits.prompt_tokens_max, self._engine.length_max - asked.tokens_max)
        if not tokens:
            raise RequestError(400, "prompt is empty: give at least one token", param="prompt")
        if len(tokens) > limit:
            raise RequestError(
                400,
                f"prompt has {len(tokens)} tokens, the limit beside {asked.tokens_max} max_tokens is {limit}",
                param="prompt",
                code="context_length_exceeded",
            )
        return tokens

    def _row(self, found: Loaded) -> dict[str, Any]:
        base = self._engine.base
        return {
            "id": found.key or base.name,
            "object": "model",
            "created": self._started_at,
            "owned_by": found.creator or "base",
            "citrate": found.facts(base),
        }

    def facts(self, found: Loaded) -> dict[str, object]:
        return found.facts(self._engine.base)

    def _keep(self, record: Mapping[str, Any]) -> None:
        """One line, in one write: lines of a record never mix, and a full disk stops no answer."""
        if self._record is None:
            return
        line = json.dumps(record, separators=(",", ":")) + "\n"
        try:
            with self._record.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            text = f"citrate: cannot write the runtime record {self._record}: {error.strerror}"
            print(text, file=sys.stderr, flush=True)


class _Answer:
    """One completion, as it grows."""

    def __init__(
        self,
        server: AdapterServer,
        asked: CompletionRequest,
        found: Loaded,
        caller: CallerKey | None,
        prompt_tokens: int,
    ) -> None:
        self.asked = asked
        self.facts = server.facts(found)
        self.model = found.key or str(self.facts["base_model"])
        self.caller = caller
        self.prompt_tokens = prompt_tokens
        self.id = "cmpl-" + secrets.token_hex(12)
        self.created = time.time()
        self.started = time.perf_counter()
        self.text = ""
        self.tokens = 0
        self.finish_reason: str | None = None

    def add(self, text: str, tokens: int, reason: str | None) -> None:
        self.text += text
        self.tokens, self.finish_reason = tokens, reason

    def chunk(self, text: str, reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return {**self._head(), "choices": [choice]}

    def whole(self) -> dict[str, Any]:
        return {**self.chunk(self.text, self.finish_reason), "usage": self._usage()}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head(), "choices": [], "usage": self._usage()}

    def record(self) -> dict[str, Any]:
        """Who asked what produced which text; the texts themselves only as hashes."""
        return {
            "time": round(self.created, 3),
            "id": self.id,
            "caller": self.caller.name if self.caller is not None else None,
            "model": self.asked.model,
            **self.facts,
            **self._usage(),
            "prompt_sha256": hashlib.sha256(self.asked.prompt.encode()).hexdigest(),
            "completion_sha256": hashlib.sha256(self.text.encode()).hexdigest(),
            "temperature": self.asked.temperature,
            "top_p": self.asked.top_p,
            "seed": self.asked.seed,
            "finish_reason": self.finish_reason,
            "seconds": round(time.perf_counter() - self.started, 4),
        }

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": int(self.created),
            "model": self.model,
            "citrate": self.facts,
        }

    def _usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": total,
        }


def parse_completion(body: Any, tokens_max: int) -> CompletionRequest:
    """Raises RequestError, naming the parameter and its limit."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object")
    if unknown := sorted(set(map(str, body)) - _KNOWN):
        raise RequestError(400, f"unknown parameter {unknown[0]!r}", param=unknown[0])
    for name, neutral in _NEUTRAL.items():
        if name in body and body[name] not in neutral:
            raise RequestError(400, f"{name} is not supported by this server; leave it out", param=name)
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError(400, "prompt must be one text", param="prompt")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError(400, "prompt holds half of a surrogate pair", param="prompt") from None
    if not isinstance(body.get("model"), str):
        raise RequestError(400, "model must be a text: GET /v1/models names some", param="model")
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(each, str) for each in stops):
        raise RequestError(400, "stop must be a text, or a list of at most 4", param="stop")
    seed = body.get("seed")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "stream_options must be an object", param="stream_options")
    return CompletionRequest(
        model=body["model"],
        prompt=prompt,
        tokens_max=int(_number(body, "max_tokens", 16, 1, tokens_max, whole=True)),
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 1e-6, 1.0),
        seed=secrets.randbits(63)
        if seed is None
        else int(_number(body, "seed", 0, -(2**63), 2**63 - 1, whole=True)),
        stops=tuple(stops),
        stream=bool(body.get("stream")),
        usage_in_stream=bool(options.get("include_usage")),
    )


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


class _named:
    """`async with` that turns what loading an adapter raises into errors of OpenAI's shape."""

    def __init__(self, using: Any) -> None:
        self._using = using

    async def __aenter__(self) -> Loaded:
        try:
            found: Loaded = await self._using.__aenter__()
        except UnknownModel as error:
            raise RequestError(404, str(error), param="model", code="model_not_found") from None
        except NotAllowed as error:
            raise RequestError(403, str(error), param="model", code="adapter_not_allowed") from None
        except NoRoom as error:
            raise RequestError(429, str(error), param="model", code="no_room") from None
        except BaseModelMismatch as error:
            raise RequestError(400, str(error), param="model", code="base_model_mismatch") from None
        except ConfigError as error:
            raise RequestError(400, str(error), param="model", code="adapter_refused") from None
        except CitrateError as error:
            raise RequestError(503, str(error), param="model", code="adapter_unverified") from None
        return found

    async def __aexit__(self, *error: Any) -> None:
        await self._using.__aexit__(*error)


@web.middleware
async def _errors_as_openai(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except RequestError as error:
        return web.json_response(error.body, status=error.status)
    except web.HTTPException as error:
        return web.json_response(RequestError(error.status, error.reason).body, status=error.status)
    except CitrateError as error:
        return web.json_response(RequestError(503, str(error)).body, status=503)
    return response


def _event(facts: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(facts, separators=(",", ":")).encode() + b"\n\n"
