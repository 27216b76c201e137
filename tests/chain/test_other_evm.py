"""Another EVM with the genesis.json of a devnet: EthereumJS, an execution client of other people's making.

`citrate devnet genesis` writes the file, the client reads it as any execution client reads geth's format,
blocks come over the Engine API, and a wallet user reaches it with `--rpc-url`. Needs the packages of
tests/chain/other_evm (`npm ci --ignore-scripts` there, 110 MB).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chain_world import free_port
from engine_blocks import BlockMaker
from typer.testing import CliRunner
from wallet_chain import NODES, PASSWORD, WalletChain, adapter

from citrate_node.chain.adapter_factory import AdapterFactory
from citrate_node.chain.contract_abi import runtime_code
from citrate_node.chain.contract_types import (
    AdapterComposed,
    AdapterCreated,
    CheckpointCommitted,
    VersionAdded,
)
from citrate_node.chain.rpc import ContractRefusal
from citrate_node.cli import adapter as adapter_commands
from citrate_node.cli import devnet as devnet_commands
from citrate_node.protocol.composition import compose
from citrate_node.protocol.content_id import content_id
from citrate_node.runtime.devnet_folder import DevnetFolder
from citrate_node.training.settings import ALL_LINEAR

HERE = Path(__file__).parent / "other_evm"
CLIENT = HERE / "node_modules/.bin/ethereumjs"
START_SECONDS = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not CLIENT.exists(),
        reason=f"@ethereumjs/client is not installed: run `npm ci --ignore-scripts` in {HERE}",
    ),
]


@contextmanager
def other_evm(genesis: Path, folder: Path) -> Iterator[tuple[str, BlockMaker]]:
    """The client, with a block every half second; its RPC URL."""
    rpc, engine, network = (free_port() for _ in range(3))
    options = {
        "gethGenesis": genesis,
        "dataDir": folder / "data",
        "rpc": "true",
        "rpcPort": rpc,
        "rpcEngine": "true",
        "rpcEnginePort": engine,
        "rpcEngineAuth": "false",
        "port": network,
        "discV4": "false",
        "discDns": "false",
        "sync": "none",
        "isSingleNode": "true",  # else it takes no transaction while it has no peers
    }
    url = f"http://127.0.0.1:{rpc}"
    command = ["node", str(CLIENT), *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "client.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait_for(url, process, folder / "client.log")
            _wait_for(f"http://127.0.0.1:{engine}", process, folder / "client.log")
            with BlockMaker(url, f"http://127.0.0.1:{engine}", 0.5) as blocks:
                yield url, blocks
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            httpx.post(url, json=request, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletChain]:
    folder = tmp_path_factory.mktemp("other")
    devnet = DevnetFolder(folder / "devnet")
    args = ["genesis", "--nodes", str(NODES), "--dir", str(devnet.folder)]
    written = CliRunner().invoke(devnet_commands.app, args)
    assert written.exit_code == 0, written.output
    password_file = folder / "password"
    password_file.write_text(PASSWORD + "\n")
    with other_evm(Path(written.stdout.strip()), folder) as (url, _):
        yield WalletChain(devnet, devnet.load(), url, folder / "wallets", password_file)


def citrate(chain: WalletChain, command: str, *args: object) -> Any:
    founder = chain.devnet.folder / "keys/founder.key"
    signing = ("--key-file", founder) if command in ("create", "compose", "open") else ()
    where = ("--dir", chain.devnet.folder, "--rpc-url", chain.rpc_url, "--json")
    return CliRunner().invoke(adapter_commands.app, [str(arg) for arg in (command, *args, *signing, *where)])


def said(chain: WalletChain, command: str, *args: object) -> list[dict[str, Any]]:
    result = citrate(chain, command, *args)
    assert result.exception is None, repr(result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_it_holds_what_genesis_says(chain: WalletChain) -> None:
    """Code and storage are there, and each of the contract's views answers from them."""

    async def read() -> None:
        factory = await AdapterFactory.connect(chain.rpc_url)
        try:
            assert factory.chain_id == chain.choices.chain_id
            assert (await factory.genesis_record_hash()).hex() == chain.choices.genesis_record_hash
            found = sorted(await factory.validators(), key=lambda seat: seat.account)
            assert found == sorted(chain.devnet.validators(NODES), key=lambda seat: seat.account)
            (base,) = await factory.base_models()
            assert base.id == adapter(1).config.base_model_id
        finally:
            await factory.close()

    asyncio.run(read())
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_getCode"}
    params = ["0x0000000000000000000000000000000000000103", "latest"]
    answer = httpx.post(chain.rpc_url, json={**request, "params": params}, trust_env=False).json()
    assert answer["result"] == "0x" + runtime_code().hex()


def test_adapters_are_created_composed_certified_and_read_back(chain: WalletChain, tmp_path: Path) -> None:
    """The same commands as on the embedded chain, with weights in calldata and by CID."""
    small, large = adapter(1), adapter(2, 32, ALL_LINEAR)
    ids = []
    for name, weights in (("small", small), ("large", large)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(weights.encode())
        (made,) = said(chain, "create", path, "--name", name)
        assert made["in_calldata"] is (name == "small")
        assert made["cid"] == content_id(weights.encode()).cid
        ids.append(made["adapter_id"])
    (composed,) = said(chain, "compose", *ids, "--weights", "70/30")
    content = content_id(compose(small, large, 70, 30).weights.encode())
    asyncio.run(chain.certify(bytes.fromhex(composed["adapter_id"][2:]), content, 18_000))
    version, page = said(chain, "history", composed["adapter_id"])
    assert (version["cid"], version["accuracy_ppm"], version["checkpoint"]) == (content.cid, 18_000, 1)
    assert page["next_offset"] is None
    assert [row["name"] for row in said(chain, "list")[:-1]] == ["small", "large", ""]
    for adapter_id, weights in zip(ids, (small, large), strict=True):
        said(chain, "pull", adapter_id, "--out", tmp_path / adapter_id)
        data = (tmp_path / adapter_id / "adapter_model.safetensors").read_bytes()
        assert data == weights.encode()

    async def events() -> list[type]:
        factory = await AdapterFactory.connect(chain.rpc_url)
        try:
            return [type(event) for event in await factory.events(0, (await factory.head()).number)]
        finally:
            await factory.close()

    assert asyncio.run(events()) == [
        *(AdapterCreated, VersionAdded, AdapterCreated, VersionAdded),
        *(AdapterComposed, CheckpointCommitted, VersionAdded),
    ]


def test_a_refusal_arrives_decoded(chain: WalletChain, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(adapter(3).encode())
    (made,) = said(chain, "create", path, "--name", "once")
    error = citrate(chain, "create", path, "--name", "once").exception
    assert isinstance(error, ContractRefusal)
    assert (error.name, error.args_by_name["adapterId"].hex()) == ("AdapterExists", made["adapter_id"][2:])
