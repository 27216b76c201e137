"""Key files are private and never overwritten; a folder has one owner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.runtime.folder_lock import FolderLock, lock_holder
from citrate_node.runtime.keys import read_identity, read_secret, write_secret

SECRET = bytes(range(32))


def test_a_key_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", SECRET)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_secret(tmp_path / "key", "key") == SECRET


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", SECRET)
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", bytes(32))
    assert read_secret(tmp_path / "key", "key") == SECRET


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", SECRET)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        read_secret(tmp_path / "key", "node seed")


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31])
def test_what_is_no_key_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ConfigError, match="must be 64 hex digits"):
        read_secret(tmp_path / "key", "node seed")


def test_an_encrypted_keystore_opens_with_its_password_and_no_other(tmp_path: Path) -> None:
    write_secret(tmp_path / "seed", SECRET)
    keystore = Account.encrypt(SECRET, "secret", kdf="pbkdf2", iterations=10)
    (tmp_path / "account.json").write_text(json.dumps(keystore))
    (tmp_path / "good").write_text("secret\n")
    (tmp_path / "bad").write_text("wrong\n")
    identity = read_identity(tmp_path / "seed", tmp_path / "account.json", tmp_path / "good")
    assert identity.account_key == SECRET
    assert SECRET.hex() not in repr(identity)
    with pytest.raises(ConfigError, match="cannot open keystore"):
        read_identity(tmp_path / "seed", tmp_path / "account.json", tmp_path / "bad")
    with pytest.raises(ConfigError, match="account_password_file"):
        read_identity(tmp_path / "seed", tmp_path / "account.json", None)


def test_a_folder_in_use_names_the_process_that_uses_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from citrate_node.runtime.folder_lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]), 'a node'); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert lock_holder(tmp_path) == process.pid
        with pytest.raises(ServiceError, match=rf"already running \(process {process.pid}\)"):
            FolderLock(tmp_path, "a node")
    finally:
        process.kill()
        process.wait()
    with FolderLock(tmp_path, "a node"):  # the kernel dropped the lock with its holder
        assert lock_holder(tmp_path) == os.getpid()
    assert lock_holder(tmp_path) is None
