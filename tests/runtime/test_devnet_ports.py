"""Where a devnet listens: the gate that others are told, the chain behind it, the page; and what is kept."""

from __future__ import annotations

import json
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from citrate_node.chain.anvil import find_anvil
from citrate_node.errors import ConfigError, ServiceError
from citrate_node.runtime.devnet import Devnet
from citrate_node.runtime.devnet_admin import devnet_status, prepare
from citrate_node.runtime.devnet_folder import DevnetChoices, DevnetFolder, is_free, new_choices


def made(folder: Path, page_port: int | None = None, rpc_url: str = "") -> tuple[DevnetFolder, DevnetChoices]:
    devnet = DevnetFolder(folder)
    devnet.create_keys(2)
    devnet.save(
        new_choices(
            nodes=2,
            checkpoints=1,
            preset="devnet",
            seed=1,
            base_model="embedded",
            rpc_url=rpc_url,
            chain_id=40299,
            now=int(time.time()),
            page_port=page_port,
        )
    )
    return devnet, devnet.load()


def again(folder: Path, page_port: int | None = None) -> DevnetChoices:
    """The choices of a second `devnet up` on the folder."""
    _, choices = prepare(
        folder,
        nodes=2,
        checkpoints=1,
        preset="devnet",
        seed=1,
        base_model="embedded",
        rpc_url="",
        page_port=page_port,
    )
    return choices


async def test_others_are_told_the_gate_and_nodes_the_chain(tmp_path: Path) -> None:
    _, choices = made(tmp_path)
    status = await devnet_status(tmp_path)
    assert (status["rpc_url"], status["inner_rpc_url"], status["page_url"]) == (
        f"http://127.0.0.1:{choices.rpc_port}",
        f"http://127.0.0.1:{choices.chain_port}",
        f"http://127.0.0.1:{choices.page_port}/",
    )
    assert len({choices.rpc_port, choices.chain_port, choices.page_port, *choices.node_ports}) == 5
    elsewhere, other = made(tmp_path / "other", page_port=0, rpc_url="http://192.0.2.1:8545")
    urls = (elsewhere.rpc_url(other), elsewhere.inner_rpc_url(other), elsewhere.page_url(other))
    assert urls == ("http://192.0.2.1:8545", "http://192.0.2.1:8545", None)


@pytest.mark.skipif(find_anvil() is None, reason="anvil is not installed: run `npm ci`")
async def test_the_told_address_refuses_what_the_chain_itself_would_do(tmp_path: Path) -> None:
    folder, choices = made(tmp_path)
    balance = {"method": "anvil_setBalance", "params": ["0x" + "11" * 20, "0x1"], "id": 1, "jsonrpc": "2.0"}
    async with AsyncExitStack() as stack, httpx.AsyncClient() as client:
        inner = await Devnet(folder, choices, lambda fact: None)._start_chain(stack)
        assert inner == folder.inner_rpc_url(choices)
        refused = (await client.post(folder.rpc_url(choices), json=balance)).json()
        assert refused["error"]["code"] == -32601
        obeyed = (await client.post(inner, json=balance)).json()
        assert "result" in obeyed
        answer = await client.post(
            folder.rpc_url(choices), json={**balance, "method": "eth_chainId", "params": []}
        )
        assert answer.json()["result"] == hex(40299)
        assert answer.headers["access-control-allow-origin"] == "*"
    assert is_free(choices.rpc_port)


async def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    for name in ("page_port", "rpc_port", "chain_port"):
        folder, choices = made(tmp_path / name)
        port = getattr(choices, name)
        devnet = Devnet(folder, choices, lambda fact: None, open_page=lambda url: AsyncExitStack())
        with (
            socket.create_server(("127.0.0.1", port)),
            pytest.raises(ServiceError, match=f"port {port} is in use"),
        ):
            devnet._check_ports()
        devnet._check_ports()


def test_the_pages_port_is_kept_until_another_is_asked_for(tmp_path: Path) -> None:
    _, choices = made(tmp_path)
    assert again(tmp_path).page_port == choices.page_port
    assert again(tmp_path, page_port=0).page_port == 0
    assert again(tmp_path).page_port == 0
    assert again(tmp_path, page_port=8123).page_port == 8123


def test_a_folder_from_before_the_gate_gets_its_ports_and_keeps_the_address_that_wallets_know(
    tmp_path: Path,
) -> None:
    _, choices = made(tmp_path)
    path = tmp_path / "devnet.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: raw[key] for key in raw if key not in ("chain_port", "page_port")}))
    upgraded = again(tmp_path)
    assert upgraded.rpc_port == choices.rpc_port
    assert upgraded.chain_port not in (0, choices.rpc_port)
    assert again(tmp_path) == upgraded


def test_rows_of_checkpoints_are_kept_once_each_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    devnet, _ = made(tmp_path)
    assert devnet.checkpoint_rows() == []
    for row in ({"number": 2, "gas_used": 5}, {"number": 1}, {"number": 2, "gas_used": 6}):
        devnet.add_checkpoint_row(row)
    assert devnet.checkpoint_rows() == [{"number": 1}, {"number": 2, "gas_used": 6}]
    (tmp_path / "checkpoints.jsonl").write_text('{"number": 1}\n[]\n')
    with pytest.raises(ConfigError, match=r"checkpoints\.jsonl is damaged"):
        devnet.checkpoint_rows()
