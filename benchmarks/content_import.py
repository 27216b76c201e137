"""Content import and verified reading against raw sha256 and raw reading, and the memory of a large file.

    python benchmarks/content_import.py [--mebibytes 50] [--repeat 7] [--json FILE]

Ours and the limit take turns within each round, since the disk and the cores are shared; the best of the
rounds is compared. Storing is compared with writing one file and syncing it once, which is less than a
store must do: it also names, syncs and renames each block. Memory is the peak of a process of its own
that stores a 200 MiB file and reads it back, above what the same process needs for 1 MiB.
"""

import argparse
import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from mathematics_timing import Row, as_json, below, compared, table  # noqa: E402

from citrate_node.content.block_store import BlockStore  # noqa: E402
from citrate_node.protocol.content_id import LEAF_SIZE_BYTES, content_id  # noqa: E402

LARGE_MEBIBYTES = 200


def race(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """The least seconds of each, taking turns."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            gc.collect()
            start = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def speed_rows(mebibytes: int, rounds: int) -> list[Row]:
    size = mebibytes << 20
    data = os.urandom(size)
    with tempfile.TemporaryDirectory() as folder:
        file, copy = Path(folder) / "file", Path(folder) / "copy"
        file.write_bytes(data)
        store = BlockStore(Path(folder) / "content", disk_reserve_bytes=0)

        def write_and_sync() -> None:
            copy.unlink(missing_ok=True)
            with copy.open("xb") as out:
                out.write(data)
                hashlib.sha256(data)
                out.flush()
                os.fsync(out.fileno())

        def put_afresh() -> None:
            store.put(file, ephemeral_checkpoint=0)

        def empty() -> None:
            store.collect(0)

        hashing, importing = race(rounds, lambda: hashlib.sha256(data), lambda: content_id(data))
        writing, _, storing = race(rounds, write_and_sync, empty, put_afresh)
        content = store.put(file, ephemeral_checkpoint=0)

        def read_raw() -> None:
            with file.open("rb") as source:
                hashing = hashlib.sha256()
                while chunk := source.read(LEAF_SIZE_BYTES):
                    hashing.update(chunk)

        def read_verified() -> None:
            reader = store.reader(content)
            while reader.next_bytes() is not None:
                pass

        raw, verified, again = race(
            rounds, read_raw, read_verified, lambda: store.put(file, ephemeral_checkpoint=0)
        )
        store.close()

    def rate(seconds: float) -> float:
        return size / seconds / 1e6

    unit = "MB/s"
    return [
        compared(
            "naming a file in memory", rate(importing), unit, "sha256 of the same bytes", rate(hashing), 0.9
        ),
        compared(
            "verified read from the store", rate(verified), unit, "read a file and sha256", rate(raw), 0.8
        ),
        compared("storing a new file", rate(storing), unit, "sha256, write, one fsync", rate(writing), 0.3),
        compared(
            "storing a file that is there", rate(again), unit, "read a file and sha256", rate(raw), 0.25
        ),
    ]


def peak_mebibytes(mebibytes: int) -> float:
    """Peak memory of a process that stores a file of that size and reads it back, block by block."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        with file.open("wb") as out:
            for _ in range(mebibytes):
                out.write(os.urandom(1 << 20))
        command = [sys.executable, __file__, "--child", str(file), str(Path(folder) / "content")]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(file: Path, folder: Path) -> None:
    store = BlockStore(folder, disk_reserve_bytes=0)
    reader = store.reader(store.put(file))
    while reader.next_bytes() is not None:
        pass
    store.close()
    # not getrusage: its peak is carried over from the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].removesuffix("kB")) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    rows = speed_rows(options.mebibytes, options.repeat)
    whole = peak_mebibytes(LARGE_MEBIBYTES)
    more = whole - peak_mebibytes(1)
    rows.append(below(f"peak memory for {LARGE_MEBIBYTES} MiB in and out", whole, "MiB", 60.0))
    rows.append(below(f"memory for {LARGE_MEBIBYTES} MiB in and out, above 1 MiB", more, "MiB", 20.0))
    print(table(rows))
    if options.json:
        result = {
            "machine": platform.machine(),
            "mebibytes": options.mebibytes,
            "load_average": os.getloadavg()[0],
            "rows": as_json(rows),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(row.met for row in rows) else 1)


if __name__ == "__main__":
    main()
