"""Options that go together are written once, and each command still has them as its own."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from citrate_node.cli.adapter_options import Chain, Sending, Signing, bundled

CHAIN, SIGNING, SENDING = Chain(), Signing(), Sending()


def test_a_bundle_is_its_options_one_by_one_in_its_place(tmp_path: Path) -> None:
    app = typer.Typer()
    seen: list[object] = []

    @app.command()
    @bundled
    def write(
        name: str = typer.Argument(...),
        chain: Chain = CHAIN,
        signing: Signing = SIGNING,
        sending: Sending = SENDING,
        count: int = typer.Option(1, "--count"),
    ) -> None:
        """Says what it does."""
        seen.extend((name, chain, signing, sending, count))

    assert CliRunner().invoke(app, ["a"], env={"CITRATE_KEYSTORE": "keys"}).exit_code == 0
    assert seen == ["a", Chain(), Signing(Path("keys"), "", None, None), Sending(False, False), 1]
    seen.clear()
    words = ["a", "--dir", "net", "--rpc-url", "http://x", "--contract", "0x1", "--chain-id", "7", "-y"]
    words += ["--keystore", "k", "--wallet", "w", "--password-file", "p", "--key-file", "f", "--dry-run"]
    assert CliRunner().invoke(app, [*words, "--count", "3"]).exit_code == 0
    assert seen == [
        "a",
        Chain(Path("net"), "http://x", "0x1", 7),
        Signing(Path("k"), "w", Path("p"), Path("f")),
        Sending(True, True),
        3,
    ]
    command = typer.main.get_command(app)
    names = ["name", "folder", "rpc_url", "contract", "chain_id", "keystore", "wallet", "password_file"]
    assert [p.name for p in command.params][: len(names)] == names
    assert command.help == "Says what it does."
