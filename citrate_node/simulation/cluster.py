"""Many nodes in one process, under virtual time and a seed: the second driver of node/.

The nodes, the messages and the checkpoints are the real ones; pretended are the chain (chain_model), the
network (latency, loss, duplication, partitions from the seed) and the training (synthetic). A seed
determines everything, so a failing run can be repeated. Called by tests and by `citrate simulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from ..node import actions as act
from ..node import events as ev
from ..node.core import ChainIdentity, Identity
from ..node.state_machine import Node
from ..protocol.adapter import AdapterWeights
from ..protocol.certificate import CertifiedUpdate, Validator
from ..protocol.composition_request import CompositionRequest
from ..protocol.content_id import content_id
from ..protocol.identifiers import network_id
from ..protocol.messages import Message, Vote
from ..protocol.rejection import Reason, Verdict
from ..protocol.state import NetworkState, genesis_state
from ..protocol.tensors import Factor
from . import adversaries
from .chain_model import ChainModel, Composed
from .checkers import Checkers, ProgressViolation
from .gossip_model import NetworkLoad
from .options import ClusterOptions as ClusterOptions
from .options import synthetic_task as synthetic_task
from .shared import Shared
from .work import Work
from .workload import Workload
from .world import World, rare_collections

BLOCK_INTERVAL_MS = 1000
FETCH_TIMEOUT_MS = 800
ROLES_KEPT = 8
"""Checkpoints whose roles are remembered, for nodes that are late."""
PEERS_ASKED_MAX = 32
"""Peers, drawn anew each time, that a node asks for a state before it waits and tries again."""
BLOBS_KEPT = 4
"""Final checkpoints that a node hands out."""
GENESIS_RECORD_HASH = bytes(32)


@dataclass
class SimulatedNode:
    """A node and what its disk holds; the disk survives a crash, the node does not."""

    index: int
    identity: Identity
    node: Node | None
    journal: dict[str, bytes] = field(default_factory=dict)
    residuals: dict[Factor, npt.NDArray[np.float32]] = field(default_factory=dict)
    messages: dict[bytes, Message] = field(default_factory=dict)
    deltas: dict[bytes, bytes] = field(default_factory=dict)
    blobs: dict[bytes, act.Finalize] = field(default_factory=dict)
    """Record hash to what it can serve of a final checkpoint."""
    saved: tuple[NetworkState, int] | None = None
    """State and opening block as last finalized."""
    life: int = 0
    """Grows with every crash, so that answers to a dead life are dropped."""
    verdicts: list[act.ReportVerdict] = field(default_factory=list)
    """What it ignored and refused, repetitions aside."""


def _is_at(simulated: SimulatedNode, checkpoints: int) -> bool:
    return simulated.node is None or simulated.node.state.number >= checkpoints


class Cluster(World):
    """The world. `run_until(checkpoints)` is what most callers want."""

    def __init__(self, options: ClusterOptions, workload: Workload | None = None) -> None:
        """workload: what the nodes train, for as many nodes; the synthetic task where none is given."""
        super().__init__(options.seed, options.latency_ms, options.loss_ppm, options.faults_end_ms)
        self.options = options
        self.task: Workload = workload or synthetic_task(options)
        self.work = Work(options, lambda: self.task)
        self.chain = ChainModel(GENESIS_RECORD_HASH)
        self.checkers = Checkers(options.seed)
        self.history: list[str] = []
        """One line per final checkpoint, in order; its hash is the history hash."""
        self.outcomes: dict[int, act.Finalize] = {}
        """Per checkpoint, the first node's Finalize that carries inputs."""
        self._dishonest = options.dishonest
        self._copied: set[tuple[int, int]] = set()
        """(copier, checkpoint): one copy each, two would be equivocation."""
        self.load = NetworkLoad(options.nodes)
        identities = [self._identity(i) for i in range(options.nodes)]
        stakes = options.stakes or (1,) * options.nodes
        validators = tuple(
            Validator(identity.node_key, identity.account, stake)
            for identity, stake in zip(identities, stakes, strict=True)
        )
        self.genesis_block_hash = sha256(f"simulated genesis {options.seed}".encode()).digest()
        self.network_id = network_id(
            self.chain.chain_id,
            self.genesis_block_hash,
            self.chain.contract,
            GENESIS_RECORD_HASH,
            options.preset.digest(),
        )
        self.shared = Shared(self.network_id)
        self.genesis = genesis_state(
            options.preset,
            self.network_id,
            validators,
            sha256(b"simulated adapter").digest(),
            self.task.initial_weights(),
            GENESIS_RECORD_HASH,
        )
        self.chain.open_adapter = self.genesis.adapter_id
        self.adapter_weights: dict[bytes, AdapterWeights] = {}
        """Content digest to weights: what the content stores of all nodes hold together."""
        self._create(self.genesis.adapter_id, self.genesis.weights)
        self._settled: set[bytes] = set()
        self.chain_identity = ChainIdentity(self.chain.chain_id, self.chain.contract)
        self.nodes = [SimulatedNode(i, identity, None) for i, identity in enumerate(identities)]
        self._by_key = {identity.node_key: i for i, identity in enumerate(identities)}
        self._roles: dict[int, tuple[int, ...]] = {}
        """Open checkpoint to the nodes that have a part in it, ascending: they hear of every message."""
        self._behind: set[int] = set()
        """Nodes that have not reached the newest commit."""
        self._note_roles(self.genesis)
        for simulated in self.nodes:
            self.start(simulated.index)
        self._at(BLOCK_INTERVAL_MS, self._mine)

    def _identity(self, index: int) -> Identity:
        name = f"citrate simulation {self.options.seed} node {index}"
        return Identity(sha256(f"{name} seed".encode()).digest(), sha256(f"{name} account".encode()).digest())

    def create_adapter(self, name: str, weights: AdapterWeights) -> bytes:
        """Another adapter on chain; its id."""
        adapter_id = sha256(f"simulated adapter {name}".encode()).digest()
        self._create(adapter_id, weights)
        return adapter_id

    def _create(self, adapter_id: bytes, weights: AdapterWeights) -> None:
        content = content_id(weights.encode())
        self.adapter_weights[content.digest] = weights
        version = CertifiedUpdate(adapter_id, content.digest, content.codec, content.size_bytes, 0)
        self.chain.create(adapter_id, version)

    def compose(self, parent_a: bytes, parent_b: bytes, weight_a: int) -> bytes:
        """Ask the chain for a composition of the latest versions; its id. Nodes hear of it a little later."""
        composed = self.chain.compose(parent_a, parent_b, weight_a)
        for simulated in self.nodes:
            self._later(simulated.index, self._latency(), self._composed(composed))
        return composed.adapter_id

    def _composed(self, composed: Composed) -> ev.AdapterComposed:
        first = self.chain.versions[composed.parent_a][composed.version_a - 1]
        second = self.chain.versions[composed.parent_b][composed.version_b - 1]
        return ev.AdapterComposed(
            CompositionRequest(
                composed.adapter_id,
                self.adapter_weights[first.weights_hash],
                self.adapter_weights[second.weights_hash],
                composed.weight_a,
            )
        )

    # ---------------------------------------------------------------- time

    def run_until(self, checkpoints: int, *, within_ms: int) -> None:
        """Until every running node has finalized that many. Raises ProgressViolation after `within_ms`."""
        with rare_collections():
            self._run_until(checkpoints, self.now_ms + within_ms)

    def _run_until(self, checkpoints: int, deadline: int) -> None:
        waiting: list[SimulatedNode] = []
        while True:
            while waiting and _is_at(waiting[-1], checkpoints):
                waiting.pop()
            if not waiting:  # those that were passed over may have been restarted since: look at all again
                waiting = [s for s in self.nodes if not _is_at(s, checkpoints)]
                if not waiting:
                    return
            if self.now_ms > deadline:
                at = [s.node.state.number if s.node else None for s in self.nodes[:100]]
                raise ProgressViolation(
                    f"seed {self.options.seed}: checkpoints {at} after {self.now_ms} ms, wanted {checkpoints}"
                )
            self.step()

    # ---------------------------------------------------------------- life and death

    def start(self, index: int) -> None:
        """Start a node, or restart it with what its disk holds."""
        simulated = self.nodes[index]
        state, opened = simulated.saved or (self.genesis, 0)
        simulated.node = Node(
            simulated.identity,
            self.chain_identity,
            state,
            opened_block=opened,
            journal=simulated.journal,
            residuals=simulated.residuals,
            functions=self.shared.functions,
        )
        life = simulated.life
        self._handle(index, life, ev.HeadAdvanced(self.chain.block_number))
        for composed in self.chain.compositions.values():
            if not self.chain.versions[composed.adapter_id]:
                self._handle(index, life, self._composed(composed))
        for message in list(simulated.messages.values()):
            self._handle(index, life, ev.MessageReceived(message))
        for name, data in list(simulated.deltas.items()):
            self._handle(index, life, ev.DeltaFetched(name, data))
        if self.chain.commits:
            self._behind.add(index)
            last = self.chain.commits[-1]
            self._handle(
                index, life, ev.CheckpointCommitted(last.number, last.record_hash, last.block_number)
            )

    def crash(self, index: int) -> None:
        """kill -9: what was not on disk is gone."""
        self.nodes[index].node = None
        self.nodes[index].life += 1

    # ---------------------------------------------------------------- the world around the nodes

    def _mine(self) -> None:
        commits = self.chain.mine()
        for commit in commits:
            self.checkers.on_commit(commit.number, commit.record_hash)
        settled = [i for i in self.chain.compositions if self.chain.versions[i] and i not in self._settled]
        self._settled.update(settled)
        if commits:
            self._behind = {s.index for s in self.nodes if s.node is not None}
        # who has no part in the open checkpoint sleeps until its commit: each block would find nothing to do
        for index in sorted(self._behind.union(self._roles[max(self._roles)])):
            if self.nodes[index].node is None:
                continue
            delay = self._latency()
            for commit in commits:
                event = ev.CheckpointCommitted(commit.number, commit.record_hash, commit.block_number)
                self._later(index, delay, event)
            self._later(index, delay, ev.HeadAdvanced(self.chain.block_number))
        for adapter_id in settled:
            for simulated in self.nodes:
                self._later(simulated.index, self._latency(), ev.CompositionSettled(adapter_id))
        self._at(BLOCK_INTERVAL_MS, self._mine)

    def _note_roles(self, state: NetworkState) -> None:
        """A state has been reached: who has a part in the checkpoint after it."""
        if state.next_number not in self._roles:
            self._roles[state.next_number] = tuple(sorted(self._by_key[key] for key in state.role_keys))
            self._roles = {n: r for n, r in self._roles.items() if n + ROLES_KEPT > state.next_number}

    def _listeners(self, message: Message) -> tuple[int, ...]:
        """Who is handed a message: all with a part in its checkpoint. Others pass it on and forget it."""
        return self._roles.get(message.checkpoint, ())

    def _later(self, index: int, delay_ms: int, event: ev.Event) -> None:
        simulated = self.nodes[index]
        self._at(delay_ms, self._hand, simulated, simulated.life, event)

    def _handle(self, index: int, life: int, event: ev.Event) -> None:
        self._hand(self.nodes[index], life, event)

    def _hand(self, simulated: SimulatedNode, life: int, event: ev.Event) -> None:
        """An event for a node, unless the life for which it was meant is over."""
        if simulated.node is None or simulated.life != life:
            return
        for action in simulated.node.handle(event):
            if isinstance(action, act.ReportVerdict):  # these two first: they are nine of ten actions
                if action.verdict is not Verdict.ACCEPT and action.reason is not Reason.DUPLICATE:
                    simulated.verdicts.append(action)
            elif isinstance(action, act.StoreMessage):
                simulated.messages[action.message.id] = action.message
            elif not isinstance(action, act.Notice):
                self._carry_out(simulated, action)

    def _carry_out(self, simulated: SimulatedNode, action: act.Action) -> None:
        index = simulated.index
        match action:
            case act.Journal():
                simulated.journal[action.slot] = action.digest
            case act.Publish():
                self._publish(simulated, action.message)
            case act.StoreDelta():
                simulated.deltas[action.content.digest] = action.data
            case act.StoreResidual():
                simulated.residuals[action.factor] = action.values
            case act.FetchDelta():
                self._fetch_delta(index, action)
            case act.FetchState():
                self._fetch_state(index, action)
            case act.Train():
                self._train(index, action)
            case act.Evaluate():
                self._evaluate(simulated, action)
            case act.Measure() | act.MeasureComposition():
                self._when_done(index, self._latency(), self.work.measure(index, action))
            case act.Commit():
                self.chain.send(action.certificate, action.validators)
            case act.CatchUp():
                self._catch_up(index, action)
            case act.Finalize():
                self._finalize(simulated, action)
            case act.AnswerCatchUp():
                pass

    def _publish(self, simulated: SimulatedNode, message: Message) -> None:
        index, node = simulated.index, simulated.node
        if isinstance(message.body, Vote):
            body = message.body
            self.checkers.on_vote(body.author, body.checkpoint, body.round, body.record_hash)
        assert node is not None
        self.load.published(message)
        received = ev.MessageReceived(self.shared.opened(message), f"node {index}")
        for receiver in self._listeners(message):
            if receiver == index:
                continue
            if index not in self._dishonest:
                self._send(index, receiver, received)
                continue
            said = adversaries.said_to(self.options, index, node, message, receiver)
            other = said is not message
            event = ev.MessageReceived(self.shared.opened(said), received.peer) if other else received
            self._send(index, receiver, event)

    def _send(self, index: int, receiver: int, received: ev.MessageReceived) -> None:
        copies = 1
        if self.options.duplicate_ppm:
            copies += self.random.randrange(1_000_000) < self.options.duplicate_ppm
        for _ in range(copies):
            if not self._is_lost(index, receiver):
                self.load.deliveries += 1
                simulated = self.nodes[receiver]
                self._at(self._latency(), self._hand, simulated, simulated.life, received)

    def _copy(self, index: int, action: act.FetchDelta) -> None:
        """The bytes of another's delta are here: announce them as one's own."""
        node = self.nodes[index].node
        copied = None if node is None else adversaries.copy_of(node, action.mentor, action.content.digest)
        if copied is None or (index, action.checkpoint) in self._copied:
            return
        self._copied.add((index, action.checkpoint))
        self.load.published(copied)
        received = ev.MessageReceived(self.shared.opened(copied), f"node {index}")
        for receiver in self._listeners(copied):
            if receiver != index:
                self._send(index, receiver, received)

    def _peers(self, index: int, among: Sequence[int], count: int) -> list[SimulatedNode]:
        """Up to `count` others of these that run and can be reached, in an order of chance."""
        drawn = self.random.sample(among, min(count, len(among)))
        peers = [self.nodes[i] for i in drawn if i != index]
        return [s for s in peers if s.node is not None and not self._is_lost(index, s.index)]

    def _fetch_delta(self, index: int, action: act.FetchDelta) -> None:
        mentor = self._by_key[action.mentor]
        # those with a part in the checkpoint are who may hold its deltas
        others = self._peers(index, self._roles.get(action.checkpoint, ()), 4)
        for peer in [*self._peers(index, (mentor,), 1), *(s for s in others if s.index != mentor)][:3]:
            held = peer.deltas.get(action.content.digest)
            assert peer.node is not None
            if (
                held is None
                or len(held) != action.content.size_bytes
                or peer.index in self.options.withholders
                or action.content.digest in peer.node.withheld()
            ):
                continue
            self.load.deltas += 1
            self.load.delta_bytes += len(held)
            event = ev.DeltaFetched(action.content.digest, held, f"node {peer.index}")
            delay = 2 * self._latency()
            self._later(index, delay, event)
            if index in self.options.copiers:
                self._at(delay, lambda: self._copy(index, action))
            return
        self.load.requests_failed += 1
        self._later(index, FETCH_TIMEOUT_MS, ev.DeltaUnavailable(action.content))

    def _fetch_state(self, index: int, action: act.FetchState) -> None:
        # its committee has computed it, the others have it from them; a small network is asked as a whole
        committee = self._roles.get(action.number, ())
        peers = self._peers(index, range(len(self.nodes)), PEERS_ASKED_MAX)
        for peer in [*peers, *self._peers(index, committee, 4)]:
            held = peer.blobs.get(action.record_hash)
            if held is not None:
                self.load.states += 1
                self.load.state_bytes += len(held.record) + len(held.state_file) + len(held.weights)
                event = ev.StateFetched(action.number, held.record, held.state_file, held.weights)
                self._later(index, 2 * self._latency(), event)
                return
        self.load.requests_failed += 1
        self._later(index, FETCH_TIMEOUT_MS, ev.StateUnavailable(action.number))

    def _catch_up(self, index: int, action: act.CatchUp) -> None:
        for peer in self._peers(index, self._roles.get(action.checkpoint, ()), 9)[:8]:
            assert peer.node is not None
            answers = peer.node.handle(ev.CatchUpRequested(0, action.checkpoint, action.have))
            for answer in answers:
                assert isinstance(answer, act.AnswerCatchUp)
                delay = 2 * self._latency()
                for message in answer.messages:
                    self.load.catch_up_messages += 1
                    self.load.catch_up_bytes += len(message.envelope)
                    self._later(index, delay, ev.MessageReceived(message, f"node {peer.index}"))

    def _train(self, index: int, action: act.Train) -> None:
        if index in self.options.copiers:
            return  # why train, where others do
        finished = self.work.train(index, action)
        self._when_done(index, self.random.randint(*self.work.training_ms(index)), finished)

    def _evaluate(self, simulated: SimulatedNode, action: act.Evaluate) -> None:
        node = simulated.node
        assert node is not None
        known = node.core.pool.by_id
        finished = self.work.evaluate(simulated.index, action, lambda i: self._by_key[known[i].author])
        self._when_done(simulated.index, self._latency(), finished)

    def _when_done(self, index: int, delay_ms: int, finished: Callable[[], ev.Event]) -> None:
        """Hand a result to its node, unless that life is over by then."""
        life = self.nodes[index].life

        def deliver() -> None:
            event = finished()  # taken in any case: a result that nobody takes would stay
            self._handle(index, life, event)

        self._at(delay_ms, deliver)

    def _finalize(self, simulated: SimulatedNode, action: act.Finalize) -> None:
        node = simulated.node
        assert node is not None
        self.adapter_weights[node.state.weights_content.digest] = node.state.weights
        for request in action.compositions:
            self.adapter_weights[request.content.digest] = request.result.weights
        self.checkers.on_finalize(simulated.index, action, self.chain.record_hashes, node.state)
        self._note_roles(node.state)
        if node.state.number >= len(self.chain.commits):
            self._behind.discard(simulated.index)
        simulated.blobs[node.state.record_hash] = action
        if len(simulated.blobs) > BLOBS_KEPT:
            del simulated.blobs[next(iter(simulated.blobs))]
        simulated.saved = (node.state, action.block_number)
        simulated.messages = {i: m for i, m in simulated.messages.items() if m.checkpoint > action.number}
        simulated.deltas = {}
        if action.outcome is not None and action.number not in self.outcomes:
            self.outcomes[action.number] = action
            before = self.genesis if action.number == 1 else self._state_after(action.number - 1)
            if before is not None:
                self.checkers.on_computed(before, action)
        if len(self.history) < action.number:
            loss = self.loss_of(node.state.weights)
            self.history.append(f"{action.number} {node.state.record_hash.hex()} {loss:.6f}")

    def _state_after(self, number: int) -> NetworkState | None:
        finalize = self.outcomes.get(number)
        return None if finalize is None or finalize.outcome is None else finalize.outcome.state

    # ---------------------------------------------------------------- results

    def check_end(self) -> None:
        """For a run in which nothing was lost, cut or crashed: raises SafetyViolation (checkers.on_end)."""
        newest = max((s.node for s in self.nodes if s.node), key=lambda n: n.state.number)
        dishonest = self.options.dishonest
        honest = (s.identity.node_key for s in self.nodes if s.index not in dishonest)
        self.checkers.on_end(newest.state, honest)

    def loss_of(self, weights: AdapterWeights) -> float:
        """Mean over all nodes of the loss on their own held-out data."""
        total = self.task.loss_sum(weights, range(self.options.nodes))
        return total / self.task.loss_unit / self.options.nodes

    def history_hash(self) -> str:
        """sha256 over the history lines: equal seeds give equal hashes."""
        return sha256("\n".join(self.history).encode()).hexdigest()

    def reputations(self) -> dict[int, int]:
        """Node index to reputation in ppm, by the newest state."""
        newest = max((s.node for s in self.nodes if s.node), key=lambda n: n.state.number)
        return {self._by_key[row.node_key]: row.reputation_ppm for row in newest.state.reputations}
