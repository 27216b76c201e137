"""Settings that cannot be meant are refused where they are written."""

from __future__ import annotations

from typing import Any

import pytest

from citrate_node.errors import ConfigError
from citrate_node.training.settings import LoraSettings, TrainSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 65}, "between 1 and 64"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"targets": ()}, "targets"),
        ({"targets": "q_proj"}, "tuple of module names"),
    ],
)
def test_lora_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"batch_sequences": 0},
        {"sequence_bytes": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate_lora_a": -1.0},
        {"gradient_norm_max": float("inf")},
        {"weight_decay": -0.1},
    ],
)
def test_train_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainSettings(**values)


def test_importing_the_settings_and_the_facade_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, citrate_node.training.worker, citrate_node.training.base_model, "
        "citrate_node.training.initial, citrate_node.training.data, citrate_node.training.export\n"
        "print(sorted({'torch', 'transformers', 'peft', 'safetensors'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"
