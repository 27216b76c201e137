"""What gossip brings, opened once: is it valid, and is it of use to this node now?

Runs in the network's thread, as its `validate` and `worth`; the main loop takes the opened messages from here
and says how far the node is. What a node passes on must be well inside what its peers excuse, since they may
stand a checkpoint further: see network/waste.py.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from ..network.identity import peer_id_of
from ..network.waste import Worth
from ..protocol.gossip_validation import open_message
from ..protocol.messages import Message
from ..protocol.rejection import Rejection
from ..protocol.state import NetworkState
from ..protocol.topics import topic_of

OPENED_MESSAGES_MAX = 8_192
HEARD_MESSAGES_MAX = 16_384
"""Ids of messages that were of use, so that a copy by somebody else is told from the author's repetition."""
PASSED_ON_BEHIND = 1
"""Checkpoints behind the open one whose messages are still passed on: peers may stand that far apart."""
EXCUSED_BEHIND = 2
"""Checkpoints behind the open one for whose messages nobody is blamed."""
EXCUSED_COPY_SECONDS = 30.0
"""A peer may not have heard the author yet when somebody else's copy of its message arrives there."""


class OpenedMessages:
    """Envelopes that passed open_message, so that a signature is checked once per message, not per delivery.

    Filled in the network's thread, read on the asyncio loop.
    """

    def __init__(self, network_id: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._network_id = network_id
        self._clock = clock
        self._opened: OrderedDict[bytes, Message] = OrderedDict()
        self._heard: OrderedDict[bytes, float] = OrderedDict()
        self._excused: OrderedDict[bytes, None] = OrderedDict()
        self._open_number: int | None = None
        self._peer_ids: Mapping[bytes, str] = {}
        """Of the registered nodes, by node key: the set stands in the contract's genesis."""

    def follow(self, state: NetworkState) -> None:
        """The node has come to this state. Before the first one everything valid is of use."""
        if len(self._peer_ids) != len(state.nodes):
            self._peer_ids = {node.node_key: peer_id_of(node.node_key) for node in state.nodes}
        self._open_number = state.next_number

    def note(self, message_id: bytes) -> None:
        """This node has the message, though not by gossip: its own, or one from its database."""
        self._heard.setdefault(message_id, self._clock())
        while len(self._heard) > HEARD_MESSAGES_MAX:
            with contextlib.suppress(KeyError):
                self._heard.popitem(last=False)

    def validate(self, topic: str, data: bytes) -> bool:
        """The gossip validator: what never changes about a message, and that it stands on its own topic."""
        try:
            message = open_message(data, self._network_id)
        except Rejection:
            return False
        if topic_of(self._network_id, message.body) != topic:
            return False
        self._opened[data] = message
        while len(self._opened) > OPENED_MESSAGES_MAX:
            with contextlib.suppress(KeyError):
                self._opened.popitem(last=False)
        return True

    def worth(self, origin: str, data: bytes) -> Worth:
        """Whether a valid message, published by `origin` (a peer id), is of use to this node now."""
        message = self._opened.get(data)
        worth = Worth.USEFUL if message is None else self._judge(origin, message)
        if worth is not Worth.USEFUL:
            self._opened.pop(data, None)
        return worth

    def _judge(self, origin: str, message: Message) -> Worth:
        if self._open_number is None:
            return Worth.USEFUL
        author = self._peer_ids.get(message.author)
        if author is None:
            return Worth.USELESS  # everybody reads the same registered nodes from the contract
        behind = self._open_number - message.checkpoint
        if behind > PASSED_ON_BEHIND:
            if origin == author:
                return Worth.LATE  # of these, the sequence number tells the late from the repeated
            return self._excuse(message.id, behind <= EXCUSED_BEHIND)
        heard_at = self._heard.get(message.id)
        if heard_at is not None and origin != author:
            return self._excuse(message.id, self._clock() - heard_at <= EXCUSED_COPY_SECONDS)
        self.note(message.id)
        return Worth.USEFUL

    def _excuse(self, message_id: bytes, excusable: bool) -> Worth:
        """A message is excused once: whoever wraps it anew under ever other origins is no peer that lags."""
        if not excusable or message_id in self._excused:
            return Worth.USELESS
        self._excused[message_id] = None
        if len(self._excused) > HEARD_MESSAGES_MAX:
            self._excused.popitem(last=False)
        return Worth.LATE

    def open(self, data: bytes) -> Message:
        """The message of an envelope. Raises Rejection."""
        message = self._opened.pop(data, None)
        return message if message is not None else open_message(data, self._network_id)
