"""The form of docker-compose.yml: what a reader of it relies on. No container is ever started here."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]


@pytest.fixture
def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            name = volume.split(":")[0]
            assert (ROOT / name).exists() if name.startswith(".") else name in compose["volumes"]
    return dict(compose["services"])


def test_kubo_is_published_on_loopback_only_and_starts_only_when_asked_for(services: dict[str, Any]) -> None:
    assert services["kubo"]["ports"] == ["127.0.0.1:5001:5001"]
    assert services["kubo"]["environment"] == {"IPFS_PROFILE": "unixfs-v1-2025"}
    assert {name for name, service in services.items() if "profiles" not in service} == {"devnet"}


def test_the_commands_of_all_services_are_commands_of_citrate(services: dict[str, Any]) -> None:
    from citrate_node.cli.devnet import app

    helped = CliRunner().invoke(app, ["up", "--help"], env={"COLUMNS": "200"}).stdout
    for name in ("devnet", "devnet-on-ipfs"):
        program, group, command, *options = services[name]["command"]
        assert (program, group, command) == ("citrate", "devnet", "up")
        assert all(option in helped for option in options if option.startswith("--"))
