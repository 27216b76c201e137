"""What a genesis file says, and which networks it refuses to make.

Whether the contract reads its storage as meant is tested in tests/contracts.
"""

from dataclasses import replace
from typing import Any

import pytest
from chain_world import World, account

from citrate_node.chain.contract_abi import runtime_code
from citrate_node.chain.genesis import (
    DEFAULT_CHAIN_ID,
    GenesisBaseModel,
    build_genesis,
    factory_storage,
    fund_equally,
)
from citrate_node.errors import ConfigError

CONTRACT = "0x0000000000000000000000000000000000000103"


def test_the_predeploy_has_code_a_nonce_and_storage_and_the_accounts_have_money(world: World) -> None:
    genesis = world.genesis()
    contract = genesis["alloc"][CONTRACT]
    assert (contract["code"], contract["nonce"], genesis["config"]["chainId"]) == (
        "0x" + runtime_code().hex(),
        "0x1",
        DEFAULT_CHAIN_ID,
    )
    assert contract["storage"] == {
        "0x" + slot.hex(): "0x" + word.hex()
        for slot, word in factory_storage(world.validators, world.genesis_record, [world.base]).items()
    }
    assert genesis["alloc"]["0x" + account("alice").hex()] == {"balance": hex(10**21)}


def test_every_fork_with_blobs_has_its_schedule(world: World) -> None:
    """geth 1.15 and later refuse a genesis in which one is missing."""
    config = world.genesis()["config"]
    forks = {name.removesuffix("Time") for name in config if name.endswith("Time")} - {"shanghai"}
    assert config["blobSchedule"].keys() == forks == {"cancun"}
    assert all(schedule["baseFeeUpdateFraction"] > 0 for schedule in config["blobSchedule"].values())


def test_the_same_arguments_give_the_same_file_in_any_order_of_validators(world: World) -> None:
    shuffled = build_genesis(
        list(reversed(world.validators)),
        world.genesis_record,
        funded=fund_equally(account(name) for name in ("alice", "bob", *world.names)),
        timestamp=1_700_000_000,
        base_models=[world.base],
    )
    assert shuffled == world.genesis()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chain_id": 40204}, "public test network"),
        ({"chain_id": 0}, "chain id 0"),
        ({"chain_id": 2**53}, "chain id"),
    ],
)
def test_a_chain_id_that_would_do_harm_is_refused(world: World, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world.genesis(**change)


@pytest.mark.parametrize("record", [bytes(32), b"", b"\1" * 31])
def test_a_network_needs_a_record_of_its_own(world: World, record: bytes) -> None:
    with pytest.raises(ConfigError, match="tells networks apart"):
        factory_storage(world.validators, record)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("base_model_id", bytes(32)), ("base_model_id", b"\1"), ("name", ""), ("name", "n" * 65)),
        *(("uri", "é" * 129), ("licence", ""), ("size_bytes", 0), ("size_bytes", 2**64)),
    ],
)
def test_a_base_model_the_contract_would_refuse_is_refused_here(
    world: World, field: str, value: object
) -> None:
    with pytest.raises(ConfigError, match="base model"):
        replace(world.base, **{field: value})


def test_a_base_model_is_listed_once(world: World) -> None:
    twin: GenesisBaseModel = replace(world.base, name="twin")
    with pytest.raises(ConfigError, match="twice"):
        factory_storage(world.validators, world.genesis_record, [world.base, twin])
