"""Is constraints.txt what is installed? With --write, make it so. Called by `make check` and `make lock`.

Local version labels (torch 2.13.0+cpu) are left out: the same lock serves every build of a release.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "constraints.txt"
NOT_LOCKED = {"citrate-node", "pip", "setuptools", "wheel"}
HEADER = "# Exact versions of everything, for pip -c. Written by `make lock`, checked by `make check`.\n"


def installed() -> dict[str, str]:
    """Canonical name to release, for every distribution in this environment."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        if name not in NOT_LOCKED:
            found[name] = distribution.version.split("+")[0]
    return dict(sorted(found.items()))


def locked() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in LOCK.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def main() -> int:
    now = installed()
    if "--write" in sys.argv:
        LOCK.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in now.items()))
        return 0
    wanted = locked()
    problems = [
        f"{name} is {version}, locked {wanted[name]}"
        for name, version in now.items()
        if name in wanted and wanted[name] != version
    ]
    problems += [
        f"{name} {version} is installed and not locked" for name, version in now.items() if name not in wanted
    ]
    for problem in problems:
        print(f"lock: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
