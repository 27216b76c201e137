"""A wallet user at the keyboard: commands typed in this process, and the files they are typed with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from typer import Typer
from typer.testing import CliRunner
from wallet_chain import WalletChain

from citrate_node.cli import adapter as adapter_commands
from citrate_node.cli import base as base_commands
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.protocol.adapter import AdapterWeights

NOBODY = "0x" + "ab" * 32
"""Id of an adapter that is not there."""

WRITES = ("create", "publish", "compose", "open", "close", "transfer", "accept", "register")

Pair = tuple[dict[str, Any], dict[str, Any]]
"""What `create` said of two adapters."""


@dataclass
class User:
    """Types commands. `ok` wants success and gives the JSON lines, `fails` wants an error and gives it."""

    chain: WalletChain

    def run(self, app: Typer, *args: object, typed: str | None = None) -> Any:
        """In this process, as `citrate` would; a CitrateError is the result's exception."""
        return CliRunner().invoke(app, [str(arg) for arg in args], input=typed)

    def options(self, command: str, wallet: str = "alice") -> list[object]:
        found: list[object] = ["--dir", self.chain.devnet.folder]
        if command in WRITES:
            found += ["--keystore", self.chain.wallets, "--wallet", wallet]
            found += ["--password-file", self.chain.password_file]
        return found

    def ok(self, command: str, *args: object, wallet: str = "alice") -> list[dict[str, Any]]:
        result = self.run(adapter_commands.app, command, *args, *self.options(command, wallet), "--json")
        assert result.exception is None, repr(result.exception)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def one(self, command: str, *args: object, wallet: str = "alice") -> dict[str, Any]:
        (facts,) = self.ok(command, *args, wallet=wallet)
        return facts

    def fails(self, command: str, *args: object, wallet: str = "alice") -> BaseException:
        result = self.run(adapter_commands.app, command, *args, *self.options(command, wallet), "--json")
        assert result.exit_code != 0
        assert isinstance(result.exception, ConfigError | ServiceError), repr(result.exception)
        assert command == "verify" or result.stdout == ""
        return result.exception

    def base(self, command: str, *args: object, wallet: str = "alice") -> list[dict[str, Any]]:
        """`citrate base`, with success."""
        result = self.run(base_commands.app, command, *args, *self.options(command, wallet), "--json")
        assert result.exception is None, repr(result.exception)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def count(self) -> int:
        return len([row for row in self.ok("list", "--limit", 1000) if row["type"] == "adapter"])


def saved(folder: Path, weights: AdapterWeights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(weights.encode())
    return path


def peft_folder(folder: Path, weights: AdapterWeights, **changes: object) -> Path:
    """What PEFT's save_pretrained leaves: its own header, its own spelling, no base model id."""
    folder.mkdir(parents=True)
    save_file(weights.tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": weights.config.rank,
        "lora_alpha": float(weights.config.alpha),
        "target_modules": list(reversed(weights.config.targets)),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder
