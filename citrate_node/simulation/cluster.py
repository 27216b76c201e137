"""Many nodes in one process, under virtual time and a seed: the second driver of node/.

The nodes, the messages and the checkpoints are the real ones; pretended are the chain (chain_model), the
network (latency, loss, duplication, partitions from the seed) and the training (synthetic). A seed
determines everything, so a failing run can be repeated. Called by tests and by `citrate simulate`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
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
from ..protocol.methods import moving_factor
from ..protocol.preset import Preset
from ..protocol.state import NetworkState, genesis_state
from ..protocol.state_transition import Aggregation, CheckpointInputs, aggregate
from ..protocol.tensors import Factor
from . import adversaries
from .chain_model import ChainModel, Composed
from .checkers import Checkers, ProgressViolation
from .synthetic import SyntheticTask
from .tasks import Tasks
from .workload import EvaluateRequest, MeasureRequest, TrainRequest, Workload

BLOCK_INTERVAL_MS = 1000
FETCH_TIMEOUT_MS = 800
GENESIS_RECORD_HASH = bytes(32)


@dataclass(frozen=True)
class ClusterOptions:
    """Everything that a run depends on. Printed first, so that a run can be repeated."""

    preset: Preset
    nodes: int = 4
    seed: int = 0
    latency_ms: tuple[int, int] = (5, 120)
    loss_ppm: int = 0
    """Part of the messages, blobs and answers that never arrive."""
    duplicate_ppm: int = 0
    faults_end_ms: int | None = None
    """From then on nothing is lost: the liveness act."""
    sign_flippers: frozenset[int] = frozenset()
    """Mentors that announce the opposite of what they learned."""
    withholders: frozenset[int] = frozenset()
    """Mentors that announce a delta and never serve it."""
    equivocators: frozenset[int] = frozenset()
    """Mentors that announce three different signals to three parts of the network."""
    copiers: frozenset[int] = frozenset()
    """Mentors that announce somebody else's delta as soon as it is served."""
    forkers: frozenset[int] = frozenset()
    """Evaluators that say three different figures to three parts of the network."""
    liars: frozenset[int] = frozenset()
    """Evaluators that report the opposite of what they measured."""
    forgers: frozenset[int] = frozenset()
    """Proposers that put other weights into the record than the composition gives."""
    two_faced: frozenset[int] = frozenset()
    """Proposers that send another correct record, without measurements, to a part of the network."""
    boasters: frozenset[int] = frozenset()
    """Proposers whose record has no measurement but their own, of 99 %."""
    stakes: tuple[int, ...] = ()
    spread: float = 0.5
    training_ms: tuple[int, int] = (200, 1500)


def synthetic_task(options: ClusterOptions) -> SyntheticTask:
    """The synthetic task that these options ask for."""
    factor = moving_factor(options.preset.method, 1)
    return SyntheticTask(options.seed, options.nodes, spread=options.spread, factor=factor)


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


class Cluster:
    """The world. `run_until(checkpoints)` is what most callers want."""

    def __init__(self, options: ClusterOptions, workload: Workload | None = None) -> None:
        """workload: what the nodes train, for as many nodes; the synthetic task where none is given."""
        self.options = options
        self.random = random.Random(f"citrate/{options.seed}")
        self.now_ms = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self.partition: Callable[[int, int], bool] = lambda a, b: False
        """Whether nothing passes between two nodes."""
        self.task: Workload = workload or synthetic_task(options)
        self.tasks = Tasks(lambda: self.task)
        self.chain = ChainModel(GENESIS_RECORD_HASH)
        self.checkers = Checkers(options.seed)
        self.history: list[str] = []
        """One line per final checkpoint, in order; its hash is the history hash."""
        self.outcomes: dict[int, act.Finalize] = {}
        """Per checkpoint, the first node's Finalize that carries inputs."""
        self._copied: set[tuple[int, int]] = set()
        """(copier, checkpoint): one copy each, two would be equivocation."""
        self._aggregations: dict[tuple[bytes, object], Aggregation] = {}
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
        for simulated in self.nodes:
            self.start(simulated.index)
        self._at(BLOCK_INTERVAL_MS, self._mine)

    def _identity(self, index: int) -> Identity:
        name = f"citrate simulation {self.options.seed} node {index}"
        return Identity(sha256(f"{name} seed".encode()).digest(), sha256(f"{name} account".encode()).digest())

    # ---------------------------------------------------------------- adapters

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

    def run_until(self, checkpoints: int, *, within_ms: int) -> None:
        """Until every running node has finalized that many. Raises ProgressViolation after `within_ms`."""
        deadline = self.now_ms + within_ms
        while not all(
            simulated.node is None or simulated.node.state.number >= checkpoints for simulated in self.nodes
        ):
            if self.now_ms > deadline:
                at = [s.node.state.number if s.node else None for s in self.nodes]
                raise ProgressViolation(
                    f"seed {self.options.seed}: checkpoints {at} after {self.now_ms} ms, wanted {checkpoints}"
                )
            self.step()

    def run_for(self, duration_ms: int) -> None:
        """Let time pass."""
        end = self.now_ms + duration_ms
        while self._queue and self._queue[0][0] <= end:
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
            aggregate=self._aggregate,
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
        settled = [i for i in self.chain.compositions if self.chain.versions[i] and i not in self._settled]
        self._settled.update(settled)
        for simulated in self.nodes:
            if simulated.node is None:
                continue
            delay = self._latency()
            for commit in commits:
                event = ev.CheckpointCommitted(commit.number, commit.record_hash, commit.block_number)
                self._later(simulated.index, delay, event)
            for adapter_id in settled:
                self._later(simulated.index, self._latency(), ev.CompositionSettled(adapter_id))
            self._later(simulated.index, delay, ev.HeadAdvanced(self.chain.block_number))
        self._at(BLOCK_INTERVAL_MS, self._mine)

    def _latency(self) -> int:
        return self.random.randint(*self.options.latency_ms)

    def _is_lost(self, a: int, b: int) -> bool:
        if self.partition(a, b):
            return True
        end = self.options.faults_end_ms
        if end is not None and self.now_ms >= end:
            return False
        return self.random.randrange(1_000_000) < self.options.loss_ppm

    def _later(self, index: int, delay_ms: int, event: ev.Event) -> None:
        life = self.nodes[index].life
        self._at(delay_ms, lambda: self._handle(index, life, event))

    def _handle(self, index: int, life: int, event: ev.Event) -> None:
        simulated = self.nodes[index]
        if simulated.node is None or simulated.life != life:
            return
        for action in simulated.node.handle(event):
            self._carry_out(simulated, action)

    def _carry_out(self, simulated: SimulatedNode, action: act.Action) -> None:
        index = simulated.index
        match action:
            case act.Journal():
                simulated.journal[action.slot] = action.digest
            case act.StoreMessage():
                simulated.messages[action.message.id] = action.message
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
                self._evaluate(index, action)
            case act.Measure() | act.MeasureComposition():
                self._measure(index, action)
            case act.Commit():
                self.chain.send(action.certificate, action.validators)
            case act.CatchUp():
                self._catch_up(index, action)
            case act.ReportVerdict():
                simulated.verdicts.append(action)
            case act.Finalize():
                self._finalize(simulated, action)
            case act.Notice() | act.AnswerCatchUp():
                pass

    def _publish(self, simulated: SimulatedNode, message: Message) -> None:
        index, node = simulated.index, simulated.node
        if isinstance(message.body, Vote):
            body = message.body
            self.checkers.on_vote(body.author, body.checkpoint, body.round, body.record_hash)
        assert node is not None
        for receiver in self.nodes:
            if receiver.index != index:
                sent = adversaries.said_to(self.options, index, node, message, receiver.index)
                self._send(index, receiver.index, sent)

    def _send(self, index: int, receiver: int, message: Message) -> None:
        copies = 1 + (self.random.randrange(1_000_000) < self.options.duplicate_ppm)
        for _ in range(copies):
            if not self._is_lost(index, receiver):
                self._later(receiver, self._latency(), ev.MessageReceived(message, f"node {index}"))

    def _copy(self, index: int, action: act.FetchDelta) -> None:
        """The bytes of another's delta are here: announce them as one's own."""
        node = self.nodes[index].node
        copied = None if node is None else adversaries.copy_of(node, action.mentor, action.content.digest)
        if copied is None or (index, action.checkpoint) in self._copied:
            return
        self._copied.add((index, action.checkpoint))
        for receiver in self.nodes:
            if receiver.index != index:
                self._send(index, receiver.index, copied)

    def _peers(self, index: int) -> list[SimulatedNode]:
        """The others that run and can be reached, in an order of chance."""
        peers = [s for s in self.nodes if s.index != index and s.node is not None]
        self.random.shuffle(peers)
        return [s for s in peers if not self._is_lost(index, s.index)]

    def _fetch_delta(self, index: int, action: act.FetchDelta) -> None:
        mentor = self._by_key[action.mentor]
        peers = sorted(self._peers(index), key=lambda s: s.index != mentor)
        for peer in peers[:3]:
            held = peer.deltas.get(action.content.digest)
            assert peer.node is not None
            if (
                held is None
                or len(held) != action.content.size_bytes
                or peer.index in self.options.withholders
                or action.content.digest in peer.node.withheld()
            ):
                continue
            event = ev.DeltaFetched(action.content.digest, held, f"node {peer.index}")
            delay = 2 * self._latency()
            self._later(index, delay, event)
            if index in self.options.copiers:
                self._at(delay, lambda: self._copy(index, action))
            return
        self._later(index, FETCH_TIMEOUT_MS, ev.DeltaUnavailable(action.content))

    def _fetch_state(self, index: int, action: act.FetchState) -> None:
        for peer in self._peers(index):
            held = peer.blobs.get(action.record_hash)
            if held is not None:
                event = ev.StateFetched(action.number, held.record, held.state_file, held.weights)
                self._later(index, 2 * self._latency(), event)
                return
        self._later(index, FETCH_TIMEOUT_MS, ev.StateUnavailable(action.number))

    def _catch_up(self, index: int, action: act.CatchUp) -> None:
        for peer in self._peers(index)[:8]:
            assert peer.node is not None
            answers = peer.node.handle(ev.CatchUpRequested(0, action.checkpoint, action.have))
            for answer in answers:
                assert isinstance(answer, act.AnswerCatchUp)
                delay = 2 * self._latency()
                for message in answer.messages:
                    self._later(index, delay, ev.MessageReceived(message, f"node {peer.index}"))

    def _train(self, index: int, action: act.Train) -> None:
        if index in self.options.copiers:
            return  # why train, where others do
        target, start = action.target_checkpoint, action.moving_values
        ticket = self.tasks.train.ask(TrainRequest(index, target, action.weights, action.manifest, start))

        def finished() -> ev.Event:
            result = self.tasks.train.take(ticket)
            values = result.values
            if index in self.options.sign_flippers:
                values = start - (values - start)
            return ev.TrainingFinished(
                target, action.weights_hash, start, values, result.examples, result.loss
            )

        self._when_done(index, self.random.randint(*self.options.training_ms), finished)

    def _evaluate(self, index: int, action: act.Evaluate) -> None:
        ticket = self.tasks.evaluate.ask(
            EvaluateRequest(
                index, action.checkpoint, action.parent, action.manifest, action.deltas, action.scale
            )
        )

        def finished() -> ev.Event:
            improvements = self.tasks.evaluate.take(ticket)
            if index in self.options.liars:
                improvements = {i: (-ppm, examples) for i, (ppm, examples) in improvements.items()}
            return ev.EvaluationFinished(action.checkpoint, improvements)

        self._when_done(index, self._latency(), finished)

    def _measure(self, index: int, action: act.Measure | act.MeasureComposition) -> None:
        ticket = self.tasks.measure.ask(MeasureRequest(index, action.weights))

        def finished() -> ev.Event:
            figure = self.tasks.measure.take(ticket)
            if isinstance(action, act.MeasureComposition):
                return ev.CompositionMeasured(action.weights_hash, *figure)
            return ev.MeasurementFinished(action.checkpoint, action.weights_hash, *figure)

        self._when_done(index, self._latency(), finished)

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
        hashes = {commit.number: commit.record_hash for commit in self.chain.commits}
        self.checkers.on_finalize(simulated.index, action, hashes, node.state)
        simulated.blobs[node.state.record_hash] = action
        simulated.saved = (node.state, action.block_number)
        simulated.messages = {i: m for i, m in simulated.messages.items() if m.checkpoint > action.number}
        simulated.deltas = {}
        if action.outcome is not None and action.number not in self.outcomes:
            self.outcomes[action.number] = action
        if len(self.history) < action.number:
            everybody = range(self.options.nodes)
            total = self.task.loss_sum(node.state.weights, everybody)
            loss = total / self.task.loss_unit / len(everybody)
            self.history.append(f"{action.number} {node.state.record_hash.hex()} {loss:.6f}")

    def _aggregate(self, state: NetworkState, inputs: CheckpointInputs) -> Aggregation:
        """The protocol's pure function, computed once for all nodes that ask the same."""
        key = (state.record_hash, inputs.key)
        if key not in self._aggregations:
            self._aggregations[key] = aggregate(state, inputs)
            if len(self._aggregations) > 64:
                del self._aggregations[next(iter(self._aggregations))]
        return self._aggregations[key]

    # ---------------------------------------------------------------- results

    def history_hash(self) -> str:
        """sha256 over the history lines: equal seeds give equal hashes."""
        return sha256("\n".join(self.history).encode()).hexdigest()

    def reputations(self) -> dict[int, int]:
        """Node index to reputation in ppm, by the newest state."""
        newest = max((s.node for s in self.nodes if s.node), key=lambda n: n.state.number)
        return {self._by_key[row.node_key]: row.reputation_ppm for row in newest.state.reputations}
