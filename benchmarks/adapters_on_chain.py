"""What a wallet user waits for on the embedded chain with few adapters and with many.

    python benchmarks/adapters_on_chain.py [--few 100] [--many 10000] [--json FILE]

anvil with the blocks of 1 s of a devnet: creating one takes a block at least. Each figure is the median of a
few. `limit` is one eth_call that answers with 50 ids: what a list of 50 costs beside it is what the rows add.
The adapters are sent by one funded account, up to a thousand transactions under way at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from eth_account import Account  # noqa: E402
from eth_hash.auto import keccak  # noqa: E402

from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument  # noqa: E402
from citrate_node.chain.contract_abi import factory_abi  # noqa: E402
from citrate_node.chain.devnet_chain import DevnetChain  # noqa: E402
from citrate_node.chain.genesis import GenesisBaseModel, build_genesis  # noqa: E402
from citrate_node.chain.rpc import Rpc  # noqa: E402
from citrate_node.protocol.adapter import AdapterLimits  # noqa: E402
from citrate_node.protocol.certificate import Validator, account_of  # noqa: E402
from citrate_node.runtime.adapters import AdapterDesk, Place  # noqa: E402
from citrate_node.runtime.devnet_folder import free_ports  # noqa: E402

KEY = keccak(b"the account of the benchmark")
BASE = keccak(b"the base model of the benchmark")
VERSIONS = 200
BLOCK_TIME_S = 1.0
"""With 10,000 adapters anvil needs 0.15 s for a block on an idle core: shorter blocks would measure that."""
UNDER_WAY = 1_000


def named(text: str) -> bytes:
    return cid_argument(keccak(text.encode()), 0x55, 1_000)


@contextlib.asynccontextmanager
async def chain_with_desk(
    folder: Path, block_time_s: float = BLOCK_TIME_S
) -> AsyncIterator[tuple[DevnetChain, AdapterDesk]]:
    genesis = build_genesis(
        [Validator(keccak(b"node"), account_of(KEY), 1)],
        keccak(b"genesis of the benchmark"),
        funded={account_of(KEY): 10**22},
        timestamp=int(time.time()),
        base_models=[GenesisBaseModel(BASE, "tiny", "", "MIT", 1)],
    )
    chain = DevnetChain(folder, genesis, free_ports(1)[0], block_time_s=block_time_s)
    await chain.start()
    try:
        factory = await AdapterFactory.connect(chain.rpc_url)
        rpc = Rpc(chain.rpc_url)
        place = Place(chain.rpc_url, factory.contract, None, (), (), None, b"", "", AdapterLimits(1, 1, 1))
        try:
            yield chain, AdapterDesk(place, factory, rpc)
        finally:
            await rpc.close()
            await factory.close()
    finally:
        await chain.stop()


async def fill(desk: AdapterDesk, rpc_url: str, count: int) -> None:
    """Create adapters until there are `count`."""
    have = await desk.factory.adapter_count()
    calls = [
        factory_abi().call_data("createAdapter", BASE, f"adapter {number}", named(f"weights {number}"), 8)
        for number in range(have, count)
    ]
    await _flood(desk, rpc_url, calls, 300_000)
    assert await desk.factory.adapter_count() == count


async def _flood(desk: AdapterDesk, rpc_url: str, calls: list[bytes], gas: int) -> None:
    rpc = Rpc(rpc_url)
    address = "0x" + account_of(KEY).hex()
    nonce = int(await rpc.request("eth_getTransactionCount", address, "latest"), 16)
    try:
        for number, data in enumerate(calls):
            signed = Account.sign_transaction(
                {
                    "type": 2,
                    "chainId": desk.factory.chain_id,
                    "nonce": nonce + number,
                    "to": desk.factory.contract,
                    "data": data,
                    "value": 0,
                    "gas": gas,
                    "maxFeePerGas": 10**12,
                    "maxPriorityFeePerGas": 10**9,
                },
                KEY,
            )
            await rpc.request("eth_sendRawTransaction", "0x" + bytes(signed.raw_transaction).hex())
            if number % UNDER_WAY == UNDER_WAY - 1 or number == len(calls) - 1:
                while (
                    int(await rpc.request("eth_getTransactionCount", address, "latest"), 16) <= nonce + number
                ):
                    await asyncio.sleep(0.02)
    finally:
        await rpc.close()


async def median(run: Callable[[], Awaitable[object]], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        await run()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


async def measured(chain: DevnetChain, desk: AdapterDesk, folder: Path) -> dict[str, Any]:
    """Milliseconds, with as many adapters as there are."""
    factory = desk.factory
    count = await factory.adapter_count()
    grown = (await factory.adapters(0, 1))[0]
    numbers = iter(range(1_000))

    async def create() -> None:
        text = f"single {count} {next(numbers)}"
        await factory.create_adapter(KEY, BASE, text, named(text), 8)

    seconds = {
        "limit: one page of 50 ids by eth_call": await median(lambda: factory.adapters(count - 50, 50)),
        "list, first page of 50": await median(lambda: desk.adapters(0, 50)),
        "list, last page of 50": await median(lambda: desk.adapters(count - 50, 50)),
        "list of another base model, one page": await median(
            lambda: desk.adapters(0, 50, keccak(b"rare")), 3
        ),
        "history, last page of 100 versions": await median(lambda: desk.history(grown, VERSIONS - 100, 100)),
        "show one": await median(lambda: desk.adapter(grown)),
        "create one, until its receipt": await median(create),
        "snapshot of the whole state": await median(chain.snapshot, 3),
    }
    newest = max(folder.glob("state-*.gz"), key=lambda path: path.name)
    rss = int(Path(f"/proc/{chain.process_id}/statm").read_text().split()[1]) * 4096
    return {
        "adapters": count,
        "milliseconds": {name: round(1000 * value, 1) for name, value in seconds.items()},
        "snapshot_bytes": newest.stat().st_size,
        "resident_bytes": rss,
    }


async def run(few: int, many: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        async with chain_with_desk(Path(folder)) as (chain, desk):
            rows = []
            for count in (few, many):
                begun = time.perf_counter()
                await fill(desk, chain.rpc_url, count)
                if count == few:
                    first = (await desk.factory.adapters(0, 1))[0]
                    calls = [
                        factory_abi().call_data("publishVersion", first, named(f"version {number}"))
                        for number in range(1, VERSIONS)
                    ]
                    await _flood(desk, chain.rpc_url, calls, 200_000)
                filled = time.perf_counter() - begun
                rows.append({**await measured(chain, desk, Path(folder)), "fill_seconds": round(filled, 1)})
            return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    few, many = asyncio.run(run(options.few, options.many))
    print(f"{'milliseconds':<42}{few['adapters']:>10}{many['adapters']:>10}{'ratio':>8}")
    for name, before in few["milliseconds"].items():
        after = many["milliseconds"][name]
        print(f"{name:<42}{before:>10.1f}{after:>10.1f}{after / before:>8.2f}")
    for name in ("snapshot_bytes", "resident_bytes", "fill_seconds"):
        print(f"{name:<42}{few[name]:>10}{many[name]:>10}")
    if options.json is not None:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        options.json.write_text(json.dumps({"machine": machine, "rows": [few, many]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
