"""The whole way: a devnet with its nodes, and a person at the page it serves. And the library's origin."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from page_visitor import CHROMIUM, playwright, running_browser, visit
from page_world import BrowserWallet

from citrate_node.chain.anvil import find_anvil
from citrate_node.runtime.devnet_folder import DevnetFolder

COMMAND = [sys.executable, "-m", "citrate_node.cli.main", "devnet"]
ETHERS = files("citrate_node.dashboard").joinpath("static/vendor/ethers-6.17.0.min.js")
LOCK = Path(__file__).resolve().parents[2] / "examples/ethers/package-lock.json"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
@pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed: run `npm ci`")
def test_a_composition_made_at_the_page_is_certified_by_the_nodes(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    process = subprocess.Popen(
        [*COMMAND, "up", "--dir", str(folder), "--nodes", "2", "--checkpoints", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        facts = next(fact for fact in map(json.loads, process.stdout) if fact["type"] == "devnet")
        status = subprocess.run(
            [*COMMAND, "status", "--dir", str(folder), "--json"], capture_output=True, text=True, check=True
        )
        same = ("rpc_url", "inner_rpc_url", "page_url", "chain_id", "adapter_id")
        told = json.loads(status.stdout)
        assert {key: told[key] for key in same} == {key: facts[key] for key in same}
        assert refuses_cheats(facts["rpc_url"])
        assert not refuses_cheats(facts["inner_rpc_url"])

        wallet = BrowserWallet(DevnetFolder(folder).founder_key())
        with running_browser() as browser, visit(browser, facts["page_url"], wallet) as visitor:
            visitor.page.get_by_role("button", name="Connect Test wallet").click()
            visitor.page.get_by_role("button", name=f"Use chain {facts['chain_id']}").click()
            visitor.sees(visitor.page.locator("#balance"), "coins")
            first, second = (visitor.create(tmp_path, name, seed) for seed, name in ((1, "one"), (2, "two")))
            visitor.go(f"compose/{first}")
            visitor.page.get_by_label("Second adapter").fill(second)
            visitor.submit()
            composed = visitor.main(".result a.id").inner_text()
            visitor.go(f"adapter/{composed}")
            visitor.sees(visitor.main("[role=status]"), "None yet: the nodes compute it")
            # two checkpoints at most: the request may come too late for the one under way
            version = visitor.main("tbody tr td").first
            playwright.expect(version).to_have_text("1", timeout=200_000)
            visitor.go("network")
            visitor.sees(visitor.main("[aria-label='Latest checkpoint']"), "Accuracy")
            visitor.sees(visitor.main("meter").first, "")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    rows = DevnetFolder(folder).checkpoint_rows()
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))


def refuses_cheats(url: str) -> bool:
    body = {"jsonrpc": "2.0", "id": 1, "method": "anvil_nodeInfo", "params": []}
    return "error" in httpx.post(url, json=body).json()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_shipped_library_is_what_npm_publishes(tmp_path: Path) -> None:
    """Byte for byte the file in the package whose sha512 the example's lock file holds."""
    subprocess.run(["npm", "pack", "--silent", "ethers@6.17.0"], cwd=tmp_path, check=True, timeout=120)
    (archive,) = tmp_path.glob("*.tgz")
    locked = json.loads(LOCK.read_text())["packages"]["node_modules/ethers"]["integrity"]
    assert "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == locked
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/dist/ethers.min.js")
        assert member is not None
        assert member.read() == ETHERS.read_bytes()
