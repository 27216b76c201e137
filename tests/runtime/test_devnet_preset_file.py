"""A devnet whose preset is a file of the operator's own."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from citrate_node.config import load_preset
from citrate_node.runtime.devnet_admin import prepare


def test_a_preset_given_by_a_relative_path_is_found_from_the_nodes_own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in node.toml begins at that file's folder, where the preset is not."""
    monkeypatch.chdir(tmp_path)
    with resources.as_file(resources.files("citrate_node") / "presets" / "minimal.toml") as source:
        shutil.copy(source, tmp_path / "mine.toml")
    _, choices = prepare(
        Path("net"), nodes=2, checkpoints=1, preset="mine.toml", seed=1, base_model="embedded", rpc_url=""
    )
    monkeypatch.chdir(tmp_path / "net")
    assert load_preset(choices.preset) == load_preset("minimal")
