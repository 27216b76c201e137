"""Does the disk of a node stay flat? A hundred checkpoints of real stores, with made-up deltas and weights.

Four embedded stores on this disk do what nodes do at each checkpoint: keep the deltas of all mentors, then,
when it is final, the state, the weights and the record, and prune, by runtime/final_files.py. Printed is what
one store occupies on the disk; the database and the recording, which grow with history, are not counted.

    python benchmarks/content_pruning.py --json benchmarks/results/content_pruning.json
"""

import argparse
import asyncio
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from citrate_node.content.store import EmbeddedStore
from citrate_node.node.actions import Finalize
from citrate_node.runtime.final_files import prune, store_final

NODES = 4
VERSIONS_KEPT = 16
DELTA_BYTES, WEIGHTS_BYTES, STATE_BYTES, RECORD_BYTES = 54_000, 420_000, 8_000, 2_000
"""About those of the embedded devnet."""


@dataclass(frozen=True)
class Row:
    """One store after one checkpoint."""

    checkpoint: int
    deltas: int
    """Deltas of final checkpoints that are still there."""
    contents: int
    disk_bytes: int
    record_bytes: int
    """The part of it that keeps all records, which stay."""


def made(what: str, checkpoint: int, size_bytes: int) -> bytes:
    return hashlib.shake_256(f"{what} {checkpoint}".encode()).digest(size_bytes)


def disk_bytes(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


async def run(folder: Path, checkpoints: int) -> list[list[Row]]:
    """Rows of each store, by checkpoint."""
    stores = [EmbeddedStore(folder / f"node-{number}" / "content") for number in range(1, NODES + 1)]
    rows: list[list[Row]] = []
    for number in range(1, checkpoints + 1):
        deltas = [made(f"delta {mentor}", number, DELTA_BYTES) for mentor in range(NODES)]
        final = Finalize(
            None,
            number,
            made("record", number, RECORD_BYTES),
            made("state", number, STATE_BYTES),
            made("weights", number, WEIGHTS_BYTES),
            number,
        )
        rows.append(await asyncio.gather(*(checkpoint(store, number, deltas, final) for store in stores)))
    for store in stores:
        await store.close()
    return rows


async def checkpoint(store: EmbeddedStore, number: int, deltas: list[bytes], final: Finalize) -> Row:
    kept = [await store.put(delta, ephemeral_checkpoint=number) for delta in deltas]
    await store_final(store, final, VERSIONS_KEPT)
    await prune(store, number)
    entries = await store.ls()
    left = sum(content in {entry.content for entry in entries} for content in kept)
    records = number * -(-RECORD_BYTES // 4096) * 4096 * 2  # block and root record, whole disk blocks
    return Row(number, left, len(entries), disk_bytes(store.blocking.path), records)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(run(Path(folder), options.checkpoints))
    shown = [by_node[0] for by_node in rows if by_node[0].checkpoint % 20 == 0 or by_node[0].checkpoint == 1]
    for row in shown:
        print(
            f"checkpoint {row.checkpoint:>3}   deltas left {row.deltas}   contents {row.contents:>3}   "
            f"disk {row.disk_bytes / 1e6:.2f} MB   of which records {row.record_bytes / 1e6:.2f} MB"
        )
    if options.json:
        result = {"nodes": NODES, "versions_kept": VERSIONS_KEPT, "rows": [asdict(row) for row in shown]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
