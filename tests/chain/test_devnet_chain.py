"""The embedded chain: started, killed, damaged, started again."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from chain_world import World, account, connected, free_port, key, running
from eth_hash.auto import keccak

from citrate_node.chain import anvil, devnet_chain
from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument
from citrate_node.chain.devnet_chain import DevnetChain
from citrate_node.chain.state_files import GENERATIONS_KEPT, StateFiles
from citrate_node.errors import ConfigError, ServiceError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("need_anvil")


async def create(factory: AdapterFactory, world: World, text: str) -> bytes:
    weights = cid_argument(keccak(text.encode()), 0x55, 1_000)
    receipt = await factory.create_adapter(key("alice"), world.base.base_model_id, text, weights, 8)
    return receipt.adapter_id


async def back(chain: DevnetChain, restarts: int) -> None:
    """Until anvil was brought back and answers."""
    async with asyncio.timeout(20):
        while chain.restarts < restarts or chain.process_id is None:
            await asyncio.sleep(0.02)


async def test_it_goes_on_where_it_stopped(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        made = await create(factory, world, "before")
        genesis_hash, head = await factory.genesis_block_hash(), await factory.head()
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        assert await factory.genesis_block_hash() == genesis_hash
        assert await factory.adapters() == [made]
        assert (await factory.head()).number >= head.number
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        assert await factory.genesis_block_hash() == genesis_hash
        again = await create(factory, world, "after")
        events = await factory.events(0, (await factory.head()).number)
        assert await factory.adapters() == [made, again]
        assert len(events) == 4


async def test_a_killed_anvil_comes_back_with_everything_that_was_saved(world: World, tmp_path: Path) -> None:
    async with (
        running(tmp_path, world.genesis(), snapshot_every_s=3600) as chain,
        connected(chain) as factory,
    ):
        made = await create(factory, world, "saved")
        await chain.snapshot()
        await create(factory, world, "lost")
        assert chain.process_id is not None
        os.kill(chain.process_id, signal.SIGKILL)
        await back(chain, 1)
        assert await factory.adapters() == [made]
        lost_again = await create(factory, world, "lost")
        assert await factory.adapters() == [made, lost_again]


async def test_blocks_come_every_second_at_the_present_time_also_after_a_restart(
    world: World, tmp_path: Path
) -> None:
    times: list[int] = []
    for _ in range(2):
        async with running(tmp_path, world.genesis(), block_time_s=1) as chain, connected(chain) as factory:
            first = await factory.head()
            async with asyncio.timeout(20):
                while (head := await factory.head()).number < first.number + 2:
                    await asyncio.sleep(0.05)
            assert abs(head.timestamp - time.time()) < 5
            times += [head.timestamp - 1, head.timestamp]
    assert times == sorted(set(times))


async def test_states_are_saved_by_themselves_and_only_the_newest_are_kept(
    world: World, tmp_path: Path
) -> None:
    async with (
        running(tmp_path, world.genesis(), snapshot_every_s=0.05) as chain,
        connected(chain) as factory,
    ):
        made = await create(factory, world, "saved")
        number = max(int(path.name[6:16]) for path in tmp_path.glob("state-*"))
        async with asyncio.timeout(20):
            while max(int(path.name[6:16]) for path in tmp_path.glob("state-*")) < number + 2:
                await asyncio.sleep(0.02)
        assert chain.process_id is not None
        os.kill(chain.process_id, signal.SIGKILL)
        await back(chain, 1)
        assert await factory.adapters() == [made]
    names = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("state"))
    assert len(names) == GENERATIONS_KEPT
    assert all(name.endswith(".json.gz") for name in names)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "bit":
        path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    else:
        path.write_bytes(gzip.compress(b'{"block": "no state"}'))


@pytest.mark.parametrize("how", ["empty", "cut", "bit", "no state"])
async def test_a_damaged_newest_state_falls_back_to_the_one_before(
    world: World, tmp_path: Path, how: str
) -> None:
    async with (
        running(tmp_path, world.genesis(), snapshot_every_s=3600) as chain,
        connected(chain) as factory,
    ):
        made = await create(factory, world, "a")
        await chain.snapshot()
    states = StateFiles(tmp_path)
    damage(states.generations()[0], how)
    damaged = states.generations()[0].name
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        assert await factory.adapters() == [made]
    assert (tmp_path / (damaged + ".damaged")).exists()
    assert not (tmp_path / "load.json").exists()


async def test_when_no_state_loads_it_says_so_and_keeps_the_files(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis()):
        pass
    paths = StateFiles(tmp_path).generations()
    for path in paths:
        damage(path, "cut")
    chain = DevnetChain(tmp_path, world.genesis(), free_port())
    with pytest.raises(ServiceError, match=r"no saved state .*all are damaged"):
        await chain.start()
    assert sorted(path.name for path in tmp_path.glob("*.damaged")) == sorted(
        f"{path.name}.damaged" for path in paths
    )
    with pytest.raises(ServiceError, match="start in a new folder"):
        await DevnetChain(tmp_path, world.genesis(), free_port()).start()


async def test_a_port_or_folder_in_use_is_named(world: World, tmp_path: Path) -> None:
    async with running(tmp_path / "one", world.genesis()) as chain:
        port = int(chain.rpc_url.rsplit(":", 1)[1])
        with pytest.raises(ServiceError, match=f"port {port} .* is in use"):
            await DevnetChain(tmp_path / "two", world.genesis(), port).start()
        with pytest.raises(ServiceError, match="another devnet runs its chain in"):
            await DevnetChain(tmp_path / "one", world.genesis(), free_port()).start()
    async with running(tmp_path / "two", world.genesis()):
        pass  # what failed before left nothing locked


async def test_a_folder_keeps_its_genesis(world: World, tmp_path: Path) -> None:
    async with running(tmp_path, world.genesis()):
        pass
    with pytest.raises(ConfigError, match="another genesis"):
        await DevnetChain(tmp_path, world.genesis(chain_id=40300), free_port()).start()


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_block_time_that_is_no_time_is_refused(world: World, tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ConfigError, match="block time"):
        DevnetChain(tmp_path, world.genesis(), free_port(), block_time_s=seconds)


async def test_a_chain_that_dies_again_and_again_is_given_up_with_the_reason(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devnet_chain, "RESTARTS_MAX", 2)
    async with running(tmp_path, world.genesis()) as chain:
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
        broken.chmod(0o755)
        chain._binary = broken
        assert chain.process_id is not None
        os.kill(chain.process_id, signal.SIGKILL)
        async with asyncio.timeout(20):
            failure = await chain.wait_failed()
        assert "died 3 times in a row" in str(failure)
        assert chain.process_id is None


async def test_a_binary_that_is_named_but_absent_is_the_operators_fault(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITRATE_ANVIL", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="CITRATE_ANVIL"):
        anvil.find_anvil()


async def test_nobody_else_knows_an_account_that_holds_money(world: World, tmp_path: Path) -> None:
    """anvil's usual accounts have public keys: none may be funded here."""
    async with running(tmp_path, world.genesis()) as chain, connected(chain) as factory:
        first_of_anvil = bytes.fromhex("f39fd6e51aad88f6f4ce6ab8827279cfffb92266")
        assert await factory.balance(first_of_anvil) == 0
        assert await factory.balance(account("alice")) > 0


SUPERVISOR = """
import asyncio, json, sys
from pathlib import Path
from citrate_node.chain.devnet_chain import DevnetChain

async def main(folder, port):
    genesis = json.loads((Path(folder) / "genesis-of-test.json").read_text())
    chain = DevnetChain(Path(folder) / "chain", genesis, int(port), block_time_s=0.2, snapshot_every_s=0.1)
    await chain.start()
    print(chain.process_id, flush=True)
    print(await chain.wait_failed())

asyncio.run(main(*sys.argv[1:]))
"""


def start_supervisor(folder: Path, world: World, port: int) -> tuple[subprocess.Popen[str], int]:
    (folder / "genesis-of-test.json").write_text(json.dumps(world.genesis()))
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder), str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def wait_gone(process_id: int) -> None:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "anvil outlived its supervisor"
        time.sleep(0.02)


def test_anvil_dies_with_a_supervisor_that_was_killed(world: World, tmp_path: Path) -> None:
    port = free_port()
    supervisor, child = start_supervisor(tmp_path, world, port)
    assert psutil.Process(child).name() == "anvil"
    supervisor.kill()
    supervisor.wait()
    wait_gone(child)
    again, child = start_supervisor(tmp_path, world, port)  # same folder, same port, at once
    again.kill()
    again.wait()
    wait_gone(child)


@pytest.mark.slow
async def test_thirty_kills_of_the_supervisor_lose_nothing_that_was_saved(
    world: World, tmp_path: Path
) -> None:
    """Killed at any moment, also while a state is written: every adapter seen in a saved state stays."""
    import random

    rng = random.Random(1)
    port = free_port()
    known: set[bytes] = set()
    for round_number in range(30):
        supervisor, child = await asyncio.to_thread(start_supervisor, tmp_path, world, port)
        try:
            factory = await AdapterFactory.connect(f"http://127.0.0.1:{port}")
            try:
                present = set(await factory.adapters())
                assert known <= present, f"round {round_number} lost {len(known - present)} adapters"
                known.add(await create(factory, world, f"a{round_number}"))
                # two whole snapshots after it was mined: it is saved
                newest = max(path.name for path in (tmp_path / "chain").glob("state-*.gz"))
                target = int(newest[6:16]) + 2
                while int(max(path.name for path in (tmp_path / "chain").glob("state-*.gz"))[6:16]) < target:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(rng.random() * 0.4)
            finally:
                await factory.close()
        finally:
            supervisor.kill()
            await asyncio.to_thread(supervisor.wait)
            await asyncio.to_thread(wait_gone, child)
    assert len(known) == 30
    with contextlib.suppress(FileNotFoundError):
        assert list((tmp_path / "chain").glob("*.damaged")) == []
