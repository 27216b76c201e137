"""Encrypted keystores: made, listed, opened, and refused with a reason."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from chain_world import account, key
from eth_account import Account

from citrate_node.chain.wallet import WalletEntry, WalletFolder
from citrate_node.errors import ConfigError

PASSWORD = "correct horse"


def add(folder: Path, name: str = "alice", **more: Any) -> WalletEntry:
    return WalletFolder(folder).add(name, PASSWORD, key(name), scrypt_rounds=2, **more)


def test_a_wallet_opens_with_its_password_here_and_in_other_programs(tmp_path: Path) -> None:
    entry = add(tmp_path)
    keystore = json.loads(entry.path.read_text())
    assert WalletFolder(tmp_path).load("alice", PASSWORD) == key("alice")
    assert bytes(Account.decrypt(keystore, PASSWORD)) == key("alice")
    assert entry == WalletEntry("alice", account("alice"), tmp_path / "alice.json", False)


def test_the_file_is_its_owners_alone_and_holds_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "wallets"
    entry = add(folder)
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert key("alice").hex() not in entry.path.read_text()
    assert key("alice").hex() not in repr(entry)


def test_wallets_are_listed_by_name_with_development_keys_marked(tmp_path: Path) -> None:
    add(tmp_path, "bob")
    add(tmp_path, "alice", is_development=True)
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "README").write_text("mine")
    listed = WalletFolder(tmp_path).list()
    assert [(entry.name, entry.account, entry.is_development) for entry in listed] == [
        ("alice", account("alice"), True),
        ("bob", account("bob"), False),
    ]
    assert WalletFolder(tmp_path / "absent").list() == []


def test_a_fresh_wallet_has_a_key_of_its_own(tmp_path: Path) -> None:
    folder = WalletFolder(tmp_path)
    one, two = folder.new("one", PASSWORD), folder.new("two", PASSWORD)
    assert one.account != two.account
    assert folder.entry("one") == one


def test_a_wrong_password_is_said_without_a_hint_of_the_key(tmp_path: Path) -> None:
    add(tmp_path)
    with pytest.raises(ConfigError) as raised:
        WalletFolder(tmp_path).load("alice", "wrong horse!")
    assert str(raised.value) == "wrong password for wallet alice"


def test_a_name_in_use_is_refused_and_the_old_wallet_stays(tmp_path: Path) -> None:
    add(tmp_path)
    with pytest.raises(ConfigError, match="already"):
        WalletFolder(tmp_path).add("alice", PASSWORD, key("bob"), scrypt_rounds=2)
    assert WalletFolder(tmp_path).load("alice", PASSWORD) == key("alice")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Alice", ".hidden", "a" * 65])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="wallet name"):
        WalletFolder(tmp_path).add(name, PASSWORD, key("x"), scrypt_rounds=2)


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        WalletFolder(tmp_path).add("alice", "1234567", key("alice"), scrypt_rounds=2)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_or_edited_wallet_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = WalletFolder(tmp_path)
    with pytest.raises(ConfigError, match="citrate wallet new alice"):
        folder.load("alice", PASSWORD)
    entry = add(tmp_path)
    keystore = json.loads(entry.path.read_text())
    for edited, message in [
        ({**keystore, "address": account("bob").hex()}, "names another account"),
        ({**keystore, "crypto": {}}, "no keystore"),
        ({name: part for name, part in keystore.items() if name != "crypto"}, "no keystore"),
        ([], "no keystore"),
    ]:
        entry.path.write_text(json.dumps(edited))
        with pytest.raises(ConfigError, match=message):
            folder.load("alice", PASSWORD)
