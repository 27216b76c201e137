"""Virtual time and the links between nodes: what happens when, and what never arrives.

A calendar of things to do, in the order of their moment and then of their making; chance from one seeded
generator. Base of cluster.Cluster.
"""

from __future__ import annotations

import gc
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def rare_collections() -> Iterator[None]:
    """The cycle collector looks seldom: a hundred thousand things that wait are no garbage, and looking
    through them again and again is a fifth of a run."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class World:
    """Nothing happens but what was put into the queue."""

    def __init__(
        self, seed: int, latency_ms: tuple[int, int], loss_ppm: int, faults_end_ms: int | None
    ) -> None:
        self.random = random.Random(f"citrate/{seed}")
        self._getrandbits = self.random.getrandbits
        self.now_ms = 0
        self.partition: Callable[[int, int], bool] | None = None
        """Whether nothing passes between two nodes; None while no link is cut."""
        self._latency_ms = latency_ms
        self._loss_ppm = loss_ppm
        self._faults_end_ms = faults_end_ms
        self._due: dict[int, deque[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        """Moment to what is done then, in the order in which it was asked for."""
        self._moments: list[int] = []
        """The keys of `_due`, a heap: a moment holds dozens of things, so the heap stays small."""

    def _at(self, delay_ms: int, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what(*arguments)` after a delay: arguments in place of a closure, for millions of these."""
        moment = self.now_ms + delay_ms
        due = self._due.get(moment)
        if due is None:
            due = self._due[moment] = deque()
            heapq.heappush(self._moments, moment)
        due.append((what, arguments))

    def schedule(self, at_ms: int, what: Callable[[], None]) -> None:
        """Do something at a moment of virtual time, now if it has passed."""
        self._at(max(0, at_ms - self.now_ms), what)

    def cut(self, side: frozenset[int]) -> None:
        """Nothing passes between these nodes and the others, until `heal`."""
        self.partition = lambda a, b: (a in side) != (b in side)

    def heal(self) -> None:
        self.partition = None

    def step(self) -> None:
        """The next thing that happens."""
        self.now_ms = moment = self._moments[0]
        due = self._due[moment]
        what, arguments = due.popleft()
        if not due:  # before it is done: what it asks for at this very moment comes after
            heapq.heappop(self._moments)
            del self._due[moment]
        what(*arguments)

    def run_for(self, duration_ms: int) -> None:
        """Let time pass."""
        end = self.now_ms + duration_ms
        while self._moments and self._moments[0] <= end:
            self.step()

    def _latency(self) -> int:
        """Uniform between the two limits; the very draws of random.randint, at a fifth of its cost."""
        least, most = self._latency_ms
        width = most - least + 1
        bits = width.bit_length()
        drawn = self._getrandbits(bits)
        while drawn >= width:
            drawn = self._getrandbits(bits)
        return least + drawn

    def _is_lost(self, a: int, b: int) -> bool:
        if self.partition is not None and self.partition(a, b):
            return True
        if self._loss_ppm == 0 or (self._faults_end_ms is not None and self.now_ms >= self._faults_end_ms):
            return False
        return self.random.randrange(1_000_000) < self._loss_ppm
