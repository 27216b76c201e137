"""The process behind TrainingWorker: holds torch, one base and one node's data; one request at a time.

Started by worker.py as `python -m citrate_node.training.worker_process`, never by hand. A thread reads
requests, so that "cancel" is seen while torch computes, and so that the end of the pipe (the parent is
gone, even by kill -9) ends this process at once.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import signal
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from citrate_node.training.wire import Frame, Groups, read_frame, write_frame

if TYPE_CHECKING:
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.data import NodeData
    from citrate_node.training.initial import Tensors
    from citrate_node.training.lora import LoraTrainer, LossResult

_PENDING_MAX = 2  # the parent sends the next request only when the last one has been answered
_HELD_OUT_SEQUENCES_MAX = 96  # more examples make a measurement slower, not visibly truer
_LOSSES_KEPT = 8  # the parent's and the base's loss are asked for again and again


class _Session:
    """What `start` made, and the requests that use it."""

    def __init__(self, reply: Callable[..., None], cancelled: set[int]) -> None:
        self._reply = reply
        self._cancelled = cancelled
        self._base: BaseModel | None = None
        self._trainer: LoraTrainer | None = None
        self._data: NodeData | None = None
        self._losses: OrderedDict[bytes, LossResult] = OrderedDict()

    def start(self, request: Frame) -> tuple[dict[str, Any], Groups]:
        from citrate_node.training.base_model import BaseModel
        from citrate_node.training.data import load_node_data
        from citrate_node.training.lora import LoraTrainer
        from citrate_node.training.settings import LoraSettings

        spec = request.header
        base = self._base = BaseModel.load(spec["base"])
        # data first: a wrong source is told before seconds go into importing torch
        data = self._data = load_node_data(spec["data_source"], base, spec["sequence_bytes"])
        lora = dict(spec["lora"])
        if not isinstance(lora["targets"], str):
            lora["targets"] = tuple(lora["targets"])
        trainer = self._trainer = LoraTrainer(base, LoraSettings(**lora), threads=spec["threads"])

        import torch

        return {
            "base_model_id": base.base_model_id.hex(),
            "licence": base.licence,
            "data_digest": data.digest.hex(),
            "mixture": data.mixture,
            "train_examples": len(data.train),
            "held_out_examples": min(len(data.held_out), _HELD_OUT_SEQUENCES_MAX),
            "shapes": {name: list(shape) for name, shape in trainer.shapes.items()},
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "torch_version": torch.__version__,
        }, {}

    def train(self, request: Frame) -> tuple[dict[str, Any], Groups]:
        from citrate_node.training.settings import TrainSettings

        assert self._trainer is not None
        assert self._data is not None
        number = request.header["id"]

        def on_step(done: int, of: int, loss: float) -> None:
            self._check(number)
            self._reply({"id": number, "progress": [done, of, loss]})

        result = self._trainer.train(
            request.groups["weights"],
            self._data.train,
            TrainSettings(**request.header["settings"]),
            moving=request.header["moving"],
            seed=request.header["seed"],
            on_step=on_step,
        )
        facts = {name: getattr(result, name) for name in ("loss_before", "loss_after", "examples", "seconds")}
        return facts, {"weights": result.weights}

    def evaluate(self, request: Frame) -> tuple[dict[str, Any], Groups]:
        """Loss of the parent, then of parent + scale · delta for every group that is not the parent."""
        parent = request.groups["parent"]
        scale = float(request.header["scale"])
        number = request.header["id"]
        before = self._loss(parent, number)
        losses: dict[str, float] = {}
        for key, delta in request.groups.items():
            if key == "parent":
                continue
            if odd := sorted(delta.keys() - parent.keys()):
                raise ValueError(f"a delta holds {odd[0]}, which this adapter has not")
            moved = {name: _moved(parent[name], delta[name], scale) for name in delta}
            losses[key] = self._candidate_loss({**parent, **moved}, number)
        return {"parent_loss": before.loss, "losses": losses, "examples": before.examples}, {}

    def measure(self, request: Frame) -> tuple[dict[str, Any], Groups]:
        """Losses of the base alone and of the given weights, on own or on general held-out text."""
        number, general = request.header["id"], request.header["on"] == "general"
        base = self._loss(None, number, general)
        result = self._loss(request.groups["weights"], number, general)
        return {"base_loss": base.loss, "loss": result.loss, "examples": result.examples}, {}

    def _candidate_loss(self, weights: Tensors, number: int) -> float:
        """Loss of weights that a peer had a hand in: where they leave the finite numbers it is infinite."""
        import numpy as np

        if not all(np.isfinite(array).all() for array in weights.values()):
            return float("inf")
        loss = self._loss(weights, number).loss
        return loss if math.isfinite(loss) else float("inf")

    def _loss(self, weights: Tensors | None, number: int, general: bool = False) -> LossResult:
        """Loss on held-out text; the last few answers are kept."""
        from citrate_node.training.data import general_held_out

        assert self._base is not None
        assert self._trainer is not None
        assert self._data is not None
        key = _key(weights, general)
        if key not in self._losses:
            rows = general_held_out(self._base) if general else self._data.held_out
            self._losses[key] = self._trainer.loss(
                weights, rows, sequences_max=_HELD_OUT_SEQUENCES_MAX, on_batch=lambda: self._check(number)
            )
            if len(self._losses) > _LOSSES_KEPT:
                self._losses.popitem(last=False)
        self._losses.move_to_end(key)
        return self._losses[key]

    def _check(self, number: int) -> None:
        from citrate_node.training.lora import TrainingCancelled

        if number in self._cancelled:
            raise TrainingCancelled


def _moved(parent: Any, delta: Any, scale: float) -> Any:
    """parent + scale · delta in float32; a delta too large for it gives infinity, without a warning."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        return parent + np.float32(scale) * delta


def _key(weights: Tensors | None, general: bool) -> bytes:
    digest = hashlib.sha256(b"general" if general else b"own")
    for name, array in sorted((weights or {}).items()):
        digest.update(name.encode() + array.tobytes())
    return digest.digest()


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the stream of requests ends, which ends the process."""
    waiting: queue.Queue[Frame] = queue.Queue(_PENDING_MAX)
    cancelled: set[int] = set()
    threading.Thread(target=_read, args=(requests, waiting, cancelled), daemon=True).start()
    session = _Session(lambda header, groups=None: write_frame(replies, header, groups), cancelled)
    while True:
        request = waiting.get()
        number = request.header["id"]
        try:
            if number not in cancelled:
                header, groups = getattr(session, request.header["op"])(request)
                write_frame(replies, {"id": number, "result": header}, groups)
        except Exception as error:
            kind = type(error).__name__
            write_frame(
                replies,
                {"id": number, "error": kind, "message": str(error), "traceback": traceback.format_exc()},
            )
        cancelled.discard(number)


def _read(requests: BinaryIO, waiting: queue.Queue[Frame], cancelled: set[int]) -> None:
    while (frame := read_frame(requests)) is not None:
        if frame.header["op"] == "cancel":
            cancelled.add(frame.header["cancel"])
        else:
            waiting.put(frame)
    os._exit(0)  # the parent is gone or has closed the pipe: nobody is left to answer


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the frames
    os.nice(int(sys.argv[1]))
    serve(os.fdopen(os.dup(0), "rb"), replies)


if __name__ == "__main__":
    main()
