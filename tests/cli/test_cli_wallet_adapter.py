"""`citrate wallet` and `citrate adapter` against a chain: what they do."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from wallet_chain import adapter
from wallet_user import Pair, User, peft_folder, saved

from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument
from citrate_node.chain.rpc import ContractRefusal
from citrate_node.chain.wallet import WalletFolder
from citrate_node.cli import adapter as adapter_commands
from citrate_node.cli import wallet as wallet_commands
from citrate_node.content.block_store import BlockStore
from citrate_node.errors import ConfigError
from citrate_node.protocol.adapter import AdapterWeights
from citrate_node.protocol.composition import compose
from citrate_node.protocol.content_id import content_id
from citrate_node.runtime.adapters import UnfundedWallet
from citrate_node.runtime.adapters_files import NotAnAdapter
from citrate_node.runtime.adapters_weights import WeightsMismatch, WeightsMissing
from citrate_node.training.settings import ALL_LINEAR

# ---------------------------------------------------------------- wallets


def test_a_new_wallet_is_listed_and_its_key_is_written_only_encrypted(user: User, tmp_path: Path) -> None:
    args = ("--keystore", tmp_path / "keys", "--json")
    made = user.run(wallet_commands.app, "new", "carol", *args, "--password-file", user.chain.password_file)
    facts = json.loads(made.stdout)
    listed = json.loads(user.run(wallet_commands.app, "list", *args).stdout)
    assert listed == facts | {"development": False}
    key = WalletFolder(tmp_path / "keys").load("carol", user.chain.password_file.read_text().strip())
    assert key.hex() not in Path(facts["file"]).read_text()


def test_a_password_that_is_typed_must_be_typed_twice_and_is_not_shown(user: User, tmp_path: Path) -> None:
    args = ("new", "dora", "--keystore", tmp_path)
    result = user.run(wallet_commands.app, *args, typed="long enough\nlong enough\n")
    assert result.exit_code == 0
    assert "long enough" not in result.output
    assert WalletFolder(tmp_path).load("dora", "long enough")


def test_a_script_that_gives_no_password_is_told_how_to_give_it(user: User, tmp_path: Path) -> None:
    result = user.run(wallet_commands.app, "new", "erik", "--keystore", tmp_path, "--json")
    assert isinstance(result.exception, ConfigError)
    assert "CITRATE_PASSWORD_FILE" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("amount", ["0", "-1", "1e3", "", ".", "1.0000000000000000001", "٣"])
def test_an_amount_that_is_no_number_of_coins_is_refused(user: User, amount: str) -> None:
    chain = user.chain
    result = user.run(
        wallet_commands.app,
        *("fund", "--dir", chain.devnet.folder, "--keystore", chain.wallets, "--", "alice", amount),
    )
    assert isinstance(result.exception, ConfigError)


def test_the_founder_cannot_give_more_than_it_has(user: User) -> None:
    chain = user.chain
    result = user.run(wallet_commands.app, "fund", "0x" + "11" * 20, "2000", "--dir", chain.devnet.folder)
    assert isinstance(result.exception, UnfundedWallet)


# ---------------------------------------------------------------- create, compose, publish


def test_small_weights_travel_in_the_transaction_and_large_ones_by_cid(user: User, pair: Pair) -> None:
    small, large = pair
    data = adapter(1).encode()
    assert (small["in_calldata"], small["store"], small["converted"]) == (True, None, False)
    assert small["weights_hash"] == hashlib.sha256(data).hexdigest()
    assert (large["in_calldata"], large["cid"][:7]) == (False, "bafybei")
    assert large["cid"] == content_id(adapter(2, 32, ALL_LINEAR).encode()).cid
    store = BlockStore(Path(large["store"]), read_only=True)
    assert [content.cid for content in store.pins()] == [large["cid"]]
    store.close()


def test_what_the_chain_holds_is_what_was_said(user: User, pair: Pair) -> None:
    small, _ = pair
    row, version, lineage = user.ok("show", small["adapter_id"])
    account = small["account"]
    assert row == {
        "type": "adapter",
        "adapter_id": small["adapter_id"],
        "name": "small",
        "base_model_id": "0x" + adapter(1).config.base_model_id.hex(),
        "rank": 2,
        "depth": 0,
        "creator": account,
        "owner": account,
        "pending_owner": None,
        "version_count": 1,
        "mentorship": "closed",
    }
    assert version == {
        "type": "version",
        "adapter_id": small["adapter_id"],
        "version": 1,
        "parent_id": None,
        "weights_hash": small["weights_hash"],
        "cid": small["cid"],
        "size_bytes": len(adapter(1).encode()),
        "accuracy_ppm": None,
        "creator": account,
        "checkpoint": None,
        "block": small["block"],
    }
    assert (lineage["type"], lineage["parents"]) == ("lineage", [])
    assert user.ok("history", small["adapter_id"]) == [
        version,
        {"type": "page", "offset": 0, "count": 1, "next_offset": None},
    ]


def test_a_peft_folder_is_converted_and_verifies_as_what_it_was(user: User, tmp_path: Path) -> None:
    weights = adapter(3)
    folder = peft_folder(tmp_path / "peft", weights)
    made = user.one("create", folder, "--name", "from peft", "--base-model", "embedded")
    assert made["converted"] is True
    assert made["weights_hash"] == weights.digest().hex()
    same = user.one("verify", folder, made["adapter_id"])
    assert (same["same"], same["converted"], same["differences"]) == (True, True, [])


def test_lists_are_paged_and_filtered_by_base_model(user: User, tmp_path: Path) -> None:
    for seed in (11, 12, 13):
        user.one("create", saved(tmp_path / str(seed), adapter(seed)), "--name", f"page {seed}")
    *everything, last = user.ok("list", "--limit", 1000)
    assert last["next_offset"] is None
    *first, page = user.ok("list", "--limit", 2)
    *rest, end = user.ok("list", "--limit", 1000, "--offset", page["next_offset"])
    assert (first + rest, end["next_offset"]) == (everything, None)
    assert user.ok("list", "--limit", 1000, "--base-model", "embedded")[:-1] == everything
    assert user.ok("list", "--base-model", "cd" * 32)[:-1] == []


def test_a_person_is_shown_what_will_happen_and_may_say_no(user: User, tmp_path: Path) -> None:
    before = user.count()
    args = ("create", saved(tmp_path, adapter(4)), "--name", "asked", *user.options("create"))
    declined = user.run(adapter_commands.app, *args, typed="n\n")
    assert declined.exit_code == 1
    assert "createAdapter on chain 40298" in declined.stdout
    assert "gas" in declined.stdout
    assert declined.stdout.rstrip().endswith("nothing was sent")
    assert user.count() == before
    agreed = user.run(adapter_commands.app, *args, typed="y\n")
    assert (agreed.exit_code, user.count()) == (0, before + 1)
    assert content_id(adapter(4).encode()).cid in agreed.stdout


def test_an_owner_publishes_a_second_version(user: User, tmp_path: Path) -> None:
    made = user.one("create", saved(tmp_path / "1", adapter(5)), "--name", "grows")
    added = user.one("publish", made["adapter_id"], saved(tmp_path / "2", adapter(6)))
    assert (added["type"], added["version"]) == ("published", 2)
    rows = user.ok("history", made["adapter_id"], "--offset", 1)
    assert [row["weights_hash"] for row in rows[:-1]] == [adapter(6).digest().hex()]
    user.one("pull", f"{made['adapter_id']}@1", "--out", tmp_path / "old")
    assert (tmp_path / "old" / "adapter_model.safetensors").read_bytes() == adapter(5).encode()


def test_a_composition_is_pending_until_certified_and_then_pulled(
    user: User, pair: Pair, tmp_path: Path
) -> None:
    small, large = pair
    made = user.one("compose", small["adapter_id"], large["adapter_id"], "--weights", "70/30")
    assert (made["type"], made["rank"], made["pending"], made["version"]) == ("composed", 34, True, None)
    row, lineage = user.ok("show", made["adapter_id"])
    assert (row["version_count"], row["depth"]) == (0, 1)
    assert [(p["name"], p["version"], p["weight_percent"]) for p in lineage["parents"]] == [
        ("small", 1, 70),
        ("large", 1, 30),
    ]
    for number in ("", "@1"):
        pending = user.fails("pull", made["adapter_id"] + number, "--out", tmp_path / "early")
        assert isinstance(pending, ContractRefusal)
        assert (pending.name, "first checkpoint" in str(pending)) == ("NotYetCertified", True)
    again = user.fails("compose", made["adapter_id"], small["adapter_id"], "--weights", "50/50")
    assert isinstance(again, ContractRefusal)
    assert again.name == "NotYetCertified"

    result = compose(adapter(1), adapter(2, 32, ALL_LINEAR), 70, 30).weights
    store = BlockStore(user.chain.devnet.node_folder(1) / "content")
    content = store.put(result.encode())
    store.close()
    asyncio.run(user.chain.certify(bytes.fromhex(made["adapter_id"][2:]), content, 18_000))
    pulled = user.one("pull", made["adapter_id"], "--out", tmp_path / "composed")
    assert (pulled["cid"], pulled["accuracy_ppm"], pulled["checkpoint"]) == (content.cid, 18_000, 1)
    assert pulled["from"] == str(store.path)
    assert user.one("verify", tmp_path / "composed", made["adapter_id"])["same"] is True


# ---------------------------------------------------------------- pull and verify


def test_a_pulled_folder_loads_in_peft_with_the_weights_of_the_chain(
    user: User, pair: Pair, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from citrate_node.training.base_model import BaseModel

    small, _ = pair
    user.one("pull", small["adapter_id"], "--out", tmp_path / "pulled")
    base = transformers.AutoModelForCausalLM.from_pretrained(BaseModel.load().directory)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "pulled")
    state = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    expected = adapter(1).tensors()
    assert sorted(state) == sorted(expected)
    assert all(np.array_equal(state[name].numpy(), expected[name]) for name in expected)


def test_large_weights_come_back_from_the_store_byte_for_byte(user: User, pair: Pair, tmp_path: Path) -> None:
    _, large = pair
    facts = user.one("pull", large["adapter_id"], "--out", tmp_path / "large")
    assert facts["from"] == large["store"]
    data = (tmp_path / "large" / "adapter_model.safetensors").read_bytes()
    assert data == adapter(2, 32, ALL_LINEAR).encode()
    elsewhere = tmp_path / "elsewhere"
    BlockStore(elsewhere).close()
    missing = user.fails("pull", large["adapter_id"], "--out", tmp_path / "no", "--store", elsewhere)
    assert isinstance(missing, WeightsMissing)
    assert str(elsewhere) in str(missing)
    assert not (tmp_path / "no").exists()


def test_a_damaged_block_is_noticed_and_another_store_is_asked(
    user: User, pair: Pair, tmp_path: Path
) -> None:
    _, large = pair
    damaged = BlockStore(tmp_path / "damaged")
    damaged.put(adapter(2, 32, ALL_LINEAR).encode())
    damaged.close()
    block = max((tmp_path / "damaged" / "blocks").iterdir(), key=lambda file: file.stat().st_size)
    raw = bytearray(block.read_bytes())
    raw[1000] ^= 1
    block.write_bytes(raw)
    only = user.fails("pull", large["adapter_id"], "--out", tmp_path / "no", "--store", tmp_path / "damaged")
    assert isinstance(only, WeightsMissing)
    assert "does not hash to its name" in str(only)
    stores = ("--store", tmp_path / "damaged", "--store", large["store"])
    facts = user.one("pull", large["adapter_id"], "--out", tmp_path / "yes", *stores)
    assert facts["from"] == large["store"]


def test_verify_names_the_tensor_the_setting_and_the_hash_that_differ(
    user: User, pair: Pair, tmp_path: Path
) -> None:
    small, _ = pair
    folder = tmp_path / "edited"
    user.one("pull", small["adapter_id"], "--out", folder)
    assert user.one("verify", folder, small["adapter_id"])["differences"] == []
    weights = adapter(1)
    values = weights.values.copy()
    values[7] += 1
    changed = weights.with_values(weights.manifest, values)
    (folder / "adapter_model.safetensors").write_bytes(changed.encode())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 5}))
    error = user.fails("verify", folder, small["adapter_id"])
    assert isinstance(error, WeightsMismatch)
    assert str(error).splitlines()[1:] == [
        f"  weights hash {changed.digest().hex()}, on chain {weights.digest().hex()}",
        "  adapter_config.json says lora_alpha 5, the weights 4",
        f"  {weights.manifest.specs[0].name}: 1 of 256 values differ",
    ]


def test_verify_names_another_rank_and_another_base_model(user: User, pair: Pair, tmp_path: Path) -> None:
    small, _ = pair
    other = adapter(1, rank=3)
    foreign = AdapterWeights(
        replace(other.config, base_model_id=b"\x07" * 32), other.manifest, other.values.copy()
    )
    text = str(user.fails("verify", saved(tmp_path, foreign), small["adapter_id"]))
    assert "rank 3, on chain 2" in text
    assert f"base model {'07' * 32}, on chain" in text


def test_bytes_on_chain_that_are_no_adapter_are_pulled_by_nobody(user: User, tmp_path: Path) -> None:
    """The contract takes any bytes; another client may have put them there."""

    async def create() -> str:
        factory = await AdapterFactory.connect(user.chain.rpc_url)
        try:
            base = adapter(1).config.base_model_id
            key = user.chain.devnet.founder_key()
            return (await factory.create_adapter(key, base, "noise", b"noise " * 20, 2)).adapter_id.hex()
        finally:
            await factory.close()

    error = user.fails("pull", asyncio.run(create()), "--out", tmp_path / "noise")
    assert isinstance(error, NotAnAdapter)
    assert not (tmp_path / "noise").exists()


def test_a_size_on_chain_that_is_untrue_is_named(user: User, tmp_path: Path) -> None:
    weights = adapter(9)
    content = content_id(weights.encode())
    store = BlockStore(tmp_path / "store")
    store.put(weights.encode())
    store.close()

    async def create() -> str:
        factory = await AdapterFactory.connect(user.chain.rpc_url)
        try:
            named = cid_argument(content.digest, content.codec, content.size_bytes + 1)
            key = user.chain.devnet.founder_key()
            receipt = await factory.create_adapter(key, weights.config.base_model_id, "long", named, 2)
            return receipt.adapter_id.hex()
        finally:
            await factory.close()

    args = (asyncio.run(create()), "--out", tmp_path / "out", "--store", tmp_path / "store")
    error = user.fails("pull", *args)
    assert isinstance(error, WeightsMismatch)
    assert f"{content.size_bytes} bytes, but the chain says {content.size_bytes + 1}" in str(error)


def test_a_person_is_shown_few_differences_and_a_script_all(user: User, pair: Pair, tmp_path: Path) -> None:
    _, large = pair
    path = saved(tmp_path, adapter(99, 32, ALL_LINEAR))
    args = ("verify", path, large["adapter_id"], *user.options("verify"))
    scripted = user.run(adapter_commands.app, *args, "--json")
    differences = json.loads(scripted.stdout)["differences"]
    assert len(differences) == 1 + 2 * 4 * 7  # the hash, and both factors of seven modules in four layers
    shown = str(user.run(adapter_commands.app, *args).exception).splitlines()[1:]
    assert shown == [f"  {line}" for line in differences[:10]] + ["  … and 47 more; --json names them all"]


def test_a_person_is_told_where_large_weights_go_before_they_go_there(user: User, tmp_path: Path) -> None:
    path = saved(tmp_path, adapter(98, 4, ALL_LINEAR))
    args = ("create", path, "--name", "large", *user.options("create"))
    declined = user.run(adapter_commands.app, *args, typed="n\n")
    assert f"stored in {user.chain.devnet.folder / 'content'}\n" in declined.stdout
    named = user.run(adapter_commands.app, *args, "--store", tmp_path / "mine", typed="n\n")
    assert f"stored in {tmp_path / 'mine'}\n" in named.stdout
    assert not (tmp_path / "mine").exists(), "nothing is stored before the question is answered"
