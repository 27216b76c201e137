"""Which gossip a node has no use for, and whose fault that is: the memory that low rates do not escape.

Rates bound what a peer costs per second and points fade, so a peer that repeats old messages slowly enough
would do so for ever. Here each useless message is remembered against whoever handed it over until useful ones
have made up for it, and so many in excess cut the peer off (ledger.waste).

An honest peer must never come near, though it cannot know everything: two nodes may stand a checkpoint apart,
a node that lags publishes for checkpoints that are closed, and gossip brings every message several times. So
the rule is to *drop early and blame late*: what a node passes on is well inside what its peers still excuse.

Pure but for the clock that it is given. Called by gossip, on the trio side.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

SEEN_SECONDS: Final = 600.0
SEEN_MESSAGES_MAX: Final = 100_000
ORIGINS_REMEMBERED_MAX: Final = 4_096


class Worth(Enum):
    """What a valid message is worth to a node now. All but USEFUL are neither delivered nor passed on."""

    USEFUL = "useful"
    LATE = "late"
    """Of no use any more, which whoever brought it need not have known."""
    USELESS = "useless"
    """Of no use, as whoever brought it could have known."""


class SeenMessages:
    """Ids of messages of the last ten minutes. The library's own cache owns a thread and has no bound."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expiry: OrderedDict[bytes, float] = OrderedDict()

    def add(self, message_id: bytes) -> bool:
        new = message_id not in self._expiry
        self._expiry[message_id] = self._clock() + SEEN_SECONDS
        self._expiry.move_to_end(message_id)
        while len(self._expiry) > SEEN_MESSAGES_MAX:
            self._expiry.popitem(last=False)
        return new

    def has(self, message_id: bytes) -> bool:
        now = self._clock()
        while self._expiry and next(iter(self._expiry.values())) <= now:
            self._expiry.popitem(last=False)
        return message_id in self._expiry


class SequenceMarks:
    """The sequence number that each origin had reached SEEN_SECONDS ago, or somewhat before.

    A message that is no longer among the seen ids and below its origin's mark has been sent before.
    (go-libp2p's BasicSeqnoValidator goes by the highest number itself, which also drops what arrives out of
    order.) Blame goes by it, never delivery: js-libp2p draws its numbers by lot.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: OrderedDict[str, _Mark] = OrderedDict()

    def is_below(self, origin: str, number: int) -> bool:
        """Whether the origin had reached this number SEEN_SECONDS ago. Notes the number."""
        now = self._clock()
        mark = self._marks.get(origin)
        if mark is None:
            mark = self._marks[origin] = _Mark(now)
            if len(self._marks) > ORIGINS_REMEMBERED_MAX:
                self._marks.popitem(last=False)
        self._marks.move_to_end(origin)
        while now - mark.turned_at >= SEEN_SECONDS:
            mark.reached, mark.next_reached = mark.next_reached, mark.highest
            mark.turned_at = now if mark.reached == mark.highest else mark.turned_at + SEEN_SECONDS
        mark.highest = max(mark.highest, number)
        return number <= mark.reached


@dataclass(slots=True)
class _Mark:
    turned_at: float
    reached: int = -1
    next_reached: int = -1
    """What becomes `reached` at the next turn: the highest number at the last one."""
    highest: int = -1
