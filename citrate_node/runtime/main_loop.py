"""Runs one node for real: services bring events, the node answers with actions, services carry them out.

One consumer takes events from one bounded queue, so the node is never entered twice; what waits (training,
fetching, sending a transaction) runs as a task of its own and comes back as an event. Built by wiring.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chain.adapter_factory import AdapterFactory, ContractRefusal
from ..content.interface import ContentStore
from ..errors import CitrateError, ServiceError
from ..network.identity import peer_id_of
from ..network.libp2p_network import Libp2pNetwork
from ..network.settings import PeerFailed, Received
from ..node import actions as act
from ..node import events as ev
from ..node.state_machine import Node
from ..protocol import catch_up
from ..protocol.certificate import Certificate, Validator
from ..protocol.content_id import ContentId
from ..protocol.encoding import EncodingError
from ..protocol.messages import Message
from ..protocol.rejection import Rejection, Verdict
from ..protocol.tensors import Manifest
from ..protocol.topics import all_topics, topic_of
from ..recording import Recording
from ..training.settings import TrainSettings
from ..training.worker import TrainingWorker
from .chain_events import ChainEvents
from .composition_meter import CompositionMeter
from .database import FinalCheckpoint, NodeDatabase, decode_certificate, encode_certificate
from .fetching import Fetcher
from .final_files import prune, store_final
from .judging import points_of
from .metrics import NodeMetrics
from .opened import OpenedMessages

EVENTS_MAX = 10_000
CATCH_UP_PEERS = 8
POLL_SECONDS = 0.25
CHAIN_RETRY_SECONDS_MAX = 5.0

Report = Callable[[dict[str, Any]], None]
"""Takes one fact for whoever watches: a JSON-ready mapping with a `type`."""


class MainLoop:
    """One running node. `run` returns when `stop` is set, and raises what killed a service."""

    def __init__(
        self,
        *,
        node: Node,
        account_key: bytes,
        database: NodeDatabase,
        store: ContentStore,
        network: Libp2pNetwork,
        chain: AdapterFactory,
        worker: TrainingWorker | None,
        meter: CompositionMeter | None,
        opened: OpenedMessages,
        train_settings: TrainSettings,
        fetcher: Fetcher,
        recording: Recording | None,
        report: Report,
        first_block: int,
        metrics: NodeMetrics | None = None,
        versions_kept: int = 0,
    ) -> None:
        """first_block: from where on the contract's events are this node's business.

        versions_kept: checkpoints for which a final state and its weights are kept; 0: for ever.
        """
        self.node = node
        self._account_key = account_key
        self._database = database
        self._store = store
        self._network = network
        self._chain = chain
        self._worker = worker
        self._meter = meter
        self._opened = opened
        self._train_settings = train_settings
        self._fetcher = fetcher
        self._recording = recording
        self._versions_kept = versions_kept
        self._report = report
        self._metrics = metrics or NodeMetrics()
        self._metrics.watch(lambda: node, network.counters)
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue(EVENTS_MAX)
        self._chain_events = ChainEvents(
            chain=chain,
            database=database,
            store=store,
            fetcher=fetcher,
            first_block=first_block,
            state=lambda: node.state,
            pending=lambda: tuple(node.core.pending),
            offer=self._events.put,
            report=report,
        )
        self._committing: set[int] = set()
        self._answers: dict[int, asyncio.Future[tuple[Message, ...]]] = {}
        self._next_request = 0
        self._tasks: asyncio.TaskGroup
        self.is_restored = False
        """Whether the stored messages have been read back: before, nobody knows which deltas are withheld."""
        self.withheld: frozenset[bytes] = node.withheld()
        """Digests that the blob service refuses at the moment; replaced as a whole, read from its thread."""

    async def run(self, stop: asyncio.Event, stored: list[ev.Event]) -> None:
        """Until `stop`. stored: what an earlier run of this node knew of the open checkpoint."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for event in stored:
                    if isinstance(event, ev.MessageReceived):
                        self._opened.note(event.message.id)
                    await self._handle(event)
                self.is_restored = True
                running = [
                    tasks.create_task(self._consume()),
                    tasks.create_task(self._receive()),
                    tasks.create_task(self._watch_chain()),
                    tasks.create_task(self._chain_events.run()),
                    tasks.create_task(self._network.failed()),
                ]
                for topic in all_topics(self.node.state.network_id):
                    await self._network.subscribe(topic)
                await stop.wait()
                for task in running:
                    task.cancel()
                raise _Stopped
        except* _Stopped:
            pass

    # ---------------------------------------------------------------- events

    async def _consume(self) -> None:
        while True:
            await self._handle(await self._events.get())

    async def _handle(self, event: ev.Event) -> None:
        actions = await asyncio.to_thread(self.node.handle, event)
        self.withheld = self.node.withheld()
        self._opened.follow(self.node.state)
        for action in actions:
            if isinstance(action, act.ReportVerdict):
                self._judge(event, action)
            else:
                await self._carry_out(action)

    async def _receive(self) -> None:
        while True:
            received: Received = await self._network.inbox.get()
            try:
                message = self._opened.open(received.data)
            except Rejection:
                continue  # the validator has refused it already; only a race brings it here
            await self._events.put(ev.MessageReceived(message, received.peer_id))

    async def _watch_chain(self) -> None:
        """Blocks and commits, by polling: every EVM has that, and its restart is just a slow poll."""
        seen_block, failing = -1, 0
        while True:
            try:
                block_number = (await self._chain.head()).number
                last = await self._chain.last_checkpoint()
            except ServiceError as error:
                if failing == 0:
                    self._report(
                        {"type": "chain", "state": "unreachable", "reason": str(error).split("\n")[0]}
                    )
                failing += 1
                await asyncio.sleep(min(CHAIN_RETRY_SECONDS_MAX, POLL_SECONDS * 2**failing))
                continue
            if failing:
                failing = 0
                self._report({"type": "chain", "state": "reachable", "block": block_number})
            if last.number > self.node.state.number:
                await self._events.put(
                    ev.CheckpointCommitted(last.number, last.record_hash, last.block_number)
                )
            elif last.number < self.node.state.number:
                self._send_again(last.number + 1)
            if block_number != seen_block:
                seen_block = block_number
                await self._events.put(ev.HeadAdvanced(block_number))
            await asyncio.sleep(POLL_SECONDS)

    def _send_again(self, number: int) -> None:
        """The chain has lost its last blocks (it came back from a snapshot): bring it what was final here."""
        for final in self._database.final_checkpoints():
            kept = decode_certificate(final.record, final.certificate) if final.number == number else None
            if kept is not None:
                self._spawn(self._commit(*kept))

    # ---------------------------------------------------------------- actions

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    async def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.Journal():
                await asyncio.to_thread(self._database.add_journal, action.slot, action.digest)
            case act.StoreMessage():
                message = action.message
                await asyncio.to_thread(
                    self._database.add_message, message.id, message.checkpoint, message.envelope
                )
            case act.Publish():
                message = action.message
                self._opened.note(message.id)
                await self._network.publish(
                    topic_of(self.node.state.network_id, message.body), message.envelope
                )
            case act.StoreDelta():
                await self._store.put(action.data, ephemeral_checkpoint=action.checkpoint)
            case act.StoreResidual():
                await asyncio.to_thread(self._database.set_residual, action.factor, action.values)
            case act.FetchDelta():
                self._spawn(self._fetch_delta(action))
            case act.FetchState():
                self._spawn(self._fetch_state(action))
            case act.Train():
                self._spawn(self._train(action))
            case act.Evaluate():
                self._spawn(self._evaluate(action))
            case act.Measure():
                self._spawn(self._measure(action))
            case act.MeasureComposition():
                self._spawn(self._measure_composition(action))
            case act.Commit():
                self._spawn(self._commit(action.certificate, action.validators))
            case act.CatchUp():
                self._spawn(self._catch_up(action))
            case act.AnswerCatchUp():
                future = self._answers.pop(action.request, None)
                if future is not None and not future.done():
                    future.set_result(action.messages)
            case act.Finalize():
                await self._finalize(action)
            case act.Notice():
                self._report({"type": action.what, "checkpoint": self.node.state.next_number, **action.facts})

    def _judge(self, event: ev.Event, action: act.ReportVerdict) -> None:
        self._metrics.count_verdict(action.verdict, action.reason)
        reason = action.reason.value if action.reason else ""
        if action.verdict is Verdict.REJECT:
            self._report({"type": "rejected", "reason": reason, "detail": action.detail, "peer": action.peer})
        points = points_of(event, action)
        if points > 0 and action.peer is not None:
            self._network.report_misbehaviour(action.peer, points, reason)
        elif action.verdict is Verdict.ACCEPT and action.peer is not None:
            self._network.report_useful(action.peer)

    async def _finalize(self, action: act.Finalize) -> None:
        """Files first, then the database row that points to them, then pruning."""
        state_file, weights = await store_final(self._store, action, self._versions_kept)
        if self._recording is not None and action.outcome is not None:
            await asyncio.to_thread(
                self._recording.write_checkpoint,
                action.number,
                action.record,
                action.inputs,
                action.deltas,
                action.compositions,
            )
        final = FinalCheckpoint(
            action.number,
            action.block_number,
            action.record,
            encode_certificate(action.certificate, action.committee),
            state_file,
            weights,
        )
        await asyncio.to_thread(self._database.finalize, final)
        await prune(self._store, action.number)
        self._committing.discard(action.number)
        self._report(_finalized(self.node, action, weights))

    # ---------------------------------------------------------------- what waits

    async def _fetch_delta(self, action: act.FetchDelta) -> None:
        data, peer = await self._fetcher.fetch(action.content, peer_id_of(action.mentor))
        event: ev.Event = ev.DeltaUnavailable(action.content)
        if data is not None:
            event = ev.DeltaFetched(action.content.digest, data, peer)
        await self._events.put(event)

    async def _fetch_state(self, action: act.FetchState) -> None:
        network_id = self.node.state.network_id
        fetched = await self._fetcher.fetch_state(network_id, action.number, action.record_hash)
        await self._events.put(fetched if fetched is not None else ev.StateUnavailable(action.number))

    async def _catch_up(self, action: act.CatchUp) -> None:
        """Ask a few peers for what they hold and we do not."""
        request = catch_up.messages_request(self.node.state.network_id, action.checkpoint, action.have)

        async def ask(peer: str) -> None:
            try:
                answer = await self._network.request(peer, request, 5_000)
                envelopes = catch_up.parse_messages_answer(answer)
                messages = [self._opened.open(envelope) for envelope in envelopes]
            except (PeerFailed, ServiceError):
                return
            except (EncodingError, Rejection) as error:
                self._network.report_misbehaviour(peer, 10.0, f"bad answer: {error}")
                return
            for message in messages:
                await self._events.put(ev.MessageReceived(message, peer))

        await asyncio.gather(*(ask(peer) for peer in self._fetcher.some_peers(CATCH_UP_PEERS)))

    async def answer(self, peer: str, payload: bytes) -> bytes:
        """A peer's catch-up request (network/ calls this). Raises EncodingError on nonsense."""
        request = catch_up.parse_request(payload, self.node.state.network_id)
        if isinstance(request, catch_up.RecordRequest):
            final = await asyncio.to_thread(self._database.by_record_hash, request.record_hash)
            return catch_up.record_answer(final.record if final else b"")
        self._next_request += 1
        future: asyncio.Future[tuple[Message, ...]] = asyncio.get_running_loop().create_future()
        self._answers[self._next_request] = future
        event = ev.CatchUpRequested(self._next_request, request.checkpoint, frozenset(request.have))
        await self._events.put(event)
        messages = await future
        return catch_up.messages_answer(tuple(m.envelope for m in messages))

    async def _train(self, action: act.Train) -> None:
        try:
            assert self._worker is not None
            factors = {spec.factor for spec in action.manifest.specs}
            moving = factors.pop() if len(factors) == 1 else "both"
            seed = int.from_bytes(self.node.node_key[:4], "big") ^ action.target_checkpoint
            with self._metrics.training():
                result = await self._worker.train(
                    action.weights.tensors(), self._train_settings, moving=moving, seed=seed
                )
            event: ev.Event = ev.TrainingFinished(
                action.target_checkpoint,
                action.weights_hash,
                action.moving_values,
                flatten(result.weights, action.manifest),
                result.examples,
                result.loss_after,
            )
        except CitrateError as error:
            event = ev.TrainingFailed("train", str(error), action.target_checkpoint)
        await self._events.put(event)

    async def _evaluate(self, action: act.Evaluate) -> None:
        try:
            assert self._worker is not None
            improvements = await self._worker.evaluate(
                action.parent.tensors(),
                {i: unflatten(delta, action.manifest) for i, delta in action.deltas.items()},
                scale=action.scale,
            )
            event: ev.Event = ev.EvaluationFinished(action.checkpoint, improvements)
        except CitrateError as error:
            event = ev.TrainingFailed("evaluate", str(error), action.checkpoint)
        await self._events.put(event)

    async def _measure(self, action: act.Measure) -> None:
        try:
            assert self._worker is not None
            improvement_ppm, examples = await self._worker.measure(action.weights.tensors())
            before_ppm, _ = await self._worker.measure(action.parent.tensors())
            event: ev.Event = ev.MeasurementFinished(
                action.checkpoint, action.weights_hash, improvement_ppm, examples, before_ppm
            )
        except CitrateError as error:
            event = ev.TrainingFailed("measure", str(error), action.checkpoint)
        await self._events.put(event)

    async def _measure_composition(self, action: act.MeasureComposition) -> None:
        event = ev.CompositionMeasured(action.weights_hash, None, 0)
        try:
            assert self._meter is not None
            event = ev.CompositionMeasured(action.weights_hash, *await self._meter.measure(action.weights))
        except CitrateError as error:
            name = action.weights_hash.hex()
            self._report({"type": "failed", "what": "measure", "weights_hash": name, "reason": str(error)})
        await self._events.put(event)

    async def _commit(self, certificate: Certificate, validators: tuple[Validator, ...]) -> None:
        number = certificate.commitment.number
        if number in self._committing:
            return
        self._committing.add(number)
        try:
            receipt = await self._chain.commit_checkpoint(self._account_key, certificate, validators)
            self._report(
                {
                    "type": "committed",
                    "checkpoint": number,
                    "tx": receipt.tx_hash,
                    "gas_used": receipt.gas_used,
                    "block": receipt.block_number,
                }
            )
        except ContractRefusal as refusal:
            # somebody else was first: the chain took the very same checkpoint, or will say which
            self._report({"type": "commit_refused", "checkpoint": number, "reason": str(refusal)})
        except ServiceError as error:
            self._report({"type": "chain", "state": "unreachable", "reason": str(error).split("\n")[0]})
        finally:
            self._committing.discard(number)


class _Stopped(Exception):
    """The operator wants the node to stop."""


def flatten(tensors: dict[str, npt.NDArray[np.float32]], manifest: Manifest) -> npt.NDArray[np.float32]:
    """The tensors of a manifest as one float32 vector, in its order."""
    parts = [np.asarray(tensors[spec.name], dtype=np.float32).reshape(-1) for spec in manifest.specs]
    return np.concatenate(parts)


def unflatten(values: npt.NDArray[np.float32], manifest: Manifest) -> dict[str, npt.NDArray[np.float32]]:
    """The opposite of `flatten`."""
    places = manifest.slices()
    return {spec.name: values[places[spec.name]].reshape(spec.shape) for spec in manifest.specs}


def _finalized(node: Node, action: act.Finalize, weights: ContentId) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "type": "finalized",
        "checkpoint": action.number,
        "block": action.block_number,
        "record_hash": node.state.record_hash.hex(),
        "weights_hash": weights.digest.hex(),
        "cid": weights.cid,
        "reputations": {row.node_key[:4].hex(): row.reputation_ppm for row in node.state.reputations},
        "computed": action.outcome is not None,
    }
    if action.outcome is not None:
        record = action.outcome.record
        facts |= {
            "signals": len(record.signals),
            "withheld": len(record.withheld),
            "evaluations": len(record.evaluations),
            "measurements": len(record.measurements),
            "promoted": record.promoted,
            "accuracy_ppm": record.accuracy_ppm,
            "compositions": [
                {
                    "adapter": update.adapter_id.hex(),
                    "weights_hash": update.weights_hash.hex(),
                    "accuracy_ppm": update.accuracy_ppm,
                }
                for update in record.compositions
            ],
            "outcomes": [
                {"mentor": o.mentor[:4].hex(), "score_ppm": o.score_ppm, "weight": o.weight}
                for o in action.outcome.aggregation.outcomes
            ],
        }
    return facts
