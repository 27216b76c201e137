"""Wallets: encrypted keystore files, one per account, as geth and MetaMask read them.

A key is in memory only, never in a log, a message or a plain file. Called by the command line; the keys of
a devnet's own nodes are runtime's (runtime/keys.py).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..protocol.certificate import account_of
from .recursion_limit import recursion_limit

PASSWORD_LENGTH_MIN = 8
SCRYPT_ROUNDS = 2**18
"""As geth: about a second per try, for whoever has the password and for whoever guesses it."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class WalletEntry:
    """A wallet as it is listed: nothing secret."""

    name: str
    account: bytes
    path: Path
    is_development: bool
    """The key was made for a devnet and may be known to others: never put real money there."""


class WalletFolder:
    """Keystores in one folder: NAME.json each, readable by their owner alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new(self, name: str, password: str, *, is_development: bool = False) -> WalletEntry:
        """A wallet with a fresh random key."""
        return self.add(name, password, _random_key(), is_development=is_development)

    def add(
        self,
        name: str,
        password: str,
        key: bytes,
        *,
        is_development: bool = False,
        scrypt_rounds: int = SCRYPT_ROUNDS,
    ) -> WalletEntry:
        """A wallet with a given key. Raises ConfigError on a bad name, a short password or a name in use."""
        with recursion_limit():
            from eth_account import Account

        path = self._path(name)
        if len(password) < PASSWORD_LENGTH_MIN:
            raise ConfigError(f"the password must have at least {PASSWORD_LENGTH_MIN} characters")
        keystore: dict[str, Any] = dict(
            Account.encrypt(key, password, kdf="scrypt", iterations=scrypt_rounds)
        )
        keystore["citrate"] = {"name": name, "development": is_development}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps(keystore, indent=1)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(f"there is a wallet {name} already: {path}\n  choose another name") from None
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return WalletEntry(name, account_of(key), path, is_development)

    def list(self) -> list[WalletEntry]:
        """By name. A file that is no keystore is left out: the folder is the operator's."""
        entries = []
        for path in sorted(self._folder.glob("*.json")):
            if _NAME.fullmatch(path.stem):
                try:
                    entries.append(_entry(path.stem, path, _read(path)))
                except ConfigError:
                    continue
        return entries

    def entry(self, name: str) -> WalletEntry:
        path = self._path(name)
        return _entry(name, path, _read(path))

    def load(self, name: str, password: str) -> bytes:
        """The private key. Raises ConfigError on a wrong password or a file that is no keystore."""
        with recursion_limit():
            from eth_account import Account

        path = self._path(name)
        keystore = _read(path)
        try:
            key = bytes(Account.decrypt(keystore, password))
        except ValueError as error:
            if "MAC mismatch" in str(error):
                raise ConfigError(f"wrong password for wallet {name}") from None
            raise ConfigError(f"{path} is no keystore that can be read ({error})") from None
        except (KeyError, TypeError, NotImplementedError):
            raise ConfigError(f"{path} is no keystore that can be read") from None
        if account_of(key) != _entry(name, path, keystore).account:
            raise ConfigError(f"{path} names another account than its key has: it was edited")
        return key

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"wallet name {name!r} must be 1 to 64 of a-z, 0-9, - and _, and begin with a letter or digit"
            )
        return self._folder / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        keystore = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"there is no wallet {path.stem} in {path.parent}\n  see `citrate wallet list`, make one with "
            f"`citrate wallet new {path.stem}`"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(keystore, dict):
        raise ConfigError(f"{path} is no keystore")
    return keystore


def _entry(name: str, path: Path, keystore: dict[str, Any]) -> WalletEntry:
    try:
        account = bytes.fromhex(keystore["address"].removeprefix("0x"))
        mark = keystore.get("citrate", {}).get("development", False)
    except (KeyError, ValueError, AttributeError):
        raise ConfigError(f"{path} is no keystore") from None
    if len(account) != 20 or "crypto" not in keystore:
        raise ConfigError(f"{path} is no keystore")
    return WalletEntry(name, account, path, mark is True)


def _random_key() -> bytes:
    while True:
        key = os.urandom(32)
        try:
            account_of(key)
        except ValueError:  # zero or above the order of the curve: once in 2^128
            continue
        return key
