"""What the parts of a node share: who it is, where the network stands, what it has signed.

Used by mentor, evaluator, composer and committer; owned by state_machine.Node.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import certificate
from ..protocol.composition_request import CompositionRequest
from ..protocol.messages import Body, Message, sign_message
from ..protocol.rejection import Rejection
from ..protocol.schedule import Phase, phase, round_of, serves_deltas
from ..protocol.signing import node_key_of
from ..protocol.state import NetworkState
from .actions import Action, Journal, Publish, StoreMessage
from .functions import Functions
from .pool import CheckpointPool

REPEAT_BLOCKS = 2
"""A duty whose effect has not been seen is done again after this many blocks."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's two keys. Never printed: the fields are kept out of repr."""

    seed: bytes = field(repr=False)
    """Ed25519 seed: messages and libp2p identity."""
    account_key: bytes = field(repr=False)
    """secp256k1 private key: votes, and transactions."""

    @property
    def node_key(self) -> bytes:
        return node_key_of(self.seed)

    @property
    def account(self) -> bytes:
        return certificate.account_of(self.account_key)


@dataclass(frozen=True, slots=True)
class ChainIdentity:
    """What a vote binds beside the record."""

    chain_id: int
    contract: bytes


@dataclass
class Core:
    """Mutable state of one node. Only Node and its parts touch it."""

    identity: Identity
    chain: ChainIdentity
    state: NetworkState
    opened_block: int
    """Block that committed the last final checkpoint; the open one's phases count from here."""
    journal: dict[str, bytes]
    functions: Functions = field(default_factory=Functions)
    """The protocol's own."""
    head: int = 0
    pool: CheckpointPool = field(init=False)
    node_key: bytes = field(init=False)
    pending: dict[bytes, CompositionRequest] = field(default_factory=dict)
    """Adapter id to a composition that waits for its version 1."""
    published_at: dict[bytes, int] = field(default_factory=dict)
    """Own message id to the block of its last publication."""

    def __post_init__(self) -> None:
        self.node_key = self.identity.node_key
        self.head = max(self.head, self.opened_block)
        self.pool = CheckpointPool(self.state, self.pending)

    @property
    def elapsed(self) -> int:
        """Blocks since the open checkpoint opened."""
        return max(0, self.head - self.opened_block)

    @property
    def phase(self) -> Phase:
        return phase(self.state.preset, self.elapsed)

    @property
    def deltas_served(self) -> bool:
        return serves_deltas(self.state.preset, self.elapsed)

    @property
    def round(self) -> int:
        return round_of(self.state.preset, self.elapsed)

    @property
    def in_committee(self) -> bool:
        return self.node_key in self.state.committee_keys

    @property
    def follows(self) -> bool:
        """No role in the open checkpoint: this node waits for its certificate and fetches the result."""
        return self.node_key not in self.state.role_keys

    def say(self, slot: str, body: Body) -> list[Action]:
        """Sign a body, unless something else was signed for its slot before; take it into the own pool.

        The journal entry comes first: it is on disk before the signature leaves. Where an earlier life lost
        its journal, the pool knows what peers heard of it.
        """
        message = sign_message(self.identity.seed, body)
        signed = self.journal.get(slot)
        if signed is not None and signed != message.id:
            return []
        if message.id not in self.pool.by_id:
            try:
                self.pool.add(message, self.elapsed)
            except Rejection:
                return []
        actions: list[Action] = []
        if signed is None:
            self.journal[slot] = message.id
            actions.append(Journal(slot, message.id))
        self.published_at[message.id] = self.head
        return [*actions, StoreMessage(message), Publish(message)]

    def repeat(self, message: Message) -> list[Action]:
        """Publish an own message again if the last time is REPEAT_BLOCKS ago."""
        if self.head - self.published_at.get(message.id, -REPEAT_BLOCKS) < REPEAT_BLOCKS:
            return []
        self.published_at[message.id] = self.head
        return [Publish(message)]

    def open_next(self, state: NetworkState, block_number: int) -> None:
        """Go on to the checkpoint after `state`."""
        self.state = state
        self.opened_block = block_number
        self.head = max(self.head, block_number)
        self.pool = CheckpointPool(state, self.pending)
        self.published_at = {}
        for slot in [s for s in self.journal if int(s.split("/")[1]) + 2 < state.number]:
            del self.journal[slot]
