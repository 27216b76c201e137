"""The examples run as their README says, and the chain holds what they print."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wallet_chain import WalletChain, wallet_chain

from citrate_node.protocol.adapter import AdapterLimits, decode_adapter
from citrate_node.protocol.content_id import cid_text
from citrate_node.runtime.adapters import connected, place_of
from citrate_node.training.base_model import BaseModel
from citrate_node.training.settings import LoraSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletChain]:
    with wallet_chain(tmp_path_factory.mktemp("examples")) as made:
        yield made


def steps_of(chain: WalletChain, *command: str | Path) -> list[dict[str, Any]]:
    key_file = chain.devnet.folder / "keys" / "founder.key"
    done = subprocess.run(
        [*map(str, command), chain.rpc_url, str(key_file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(chain: WalletChain, steps: list[dict[str, Any]]) -> None:
    """Compares every printed fact with what our own client reads."""
    assert [step["step"] for step in steps] == [
        *("created", "created", "composed", "version", "version", "lineage", "composition")
    ]
    first, second, composed, *versions, lineage, composition = steps
    assert lineage["parents"] == [first["adapterId"], second["adapterId"]]
    assert lineage["weights"] == [70, 30]
    assert composition == {
        "step": "composition",
        "adapterId": composed["adapterId"],
        "versions": 0,
        "cid": None,
    }
    for made, printed in zip((first, second), versions, strict=True):
        row, data = asyncio.run(on_chain(chain, made["adapterId"]))
        assert printed["adapterId"] == made["adapterId"]
        assert printed["version"] == row.version == 1
        assert printed["weightsHash"] == made["sha256"] == row.weights_hash.hex()
        assert printed["cid"] == cid_text(row.codec, row.weights_hash)
        fits_the_base_model(data)


async def on_chain(chain: WalletChain, adapter_id: str) -> tuple[Any, bytes]:
    """The version, and its weights from the transaction's calldata."""
    async with connected(place_of(chain.devnet.folder)) as desk:
        row = await desk.version(bytes.fromhex(adapter_id[2:]), None)
        data, where = await desk.weights(bytes.fromhex(adapter_id[2:]), row)
        assert where == f"calldata in block {row.block_number}"
        return row, data


def fits_the_base_model(data: bytes) -> None:
    """It is no noise but an adapter: in the canonical spelling, with the shapes of the embedded base."""
    base = BaseModel.load()
    weights = decode_adapter(data, AdapterLimits(1 << 20))
    config = weights.config
    assert config.base_model_id == base.base_model_id
    shapes = base.tensor_shapes(LoraSettings(config.rank, config.alpha, config.targets))
    assert {spec.name: spec.shape for spec in weights.manifest.specs} == shapes


def test_the_web3_py_example_creates_composes_and_reads(chain: WalletChain) -> None:
    steps = steps_of(chain, sys.executable, EXAMPLES / "web3_py" / "two_adapters.py")
    check(chain, steps)
    again = steps_of(chain, sys.executable, EXAMPLES / "web3_py" / "two_adapters.py")
    assert again[0]["adapterId"] != steps[0]["adapterId"], "a second run makes adapters of its own"


def test_an_example_that_lacks_its_arguments_says_how_it_is_used() -> None:
    command = [sys.executable, str(EXAMPLES / "web3_py" / "two_adapters.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "RPC_URL KEY_FILE" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("library", ["ethers", "viem"])
def test_a_javascript_example_creates_composes_and_reads(chain: WalletChain, library: str) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = EXAMPLES / library
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    check(chain, steps_of(chain, "node", folder / "two_adapters.mjs"))


def test_both_javascript_examples_write_the_same_file_format() -> None:
    """It is copied, so that each folder stands alone; the copies must not drift apart."""
    files = [(EXAMPLES / library / "adapter_file.mjs").read_text() for library in ("ethers", "viem")]
    assert files[0] == files[1]
