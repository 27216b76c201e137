"""What each peer has cost us lately: rates, points of misbehaviour, and who is blocked.

Lives on the trio side; time comes in as a function, so that tests can turn the clock. Three measures, kept
apart on purpose: a peer above its rate is held back (we read slower, yamux stops it), which costs an honest
peer in a hurry only time; a peer that does what no honest implementation does collects points, and at
`score_max` it is cut off for `block_ms`. Being held back without end also collects points. Points fade, so
what is useless is counted as well, and that count does not: only useful messages bring it down, and at
`useless_messages_max` the peer is cut off, however slowly it went about it.
Called by gossip, requests, blobs, peers and, through the facade, by the node's own verdicts.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from citrate_node.network.settings import NetworkConfig

log = logging.getLogger(__name__)

PEERS_REMEMBERED_MAX: Final = 4_096
"""Peers, origins and blocks kept; the least recently used go first. An attacker's new keys cost nothing."""

CONNECTIONS_PER_SECOND: Final = 2.0
CONNECTIONS_BURST: Final = 30.0
INVALID_MESSAGE: Final = 10.0
"""A message that fails its signature or the validator. Honest peers check before they forward."""
MALFORMED_FRAME: Final = 25.0
OVER_RATE: Final = 0.5
"""A message above the rate of its origin, where the origin itself brought it: nobody is in such a hurry."""
WRONG_BLOB: Final = 50.0
HELD_BACK_PER_SECOND: Final = 5.0
"""Against a decay of 1 a second: 25 seconds of uninterrupted flood lead to a block, a burst never does."""
LATE_MESSAGE: Final = 1 / 16
"""Useless messages that one of a peer's own for a closed checkpoint counts for: a node that lags knows no
better, and says some twenty things in a checkpoint."""
USELESS_PER_POINT: Final = 0.5
"""Useless messages that a point counts for: a peer with an invalid message an hour goes after fifty."""
COPIES_PER_MESSAGE: Final = 2
"""An honest peer hands a message over once by itself, and once more where it was asked for it meanwhile."""


class Bucket:
    """A token bucket that may go into debt: taking never fails, it answers how long to wait afterwards."""

    __slots__ = ("_burst", "_filled_at", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._filled_at = now

    def take(self, amount: float, now: float) -> float:
        """Take `amount`; the seconds until the bucket is out of debt, 0 when it is not in debt."""
        self._fill(now)
        self._tokens -= amount
        return max(0.0, -self._tokens / self._per_second)

    def try_take(self, now: float) -> bool:
        """Take one where there is one; refuse otherwise, without debt."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now


@dataclass(slots=True)
class Account:
    """One peer's standing."""

    messages: Bucket
    bytes: Bucket
    requests: Bucket
    connections: Bucket
    score: float = 0.0
    scored_at: float = 0.0
    useless: float = 0.0
    """Useless messages that no useful one has made up for."""
    repeated: int = 0
    """Messages that we had seen already, since the account was opened at `seen_before` messages."""
    seen_before: int = 0
    repeated_in_excess: int = 0
    """The most by which the repeated ones were ever more than a mesh makes: so many have been counted."""
    running: dict[str, int] = field(default_factory=dict)
    """Transfers and requests under way, by kind."""


class Ledger:
    """Accounts of peers by peer id. `on_block` is told of each peer that has just been blocked."""

    def __init__(
        self, config: NetworkConfig, clock: Callable[[], float], on_block: Callable[[str], None]
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_block = on_block
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._origins: OrderedDict[str, Bucket] = OrderedDict()
        self._blocked: OrderedDict[str, float] = OrderedDict()
        self._running: dict[str, int] = {}
        self._seen = 0
        self.counters: dict[str, int] = {}

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter that `Libp2pNetwork.counters()` shows."""
        self.counters[name] = self.counters.get(name, 0) + amount

    def admit(self, peer_id: str, messages: int, size_bytes: int) -> float:
        """Account for a gossip frame; the seconds to wait before reading the peer's next one."""
        account, now = self._account(peer_id), self._clock()
        wait = max(account.messages.take(messages, now), account.bytes.take(size_bytes, now))
        if wait > 0.0:
            self.count("frames_held_back")
        return wait

    def admit_origin(self, peer_id: str) -> bool:
        """Whether a publisher may have one more message passed on now."""
        now = self._clock()
        bucket = self._origins.get(peer_id)
        if bucket is None:
            config = self._config
            bucket = Bucket(config.origin_messages_per_second, config.origin_messages_burst, now)
            self._origins[peer_id] = bucket
            _forget_oldest(self._origins)
        self._origins.move_to_end(peer_id)
        return bucket.try_take(now)

    def admit_request(self, peer_id: str) -> float:
        """Account for a request; the seconds to wait before answering it."""
        return self._account(peer_id).requests.take(1, self._clock())

    def admit_connection(self, peer_id: str) -> bool:
        """Whether a peer may have one more connection now; each costs both sides a handshake."""
        return self._account(peer_id).connections.try_take(self._clock())

    def begin(self, kind: str, peer_id: str, at_once_per_peer: int, at_once: int) -> bool:
        """Take a slot for a transfer or a request; False when the peer or the node has too many under way."""
        running = self._account(peer_id).running
        if running.get(kind, 0) >= at_once_per_peer or self._running.get(kind, 0) >= at_once:
            return False
        running[kind] = running.get(kind, 0) + 1
        self._running[kind] = self._running.get(kind, 0) + 1
        return True

    def end(self, kind: str, peer_id: str) -> None:
        """Give back the slot that `begin` took."""
        running = self._account(peer_id).running
        running[kind] -= 1
        self._running[kind] -= 1

    def held_back(self, peer_id: str, seconds: float) -> None:
        """A peer that always has more to send than it may collects points for the time it was held."""
        self.penalise(peer_id, seconds * HELD_BACK_PER_SECOND, "sends more than it may", in_haste=True)

    def note_seen(self) -> None:
        """A message was seen for the first time, by whomever."""
        self._seen += 1

    def note_repeated(self, peer_id: str) -> None:
        """A peer brought a message that we had. In a mesh everybody does; nobody can more often than that."""
        account = self._account(peer_id)
        account.repeated += 1
        excess = account.repeated - COPIES_PER_MESSAGE * (self._seen - account.seen_before)
        if excess > account.repeated_in_excess:
            account.repeated_in_excess = excess
            self.note_useless(peer_id, 1.0, "repeats messages more often than there are any")

    def note_useful(self, peer_id: str) -> None:
        """A peer was the first to bring a message, or said something itself that the node accepted."""
        account = self._account(peer_id)
        account.useless = max(0.0, account.useless - 1.0)

    def note_useless(self, peer_id: str, messages: float, reason: str) -> None:
        """Count so many useless messages; at `useless_messages_max` in excess the peer is blocked.

        It comes back with half of them: the second time it goes sooner.
        """
        account = self._account(peer_id)
        account.useless += messages
        if account.useless >= self._config.useless_messages_max and not self.is_blocked(peer_id):
            account.useless = self._config.useless_messages_max / 2
            self._cut_off(peer_id, reason)

    def penalise(self, peer_id: str, points: float, reason: str, *, in_haste: bool = False) -> None:
        """Add points; at `score_max` the peer is blocked. Points fade by `score_decay_per_second`.

        in_haste: the peer did too much, and nothing wrong; then nothing else remains of it.
        """
        account = self._account(peer_id)
        account.score = self.score(peer_id) + points
        account.scored_at = self._clock()
        self.count("penalties")
        log.debug("peer %s: %s (%.0f points, now %.0f)", peer_id, reason, points, account.score)
        if account.score >= self._config.score_max and not self.is_blocked(peer_id):
            account.score = 0.0
            self._cut_off(peer_id, reason)
        if not in_haste:
            self.note_useless(peer_id, points * USELESS_PER_POINT, reason)

    def _cut_off(self, peer_id: str, reason: str) -> None:
        log.warning("peer %s is blocked for %d s: %s", peer_id, self._config.block_ms // 1000, reason)
        self.block(peer_id, self._config.block_ms)

    def score(self, peer_id: str) -> float:
        """Points that have not faded yet."""
        account = self._account(peer_id)
        faded = (self._clock() - account.scored_at) * self._config.score_decay_per_second
        return max(0.0, account.score - faded)

    def block(self, peer_id: str, for_ms: int | None = None) -> None:
        """Cut a peer off, for a time or (without `for_ms`) until `unblock`."""
        self._blocked[peer_id] = float("inf") if for_ms is None else self._clock() + for_ms / 1000
        self._blocked.move_to_end(peer_id)
        _forget_oldest(self._blocked)
        self.count("blocks")
        self._on_block(peer_id)

    def unblock(self, peer_id: str) -> None:
        """Let a peer in again, with a clean account."""
        self._blocked.pop(peer_id, None)
        account = self._account(peer_id)
        account.score = account.useless = 0.0

    def is_blocked(self, peer_id: str) -> bool:
        until = self._blocked.get(peer_id)
        if until is None:
            return False
        if until <= self._clock():
            del self._blocked[peer_id]
            return False
        return True

    def _account(self, peer_id: str) -> Account:
        account = self._accounts.get(peer_id)
        if account is None:
            config, now = self._config, self._clock()
            account = Account(
                messages=Bucket(config.messages_per_second, config.messages_burst, now),
                bytes=Bucket(config.bytes_per_second, config.bytes_burst, now),
                requests=Bucket(config.requests_per_second, config.requests_burst, now),
                connections=Bucket(CONNECTIONS_PER_SECOND, CONNECTIONS_BURST, now),
                scored_at=now,
                seen_before=self._seen,
            )
            self._accounts[peer_id] = account
            if len(self._accounts) > PEERS_REMEMBERED_MAX:
                self._forget_idle_account()
        else:
            self._accounts.move_to_end(peer_id)
        return account

    def _forget_idle_account(self) -> None:
        """Drop the least recently used account that holds no slot: `end` must find the one `begin` used."""
        for peer_id, account in self._accounts.items():
            if not any(account.running.values()):
                del self._accounts[peer_id]
                return


def _forget_oldest(entries: "OrderedDict[str, Bucket] | OrderedDict[str, float]") -> None:
    if len(entries) > PEERS_REMEMBERED_MAX:
        entries.popitem(last=False)
