"""Collects what nodes want computed and computes it in batches, when the first answer of a batch is due.

A node trains for some virtual time; nothing needs its result before that time is over. By then most nodes of
the round have asked, so the workload gets their requests in one call (workload.py). Called by cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .workload import (
    EvaluateRequest,
    Improvement,
    MeasureRequest,
    TrainRequest,
    TrainResult,
    Workload,
)

Request = TypeVar("Request")
Result = TypeVar("Result")


class Batch(Generic[Request, Result]):
    """Requests of one kind that wait, and results that nobody has taken yet."""

    def __init__(self, compute: Callable[[Sequence[Request]], list[Result]]) -> None:
        self._compute = compute
        self._waiting: dict[int, Request] = {}
        self._done: dict[int, Result] = {}
        self._tickets = 0

    def ask(self, request: Request) -> int:
        """A ticket for `take`."""
        self._tickets += 1
        self._waiting[self._tickets] = request
        return self._tickets

    def take(self, ticket: int) -> Result:
        """The result of a request, once; everything that waits is computed with it."""
        if ticket not in self._done:
            waiting, self._waiting = self._waiting, {}
            self._done |= zip(waiting, self._compute(list(waiting.values())), strict=True)
        return self._done.pop(ticket)


class Tasks:
    """The three kinds of work of a workload, each in batches. `workload` is asked for anew at every batch."""

    def __init__(self, workload: Callable[[], Workload]) -> None:
        self.train: Batch[TrainRequest, TrainResult] = Batch(lambda r: workload().train(r))
        self.evaluate: Batch[EvaluateRequest, dict[bytes, Improvement]] = Batch(
            lambda r: workload().evaluate(r)
        )
        self.measure: Batch[MeasureRequest, Improvement] = Batch(lambda r: workload().measure(r))
