"""The training process: same results as in process, never in the loop's way, gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from short_training import SHORT, SMALL

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training.data import NodeData
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer
from citrate_node.training.settings import TrainSettings
from citrate_node.training.worker import TrainingWorker, WorkerFacts, improvement_ppm

SOURCE = "embedded:1/4?bytes=8192&held_out=2048"
LONG = TrainSettings(steps=100_000, batch_sequences=2, sequence_bytes=64, learning_rate=0.001)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def new_worker() -> TrainingWorker:
    return TrainingWorker("embedded", SMALL, SOURCE, sequence_bytes=64)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[tuple[TrainingWorker, WorkerFacts]]:
    worker = new_worker()
    facts = await worker.start()
    yield worker, facts
    await worker.stop()


def is_running(process_id: int) -> bool:
    """False for a process that is gone, and for one that only waits to be collected."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


async def ends(process_id: int) -> bool:
    for _ in range(300):
        if not is_running(process_id):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_it_says_what_it_loaded(
    running: tuple[TrainingWorker, WorkerFacts], trainer: LoraTrainer, node_data: NodeData
) -> None:
    _, facts = running
    assert facts.base_model_id == trainer.base.base_model_id
    assert facts.data_digest == node_data.digest
    assert facts.train_examples == len(node_data.train)
    assert facts.held_out_examples == len(node_data.held_out)
    assert dict(facts.shapes) == trainer.shapes
    assert facts.mixture == node_data.mixture
    assert facts.licence == "psf-2.0"


async def test_it_trains_to_the_bytes_that_the_trainer_gives_in_process(
    running: tuple[TrainingWorker, WorkerFacts],
    trainer: LoraTrainer,
    node_data: NodeData,
    first_weights: Tensors,
) -> None:
    worker, _ = running
    steps: list[tuple[int, int]] = []
    result = await worker.train(
        first_weights, SHORT, moving="lora_B", seed=5, on_step=lambda done, of, loss: steps.append((done, of))
    )
    expected = trainer.train(first_weights, node_data.train, SHORT, moving="lora_B", seed=5)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert {n: w.tobytes() for n, w in result.weights.items()} == {
        n: w.tobytes() for n, w in expected.weights.items()
    }
    assert (result.loss_before, result.loss_after) == (expected.loss_before, expected.loss_after)


async def test_it_measures_deltas_by_the_scaled_step_on_the_own_held_out_data(
    running: tuple[TrainingWorker, WorkerFacts],
    trainer: LoraTrainer,
    node_data: NodeData,
    first_weights: Tensors,
) -> None:
    worker, _ = running
    settings = dataclasses.replace(SHORT, steps=10)
    trained = trainer.train(first_weights, node_data.train, settings, moving="lora_B", seed=1).weights
    moving = [name for name in trained if ".lora_B." in name]
    good = {name: trained[name] - first_weights[name] for name in moving}
    bad = {name: -3 * good[name] for name in moving}
    huge = {name: np.full_like(good[name], 3e38) for name in moving}
    found = await worker.evaluate(
        first_weights, {b"good": good, b"bad": bad, b"huge": huge, b"none": {}}, scale=0.2
    )
    step = {**first_weights, **{n: first_weights[n] + np.float32(0.2) * good[n] for n in moving}}
    before = trainer.loss(first_weights, node_data.held_out).loss
    after = trainer.loss(step, node_data.held_out).loss
    examples = len(node_data.held_out)
    assert found[b"good"] == (improvement_ppm(before, after), examples)
    assert found[b"good"][0] > 0 > found[b"bad"][0]
    assert found[b"none"] == (0, examples)
    assert found[b"huge"] == (-1_000_000, examples)


async def test_it_measures_an_adapter_against_the_base_alone(
    running: tuple[TrainingWorker, WorkerFacts],
    trainer: LoraTrainer,
    node_data: NodeData,
    first_weights: Tensors,
    trained_weights: Tensors,
) -> None:
    worker, _ = running
    base_loss = trainer.loss(None, node_data.held_out).loss
    loss = trainer.loss(trained_weights, node_data.held_out).loss
    expected = (improvement_ppm(base_loss, loss), len(node_data.held_out))
    assert await worker.measure(trained_weights) == expected
    assert await worker.measure(first_weights) == (0, len(node_data.held_out))
    improvement, examples = await worker.measure(trained_weights, on="general")
    assert improvement != expected[0]
    assert examples == 96


async def test_a_refused_request_says_why_and_the_next_one_works(
    running: tuple[TrainingWorker, WorkerFacts], first_weights: Tensors
) -> None:
    worker, _ = running
    name = sorted(first_weights)[0]
    with pytest.raises(ServiceError, match="not the tensors of this adapter"):
        await worker.train({name: first_weights[name]}, SHORT, moving="both", seed=1)
    with pytest.raises(ServiceError, match="which this adapter has not"):
        await worker.evaluate(first_weights, {b"x": {"y": np.zeros(1, np.float32)}}, scale=0.2)
    assert (await worker.measure(first_weights))[0] == 0
    assert worker.starts == 1


async def test_a_cancelled_training_stops_and_the_loop_never_waits(
    running: tuple[TrainingWorker, WorkerFacts], first_weights: Tensors
) -> None:
    worker, _ = running
    stepped = asyncio.Event()
    running_task = asyncio.create_task(
        worker.train(first_weights, LONG, moving="both", seed=1, on_step=lambda *_: stepped.set())
    )
    await stepped.wait()
    for _ in range(2):  # the same process answers afterwards, however often
        running_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running_task
        running_task = asyncio.create_task(worker.train(first_weights, LONG, moving="both", seed=1))
        await asyncio.sleep(0)
    running_task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running_task
    assert (await worker.measure(first_weights))[0] == 0
    assert worker.starts == 1


async def test_an_error_in_the_callers_progress_callback_reaches_the_caller(
    running: tuple[TrainingWorker, WorkerFacts], first_weights: Tensors
) -> None:
    worker, _ = running

    def on_step(done: int, of: int, loss: float) -> None:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        await worker.train(first_weights, LONG, moving="both", seed=1, on_step=on_step)
    assert (await worker.measure(first_weights))[0] == 0
    assert worker.starts == 1


async def test_a_killed_process_is_replaced_and_stopping_ends_the_request_that_runs(
    first_weights: Tensors,
) -> None:
    """The one that dies fails its request with the reason; the next request starts another process."""
    worker = new_worker()
    await worker.start()
    process_id = worker.process_id
    assert process_id is not None
    try:

        def kill(done: int, of: int, loss: float) -> None:
            os.kill(process_id, signal.SIGKILL)

        with pytest.raises(ServiceError, match=r"killed by signal 9 .*train"):
            await worker.train(first_weights, LONG, moving="both", seed=1, on_step=kill)
        assert worker.last_error is not None
        assert "signal 9" in worker.last_error
        assert worker.process_id is None
        assert (await worker.measure(first_weights))[0] == 0
        assert worker.starts == 2
        second = worker.process_id
        assert second not in (None, process_id)

        stepped = asyncio.Event()
        task = asyncio.create_task(
            worker.train(first_weights, LONG, moving="both", seed=1, on_step=lambda *_: stepped.set())
        )
        await stepped.wait()
        await worker.stop()
        with pytest.raises(ServiceError, match="was stopped"):
            await task
    finally:
        await worker.stop()
    assert second is not None
    assert await ends(second)
    with pytest.raises(ServiceError, match="stopped"):
        await worker.measure(first_weights)


@pytest.mark.parametrize(
    ("base", "source", "message"),
    [("./nowhere", SOURCE, "no such directory"), ("embedded", "embedded:9/4", "between 0 and 3")],
)
async def test_a_base_or_source_that_cannot_be_used_is_the_operators_error(
    base: str, source: str, message: str
) -> None:
    worker = TrainingWorker(base, SMALL, source)
    with pytest.raises(ConfigError, match=message):
        await worker.start()
    assert worker.process_id is None
    await worker.stop()


async def test_the_process_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Even in the middle of training, and by kill -9, which lets nobody say goodbye."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio\n"
        "from citrate_node.training.base_model import BaseModel\n"
        "from citrate_node.training.initial import initial_weights\n"
        "from citrate_node.training.settings import LoraSettings, TrainSettings\n"
        "from citrate_node.training.worker import TrainingWorker\n"
        "async def main():\n"
        "    lora = LoraSettings(rank=2, alpha=4)\n"
        f"    worker = TrainingWorker('embedded', lora, {SOURCE!r}, sequence_bytes=64)\n"
        "    await worker.start()\n"
        "    first = initial_weights(BaseModel.load().tensor_shapes(lora), b's')\n"
        "    settings = TrainSettings(steps=100000, batch_sequences=8, learning_rate=0.001)\n"
        "    say = lambda done, of, loss: print(worker.process_id, flush=True)\n"
        "    await worker.train(first, settings, moving='both', seed=1, on_step=say)\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).parents[2])
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert parent.stdout is not None
    process_id = int(await parent.stdout.readline())
    assert is_running(process_id)
    parent.kill()
    await parent.wait()
    assert await ends(process_id)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (2.0, 1.0, 500_000),
        (2.0, 2.0, 0),
        (2.0, 2.1, -50_000),
        (1.0, 9.0, -1_000_000),
        (1.0, float("nan"), -1_000_000),
    ],
)
async def test_improvement_is_a_bounded_share_of_the_loss_before(
    before: float, after: float, expected: int
) -> None:
    assert improvement_ppm(before, after) == expected
