"""An adapter server with OpenAI's completions interface: one base, an adapter per request.

    GET  /v1/models         the base and the adapters that are loaded
    POST /v1/completions    model: the base's name, ID, ID@VERSION or ID@latest; also streamed (SSE)
    GET  /health

Every answer has a `citrate` object that names base, adapter, version and hash, and every request leaves a
line in the runtime record. What a request and an answer look like is serving_openai.py's. Called by
cli/adapter_serve.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import CitrateError, ConfigError, ServiceError
from .adapters_files import BaseModelMismatch
from .serving_adapters import Loaded, NoRoom, NotAllowed, ServedAdapters, UnknownModel
from .serving_config import CallerKey, ServeConfig
from .serving_engine import ServingEngine, Wanted
from .serving_openai import Answer, CompletionRequest, RequestError, event, parse_completion


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
        rows = [self._row(each) for each in (Loaded(""), *self._adapters.loaded)]
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
        taken = 1
        self._running += taken
        try:
            asked = parse_completion(await self._body(request), limits)
            more = asked.choices - 1
            if self._running + more > limits.requests_max:
                raise RequestError(
                    429,
                    f"n is {asked.choices} and {self._running - 1} requests are under way, the limit is "
                    f"{limits.requests_max} texts at a time; try again, or with fewer",
                    param="n",
                    code="busy",
                )
            taken += more
            self._running += more
            async with self._model_of(asked.model, caller) as found:
                return await self._answer(request, asked, found, caller)
        finally:
            self._running -= taken

    async def _answer(
        self, request: web.Request, asked: CompletionRequest, found: Loaded, caller: CallerKey | None
    ) -> web.StreamResponse:
        prompt = self._tokens(asked)
        facts = found.facts(self._engine.base)
        model = found.key or self._engine.base.name
        answer = Answer(asked, model, facts, caller.name if caller is not None else None, len(prompt))
        pieces = self._engine.generate(
            Wanted(
                adapter=found.key,
                prompt=prompt,
                tokens_max=asked.tokens_max,
                temperature=asked.temperature,
                top_p=asked.top_p,
                seed=asked.seed,
                stops=asked.stops,
                choices=asked.choices,
                likeliest=asked.logprobs,
                echo=asked.prompt if asked.echo else None,
            )
        )
        response: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(self._config.limits.request_seconds_max):
                async for piece in pieces:
                    answer.add(piece)
                    if asked.stream:
                        if response is None:
                            response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
                            response.content_type = "text/event-stream"
                            await response.prepare(request)
                        await response.write(event(answer.chunk(piece)))
            answer.ended = "done"
            if response is None:
                return web.json_response(answer.whole())
            if asked.usage_in_stream:
                await response.write(event(answer.usage_chunk()))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
            return response
        except (TimeoutError, ServiceError) as error:
            if isinstance(error, TimeoutError):
                seconds = self._config.limits.request_seconds_max
                refused = RequestError(504, f"no answer within {seconds:g} s, the limit", code="timeout")
            else:
                refused = RequestError(503, str(error))
            answer.ended = "timeout" if refused.status == 504 else "error"
            if response is None:
                raise refused from None
            await response.write(event(refused.body))  # the status is sent already
            return response
        except (asyncio.CancelledError, ConnectionError):
            answer.ended = "cancelled"  # the caller went away
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
            "owned_by": found.creator or found.source,
            "citrate": found.facts(base),
        }

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
