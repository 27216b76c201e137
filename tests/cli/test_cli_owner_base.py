"""What an adapter's owner does, and what is registered as a base model: commands against a chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wallet_chain import adapter
from wallet_user import NOBODY, User, saved

from citrate_node.chain.rpc import ContractRefusal
from citrate_node.cli import adapter as adapter_commands
from citrate_node.cli import base as base_commands
from citrate_node.cli import wallet as wallet_commands
from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel

ZERO = "0x" + "00" * 20


@pytest.fixture(scope="module")
def bob(user: User) -> str:
    """A second funded wallet; its address."""
    account = user.chain.add_wallet("bob")
    chain = user.chain
    args = ("fund", "bob", "3", "--dir", chain.devnet.folder, "--keystore", chain.wallets, "--json")
    assert user.run(wallet_commands.app, *args).exception is None
    return "0x" + account.hex()


def refused(user: User, *args: object, wallet: str = "alice") -> ContractRefusal:
    error = user.fails(str(args[0]), *args[1:], wallet=wallet)
    assert isinstance(error, ContractRefusal)
    return error


def test_an_owner_opens_and_closes_an_adapter_and_cannot_publish_meanwhile(
    user: User, tmp_path: Path
) -> None:
    made = user.one("create", saved(tmp_path / "1", adapter(41)), "--name", "to be mentored")
    adapter_id = made["adapter_id"]
    assert user.ok("show", adapter_id)[0]["mentorship"] == "closed"
    opened = user.one("open", adapter_id)
    assert (opened["type"], opened["adapter_id"], opened["mentorship"]) == ("opened", adapter_id, "open")
    assert (opened["name"], opened["account"]) == ("to be mentored", made["account"])
    assert opened["gas_used"] > 21_000
    early = refused(user, "publish", adapter_id, saved(tmp_path / "2", adapter(42)))
    assert (early.name, "`citrate adapter close`" in str(early)) == ("OpenToMentorship", True)
    closed = user.one("close", adapter_id)
    assert closed["mentorship"].startswith("until checkpoint ")
    again = user.one("close", adapter_id)
    assert again["mentorship"] == closed["mentorship"], "closing twice changes nothing"


def test_ownership_goes_over_in_two_steps(user: User, bob: str, tmp_path: Path) -> None:
    made = user.one("create", saved(tmp_path, adapter(43)), "--name", "handed over")
    adapter_id, alice = made["adapter_id"], made["account"]
    unoffered = refused(user, "accept", adapter_id, wallet="bob")
    assert (unoffered.name, unoffered.args_by_name["pendingOwner"]) == ("NotPendingOwner", bytes(20))
    offered = user.one("transfer", adapter_id, bob)
    assert (offered["type"], offered["owner"], offered["pending_owner"]) == ("offered", alice, bob)
    assert refused(user, "open", adapter_id, wallet="bob").name == "NotOwner"
    assert user.one("transfer", adapter_id, ZERO)["pending_owner"] is None
    assert refused(user, "accept", adapter_id, wallet="bob").name == "NotPendingOwner"
    user.one("transfer", adapter_id, bob)
    accepted = user.one("accept", adapter_id, wallet="bob")
    assert (accepted["type"], accepted["owner"], accepted["pending_owner"]) == ("accepted", bob, None)
    assert accepted["creator"] == alice
    assert refused(user, "open", adapter_id).name == "NotOwner"
    assert user.one("open", adapter_id, wallet="bob")["mentorship"] == "open"


def test_a_dry_run_says_what_it_would_cost_and_sends_nothing(user: User, bob: str, tmp_path: Path) -> None:
    path = saved(tmp_path, adapter(44))
    before = user.count()
    tried = user.one("create", path, "--name", "tried", "--dry-run")
    assert (tried["type"], tried["function"], user.count()) == ("dry_run", "createAdapter", before)
    made = user.one("create", path, "--name", "tried")
    assert tried["adapter_id"] == made["adapter_id"]
    assert made["gas_used"] <= tried["gas"] <= made["gas_used"] * 13 // 10
    adapter_id = made["adapter_id"]
    for command, function, more in [
        ("open", "openToMentorship", ()),
        ("close", "closeMentorship", ()),
        ("transfer", "transferOwnership", (bob,)),
        ("publish", "publishVersion", (saved(tmp_path / "2", adapter(45)),)),
    ]:
        facts = user.one(command, adapter_id, *more, "--dry-run")
        assert (facts["type"], facts["function"], facts["chain_id"]) == ("dry_run", function, 40298)
        assert int(facts["cost_wei_max"]) < int(facts["balance_wei"])
    row = user.ok("show", adapter_id)[0]
    assert (row["mentorship"], row["pending_owner"], row["version_count"]) == ("closed", None, 1)
    assert refused(user, "open", NOBODY, "--dry-run").name == "UnknownAdapter"


def test_a_dry_run_needs_no_password_and_speaks_to_people(user: User, tmp_path: Path) -> None:
    made = user.one("create", saved(tmp_path, adapter(46)), "--name", "tried by a person")
    chain = user.chain
    args = ("open", made["adapter_id"], "--dry-run", "--dir", chain.devnet.folder)
    result = user.run(adapter_commands.app, *args, "--keystore", chain.wallets, "--wallet", "alice")
    assert result.exit_code == 0
    assert "openToMentorship on chain 40298" in result.stdout
    assert result.stdout.rstrip().endswith("the contract would take it; nothing was sent")


@pytest.mark.parametrize(
    ("command", "args", "said"),
    [
        ("open", ("0x12",), "is no adapter id"),
        ("transfer", (NOBODY, "0x12"), "is no address"),
        ("transfer", (NOBODY, "bob"), "is no address"),
    ],
)
def test_what_names_no_adapter_or_account_is_refused(
    user: User, command: str, args: tuple[str, ...], said: str
) -> None:
    error = user.fails(command, *args)
    assert isinstance(error, ConfigError)
    assert said in str(error)


# ---------------------------------------------------------------- base models


def test_a_base_model_is_registered_listed_and_shown(user: User) -> None:
    base_id = "0x" + "c1" * 32
    said = (
        "--name",
        "another base",
        "--licence",
        "Apache-2.0",
        "--uri",
        "https://example.org/b",
        "--size",
        7,
    )
    tried = user.base("register", base_id, *said, "--dry-run")[0]
    assert (tried["type"], tried["function"]) == ("dry_run", "registerBaseModel")
    assert base_id not in [row.get("base_model_id") for row in user.base("list")]
    (made,) = user.base("register", base_id, *said)
    facts = {
        "base_model_id": base_id,
        "name": "another base",
        "uri": "https://example.org/b",
        "licence": "Apache-2.0",
        "size_bytes": 7,
        "registrar": made["account"],
    }
    assert made.items() >= ({"type": "base_registered"} | facts).items()
    assert user.base("show", base_id) == [{"type": "base_model"} | facts]
    *rows, page = user.base("list", "--limit", 1)
    assert (len(rows), page["next_offset"]) == (1, 1)
    *rest, end = user.base("list", "--offset", 1, "--limit", 100)
    assert (rest[-1], end["next_offset"]) == ({"type": "base_model"} | facts, None)


def test_a_model_s_files_say_what_it_is(user: User) -> None:
    """The embedded one is registered in the genesis of a devnet, so a second time is refused."""
    result = user.run(base_commands.app, "register", "embedded", *user.options("register"), "--json")
    error = result.exception
    assert isinstance(error, ContractRefusal)
    assert (error.name, error.args_by_name["baseModelId"]) == (
        "BaseModelExists",
        BaseModel.load().base_model_id,
    )
    shown = user.base("show", BaseModel.load().base_model_id.hex())[0]
    assert shown["size_bytes"] == sum(tensor.size_bytes for tensor in BaseModel.load().tensors.values())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"--name": "n" * 65}, "TextLength"),
        ({"--name": "é" * 33}, "TextLength"),
        ({"--licence": "l" * 65}, "TextLength"),
        ({"--uri": "u" * 257}, "TextLength"),
    ],
)
def test_texts_above_their_limits_are_refused(user: User, change: dict[str, str], name: str) -> None:
    said = {"--name": "x", "--licence": "MIT", "--size": "7"} | change
    flags = [part for pair in said.items() for part in pair]
    result = user.run(base_commands.app, "register", "d2" * 32, *flags, *user.options("register"), "--json")
    assert isinstance(result.exception, ContractRefusal)
    assert (result.exception.name, result.stdout) == (name, "")


def test_an_id_alone_needs_its_facts_and_an_unknown_one_is_named(user: User) -> None:
    bare = user.run(base_commands.app, "register", "d3" * 32, *user.options("register"), "--json")
    assert isinstance(bare.exception, ConfigError)
    assert "--name, --licence, --size must be given too" in str(bare.exception)
    zero = user.run(base_commands.app, "register", "00" * 32, "--name", "x", "--licence", "y", "--size", 1,
                    *user.options("register"), "--json")  # fmt: skip
    assert isinstance(zero.exception, ContractRefusal)
    assert zero.exception.name == "ZeroBaseModelId"
    unknown = user.run(base_commands.app, "show", "d4" * 32, "--dir", user.chain.devnet.folder, "--json")
    assert isinstance(unknown.exception, ContractRefusal)
    assert (unknown.exception.name, json.dumps(unknown.stdout)) == ("UnknownBaseModel", '""')
