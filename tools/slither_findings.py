"""Runs every detector of Slither over the contract and compares what it finds with contracts/SLITHER.md.

Each finding is a row of that table: what it is, where, and why it stays. A finding without a row, and a row
without a finding, end with 1. Run by tools/slither.sh in a virtual environment of its own (Slither pins an
older web3). The compiler is the one that builds the artifact: the npm package, behind solc_npm.mjs.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

from crytic_compile import CryticCompile
from crytic_compile.platform.solc_standard_json import SolcStandardJson
from slither import Slither
from slither.detectors import all_detectors
from slither.detectors.abstract_detector import AbstractDetector

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "contracts" / "SLITHER.md"
SETTINGS = json.loads((ROOT / "contracts/artifacts/AdapterFactory.json").read_text())["compiler"]["settings"]


def findings() -> dict[tuple[str, str], str]:
    """(detector, where) to its text. where: the function or variable that a finding begins with."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "contracts/src").glob("*.sol"))
    # optimizer and viaIR change no source-level finding, and slither maps them worse
    platform = SolcStandardJson({"language": "Solidity", "settings": {"evmVersion": SETTINGS["evmVersion"]}})
    platform.add_source_files(sources)
    platform.add_remapping("@openzeppelin/=node_modules/@openzeppelin/")
    compiled = CryticCompile(platform, solc=str(ROOT / "tools/solc_npm.mjs"))
    slither = Slither(compiled)
    detectors = [d for d in vars(all_detectors).values() if inspect.isclass(d)]
    for detector in detectors:
        if issubclass(detector, AbstractDetector):
            slither.register_detector(detector)
    found: dict[tuple[str, str], str] = {}
    for result in (entry for results in slither.run_detectors() for entry in results):
        paths = [e["source_mapping"]["filename_relative"] for e in result["elements"]]
        if paths and all(path.startswith("node_modules/") for path in paths):
            continue  # OpenZeppelin's own code
        found[result["check"], _where(result)] = f"{result['impact']}: {result['description'].strip()}"
    print(f"{len(detectors)} detectors, {len(sources)} sources, {len(found)} findings")
    return found


def _where(result: dict) -> str:
    element = next(iter(result["elements"]), None)
    if element is None:
        return "-"
    parent = element.get("type_specific_fields", {}).get("parent", {})
    inside = f"{parent['name']}." if parent.get("type") in ("contract", "function") else ""
    return f"{inside}{element['name']}"


def explained() -> set[tuple[str, str]]:
    """The first two columns of the table."""
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", TABLE.read_text(), re.MULTILINE)
    return {(check, where) for check, where in rows}


def main() -> int:
    found, known = findings(), explained()
    for key, text in sorted(found.items()):
        mark = "explained" if key in known else "NOT EXPLAINED"
        print(f"{mark}: {key[0]} at {key[1]}\n    " + text.replace("\n", "\n    "))
    for check, where in sorted(known - found.keys()):
        print(f"NOT FOUND any more: {check} at {where}: remove its row from {TABLE.name}")
    return 0 if found.keys() == known else 1


if __name__ == "__main__":
    sys.exit(main())
