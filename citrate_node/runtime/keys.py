"""A node's key files: written once, readable by their owner only, never printed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from ..chain.recursion_limit import recursion_limit
from ..errors import ConfigError
from ..node.core import Identity


def write_secret(path: Path, secret: bytes) -> None:
    """64 hex digits in a file of mode 0600. Refuses to overwrite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secret.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_secret(path: Path, what: str) -> bytes:
    """The 32 bytes of a key file. Raises ConfigError where it is absent, readable by others, or no key."""
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} at {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {what} at {path}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{what} at {path} can be read by others\n  chmod 600 {path}")
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigError(f"{what} at {path} must be 64 hex digits")
    return secret


def read_identity(seed_file: Path, account_file: Path, password_file: Path | None) -> Identity:
    """Both keys of a node; the account's may be an encrypted keystore (.json) with its password in a file."""
    seed = read_secret(seed_file, "node seed")
    if account_file.suffix != ".json":
        return Identity(seed, read_secret(account_file, "account key"))
    if password_file is None:
        raise ConfigError(f"{account_file} is encrypted\n  set keys.account_password_file in node.toml")
    with recursion_limit():
        from eth_account import Account

    try:
        password = password_file.read_text().rstrip("\n")
        key = bytes(Account.decrypt(json.loads(account_file.read_text()), password))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cannot open keystore {account_file}: {error}") from None
    return Identity(seed, key)
