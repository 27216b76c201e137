"""Our importer against npm's, live: the recorded vectors again, and trees that no run has tried before."""

import hashlib
import json
import random
import subprocess

import pytest
from js_ipfs import PACKAGES, needs_package

from citrate_node.protocol.content_id import Importer, cid_text

pytestmark = [pytest.mark.slow, needs_package("importer", "ipfs-unixfs-importer/package.json")]
VECTORS = PACKAGES.parents[1] / "vectors" / "content_ids.json"


def theirs(rows: list[list[object]]) -> list[str]:
    command = ["node", str(PACKAGES / "importer" / "record.mjs")]
    done = subprocess.run(
        command, input=json.dumps(rows), capture_output=True, text=True, timeout=250, check=True
    )
    return list(json.loads(done.stdout))


def ours(leaf: int, width: int, data: bytes) -> str:
    importer = Importer(leaf_size_bytes=leaf, links_max=width)
    importer.update(data)
    importer.finish()
    assert importer.root is not None
    return cid_text(importer.root.codec, importer.root.digest)


def test_the_recorded_vectors_are_what_the_js_importer_gives() -> None:
    rows = json.loads(VECTORS.read_text())["recorded"]
    assert theirs([row[:4] for row in rows]) == [row[4] for row in rows]


def test_random_trees_of_tiny_widths_have_the_js_importer_s_names() -> None:
    """At the real widths a third level begins above a terabyte; here there are up to a dozen levels."""
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    rows: list[list[object]] = []
    longest = b"".join(hashlib.sha256(b"content" + i.to_bytes(8, "big")).digest() for i in range(200))
    expected = []
    for _ in range(400):
        leaf, width = chance.randint(1, 40), chance.randint(2, 9)
        size = chance.randint(0, 5000)
        rows.append(["stream", leaf, width, size])
        expected.append(ours(leaf, width, longest[:size]))
    assert theirs(rows) == expected, f"seed {seed}"
