"""One chain per file, a wallet user with coins, and two adapters of that user."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from wallet_chain import adapter, wallet_chain
from wallet_user import Pair, User, saved

from citrate_node.cli import wallet as wallet_commands
from citrate_node.training.settings import ALL_LINEAR


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    with wallet_chain(tmp_path_factory.mktemp("wallet")) as chain:
        chain.add_wallet("alice")
        chain.add_wallet("poor")
        made = User(chain)
        funded = made.run(
            wallet_commands.app,
            *("fund", "alice", "5.5", "--dir", chain.devnet.folder, "--keystore", chain.wallets, "--json"),
        )
        assert funded.exception is None, repr(funded.exception)
        facts = json.loads(funded.stdout)
        assert (facts["amount_wei"], facts["sender_is_development_key"]) == (str(55 * 10**17), True)
        yield made


@pytest.fixture(scope="module")
def pair(user: User, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two adapters of alice: the first with weights in calldata, the second by CID, above a megabyte."""
    folder = tmp_path_factory.mktemp("pair")
    small = user.one("create", saved(folder / "a", adapter(1)), "--name", "small", "--base-model", "embedded")
    large = user.one("create", saved(folder / "b", adapter(2, 32, ALL_LINEAR)), "--name", "large")
    return small, large
