"""What a node must not forget survives the process that wrote it."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from citrate_node.errors import ServiceError
from citrate_node.protocol.content_id import ContentId
from citrate_node.runtime.database import FinalCheckpoint, NodeDatabase

FINAL = FinalCheckpoint(3, 77, b"record", b"", ContentId(b"s" * 32, 10), ContentId(b"w" * 32, 20))


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    database = NodeDatabase(tmp_path / "node.db")
    database.add_journal("vote/4/0", b"v")
    database.add_message(b"id", 4, b"envelope")
    database.set_residual("lora_B", np.array([0.5, -1.0], dtype=np.float32))
    database.finalize(FINAL)
    database.close()
    again = NodeDatabase(tmp_path / "node.db")
    assert again.journal() == {"vote/4/0": b"v"}
    assert again.messages() == [b"envelope"]
    assert again.residuals()["lora_B"].tolist() == [0.5, -1.0]
    assert again.final_checkpoints() == [FINAL]
    again.close()


def test_a_final_checkpoint_forgets_what_only_it_needed(tmp_path: Path) -> None:
    database = NodeDatabase(tmp_path / "node.db")
    for number in (3, 4):
        database.add_journal(f"vote/{number}/0", b"v")
        database.add_message(bytes([number]), number, b"envelope")
    database.finalize(FINAL)
    assert set(database.journal()) == {"vote/4/0"}
    assert len(database.messages()) == 1
    database.close()


def test_a_slot_keeps_its_first_signature(tmp_path: Path) -> None:
    database = NodeDatabase(tmp_path / "node.db")
    database.add_journal("vote/4/0", b"first")
    database.add_journal("vote/4/0", b"second")
    assert database.journal() == {"vote/4/0": b"first"}
    database.close()


def test_the_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    database = NodeDatabase(tmp_path / "node.db")
    database.bind("network", b"a" * 32)
    database.bind("network", b"a" * 32)
    with pytest.raises(ServiceError, match="belongs to another network"):
        database.bind("network", b"b" * 32)
    database.close()


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "node.db") as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(ServiceError, match="format 99"):
        NodeDatabase(tmp_path / "node.db")


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.db").write_bytes(b"not sqlite" * 100)
    with pytest.raises(ServiceError, match="cannot open"):
        NodeDatabase(tmp_path / "node.db")


WRITER = """
import sys
from pathlib import Path
from citrate_node.runtime.database import NodeDatabase
database = NodeDatabase(Path(sys.argv[1]))
n = len(database.journal())
while True:
    database.add_journal(f"vote/{n}/0", b"v")
    print(n, flush=True)
    n += 1
"""


def test_no_acknowledged_signature_is_lost_by_kill_9(tmp_path: Path) -> None:
    """Ten kills at different moments: every slot that was printed is in the journal afterwards."""
    path = tmp_path / "node.db"
    for attempt in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(3 + attempt)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines() if line]
        process.wait()
        database = NodeDatabase(path)
        assert {f"vote/{n}/0" for n in said} <= set(database.journal())
        database.close()
