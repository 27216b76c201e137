"""The batched generator in a thread of its own behind an asyncio facade.

One thread steps the batch and is told, between two steps, what comes in, what is given up, and which adapters
to load. Called by runtime/serving_http.py.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ServiceError
from ..protocol.adapter import AdapterWeights
from ..training.base_model import BaseModel
from ..training.serving import BatchedGenerator, FinishReason, Generation, TextStream, TokenText


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. The last one has a finish reason."""

    text: str
    tokens: int
    """Generated so far."""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be generated. See training.serving.Generation."""

    adapter: str
    prompt: Sequence[int]
    tokens_max: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...] = ()


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
        pieces: asyncio.Queue[Piece] = asyncio.Queue()  # bounded by tokens_max: one piece per token, and one
        stream = TextStream(self.text, wanted.stops)
        met_stop = False  # then what was held back is the stop text itself

        def tell(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def on_token(token: int) -> bool:
            nonlocal met_stop
            text, met_stop = stream.push(token)
            if text:
                tell(Piece(text, len(request.tokens)))
            return met_stop

        def on_end(reason: FinishReason) -> None:
            tell(Piece("" if met_stop else stream.rest(), len(request.tokens), reason))

        request = Generation(
            adapter=wanted.adapter,
            prompt=wanted.prompt,
            tokens_max=wanted.tokens_max,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            on_token=on_token,
            on_end=on_end,
        )
        generator = self._started()
        try:
            await self._in_thread(lambda: generator.admit(request))
            while True:
                piece = await pieces.get()
                if piece.finish_reason == "cancelled":
                    raise ServiceError(f"the server stopped: {self._error or 'it is shutting down'}")
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
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
