"""anvil, the embedded chain: where its binary is, how it is started, and its methods that we use.

Supervision, snapshots and restarts are devnet_chain.py's, which is the only caller.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from pathlib import Path

from ..errors import ConfigError
from .genesis import BLOCK_GAS_LIMIT
from .rpc import Rpc


def find_anvil() -> Path | None:
    """$CITRATE_ANVIL, else node_modules of the working folder or of the source tree, else the PATH.

    Raises ConfigError where $CITRATE_ANVIL names nothing that can be run.
    """
    named = os.environ.get("CITRATE_ANVIL")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigError(f"CITRATE_ANVIL is {named}, which is not a program that can be run")
        return Path(named)
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower(), platform.machine()
    )
    inside = f"node_modules/@foundry-rs/anvil-{sys.platform}-{machine}/bin/anvil"
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2]):
        if os.access(folder / inside, os.X_OK):
            return folder / inside
    found = shutil.which("anvil")
    return Path(found) if found else None


def anvil_command(binary: Path, port: int, chain_id: int, options: list[str]) -> list[str]:
    return [
        *(str(binary), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id)),
        *("--hardfork", "cancun", "--gas-limit", str(BLOCK_GAS_LIMIT)),  # --init ignores the limit of genesis
        *("--accounts", "0"),  # the usual ones have keys that everybody knows
        "--prune-history",  # else old states fill the home folder: gigabytes a day
        "--no-cors",  # no web page may use the cheat methods of this port
        *("--slots-in-an-epoch", "6", "--quiet", *options),
    ]


async def run_clock(rpc: Rpc, interval_s: int | None) -> None:
    """Lets time be the present again (`--timestamp` moves it), and blocks come every interval_s seconds.

    The clock is set a second ahead, so that no block is younger than one that was saved just before.
    """
    await rpc.request("evm_setTime", int(time.time()) + 1)
    if interval_s is not None:
        await rpc.request("evm_setIntervalMining", interval_s)


async def dump_state(rpc: Rpc) -> bytes:
    """The whole state, as gzip of JSON."""
    text: str = await rpc.request("anvil_dumpState")
    return bytes.fromhex(text.removeprefix("0x"))
