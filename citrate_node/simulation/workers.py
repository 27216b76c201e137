"""A workload in several processes, or on Ray: each holds a shard of the nodes for as long as the run lasts.

What is shared out is what costs: training, evaluating, measuring, and the sum of the losses, which each shard
adds up by itself before it sends one integer (sums of integers do not depend on where they were begun). The
order of events stays in one process, which asks all shards at once and takes their answers in the order of
the requests: so a run has the same history with one process, with many, and on Ray. Called by scenario.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from ..errors import ConfigError, ServiceError
from ..protocol.adapter import AdapterWeights
from .workload import EvaluateRequest, Improvement, MeasureRequest, TrainRequest, TrainResult, Workload

Call = tuple[str, tuple[Any, ...]]
"""Name of a method of Workload, and its arguments."""

WORKERS_MAX = 256
STOP_SECONDS_MAX = 5


class ShardedWorkload(ABC):
    """A Workload whose node i is in shard i modulo the number of shards."""

    def __init__(self, make: Callable[[], Workload], shards: int) -> None:
        """make: gives the whole task, in this process and in each shard; it must be picklable.

        Raises ConfigError where the number of shards is out of range.
        """
        if not 1 <= shards <= WORKERS_MAX:
            raise ConfigError(f"workers is {shards}, must lie between 1 and {WORKERS_MAX}")
        self.shards = shards
        self._local = make()

    @abstractmethod
    def ask(self, calls: dict[int, Call]) -> dict[int, Any]:
        """One call per shard, all at once; the answers by shard. Raises ServiceError where one is lost."""

    @abstractmethod
    def close(self) -> None:
        """End the shards. May be called twice."""

    @property
    def loss_unit(self) -> int:
        return self._local.loss_unit

    def initial_weights(self) -> AdapterWeights:
        return self._local.initial_weights()

    def train(self, requests: Sequence[TrainRequest]) -> list[TrainResult]:
        return self._share("train", requests, [request.node for request in requests])

    def evaluate(self, requests: Sequence[EvaluateRequest]) -> list[dict[bytes, Improvement]]:
        return self._share("evaluate", requests, [request.node for request in requests])

    def measure(self, requests: Sequence[MeasureRequest]) -> list[Improvement]:
        return self._share("measure", requests, [request.node for request in requests])

    def losses(self, weights: AdapterWeights, nodes: Sequence[int]) -> list[int]:
        places = {node: place for place, node in enumerate(nodes)}
        shares = self._shares(nodes)
        answers = self.ask({shard: ("losses", (weights, share)) for shard, share in shares.items()})
        results = [0] * len(nodes)
        for shard, share in shares.items():
            for node, loss in zip(share, answers[shard], strict=True):
                results[places[node]] = loss
        return results

    def figures(self, weights: Sequence[AdapterWeights]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = self.ask({0: ("figures", (weights,))})[0]
        return found

    def loss_sum(self, weights: AdapterWeights, nodes: Sequence[int]) -> int:
        """One integer per shard, added up here."""
        shares = self._shares(nodes)
        answers = self.ask({shard: ("loss_sum", (weights, share)) for shard, share in shares.items()})
        return sum(answers.values())

    def _shares(self, nodes: Sequence[int]) -> dict[int, list[int]]:
        shares: dict[int, list[int]] = {}
        for node in nodes:
            shares.setdefault(node % self.shards, []).append(node)
        return shares

    def _share(self, method: str, requests: Sequence[Any], nodes: Sequence[int]) -> list[Any]:
        places: dict[int, list[int]] = {}
        for place, node in enumerate(nodes):
            places.setdefault(node % self.shards, []).append(place)
        answers = self.ask(
            {shard: (method, ([requests[i] for i in share],)) for shard, share in places.items()}
        )
        results: list[Any] = [None] * len(requests)
        for shard, share in places.items():
            for place, result in zip(share, answers[shard], strict=True):
                results[place] = result
        return results


class ProcessWorkload(ShardedWorkload):
    """Shards in worker processes of this machine, each at the other end of a pipe."""

    def __init__(self, make: Callable[[], Workload], shards: int) -> None:
        super().__init__(make, shards)
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of numeric libraries
        self._pipes: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for shard in range(shards):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, make), daemon=True, name=f"citrate shard {shard}"
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def ask(self, calls: dict[int, Call]) -> dict[int, Any]:
        answers = {}
        try:
            for shard, call in calls.items():
                self._pipes[shard].send(call)
            for shard in calls:
                done, answer = self._pipes[shard].recv()
                if not done:
                    raise ServiceError(f"worker {shard} failed: {answer}")
                answers[shard] = answer
        except (EOFError, OSError) as error:
            self.close()
            raise ServiceError(
                f"a worker process ended ({type(error).__name__})\n"
                "  run again with fewer --workers where memory was short"
            ) from None
        return answers

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # a worker ends when its pipe does
        for process in self._processes:
            process.join(STOP_SECONDS_MAX)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []


def _serve(pipe: Connection, make: Callable[[], Workload]) -> None:
    """A worker process: answers calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the pipe's end is enough
    workload = make()
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                answer = (True, getattr(workload, method)(*arguments))
            except Exception as error:
                answer = (False, f"{type(error).__name__}: {error}")
            pipe.send(answer)


class RayWorkload(ShardedWorkload):
    """Shards in Ray actors: one long-lived actor per core, one call per shard and batch."""

    def __init__(self, make: Callable[[], Workload], address: str, shards: int | None = None) -> None:
        """address: of a Ray cluster, "auto" for the one this machine belongs to, "local" to start one here.

        shards: as many as the cluster has cores where None. Raises ConfigError where Ray is not installed,
        ServiceError where the address does not answer.
        """
        try:
            import ray
        except ImportError:
            raise ConfigError("Ray is not installed\n  `pip install citrate-node[ray]`") from None
        self._ray: Any = ray
        self._actors: list[Any] = []
        try:
            if not ray.is_initialized():
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ServiceError(
                f"cannot reach Ray at {address!r} ({error})\n"
                "  start one with `ray start --head`, or use --ray local"
            ) from None
        super().__init__(make, shards or max(1, int(ray.cluster_resources().get("CPU", 1))))
        actor = ray.remote(num_cpus=1)(_Shard)
        self._actors = [actor.remote(make) for _ in range(self.shards)]

    def ask(self, calls: dict[int, Call]) -> dict[int, Any]:
        futures = [
            self._actors[shard].call.remote(method, arguments) for shard, (method, arguments) in calls.items()
        ]
        try:
            return dict(zip(calls, self._ray.get(futures), strict=True))
        except self._ray.exceptions.RayError as error:
            raise ServiceError(f"a Ray actor failed: {error}") from None

    def close(self) -> None:
        if self._actors:
            for actor in self._actors:
                self._ray.kill(actor)
            self._actors = []
            self._ray.shutdown()


class _Shard:
    """What an actor holds."""

    def __init__(self, make: Callable[[], Workload]) -> None:
        self._workload = make()

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._workload, method)(*arguments)
