"""The rounds engine: what a network learns, checkpoint by checkpoint, without messages in time.

Where cluster.py asks whether nodes come to an agreement, this engine asks what the agreement is worth: nodes
train, attack, quantize, evaluate, and the protocol's own process_checkpoint makes the next version, with no
chain, latency or vote in between. So thousands of rounds of real training are affordable. Three ways of
sharing: "mentorship" (scores and reputations, as the network does), "equal" (federated averaging: every delta
counts the same) and "alone" (the control: every node by itself). Called by rounds_scenario.py and benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, Protocol

import numpy as np

from ..protocol.adapter import AdapterWeights, from_tensors
from ..protocol.aggregation import WEIGHT_SUM, WEIGHT_SUM_BITS, add_average, integer_weights
from ..protocol.certificate import Validator
from ..protocol.codecs import codec, decode_delta
from ..protocol.identifiers import ADAPTER_FACTORY_ADDRESS, network_id
from ..protocol.methods import moving_factor
from ..protocol.outer_step import OuterStep
from ..protocol.preset import ONE_PPM
from ..protocol.rules import Deltas, rule
from ..protocol.stack import average_products
from ..protocol.state import NetworkState, genesis_state
from ..protocol.state_transition import CheckpointInputs, Outcome, process_checkpoint
from ..protocol.tensors import Int64Array, divide_toward_zero
from .attacks import COLLECTIVE, HONEST, collective_attacks
from .metrics import NodeRow, node_rows
from .round_messages import Speakers
from .round_nodes import LIMITS, Phase, Sent, ShardNodes, product_error
from .round_options import Round, RoundsOptions
from .workload import Values

ADAPTER_ID = sha256(b"citrate rounds adapter").digest()


class Shards(Protocol):
    """Where nodes live: here (Here), or in workers.ProcessWorkload or RayWorkload."""

    @property
    def shards(self) -> int: ...

    def ask(self, calls: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]: ...


@dataclass
class Here:
    """All nodes in this process, as one shard."""

    nodes: ShardNodes
    shards: int = 1

    def ask(self, calls: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        return {shard: getattr(self.nodes, name)(*arguments) for shard, (name, arguments) in calls.items()}


@dataclass
class Rounds:
    """A run. `checkpoints()` gives its rounds; `on_outcome` hears of each that would be voted on."""

    options: RoundsOptions
    shards: Shards
    on_outcome: Callable[[int, Outcome, CheckpointInputs], None] | None = None
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, preset = self.options, self.options.preset
        workload = options.workload()
        self.loss_unit, self.adapter = workload.loss_unit, workload.initial_weights()
        self._momenta: dict[bytes, Int64Array] = {}
        self.speakers = Speakers(options, self._spread)
        self.state: NetworkState | None = None
        if options.sharing == "mentorship":
            nodes = tuple(Validator(x.node_key, x.account, 1) for x in self.speakers.identities)
            name = network_id(1, bytes(32), ADAPTER_FACTORY_ADDRESS, bytes(32), preset.digest())
            self.state = genesis_state(preset, name, nodes, ADAPTER_ID, self.adapter, bytes(32))

    def checkpoints(self) -> Iterator[Round]:
        """Run to the last checkpoint; the same options give the same rounds, whatever computes them."""
        step = {"mentorship": self._mentorship, "equal": self._equal, "alone": self._alone}
        for number in range(1, self.options.checkpoints + 1):
            done = step[self.options.sharing](number)
            self.history.append(f"{done.number} {done.weights_hash} {done.loss:.9f}")
            yield done

    def before(self) -> Round:
        """Where a run begins: the losses before checkpoint 1, of the base model itself."""
        return self._round(0, (), (), {})

    def history_hash(self) -> str:
        """sha256 over the history lines."""
        return sha256("\n".join(self.history).encode()).hexdigest()

    # ---------------------------------------------------------------- the three ways of sharing

    def _mentorship(self, number: int) -> Round:
        state = self.state
        assert state is not None
        drawn = sorted(self.speakers.place[key] for key in state.mentors)
        phase = Phase(number, state.weights, state.moving_manifest, state.preset.codec)
        sent = self._announced(phase, drawn)
        inputs, candidate = self.speakers.inputs(state, phase, sent)
        outcome = process_checkpoint(state, inputs, candidate)
        self.state, self.adapter = outcome.state, outcome.state.weights
        if self.on_outcome is not None:
            self.on_outcome(number, outcome, inputs)
        keys = [identity.node_key for identity in self.speakers.identities]
        who = zip(keys, self.options.kinds, strict=True)
        rows = tuple(node_rows(outcome, inputs.signals, state.mentors, who))
        record = outcome.record
        done = self._round(number, sent, rows, {})
        return replace(
            done,
            record_hash=record.hash.hex(),
            promoted=record.promoted,
            accuracy_ppm=record.accuracy_ppm,
            evaluations=len(record.evaluations),
        )

    def _equal(self, number: int) -> Round:
        options, nodes = self.options, range(self.options.nodes)
        factor = moving_factor(options.moving, number)
        manifest = self.adapter.manifest.subset(factor)
        phase = Phase(number, self.adapter, manifest, options.preset.codec)
        shares = dict(zip(nodes, integer_weights([1] * options.nodes), strict=True))
        figures: dict[str, float] = {}
        if self._is_plain(factor):
            answers = self._ask_all("round", lambda share: (phase, {node: shares[node] for node in share}))
            sent = [each for part, _ in answers for each in part]
            folded = np.sum([vector for _, vector in answers], axis=0)
            self.adapter = add_average(self.adapter, manifest, folded, WEIGHT_SUM_BITS)
        else:
            sent = self._announced(phase, list(nodes))
            figures = self._combine(phase, sent, shares)
        size = {each.node: each.size_bytes for each in sent}
        rows = tuple(
            NodeRow(number, n, kind, 0, 0, None, shares[n] * ONE_PPM // WEIGHT_SUM, "averaged", size[n])
            for n, kind in enumerate(options.kinds)
        )
        return self._round(number, sent, rows, figures)

    def _alone(self, number: int) -> Round:
        options = self.options
        manifest = self.adapter.manifest.subset(moving_factor(options.moving, number))
        phase = Phase(number, self.adapter, manifest, options.preset.codec)
        answers = self._ask_all("alone", lambda share: (phase, share))
        losses = [loss for part in answers for loss in part]
        figures = {}
        if number == options.checkpoints:  # every node's own weights on shared data: costly, so once
            rows = [row for part in self._ask_all("own_figures", lambda share: (share,)) for row in part]
            figures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return Round(number, float(np.mean(losses)), float(np.max(losses)), figures)

    # ---------------------------------------------------------------- parts

    def _is_plain(self, factor: str) -> bool:
        """Whether shards may fold by themselves: a mean, nothing that must see all deltas."""
        options = self.options
        preset = options.preset
        sees_all = options.is_collective or options.method or factor == "both"
        return preset.aggregation_rule == "mean" and preset.outer_step == OuterStep() and not sees_all

    def _announced(self, phase: Phase, nodes: Sequence[int]) -> list[Sent]:
        """What the nodes send, ascending by node: trained, attacked, encoded."""
        share_of = self._shares(nodes)
        self.shards.ask({s: ("train", (phase, share)) for s, share in share_of.items()})
        instead: dict[int, Values] = {}
        if self.options.is_collective:
            answers = self.shards.ask(dict.fromkeys(share_of, ("learnt", ())))
            learnt = {node: delta for part in answers.values() for node, delta in sorted(part.items())}
            ordered = {node: learnt[node] for node in nodes}
            # where no honest mentor was drawn they have nothing to go by, and send what they learnt
            instead = {node: ordered[node] for node in nodes if self.options.kinds[node] in COLLECTIVE}
            if any(self.options.kinds[node] == HONEST for node in nodes):
                instead = collective_attacks(self.options.kinds, ordered, self.options.seed, phase.checkpoint)
        answers = self.shards.ask(
            {
                s: ("send", (phase, {n: instead[n] for n in share if n in instead}, True))
                for s, share in share_of.items()
            }
        )
        return sorted((each for part in answers.values() for each in part), key=lambda each: each.node)

    def _combine(self, phase: Phase, sent: Sequence[Sent], shares: Mapping[int, int]) -> dict[str, float]:
        """The next adapter by the preset's rule and outer step, or by averaging products."""
        options, preset, manifest = self.options, self.options.preset, phase.manifest
        chosen = codec(phase.codec)
        figures: dict[str, float] = {}
        use_products = options.method == "stack"
        if moving_factor(options.moving, phase.checkpoint) == "both":
            moved = [self._moved(phase, each) for each in sent]
            figures["product_error"] = relative_product_error(self.adapter, moved)
            use_products |= options.method == "adaptive" and figures["product_error"] > options.spread_max
            if options.method:
                figures["stacked"] = float(use_products)
            if use_products:
                config = self.adapter.config
                averaged, _ = average_products(
                    [(shares[s.node], m) for s, m in zip(sent, moved, strict=True)], config.rank
                )
                root = (
                    config.alpha / config.rank
                ) ** 0.5  # the average's scale is 1, the adapter's is its own
                tensors = {name: each / root for name, each in averaged.tensors().items()}
                self.adapter = from_tensors(config, tensors)
                return figures
        files = tuple(each.data or b"" for each in sent)
        weights = tuple(shares[each.node] for each in sent)
        given = Deltas(
            self.adapter, manifest, chosen, files, weights, len(sent) * preset.dishonest_share_ppm // ONE_PPM
        )
        weighted, bits = rule(preset.aggregation_rule)(given)
        if preset.outer_step != OuterStep():
            weighted = divide_toward_zero(weighted, 1 << (bits - WEIGHT_SUM_BITS))
            bits = WEIGHT_SUM_BITS
            before = self._momenta.get(manifest.hash, np.zeros(manifest.count, dtype=np.int64))
            weighted, self._momenta[manifest.hash] = preset.outer_step.apply(weighted, before)
        self.adapter = add_average(self.adapter, manifest, weighted, bits)
        return figures

    def _moved(self, phase: Phase, sent: Sent) -> AdapterWeights:
        """The parent with one node's decoded delta added: float32, so never voted on."""
        decoded = decode_delta(sent.data or b"", codec(phase.codec), phase.manifest, LIMITS)
        before = phase.weights.select(phase.manifest)
        return phase.weights.with_values(phase.manifest, before + divide_toward_zero(decoded, 1 << 8))

    def _round(
        self, number: int, sent: Sequence[Sent], rows: tuple[NodeRow, ...], figures: dict[str, float]
    ) -> Round:
        honest = [node for node, kind in enumerate(self.options.kinds) if kind == HONEST]
        losses = self._spread("losses", honest, honest, whole=self.adapter)
        shared: list[dict[str, float]] = self.shards.ask({0: ("figures", ([self.adapter],))})[0]
        return Round(
            number,
            sum(losses) / self.loss_unit / len(losses),
            max(losses) / self.loss_unit,
            {**shared[0], **figures},
            weights_hash=self.adapter.digest().hex(),
            sent_bytes=sum(each.size_bytes for each in sent),
            nodes=rows,
        )

    # ---------------------------------------------------------------- shards

    def _shares(self, nodes: Sequence[int]) -> dict[int, list[int]]:
        shares: dict[int, list[int]] = {}
        for node in nodes:
            shares.setdefault(node % self.shards.shards, []).append(node)
        return shares

    def _ask_all(self, method: str, arguments: Callable[[list[int]], tuple[Any, ...]]) -> list[Any]:
        """One call per shard, with its nodes; answers ascending by shard."""
        shares = self._shares(range(self.options.nodes))
        answers = self.shards.ask({s: (method, arguments(share)) for s, share in shares.items()})
        return [answers[shard] for shard in sorted(answers)]

    def _spread(
        self, method: str, requests: Sequence[Any], nodes: Sequence[int], whole: Any = None
    ) -> list[Any]:
        """Requests to the shards of their nodes, answers in the order of the requests. whole: a first
        argument that all get."""
        places: dict[int, list[int]] = {}
        for place, node in enumerate(nodes):
            places.setdefault(node % self.shards.shards, []).append(place)
        calls = {}
        for shard, share in places.items():
            mine = [requests[i] for i in share]
            calls[shard] = (method, (mine,) if whole is None else (whole, mine))
        answers = self.shards.ask(calls)
        results: list[Any] = [None] * len(requests)
        for shard, share in places.items():
            for place, result in zip(share, answers[shard], strict=True):
                results[place] = result
        return results


def relative_product_error(parent: AdapterWeights, moved: Sequence[AdapterWeights]) -> float:
    """‖mean(BᵢAᵢ) − mean(B)·mean(A)‖ as a part of how far the exact average moves, over all modules."""
    before = parent.tensors()
    after = [each.tensors() for each in moved]
    wrong = step = 0.0
    for name in before:
        if not name.endswith("lora_B.weight"):
            continue
        other = name.replace("lora_B", "lora_A")
        error, moves = product_error((before[name], before[other]), [(t[name], t[other]) for t in after])
        wrong, step = wrong + error, step + moves
    return float((wrong / step) ** 0.5) if step else 0.0


@contextmanager
def pool_of(options: RoundsOptions, workers: int = 1, ray: str | None = None) -> Iterator[Shards]:
    """Where a run's nodes live: in this process, in `workers` processes, or on Ray at that address.

    Raises ConfigError or ServiceError (workers.py).
    """
    if ray is None and workers == 1:
        yield Here(options.shard())
        return
    from .workers import ProcessWorkload, RayWorkload

    make: Callable[[], Any] = partial(RoundsOptions.shard, options)
    pool = (
        ProcessWorkload(make, workers)
        if ray is None
        else RayWorkload(make, ray, workers if workers > 1 else None)
    )
    try:
        yield pool
    finally:
        pool.close()
