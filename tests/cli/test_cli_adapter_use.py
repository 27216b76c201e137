"""What a user does with an adapter on chain: lists what fits, merges, screens, serves, hands it to vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import safe_open
from wallet_chain import CHAIN_ID, adapter
from wallet_user import Pair, User, saved

from citrate_node.cli import adapter as adapter_commands
from citrate_node.content.gateway import Gateway
from citrate_node.content.store import EmbeddedStore
from citrate_node.errors import ConfigError
from citrate_node.runtime.adapters_files import BaseModelMismatch
from citrate_node.training.provenance import read_provenance
from citrate_node.training.settings import ALL_LINEAR


def use(user: User, *args: object) -> Any:
    return user.run(adapter_commands.app, *args, "--dir", user.chain.devnet.folder)


def test_a_list_of_a_base_names_the_adapters_that_fit_it(user: User, pair: Pair) -> None:
    fitting = user.ok("list", "--base", "embedded")[:-1]
    assert {row["adapter_id"] for row in pair} <= {row["adapter_id"] for row in fitting}
    assert user.ok("list", "--base", "cd" * 32)[:-1] == []
    shown = use(user, "list", "--base", "embedded").stdout
    assert f"base {adapter(1).config.base_model_id.hex()[:12]}…" in shown


def test_an_adapter_on_chain_is_merged_with_its_provenance(user: User, pair: Pair, tmp_path: Path) -> None:
    small, _ = pair
    merged = use(user, "merge", small["adapter_id"], "--out", tmp_path / "merged", "--json")
    assert merged.exception is None, repr(merged.exception)
    facts = json.loads(merged.stdout)
    assert facts["adapter_weights_sha256"] == small["weights_hash"]
    carried = read_provenance(tmp_path / "merged")
    assert carried is not None
    assert carried.chain is not None
    assert (carried.chain.adapter_id, carried.chain.version) == (small["adapter_id"], 1)
    wrong = use(user, "merge", small["adapter_id"], "--base", tmp_path / "merged", "--out", tmp_path / "x")
    assert isinstance(wrong.exception, BaseModelMismatch)
    assert not (tmp_path / "x").exists()


def test_an_adapter_on_chain_is_screened_against_the_others(user: User, pair: Pair) -> None:
    small, _ = pair
    result = use(user, "screen", small["adapter_id"], "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["findings"], facts["known"]) == (0, [], 1)


@asynccontextmanager
async def served(folder: Path, *options: object) -> AsyncIterator[dict[str, Any]]:
    """A server of its own process, begun in `folder`; gives what it says, and ends it politely."""
    command = [sys.executable, "-m", "citrate_node.cli.main", "adapter", "serve", "--port", "0", "--json"]
    process = await asyncio.create_subprocess_exec(
        *(*command, *map(str, options)),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line, (await process.communicate())[1].decode()
        yield json.loads(line)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 90) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def answer(facts: dict[str, Any], model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": "import ", "max_tokens": 4}
    async with httpx.AsyncClient(timeout=90) as client:
        found: dict[str, Any] = (await client.post(f"{facts['url']}/completions", json=body)).json()
    return found


async def test_the_server_starts_answers_and_ends_on_sigterm(user: User, pair: Pair, tmp_path: Path) -> None:
    small, _ = pair
    options = ("--dir", user.chain.devnet.folder, "--record", "record.jsonl", "--load", small["adapter_id"])
    async with served(tmp_path, *options) as facts:
        assert facts["loaded"] == [f"{small['adapter_id']}@1"]
        found = await answer(facts, small["adapter_id"])
    assert found["citrate"]["weights_hash"] == small["weights_hash"]
    assert len((tmp_path / "record.jsonl").read_text().splitlines()) == 1


async def test_weights_that_lie_elsewhere_are_served_through_a_gateway(user: User, tmp_path: Path) -> None:
    """A machine that knows the chain's URL and a gateway, and has no devnet and no store of its own."""
    weights = adapter(31, 8, ALL_LINEAR)
    store = tmp_path / "elsewhere"
    args = (saved(tmp_path / "file", weights), "--name", "far", "--store", store)
    made = await asyncio.to_thread(user.one, "create", *args)
    machine = tmp_path / "machine"
    machine.mkdir()
    chain = ("--rpc-url", user.chain.rpc_url, "--chain-id", CHAIN_ID)
    async with EmbeddedStore(store, read_only=True) as held, Gateway(held) as gateway:
        (machine / "serve.toml").write_text('[stores]\ngateways = ["http://127.0.0.1:9"]\n')
        options = (*chain, "--config", "serve.toml")
        async with served(machine, *options, "--gateway", gateway.address) as facts:
            found = await answer(facts, made["adapter_id"])
    assert found["citrate"]["weights_hash"] == made["weights_hash"]
    assert found["citrate"]["source"] == "chain"


async def test_a_local_folder_needs_no_chain_and_must_be_named(tmp_path: Path) -> None:
    saved(tmp_path / "mine", adapter(32, 2, ALL_LINEAR))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "serve.toml").write_text('[[local]]\nname = "other"\nfolder = "../mine"\n')
    options = ("--config", "conf/serve.toml", "--local", "mine=mine", "--load", "local:mine")
    async with served(tmp_path, *options) as facts:
        found = [
            await answer(facts, name) for name in ("local:mine", "local:other", "mine", "0x" + "ab" * 32)
        ]
    assert [each["citrate"]["source"] for each in found[:2]] == ["unverified-local"] * 2
    assert [each["error"]["code"] for each in found[2:]] == ["model_not_found"] * 2


@pytest.mark.parametrize("text", [("mine",), ("=mine",), ("mine=",), ("a b=mine",), ("a=x", "a=y")])
def test_a_local_folder_that_is_not_named_is_refused(user: User, text: tuple[str, ...]) -> None:
    result = use(user, "serve", *(word for each in text for word in ("--local", each)))
    assert isinstance(result.exception, ConfigError)


def test_a_new_key_is_printed_once_and_only_its_hash_goes_into_the_config(user: User) -> None:
    facts = json.loads(use(user, "serve", "--new-key", "alice", "--json").stdout)
    assert re.fullmatch(r"citrate-[\w-]{43}", facts["key"])
    assert facts["key"] not in facts["config"]
    assert 'name = "alice"' in facts["config"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_pulled_folder_keeps_the_rules_of_vllms_loader(
    user: User, pair: Pair, tmp_path: Path, which: int
) -> None:
    """The rules are those of vLLM's source: PEFTHelper in vllm/lora/peft_helper.py (required keys; bias
    "none"; no modules_to_save, no DoRA; rank at most max_lora_rank, which may be set to 64) and
    LoRAModel.from_local_checkpoint in vllm/lora/lora_model.py (file name; every tensor is
    base_model.model.<module>.lora_A|lora_B.weight; the module's last name is one that the model supports, for
    Llama its seven linear layers). vLLM itself is not run here."""
    folder = tmp_path / "pulled"
    user.one("pull", pair[which]["adapter_id"], "--out", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert (config["bias"], config["modules_to_save"], config["use_dora"]) == ("none", None, False)
    assert isinstance(config["r"], int)
    assert 1 <= config["r"] <= 64
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) <= llama
    found: dict[str, dict[str, list[int]]] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            match = re.fullmatch(r"base_model\.model\.(.+)\.(lora_A|lora_B)\.weight", name)
            assert match is not None, name
            assert match[1].rsplit(".", 1)[-1] in llama
            found.setdefault(match[1], {})[match[2]] = file.get_slice(name).get_shape()
    assert found
    for module, shapes in found.items():
        assert (shapes["lora_A"][0], shapes["lora_B"][1]) == (config["r"], config["r"]), module
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt")]
