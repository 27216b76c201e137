"""What `citrate adapter` says to wrong use, before anything is sent."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from wallet_chain import adapter
from wallet_user import NOBODY, Pair, User, peft_folder, saved

from citrate_node.chain.rpc import ContractRefusal
from citrate_node.cli import adapter as adapter_commands
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.runtime.adapters import UnfundedWallet, WrongChain
from citrate_node.runtime.adapters_files import BaseModelMismatch, NotAnAdapter, RankMismatch
from citrate_node.training.provenance import (
    BaseFacts,
    EvaluationFacts,
    Provenance,
    WeightsFacts,
    write_provenance,
)
from citrate_node.training.settings import ALL_LINEAR


def test_another_chain_than_the_one_that_is_meant_is_refused(user: User) -> None:
    error = user.fails("list", "--chain-id", 40204)
    assert isinstance(error, WrongChain)
    assert "40298, not 40204" in str(error)


def test_an_address_without_a_contract_is_named(user: User) -> None:
    error = user.fails("list", "--contract", "0x" + "00" * 18 + "0999")
    assert isinstance(error, ServiceError)
    assert "there is no contract at 0x" in str(error)


def test_a_chain_that_does_not_answer_is_named(user: User) -> None:
    error = user.fails("list", "--rpc-url", "http://127.0.0.1:9")
    assert isinstance(error, ServiceError)
    assert "cannot reach the chain at http://127.0.0.1:9" in str(error)


def test_a_wallet_without_coins_is_told_how_to_get_some(user: User, tmp_path: Path) -> None:
    error = user.fails("create", saved(tmp_path, adapter(7)), "--name", "poor", wallet="poor")
    assert isinstance(error, UnfundedWallet)
    assert "citrate wallet fund 0x" in str(error)


def test_a_wrong_password_sends_nothing(user: User, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the password")
    before = user.count()
    args = ("create", saved(tmp_path, adapter(8)), "--name", "x", "--password-file", wrong)
    rest = ("--dir", user.chain.devnet.folder, "--keystore", user.chain.wallets, "--wallet", "alice")
    result = user.run(adapter_commands.app, *args, *rest, "--json")
    assert isinstance(result.exception, ConfigError)
    assert "wrong password for wallet alice" in str(result.exception)
    assert user.count() == before


def test_of_two_wallets_one_must_be_chosen(user: User, tmp_path: Path) -> None:
    args = ("create", saved(tmp_path, adapter(8)), "--name", "x", "--json")
    rest = ("--dir", user.chain.devnet.folder, "--keystore", user.chain.wallets)
    result = user.run(adapter_commands.app, *args, *rest)
    assert "choose one with --wallet" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x04pickled", "no safetensors file"),
        (b"", "no safetensors file"),
        (b"\xff" * 8 + b"{}", "no safetensors file"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(
    user: User, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    error = user.fails("create", tmp_path, "--name", "x", "--base-model", "embedded")
    assert isinstance(error, NotAnAdapter)
    assert said in str(error)


def test_an_adapter_of_another_base_model_is_refused(user: User, tmp_path: Path) -> None:
    path = saved(tmp_path, adapter(1))
    error = user.fails("create", path, "--name", "x", "--base-model", "0x" + "cd" * 32)
    assert isinstance(error, BaseModelMismatch)


def test_a_peft_folder_that_does_not_fit_the_base_model_is_refused(user: User, tmp_path: Path) -> None:
    weights = adapter(1)
    folder = peft_folder(tmp_path / "wide", weights)
    tensors = load_file(folder / "adapter_model.safetensors")
    wide = {name: np.zeros((2, 256), np.float32) if "lora_A" in name else t for name, t in tensors.items()}
    save_file(wide, folder / "adapter_model.safetensors")
    error = user.fails("create", folder, "--name", "x", "--base-model", "embedded")
    assert isinstance(error, BaseModelMismatch)
    assert "[2, 256], the base wants [2, 128]" in str(error)


def test_a_base_model_that_the_chain_does_not_know_is_refused_by_the_contract(
    user: User, tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path / "foreign", adapter(1))
    error = user.fails("create", folder, "--name", "x", "--base-model", "cd" * 32)
    assert isinstance(error, ContractRefusal)
    assert (error.name, "citrate base list" in str(error)) == ("UnknownBaseModel", True)
    known = user.base("list")[0]
    assert known["base_model_id"] == "0x" + adapter(1).config.base_model_id.hex()


def test_another_rank_than_was_said_is_refused(user: User, pair: Pair, tmp_path: Path) -> None:
    path = saved(tmp_path, adapter(1, rank=3))
    assert isinstance(user.fails("create", path, "--name", "x", "--rank", 2), RankMismatch)
    assert isinstance(user.fails("publish", pair[0]["adapter_id"], path), RankMismatch)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"rank_pattern": {"q_proj": 4}}, {"bias": "all"}])
def test_variants_that_mean_something_else_are_refused(
    user: User, tmp_path: Path, setting: dict[str, object]
) -> None:
    folder = peft_folder(tmp_path / "variant", adapter(1), **setting)
    error = user.fails("create", folder, "--name", "x", "--base-model", "embedded")
    assert isinstance(error, NotAnAdapter)
    assert "only plain LoRA" in str(error)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"lora_alpha": 1.5}, "rank_or_alpha"),
        ({"r": 7}, "tensor_shape"),
        ({"r": 65}, "rank_too_large"),
        ({"target_modules": ["k_proj"]}, "targets"),
        ({"r": float("nan")}, "rank_or_alpha"),
    ],
)
def test_settings_that_do_not_belong_to_the_weights_are_refused(
    user: User, tmp_path: Path, setting: dict[str, object], reason: str
) -> None:
    folder = peft_folder(tmp_path / "odd", adapter(1), **setting)
    error = user.fails("create", folder, "--name", "x", "--base-model", "embedded")
    assert isinstance(error, NotAnAdapter)
    assert reason in str(error)


def test_weights_above_the_limit_of_a_transaction_are_not_forced_into_one(user: User, tmp_path: Path) -> None:
    path = saved(tmp_path, adapter(1, 4, ALL_LINEAR))
    error = user.fails("create", path, "--name", "x", "--calldata")
    assert "a transaction takes 98304" in str(error)


def test_unknown_adapters_and_versions_are_named(user: User, pair: Pair, tmp_path: Path) -> None:
    small = pair[0]["adapter_id"]
    cases = [
        (("show", NOBODY), "UnknownAdapter"),
        (("history", NOBODY), "UnknownAdapter"),
        (("pull", NOBODY, "--out", tmp_path / "x"), "UnknownAdapter"),
        (("pull", f"{small}@99", "--out", tmp_path / "x"), "UnknownVersion"),
        (("compose", small, NOBODY, "--weights", "70/30"), "UnknownAdapter"),
        (("compose", small, small, "--weights", "70/30"), "SelfComposition"),
    ]
    for args, name in cases:
        error = user.fails(*args)
        assert isinstance(error, ContractRefusal)
        assert error.name == name


def test_only_the_owner_publishes(user: User, pair: Pair, tmp_path: Path) -> None:
    args = ("publish", pair[0]["adapter_id"], saved(tmp_path, adapter(8)), "--json")
    rest = ("--dir", user.chain.devnet.folder, "--key-file", user.chain.devnet.folder / "keys/founder.key")
    error = user.run(adapter_commands.app, *args, *rest).exception
    assert isinstance(error, ContractRefusal)
    assert error.name == "NotOwner"


@pytest.mark.parametrize("weights", ["70", "70/31", "100/0", "-1/101", "a/b", "70/30/0", "٧٠/٣٠"])
def test_weights_that_are_no_two_shares_of_a_hundred_are_refused(user: User, weights: str) -> None:
    error = user.fails("compose", NOBODY, "0x" + "cd" * 32, f"--weights={weights}")
    assert isinstance(error, ConfigError)
    assert "--weights" in str(error)


@pytest.mark.parametrize("reference", ["0x12", "xyz", NOBODY + "@", NOBODY + "@0", NOBODY + "@-1"])
def test_a_reference_that_names_nothing_is_refused(user: User, reference: str, tmp_path: Path) -> None:
    assert isinstance(user.fails("pull", "--out", tmp_path / "x", reference), ConfigError)


def test_a_folder_that_holds_something_is_left_alone(user: User, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    error = user.fails("pull", pair[0]["adapter_id"], "--out", tmp_path)
    assert isinstance(error, ConfigError)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_error_reaches_the_person_as_two_lines_and_an_exit_code(user: User) -> None:
    """Through the real program: nothing on stdout, no traceback, code 1 for what the chain refuses."""
    command = [sys.executable, "-m", "citrate_node.cli.main", "adapter", "show", NOBODY, "--json"]
    command += ["--dir", str(user.chain.devnet.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"citrate: the contract refused: UnknownAdapter(adapterId={NOBODY})",
        "  `citrate adapter list` shows the adapters of this contract",
    ]


def test_weights_that_their_evaluation_held_back_are_not_put_on_chain(user: User, tmp_path: Path) -> None:
    weights = adapter(9)
    file = saved(tmp_path / "held", weights)
    digest = hashlib.sha256(weights.encode()).hexdigest()
    failed = EvaluationFacts({"loss_general_base_nats": 1.5, "loss_general_nats": 1.75}, passed=False)
    config = weights.config
    facts = WeightsFacts(digest, len(weights.encode()), config.rank, config.alpha, config.targets)
    found = Provenance(BaseFacts("tiny", config.base_model_id.hex()), facts, evaluations=(failed,))
    write_provenance(file.parent, found)
    before = user.count()
    error = user.fails("create", file.parent, "--name", "held")
    assert isinstance(error, ConfigError)
    assert "held back by its evaluation: general text 1.5000 base, 1.7500 adapter" in str(error)
    assert "--force REASON" in str(error)
    assert user.count() == before
    write_provenance(file.parent, found.evaluated(replace(failed, forced_reason="a test")))
    user.one("create", file, "--name", "held and forced", "--dry-run")
