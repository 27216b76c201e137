"""The peer in JavaScript joins a devnet, a stranger who knows one address: real training, votes, commits."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from js_peer import JsPeer, js_peer, why_not

from citrate_node.chain.anvil import find_anvil
from citrate_node.network.identity import node_key_of
from citrate_node.protocol.certificate import Validator, account_of, has_quorum

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif(why_not() is not None, reason=f"no JavaScript peer: {why_not()}"),
    pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed: run `npm ci`"),
]

NODES = 3


class Devnet:
    """A running devnet and the facts that it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.facts: list[dict[str, Any]] = []

    async def listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.facts.append(json.loads(line))

    async def until(self, kind: str, count: int = 1, **wanted: Any) -> list[dict[str, Any]]:
        """The facts of a kind with these values, once there are so many."""
        while True:
            found = [f for f in self.facts if f["type"] == kind and wanted.items() <= f.items()]
            if len(found) >= count:
                return found
            assert self._process.returncode is None, f"the devnet ended: {self.facts[-3:]}"
            await asyncio.sleep(0.1)


@asynccontextmanager
async def devnet(folder: Path) -> AsyncIterator[Devnet]:
    options = ["--nodes", str(NODES), "--checkpoints", "0", "--dir", str(folder), "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "citrate_node.cli.main",
        "devnet",
        "up",
        *options,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 22,
    )
    running = Devnet(process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 60)
        listening.cancel()


async def test_a_javascript_peer_follows_a_checkpoint_of_a_devnet(tmp_path: Path) -> None:
    """It hears all five kinds and refuses none, fetches a delta, and finds the record that the chain took.

    It judges the first checkpoint that gives a new version: on a busy machine training may miss one.
    """
    async with asyncio.timeout(250), devnet(tmp_path / "d") as running:
        (chain,) = await running.until("devnet")
        listening = await running.until("node", NODES, what="listening")
        ready = await running.until("node", what="ready")
        name = bytes.fromhex(ready[0]["network_id"])
        first = next(fact for fact in listening if fact["node"] == 1)
        async with js_peer(name, tuple(first["addresses"])) as peer:
            delta = await _delta_of(peer, first["peer_id"])
            (done, *_) = await running.until("checkpoint", promoted=True)
            number = done["number"]
            record = await _record(peer, first["peer_id"], number)
            accounts = await _voters(peer, chain, number)
    assert (delta["status"], delta["right"]) == (0, True)
    assert [h["error"] for h in peer.heard if "error" in h] == []
    assert {h["kind"] for h in peer.heard} == {1, 2, 3, 4, 5}
    assert record["record"]["weights_hash"] == done["weights_hash"]
    seats = [
        Validator(node_key_of(fact["peer_id"]), _account(tmp_path / "d", fact["node"]), 1)
        for fact in listening
    ]
    assert has_quorum(seats, accounts)


async def _delta_of(peer: JsPeer, peer_id: str) -> dict[str, Any]:
    """The delta that a node announces, as soon as it serves it."""
    author = node_key_of(peer_id).hex()
    while True:
        announced = [h["body"] for h in peer.heard if h.get("kind") == 1 and h["body"]["author"] == author]
        if announced:
            body = announced[0]
            answer = await peer.ask(
                "fetch", peer=peer_id, digest=body["delta_hash"], size=body["delta_size_bytes"]
            )
            if answer["status"] != 2:
                return answer
        await asyncio.sleep(0.5)


async def _record(peer: JsPeer, peer_id: str, number: int) -> dict[str, Any]:
    """The record of a checkpoint from a node that has finalized it."""
    votes = [h["body"] for h in _said(peer, 5, number)]
    for name in {vote["record_hash"] for vote in votes}:
        answer = await peer.ask("record", peer=peer_id, hash=name)
        if answer["found"]:
            assert answer["right"]
            return answer
    raise AssertionError("no record that was voted for is final")


async def _voters(peer: JsPeer, chain: dict[str, Any], number: int) -> set[bytes]:
    """Accounts whose votes for the proposed record, in one round, have valid signatures."""
    proposed = {h["body"]["round"]: h["body"]["record"] for h in _said(peer, 4, number)}
    accounts: dict[int, set[bytes]] = {}
    for heard in _said(peer, 5, number):
        body = heard["body"]
        if body["round"] not in proposed:
            continue
        answer = await peer.ask(
            "vote",
            record=proposed[body["round"]],
            round=body["round"],
            signature=body["account_signature"],
            chainId=chain["chain_id"],
            contract=chain["contract"],
        )
        accounts.setdefault(body["round"], set()).add(bytes.fromhex(answer["account"]))
    return max(accounts.values(), key=len)


def _said(peer: JsPeer, kind: int, number: int) -> list[dict[str, Any]]:
    """Messages of a kind about a checkpoint, as the peer has heard and verified them."""
    return [h for h in peer.heard if h.get("kind") == kind and h["body"].get("checkpoint") == number]


def _account(folder: Path, number: int) -> bytes:
    key = (folder / f"node-{number}" / "keys" / "account.key").read_text().strip()
    return account_of(bytes.fromhex(key.removeprefix("0x")))
