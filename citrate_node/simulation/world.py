"""Virtual time and the links between nodes: what happens when, and what never arrives.

A queue of things to do, in the order of their moment and then of their making; chance from one seeded
generator. Base of cluster.Cluster.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


class World:
    """Nothing happens but what was put into the queue."""

    def __init__(
        self, seed: int, latency_ms: tuple[int, int], loss_ppm: int, faults_end_ms: int | None
    ) -> None:
        self.random = random.Random(f"citrate/{seed}")
        self.now_ms = 0
        self.partition: Callable[[int, int], bool] = lambda a, b: False
        """Whether nothing passes between two nodes."""
        self._latency_ms = latency_ms
        self._loss_ppm = loss_ppm
        self._faults_end_ms = faults_end_ms
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    def _at(self, delay_ms: int, what: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, what))

    def schedule(self, at_ms: int, what: Callable[[], None]) -> None:
        """Do something at a moment of virtual time, now if it has passed."""
        self._at(max(0, at_ms - self.now_ms), what)

    def cut(self, side: frozenset[int]) -> None:
        """Nothing passes between these nodes and the others, until `heal`."""
        self.partition = lambda a, b: (a in side) != (b in side)

    def heal(self) -> None:
        self.partition = lambda a, b: False

    def step(self) -> None:
        """The next thing that happens."""
        self.now_ms, _, what = heapq.heappop(self._queue)
        what()

    def run_for(self, duration_ms: int) -> None:
        """Let time pass."""
        end = self.now_ms + duration_ms
        while self._queue and self._queue[0][0] <= end:
            self.step()

    def _latency(self) -> int:
        return self.random.randint(*self._latency_ms)

    def _is_lost(self, a: int, b: int) -> bool:
        if self.partition(a, b):
            return True
        if self._loss_ppm == 0 or (self._faults_end_ms is not None and self.now_ms >= self._faults_end_ms):
            return False
        return self.random.randrange(1_000_000) < self._loss_ppm
