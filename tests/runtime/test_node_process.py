"""A node process that cannot run is given up, with its own last words; one that dies is started again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from citrate_node.runtime import node_process
from citrate_node.runtime.node_process import NodeProcess


async def ends(config: Path, count: int) -> tuple[NodeProcess, list[dict[str, Any]]]:
    """Run until it has ended that often, or was given up."""
    facts: list[dict[str, Any]] = []
    node = NodeProcess(1, config, lambda number, fact: facts.append(fact))
    node.start()
    async with asyncio.timeout(60):
        while sum(fact["type"] == "died" for fact in facts) < count and not node.gave_up:
            await asyncio.sleep(0.05)
    await node.stop()
    return node, facts


async def test_a_wrong_configuration_is_given_up_at_once(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[nod]\n")
    node, facts = await ends(tmp_path / "node.toml", 2)
    assert node.gave_up
    assert [(fact["code"], fact["restart"]) for fact in facts] == [(2, False)]
    assert "unknown table [nod]" in facts[0]["reason"]


async def test_a_node_that_never_runs_is_given_up_after_some_starts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(node_process, "RESTART_SECONDS_MIN", 0.01)
    monkeypatch.setattr(node_process, "FAILURES_MAX", 2)
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("node.seed", "account.key"):
        (keys / name).write_text("11" * 32)
        (keys / name).chmod(0o600)
    (tmp_path / "node.toml").write_text(
        f'[node]\nname = "n"\npreset = "devnet"\n'
        f'[chain]\nrpc_url = "http://127.0.0.1:9"\nadapter_id = "0x{"ab" * 32}"\n'
    )
    _, facts = await ends(tmp_path / "node.toml", 3)
    died = [fact for fact in facts if fact["type"] == "died"]
    assert [(fact["code"], fact["restart"]) for fact in died] == [(1, True), (1, False)]
    assert "cannot reach the chain at http://127.0.0.1:9" in died[-1]["reason"]
