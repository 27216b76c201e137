"""The fault table of README.md names tests that exist."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def test_every_test_that_the_fault_table_names_exists() -> None:
    text = (FOLDER / "README.md").read_text()
    here = "\n".join(path.read_text() for path in FOLDER.glob("test_*.py"))
    named = re.findall(r"`(?:(tests/[^:`]+)::)?(test_\w+)`", text)
    assert len(named) > 30
    missing = [
        name for path, name in named if f"def {name}(" not in ((ROOT / path).read_text() if path else here)
    ]
    assert missing == []
