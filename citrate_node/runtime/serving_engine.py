"""The batched generator in a thread of its own behind an asyncio facade.

One thread steps the batch and is told, between two steps, what comes in, what is given up, and which adapters
to load. Called by runtime/serving_http.py.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ServiceError
from ..protocol.adapter import AdapterWeights
from ..training.base_model import BaseModel
from ..training.serving import BatchedGenerator, FinishReason, Generation, Scored
from ..training.serving_text import TextStream, TokenNames, TokenText


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A token as it is told to whoever asked for probabilities."""

    text: str
    place: int
    """Where it begins in the choice's text, in characters."""
    logprob: float | None
    likeliest: Mapping[str, float] | None
    """None for the first token of a prompt."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one choice of an answer. The last one of a choice has a finish reason."""

    choice: int
    text: str
    tokens: int
    """Generated so far, of this choice."""
    finish_reason: FinishReason | None = None
    named: tuple[NamedToken, ...] = ()
    """The tokens of this text, where probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be generated. See training.serving.Generation."""

    adapter: str
    prompt: Sequence[int]
    tokens_max: int
    temperature: float
    top_p: float
    seed: int
    """Of the first choice; each further one takes the next number."""
    stops: tuple[str, ...] = ()
    choices: int = 1
    likeliest: int | None = None
    """How many tokens are told in each place with their probabilities; None: none is."""
    echo: str | None = None
    """The prompt as text, where it is to stand before every choice."""


class _Choice:
    """One of the texts of an answer, in the generator's thread: tokens in, pieces out."""

    def __init__(self, number: int, text: TokenText, wanted: Wanted, tell: Callable[[Piece], None]) -> None:
        self._number, self._wanted, self._tell, self._text = number, wanted, tell, text
        self._stream = TextStream(text, wanted.stops)
        self._names = TokenNames(text)
        self._begins_at = len(wanted.echo or "")
        self._given = 0
        self._held: list[NamedToken] = []
        self._met_stop = False  # then what was held back is the stop text itself
        self.request = Generation(
            adapter=wanted.adapter,
            prompt=wanted.prompt,
            tokens_max=wanted.tokens_max,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=(wanted.seed + number) % (1 << 63),
            likeliest=wanted.likeliest,
            on_prompt=self._on_prompt if wanted.echo is not None else None,
            on_token=self._on_token,
            on_end=self._on_end,
        )

    def _on_prompt(self, prompt: list[Scored]) -> None:
        names = TokenNames(self._text)
        named = [self._named(names, each, 0) for each in prompt] if self._wanted.likeliest is not None else []
        self._tell(Piece(self._number, self._wanted.echo or "", 0, named=tuple(named)))

    def _on_token(self, scored: Scored) -> bool:
        if self._wanted.likeliest is not None:
            self._held.append(self._named(self._names, scored, self._begins_at))
        text, self._met_stop = self._stream.push(scored.token)
        if text:
            self._give(text, None)
        return self._met_stop

    def _on_end(self, reason: FinishReason) -> None:
        self._give("" if self._met_stop else self._stream.rest(), reason)

    def _give(self, text: str, reason: FinishReason | None) -> None:
        """A text with the tokens that are in it; those of a stop text are in none."""
        self._given += len(text)
        ends_at = self._begins_at + self._given
        whole = reason is not None and not self._met_stop
        inside = [each for each in self._held if whole or each.place < ends_at]
        self._held = self._held[len(inside) :]
        self._tell(Piece(self._number, text, len(self.request.tokens), reason, tuple(inside)))

    def _named(self, names: TokenNames, scored: Scored, begins_at: int) -> NamedToken:
        likeliest: dict[str, float] | None = None
        if scored.logprob is not None:
            likeliest = {}
            for token, logprob in scored.likeliest:
                likeliest.setdefault(
                    names.of(token), logprob
                )  # two may be spelt alike: the likelier one counts
        text, place = names.push(scored.token)
        return NamedToken(text, begins_at + place, scored.logprob, likeliest)


class ServingEngine:
    """One base, many adapters. `start` loads the base; `stop` ends the thread."""

    def __init__(self, base: BaseModel, threads: int = 1) -> None:
        self.base = base
        self.text = TokenText(base)
        self._threads = threads
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._generator: BatchedGenerator | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    async def start(self) -> None:
        """Raises ServiceError where the base cannot be loaded."""
        self._generator = await asyncio.to_thread(BatchedGenerator, self.base, threads=self._threads)
        self._thread = threading.Thread(target=self._run, name="adapter server", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Requests that run end as cancelled."""
        if self._thread is not None:
            self._orders.put(None)
            await asyncio.to_thread(self._thread.join)

    @property
    def length_max(self) -> int:
        assert self._generator is not None, "the engine is not started"
        return self._generator.length_max

    async def put(self, key: str, weights: AdapterWeights) -> None:
        generator = self._started()
        await self._in_thread(lambda: generator.put(key, weights))

    async def drop(self, key: str) -> None:
        generator = self._started()
        await self._in_thread(lambda: generator.drop(key))

    async def generate(self, wanted: Wanted) -> AsyncIterator[Piece]:
        """Pieces as they come. Leaving the loop early gives the request up."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece] = (
            asyncio.Queue()
        )  # bounded by choices · (tokens_max + 2): a piece per token

        def tell(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        choices = [_Choice(number, self.text, wanted, tell) for number in range(wanted.choices)]
        requests = [choice.request for choice in choices]
        generator = self._started()
        try:
            await self._in_thread(lambda: generator.admit(*requests))
            running = len(choices)
            while running:
                piece = await pieces.get()
                if piece.finish_reason == "cancelled":
                    raise ServiceError(f"the server stopped: {self._error or 'it is shutting down'}")
                yield piece
                running -= piece.finish_reason is not None
        finally:
            for request in requests:
                request.cancelled = True

    async def _in_thread(self, act: Callable[[], None]) -> None:
        """Run between two steps; its error is raised here."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def order() -> None:
            try:
                act()
            except Exception as error:
                loop.call_soon_threadsafe(settle, error)
            else:
                loop.call_soon_threadsafe(settle, None)

        self._orders.put(order)
        await done

    def _started(self) -> BatchedGenerator:
        if self._generator is None or self._thread is None or not self._thread.is_alive():
            raise ServiceError(f"the adapter server does not run: {self._error or 'it was stopped'}")
        return self._generator

    def _run(self) -> None:
        assert self._generator is not None
        generator: Any = self._generator
        try:
            while self._obey(block=not generator.busy):
                generator.step()
        except BaseException as error:  # told to whoever waits; the next request finds the thread gone
            self._error = error
        generator.give_up()

    def _obey(self, block: bool) -> bool:
        """Carry out what came in; wait for something while there is no request. False: stop."""
        while True:
            try:
                order = self._orders.get(block=block)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            block = False
