"""Trains and measures many adapters at once: one pass of the frozen base for all of them.

What lora.py does for one node, for many nodes of a simulation, with the same results but for float rounding:
the same batches, a loss, a gradient norm and AdamW's moments per node. Small batches of many nodes are put
into one pass until it holds TOKENS_PER_PASS; a node whose own batch is as large as that goes through alone,
so that nothing is lost where nothing can be won. Called by simulation/training_workload.py and benchmarks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.batched_lora import StackedLora, Weights
from citrate_node.training.data import PAD, Rows
from citrate_node.training.lora import (
    LossResult,
    TrainResult,
    example_batches,
    load_base,
    quick_import,
)
from citrate_node.training.settings import LoraSettings, Moving, TrainSettings

TOKENS_PER_PASS = 2048
"""Of all nodes in one training pass on a CPU: from here on a core is busy, and more only leaves its cache."""

TOKENS_PER_PASS_CUDA = 1 << 17

_IGNORED = -100  # torch's own mark for "no target here"


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One node's local phase."""

    weights: Weights
    data: Rows
    seed: int


class BatchedTrainer:
    """One base model in memory, and stacked factors for as many adapters as a pass has room for.

    device: where torch computes, "cpu" or "cuda". Not for several threads. Memory: the base, the activations
    of one pass, and, of the adapters in that pass, factors, gradients and moments.
    """

    def __init__(
        self,
        base: BaseModel,
        settings: LoraSettings | None = None,
        *,
        threads: int = 1,
        device: str = "cpu",
        tokens_per_pass: int | None = None,
    ) -> None:
        self.base = base
        self.settings = settings or LoraSettings()
        if self.settings.dropout:
            raise ConfigError("dropout is not 0: nodes that train in one batch would share its draws")
        with quick_import():
            import torch

            if device.startswith("cuda") and not torch.cuda.is_available():
                raise ConfigError(f'device is {device!r}, and torch finds no GPU here; use device "cpu"')
            torch.set_num_threads(threads)
            self._model = load_base(base).to(device).eval()
        usual = TOKENS_PER_PASS_CUDA if device.startswith("cuda") else TOKENS_PER_PASS
        self.tokens_per_pass = tokens_per_pass or usual
        self._device = device
        self.shapes = base.tensor_shapes(self.settings)
        self.lora = StackedLora(self._model, self.shapes, self.settings.scaling)

    def train(
        self,
        jobs: Sequence[TrainJob],
        settings: TrainSettings,
        *,
        moving: Moving = "both",
        on_pass: Callable[[int, int], None] | None = None,
    ) -> list[TrainResult]:
        """Every job's weights after `settings.steps` steps, in the order of the jobs.

        on_pass receives (jobs done, jobs in all) after each group of jobs. seconds of a result is its share
        of the group's time. Raises ValueError as LoraTrainer.train does, naming the job.
        """
        results: list[TrainResult | None] = [None] * len(jobs)
        done = 0
        for group in self._groups(jobs, settings):
            for place, result in zip(group, self._train(group, jobs, settings, moving), strict=True):
                results[place] = result
            done += len(group)
            if on_pass is not None:
                on_pass(done, len(jobs))
        return [result for result in results if result is not None]

    def losses(
        self, pairs: Sequence[tuple[Weights | None, Rows]], scalings: Sequence[float] | None = None
    ) -> list[LossResult]:
        """Mean loss of each adapter on the examples beside it, as LoraTrainer.loss has it. None: the base.

        Rows of all pairs go through together; an adapter that stands in several pairs (the same object) is
        loaded once per pass. scalings: alpha / rank of each pair's adapter where it is not the trainer's own;
        adapters may be of any rank.
        """
        import torch

        if any(len(rows) == 0 for _, rows in pairs):
            raise ValueError("there is no example to measure on")
        found: list[list[npt.NDArray[np.float64]]] = [[] for _ in pairs]
        with torch.inference_mode():
            for part in self._evaluation_passes(pairs):
                distinct = {id(pairs[pair][0]): pair for pair, _ in part}
                places = {key: place for place, key in enumerate(distinct)}
                scales = None if scalings is None else [scalings[pair] for pair in distinct.values()]
                self.lora.load([pairs[pair][0] for pair in distinct.values()], scales)
                rows = np.concatenate([chunk for _, chunk in part])
                counts = [len(chunk) for _, chunk in part]
                self.lora.rows(np.repeat([places[id(pairs[pair][0])] for pair, _ in part], counts))
                of_rows = self._row_losses(rows).double().cpu().numpy()
                for (pair, _), each in zip(part, np.split(of_rows, np.cumsum(counts)[:-1]), strict=True):
                    found[pair].append(each)
        # a pair's rows are added up in their own order, however passes cut them
        return [
            LossResult(float(np.concatenate(each).sum() / np.count_nonzero(rows[:, 1:] != PAD)), len(rows))
            for each, (_, rows) in zip(found, pairs, strict=True)
        ]

    def _groups(self, jobs: Sequence[TrainJob], settings: TrainSettings) -> Iterator[list[int]]:
        """Jobs that go through together: of one batch size and width, as many as a pass has room for."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, job in enumerate(jobs):
            if len(job.data) == 0:
                raise ValueError(f"job {place}: there is no example to train on")
            width = min(job.data.shape[1], settings.sequence_bytes)
            alike[min(settings.batch_sequences, len(job.data)), width].append(place)
        for (sequences, width), places in alike.items():
            size = max(1, self.tokens_per_pass // (sequences * width))
            for start in range(0, len(places), size):
                yield places[start : start + size]

    def _train(
        self, group: list[int], jobs: Sequence[TrainJob], settings: TrainSettings, moving: Moving
    ) -> list[TrainResult]:
        import torch

        started = time.perf_counter()
        chosen = [jobs[place] for place in group]
        self.lora.load([job.weights for job in chosen])
        learning = self.lora.learn(moving)
        optimizer = torch.optim.AdamW(
            [{"params": [tensor], "lr": settings.rate_of(name)} for name, tensor in learning],
            weight_decay=settings.weight_decay,
        )
        batches = [example_batches(len(job.data), settings, job.seed) for job in chosen]
        losses: list[npt.NDArray[np.float64]] = []
        for step in range(settings.steps):
            rows = np.concatenate(
                [
                    job.data[each[step]][:, : settings.sequence_bytes]
                    for job, each in zip(chosen, batches, strict=True)
                ]
            )
            of_nodes = self._node_losses(rows, len(group))
            of_nodes.sum().backward()
            _clip_each([tensor for _, tensor in learning], settings.gradient_norm_max)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(of_nodes.detach().double().cpu().numpy())
            if not np.isfinite(losses[-1]).all():
                odd = group[int(np.flatnonzero(~np.isfinite(losses[-1]))[0])]
                raise ValueError(f"job {odd}: training diverged in step {step + 1}: lower the learning rate")
        seconds = (time.perf_counter() - started) / len(group)
        last = np.mean(losses[-max(1, len(losses) // 4) :], axis=0)
        try:
            trained = self.lora.current()
        except ValueError as error:
            raise ValueError(f"trained weights of jobs {group[0]} to {group[-1]}: {error}") from None
        examples = [len(np.unique(np.concatenate(each))) for each in batches]
        return [
            TrainResult(trained[i], float(losses[0][i]), float(last[i]), examples[i], seconds)
            for i in range(len(group))
        ]

    def _node_losses(self, rows: Rows, nodes: int) -> Any:
        """Mean loss per token of each node, (nodes,); rows are shared out evenly and in order."""
        import torch

        per_row = self._row_losses(rows)
        counts = (rows[:, 1:] != PAD).sum(axis=1).reshape(nodes, -1).sum(axis=1)
        scale = torch.from_numpy((1.0 / counts).astype(np.float32)).to(self._device)
        return per_row.reshape(nodes, -1).sum(dim=1) * scale

    def _row_losses(self, rows: Rows) -> Any:
        """Sum over each row of the cross entropy of every token after the first, (rows,)."""
        import torch

        filled = torch.from_numpy(np.where(rows == PAD, 0, rows).astype(np.int64)).to(self._device)
        targets = torch.from_numpy(np.where(rows == PAD, _IGNORED, rows)[:, 1:].astype(np.int64))
        # padding stands at the end alone, and attention looks back only: no mask is needed
        logits = self._model(input_ids=filled[:, :-1], use_cache=False).logits
        each = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            targets.reshape(-1).to(self._device),
            ignore_index=_IGNORED,
            reduction="none",
        )
        return each.reshape(len(rows), -1).sum(dim=1)

    def _evaluation_passes(
        self, pairs: Sequence[tuple[Weights | None, Rows]]
    ) -> Iterator[list[tuple[int, Rows]]]:
        """(pair, some of its rows) up to the tokens of a pass, of one width; an adapter's pairs together."""
        order = sorted(range(len(pairs)), key=lambda pair: pairs[pair][1].shape[1])
        part: list[tuple[int, Rows]] = []
        room = 0
        for pair in order:
            rows = pairs[pair][1]
            width, start = rows.shape[1], 0
            if part and part[0][1].shape[1] != width:
                yield part
                part = []
            while start < len(rows):
                if not part:
                    room = max(1, self.tokens_per_pass // width)
                chunk = rows[start : start + room]
                part.append((pair, chunk))
                start, room = start + len(chunk), room - len(chunk)
                if room == 0:
                    yield part
                    part = []
        if part:
            yield part


def _clip_each(tensors: list[Any], norm_max: float) -> None:
    """Scale every node's gradient down to the norm, as torch.nn.utils.clip_grad_norm_ does for one.

    tensors: stacked, (nodes, rows, columns) each, with gradients.
    """
    import torch

    squares = sum(tensor.grad.square().sum(dim=(1, 2)) for tensor in tensors)
    factors = (norm_max / (torch.sqrt(squares) + 1e-6)).clamp(max=1.0)[:, None, None]
    for tensor in tensors:
        tensor.grad.mul_(factors)
