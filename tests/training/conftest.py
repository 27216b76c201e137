"""One base and one trainer for all tests here: importing torch and PEFT is most of their time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from short_training import SHORT, SMALL

from citrate_node.training import worker_pipe
from citrate_node.training.base_model import BaseModel
from citrate_node.training.data import NodeData, load_node_data
from citrate_node.training.initial import Tensors
from citrate_node.training.lora import LoraTrainer


@pytest.fixture(scope="session", autouse=True)
def no_giving_way() -> Iterator[None]:
    """Training processes give way to others; on a busy machine tests would wait for them for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_pipe, "NICENESS", 0)
        yield


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return BaseModel.load()


@pytest.fixture(scope="session")
def trainer(base: BaseModel) -> LoraTrainer:
    return LoraTrainer(base, SMALL)


@pytest.fixture(scope="session")
def node_data(base: BaseModel) -> NodeData:
    return load_node_data("embedded:1/4?bytes=8192&held_out=2048", base, sequence_bytes=64)


@pytest.fixture(scope="session")
def first_weights(base: BaseModel) -> Tensors:
    from citrate_node.training.initial import initial_weights

    return initial_weights(base.tensor_shapes(SMALL), b"tests")


@pytest.fixture(scope="session")
def trained_weights(trainer: LoraTrainer, node_data: NodeData, first_weights: Tensors) -> Tensors:
    """An adapter with both factors away from their start."""
    return trainer.train(first_weights, node_data.train, SHORT, moving="both", seed=7).weights
