"""What the page shows of a devnet: the facts that `citrate devnet up --json` prints, kept and passed on.

The devnet tells `take` every fact; each open page has a queue of its own. Called by cli/devnet.py and
server.py. All in one thread, the devnet's event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

ROWS_MAX = 200
"""Checkpoints that the page shows, the newest. All of them are in checkpoints.jsonl."""
EVENTS_MAX = 50
"""Things to be told of nodes: deaths, refusals, failures."""
QUEUE_MAX = 512
"""Facts that wait for one page. A page that is slower is cut off; it comes back and gets the whole state."""
PAGES_MAX = 32

PUBLIC = ("chain_id", "contract", "rpc_url", "adapter_id", "founder", "nodes")
"""Of the devnet's own fact. Where keys and files lie is nobody's business on a page."""
TOLD = frozenset({"died", "failed", "rejected", "withheld", "late", "dropped", "caught_up"})
"""What a node says that stays on the page for a while."""

Fact = dict[str, Any]
Queue = asyncio.Queue[Fact | None]
"""None: no more facts come, read the state anew or go."""


class TooManyPages(Exception):
    """PAGES_MAX pages listen already."""


class Feed:
    """State of one devnet, from its facts."""

    def __init__(self, earlier_rows: Iterable[Fact] = ()) -> None:
        """earlier_rows: rows of checkpoints of earlier runs on the folder, ascending."""
        self._devnet: Fact | None = None
        self._step = "starting"
        self._nodes: dict[str, Fact] = {}
        self._rows: deque[Fact] = deque(earlier_rows, maxlen=ROWS_MAX)
        self._events: deque[Fact] = deque(maxlen=EVENTS_MAX)
        self._summary: Fact | None = None
        self._queues: set[Queue] = set()

    def take(self, fact: Fact) -> None:
        """A fact of the devnet, of any type; see runtime/devnet.py."""
        shown = self._keep(fact)
        if shown is None:
            return
        for queue in list(self._queues):
            try:
                queue.put_nowait(shown)
            except asyncio.QueueFull:
                self._queues.discard(queue)
                self._end(queue)

    def _keep(self, fact: Fact) -> Fact | None:
        """Fold a fact into the state. Returns what pages are told of it, None for nothing."""
        match fact["type"]:
            case "devnet":
                self._devnet = {key: fact[key] for key in PUBLIC}
                self._step = "running"
                return {"type": "devnet", **self._devnet}
            case "starting":
                self._step = f"starting {fact['what']}"
            case "step":
                self._step = fact["text"]
            case "node":
                shown = {key: value for key, value in fact.items() if key != "log"}
                self._nodes[str(fact["node"])] = shown
                if fact["what"] in TOLD:
                    self._events.append(shown)
                return shown
            case "checkpoint":
                self._rows.append(fact)
                return fact
            case "summary":
                self._step = "done"
                self._summary = {key: fact[key] for key in ("type", "loss", "seconds")}
                return self._summary
            case _:
                return None
        return {"type": "step", "text": self._step}

    def state(self) -> Fact:
        """Everything a page needs that opens now."""
        return {
            "type": "state",
            "devnet": self._devnet,
            "step": self._step,
            "nodes": self._nodes,
            "checkpoints": list(self._rows),
            "events": list(self._events),
            "summary": self._summary,
        }

    @contextmanager
    def subscribed(self) -> Iterator[Queue]:
        """A queue that gets every fact from now on. Raises TooManyPages."""
        if len(self._queues) >= PAGES_MAX:
            raise TooManyPages
        queue: Queue = asyncio.Queue(QUEUE_MAX)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def end(self) -> None:
        """Nothing more will come: every page is told so."""
        for queue in self._queues:
            self._end(queue)

    def _end(self, queue: Queue) -> None:
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)
