"""What a machine must have for a node, looked at piece by piece: found or not, and what to do about it.

Every check looks and changes nothing, and says what is wrong instead of raising. Called by `citrate doctor`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..config import load_node_config, load_preset
from ..errors import CitrateError
from .devnet_folder import DevnetChoices, DevnetFolder
from .folder_lock import lock_holder

PYTHON_MIN, PYTHON_BELOW = (3, 11), (3, 14)
DISK_BYTES_MIN = 1 << 30
"""Below it a store refuses to write once the reserve of the disk is reached."""
DISK_BYTES_ENOUGH = 5 << 30
"""A devnet of four keeps its recording and sixteen versions in less; a base model needs more by itself."""
OPEN_FILES_MIN = 1_024
"""256 connections of the network, a file for each transfer, the database, and some to spare."""
OUTPUT_SECONDS = 10.0
EMBEDDED_BASE_ID = "15c424abe58071f8464419db9cfd05e25a0d5438692d91690c0dedd3e256f73c"
"""Of the base model in this package: every node must have the same, to the byte."""


class State(Enum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    """Something is absent that only some commands need, or that may become short."""
    MISSING = "missing"
    """A node cannot run like this."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def check_python() -> Check:
    version = sys.version_info[:2]
    found = platform.python_version()
    if PYTHON_MIN <= version < PYTHON_BELOW:
        return Check("python", State.OK, found)
    return Check("python", State.MISSING, found, "install Python 3.11, 3.12 or 3.13")


def check_packages(extra: str = "") -> Check:
    """Whether each requirement of this package, or of one extra, is installed in an allowed version."""
    from packaging.requirements import Requirement

    name = f"packages [{extra}]" if extra else "packages"
    install = f"pip install -c constraints.txt 'citrate-node[{extra}]'" if extra else "run `make setup`"
    try:
        lines = importlib.metadata.requires("citrate-node") or []
    except importlib.metadata.PackageNotFoundError:
        return Check(name, State.NOTE, "citrate-node is not installed: versions are not compared", install)
    wrong, count = [], 0
    for requirement in map(Requirement, lines):
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if needed and (not extra or not _is_core(requirement.marker)):
            count += 1
            wrong += _what_is_wrong(
                requirement.name, requirement.specifier.contains, str(requirement.specifier)
            )
    if wrong:
        return Check(name, State.MISSING, "; ".join(wrong), install)
    return Check(name, State.OK, f"{count} of {count}")


def _is_core(marker: object) -> bool:
    return "extra" not in str(marker)


def _what_is_wrong(name: str, allows: Callable[..., bool], wanted: str) -> list[str]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return [f"{name} is not installed"]
    return [] if allows(version, prereleases=True) else [f"{name} is {version}, needed is {wanted}"]


def check_torch() -> Check:
    """The build of torch: read from its metadata, for importing it takes seconds."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        advice = "run `make setup`; without it a node only votes and serves, and a devnet cannot train"
        return Check("torch", State.MISSING, "not installed", advice)
    return Check("torch", State.OK, version)


def check_gpu() -> Check:
    """Optional: everything runs on the CPU, and the CPU build of torch sees no GPU."""
    text = _output("nvidia-smi", "-L")
    if text is None:
        return Check("gpu", State.OK, "none; training runs on the CPU")
    try:
        on_cpu = importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        on_cpu = False
    advice = "torch is the CPU build: install the CUDA build of the same version to use it" if on_cpu else ""
    return Check("gpu", State.NOTE if on_cpu else State.OK, text.splitlines()[0][:80], advice)


def check_chain_programs(own_chain: bool) -> Iterator[Check]:
    """anvil, or the chain in Python; and node with npm, which bring anvil and compile the contract.

    own_chain: whether a devnet would start a chain of its own here; else none of them is needed.
    """
    from ..chain.anvil import find_anvil

    try:
        anvil = find_anvil()
        problem = ""
    except CitrateError as error:
        anvil, problem = None, str(error)
    if anvil is not None:
        yield Check("anvil", State.OK, f"{(_output(str(anvil), '--version') or 'unknown').splitlines()[0]}")
    elif problem:
        yield Check("anvil", State.MISSING, problem, "unset CITRATE_ANVIL, or let it name the program")
    else:
        python_chain = _has_package("py-evm")
        state = State.NOTE if python_chain or not own_chain else State.MISSING
        instead = "a devnet uses the chain in Python" if python_chain else "and no chain in Python either"
        yield Check("anvil", state, f"not found; {instead}", "run `npm ci` in the source tree")
    for program in ("node", "npm"):
        version = _output(program, "--version")
        if version is None:
            yield Check(program, State.NOTE, "not found", "only `npm ci` and compiling the contract need it")
        else:
            yield Check(program, State.OK, version.strip())


def check_chromium() -> Check:
    named = os.environ.get("CITRATE_CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        return Check("chromium", State.NOTE, "not found", "only the tests of the page need it")
    return Check("chromium", State.OK, found)


def check_disk(folder: Path) -> Check:
    """The disk of a folder, or of the nearest one above it that exists."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free in {place}"
    if free < DISK_BYTES_MIN:
        return Check("disk", State.MISSING, found, "free a gibibyte at least, or use another folder")
    if free < DISK_BYTES_ENOUGH:
        return Check("disk", State.NOTE, found, "keep fewer versions: content.versions_kept in node.toml")
    return Check("disk", State.OK, found)


def check_open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= OPEN_FILES_MIN or soft == resource.RLIM_INFINITY:
        return Check("open files", State.OK, str(soft))
    room = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_MIN
    advice = f"ulimit -n {OPEN_FILES_MIN}" if room else f"raise the hard limit, which is {hard}"
    return Check("open files", State.MISSING, f"{soft}, a node needs {OPEN_FILES_MIN}", advice)


def check_ports(choices: DevnetChoices | None, running: bool) -> Check:
    """The ports of a devnet, each free; or, without one, that loopback can be listened on at all."""
    if choices is None:
        ports = [0]
    else:
        all_ports = (choices.chain_port, choices.rpc_port, choices.page_port, *choices.node_ports)
        ports = [port for port in all_ports if port]
    if running:
        return Check("ports", State.OK, f"{len(ports)}, held by the running devnet")
    taken = [f"{port} ({reason})" for port in ports if (reason := _why_taken(port))]
    if taken:
        advice = "stop the program that listens there, or use another --dir"
        return Check("ports", State.MISSING, f"cannot listen on {', '.join(taken)}", advice)
    found = "loopback can be listened on" if choices is None else ", ".join(map(str, ports)) + " are free"
    return Check("ports", State.OK, found)


def _why_taken(port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: not those that just ended
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def check_devnet(folder: Path) -> tuple[list[Check], DevnetChoices | None, bool]:
    """(checks, the devnet's choices, whether it is running). No checks where the folder holds no devnet."""
    place = DevnetFolder(folder)
    if not place.exists:
        return [], None, False
    try:
        choices = place.load()
        load_preset(choices.preset)
    except CitrateError as error:
        return [Check("devnet", State.MISSING, str(error).replace("\n", ";"))], None, False
    process = lock_holder(folder)
    found = f"{choices.nodes} nodes in {folder}, " + (f"running as {process}" if process else "not running")
    checks, wrong = [Check("devnet", State.OK, found)], []
    for number in range(1, choices.nodes + 1):
        file = place.node_folder(number) / "node.toml"
        if not file.exists():
            continue  # written at the next start
        try:
            load_preset(load_node_config(file).preset)
        except CitrateError as error:
            wrong.append(str(error).replace("\n", ";"))
    if wrong:
        checks.append(Check("node.toml", State.MISSING, "; ".join(wrong), "correct the key that is named"))
    return checks, choices, process is not None


def check_base(name_or_path: str) -> Check:
    """The base model's id, recomputed from its bytes. Takes seconds: torch is loaded."""
    from ..training.base_model import BaseModel

    try:
        found = BaseModel.load(name_or_path).base_model_id.hex()
    except CitrateError as error:
        return Check("base model", State.MISSING, str(error).replace("\n", ";"))
    except ImportError as error:
        return Check("base model", State.MISSING, f"cannot be loaded: {error}", "run `make setup`")
    if name_or_path == "embedded" and found != EMBEDDED_BASE_ID:
        advice = "install this package again: its files are not those that were released"
        return Check("base model", State.MISSING, f"{found}, released is {EMBEDDED_BASE_ID}", advice)
    return Check("base model", State.OK, f"{name_or_path} {found}")


async def check_rpc(rpc_url: str, contract: str, chain_id: int) -> Check:
    """Whether the chain answers, is the expected one (chain_id; 0: any), and has the contract."""
    from ..chain.rpc import Rpc

    rpc = Rpc(rpc_url)
    try:
        number = int(await rpc.request("eth_chainId"), 16)
        block = int(await rpc.request("eth_blockNumber"), 16)
        code = str(await rpc.request("eth_getCode", contract, "latest"))
    except (CitrateError, ValueError, TypeError) as error:
        return Check("chain", State.MISSING, str(error).split("\n")[0], "start it, or correct --rpc-url")
    finally:
        await rpc.close()
    found = f"chain {number} at {rpc_url}, block {block}"
    if chain_id not in (0, number):
        return Check("chain", State.MISSING, f"{found}; wanted is chain {chain_id}", "correct --rpc-url")
    if code in ("0x", ""):
        advice = "deploy AdapterFactory there, or give its address with --contract"
        return Check("chain", State.MISSING, f"{found}; no contract at {contract}", advice)
    return Check("chain", State.OK, f"{found}, contract {contract}")


def _has_package(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _output(*command: str) -> str | None:
    """What a program prints; None where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=OUTPUT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 and done.stdout.strip() else None
