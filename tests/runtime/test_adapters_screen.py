"""Screening finds what is broken, oversized, undeclared or far from the known adapters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner
from wallet_chain import adapter

from citrate_node.cli import adapter as adapter_commands
from citrate_node.protocol.adapter import AdapterLimits
from citrate_node.runtime.adapters_files import peft_config
from citrate_node.runtime.adapters_screen import Finding, Norms, norms_of, screen

LIMITS = AdapterLimits(1 << 20, tensors_max=200, rank_max=8)
TARGETS = ("q_proj", "v_proj")
STEM = "base_model.model.model.layers.0.self_attn"


def folder(path: Path, seed: int = 1) -> Path:
    weights = adapter(seed, 2, TARGETS)
    path.mkdir()
    save_file(weights.tensors(), path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(peft_config(weights.config, "embedded")))
    return path


def changed(path: Path, name: str, value: object) -> Path:
    """The folder with one tensor replaced (or, by None, left out)."""
    file = path / "adapter_model.safetensors"
    tensors = dict(load_file(file))
    if value is None:
        del tensors[name]
    else:
        tensors[name] = np.asarray(value)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


def known(count: int) -> list[Norms]:
    made = [adapter(100 + seed, 2, TARGETS) for seed in range(count)]
    return [norms_of(each.tensors(), each.config.alpha, each.config.rank) for each in made]


def kinds(path: Path, others: list[Norms] | None = None) -> list[tuple[str, str]]:
    return [(each.kind, each.place) for each in screen(path, LIMITS, others or []).findings]


def test_an_ordinary_adapter_has_no_finding(tmp_path: Path) -> None:
    report = screen(folder(tmp_path / "a"), LIMITS, known(4))
    assert report.findings == ()
    assert (report.facts["tensors"], report.facts["rank"], report.facts["known"]) == (16, 2, 4)
    assert len(report.facts["norms"]) == 8


def test_the_norm_is_that_of_the_product() -> None:
    weights = adapter(1, 2, TARGETS)
    tensors = weights.tensors()
    dense = 2.0 * tensors[f"{STEM}.q_proj.lora_B.weight"] @ tensors[f"{STEM}.q_proj.lora_A.weight"]
    norm = norms_of(tensors, 4, 2)["model.layers.0.self_attn.q_proj"]
    assert norm == pytest.approx(float(np.linalg.norm(dense)), rel=1e-5)


def test_nan_and_infinity_are_found_by_tensor(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    name = f"{STEM}.q_proj.lora_A.weight"
    values = load_file(path / "adapter_model.safetensors")[name].copy()
    values[0, :3] = [np.nan, np.inf, -np.inf]
    report = screen(changed(path, name, values), LIMITS)
    assert report.findings == (Finding("not_finite", name, "3 of 256 values are NaN or infinity"),)


def test_a_module_far_from_the_known_ones_is_an_outlier(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    name = f"{STEM}.q_proj.lora_B.weight"
    values = load_file(path / "adapter_model.safetensors")[name] * 20
    assert kinds(changed(path, name, values), known(4)) == [("outlier", "model.layers.0.self_attn.q_proj")]
    assert kinds(path, known(3)) == []  # too few to judge by
    assert kinds(changed(path, name, values * 20)) == [("outlier", "model.layers.0.self_attn.q_proj")]


def test_a_tensor_outside_the_declared_targets_is_found(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    found = kinds(path)
    assert ("target", "model.layers.0.self_attn.v_proj") in found
    assert {kind for kind, _ in found} == {"target"}
    other = folder(tmp_path / "b")
    name = "base_model.model.lm_head.weight"
    assert kinds(changed(other, name, np.zeros((2, 2), np.float32))) == [("target", name)]


def test_a_type_a_rank_and_a_lone_factor_are_found(tmp_path: Path) -> None:
    name = f"{STEM}.q_proj.lora_A.weight"
    integers = changed(folder(tmp_path / "a"), name, np.zeros((2, 128), np.int8))
    assert ("dtype", name) in kinds(integers)
    longer = changed(folder(tmp_path / "b"), name, np.zeros((3, 128), np.float32))
    assert kinds(longer) == [("rank", "model.layers.0.self_attn.q_proj")]
    alone = changed(folder(tmp_path / "c"), name, None)
    assert kinds(alone) == [("shape", "model.layers.0.self_attn.q_proj")]
    large = folder(tmp_path / "d")
    config = json.loads((large / "adapter_config.json").read_text())
    (large / "adapter_config.json").write_text(json.dumps(config | {"r": 9}))
    assert ("rank", "adapter_config.json") in kinds(large)


def test_files_that_may_run_code_are_found(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    (path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    (path / "modeling.py").write_text("")
    (path / "link").symlink_to("/etc/passwd")
    assert kinds(path) == [("file", "adapter_model.bin"), ("file", "link"), ("file", "modeling.py")]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 64, b"\x80\x04cos\nsystem\n."])
def test_what_is_no_safetensors_file_is_a_finding_and_no_crash(tmp_path: Path, data: bytes) -> None:
    path = folder(tmp_path / "a")
    (path / "adapter_model.safetensors").write_bytes(data)
    assert kinds(path) == [("format", "adapter_model.safetensors")]
    (path / "adapter_config.json").write_bytes(data)
    assert {kind for kind, _ in kinds(path)} == {"config", "format"}


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    found = screen(path, AdapterLimits(1000, 200, 8)).findings
    assert [each.kind for each in found] == ["size"]


def test_settings_that_change_more_than_lora_factors_are_found(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(
        json.dumps(config | {"auto_mapping": {"parent_library": "x"}, "modules_to_save": ["lm_head"]})
    )
    assert kinds(path) == [("config", "auto_mapping"), ("config", "modules_to_save")]


def test_the_command_ends_with_one_where_it_finds_something(tmp_path: Path) -> None:
    good = folder(tmp_path / "good")
    result = CliRunner().invoke(adapter_commands.app, ["screen", str(good), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["findings"]) == (0, [])
    (good / "run.py").write_text("")
    result = CliRunner().invoke(adapter_commands.app, ["screen", str(good)])
    assert result.exit_code == 1
    assert "run.py: may run code" in result.stdout
