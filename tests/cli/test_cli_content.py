"""`citrate content`: what a script and a person get, and what wrong use says."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from js_ipfs import needs_package
from wallet_chain import adapter

sys.path.insert(0, str(Path(__file__).parents[1] / "content"))
from test_arweave import write_wallet
from test_arweave_arlocal import running_arlocal

DATA = b"weights " * 1000
BIG = bytes(range(256)) * (3 << 12)  # three leaves


def citrate(*args: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "citrate_node.cli.main", "content", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=60)


def test_what_was_added_comes_back_by_its_cid(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name, data in (("small", DATA), ("big", BIG)):
        file = tmp_path / name
        file.write_bytes(data)
        added = json.loads(citrate("add", file, "--store", store, "--json").stdout)
        assert added["size_bytes"] == len(data)
        assert citrate("cid", file).stdout.decode().strip() == added["cid"]
        assert citrate("cat", added["cid"], "--store", store).stdout == data
        out = tmp_path / f"{name}.out"
        assert citrate("get", added["cid"], "--out", out, "--store", store).returncode == 0
        assert out.read_bytes() == data
        again = citrate("get", added["cid"], "--out", out, "--store", store)
        assert (again.returncode, b"exists" in again.stderr) == (2, True)
    rows = [json.loads(line) for line in citrate("ls", "--store", store, "--json").stdout.splitlines()]
    assert {row["size_bytes"] for row in rows} == {len(DATA), len(BIG)}


def test_a_small_file_s_cid_is_its_sha256(tmp_path: Path) -> None:
    from citrate_node.protocol.content_id import parse_cid

    (tmp_path / "f").write_bytes(DATA)
    cid = citrate("cid", tmp_path / "f").stdout.decode().strip()
    assert parse_cid(cid) == (0x55, hashlib.sha256(DATA).digest())


def test_an_unpinned_content_goes_at_the_next_gc(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "f").write_bytes(DATA)
    cid = citrate("add", tmp_path / "f", "--store", store).stdout.decode().strip()
    assert citrate("gc", "--store", store, "--json").stdout.count(cid.encode()) == 0
    assert citrate("unpin", cid, "--store", store).returncode == 0
    assert json.loads(citrate("gc", "--store", store, "--json").stdout)["contents_removed"] == [cid]
    gone = citrate("cat", cid, "--store", store)
    assert gone.returncode == 1
    assert gone.stdout == b""


def test_a_content_travels_in_a_car_to_another_store(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(BIG)
    cid = citrate("add", tmp_path / "f", "--store", tmp_path / "one").stdout.decode().strip()
    car, cut = tmp_path / "f.car", tmp_path / "cut.car"
    assert citrate("export", cid, car, "--store", tmp_path / "one").returncode == 0
    cut.write_bytes(car.read_bytes()[:-1])
    refused = citrate("import", cut, "--store", tmp_path / "two")
    assert (refused.returncode, b"the CAR ends after baf" in refused.stderr) == (1, True)
    done = citrate("import", car, "--cid", cid, "--store", tmp_path / "two", "--json")
    assert json.loads(done.stdout) == {"type": "imported", "cid": cid, "size_bytes": len(BIG)}
    assert citrate("cat", cid, "--store", tmp_path / "two").stdout == BIG


def test_a_damaged_block_is_named_and_never_handed_out(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "f").write_bytes(DATA)
    cid = citrate("add", tmp_path / "f", "--store", store).stdout.decode().strip()
    (block,) = [p for p in (store / "blocks").rglob("*") if p.is_file()]
    block.chmod(0o600)
    block.write_bytes(DATA[:-1] + b"x")
    checked = citrate("verify", "--store", store)
    assert checked.returncode == 1
    assert cid.encode() in checked.stdout
    read = citrate("cat", cid, "--store", store)
    assert (read.returncode, read.stdout) == (1, b"")


def test_wrong_use_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "f").write_bytes(DATA)
    citrate("add", tmp_path / "f", "--store", store)
    cases = [
        (("cat", "QmNotOurs", "--store", store), 2, b"does not name a content"),
        (("cat", "bafkreia", "--store", tmp_path / "nowhere"), 2, b"there is no content store"),
        (("add", tmp_path / "absent", "--store", tmp_path / "s"), 2, b"exist"),
        (("ls",), 2, b"--store"),
    ]
    for args, code, text in cases:
        done = citrate(*args)
        assert (done.returncode, text in done.stderr, b"Traceback" in done.stderr) == (code, True, False), (
            done
        )


def test_cat_for_scripts_is_base64_block_by_block(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(BIG)
    cid = citrate("add", tmp_path / "f", "--store", tmp_path / "s").stdout.decode().strip()
    rows = [
        json.loads(line)
        for line in citrate("cat", cid, "--store", tmp_path / "s", "--json").stdout.split(b"\n")[:-1]
    ]
    assert rows[-1] == {"type": "end", "cid": cid, "size_bytes": len(BIG)}
    assert [row["offset"] for row in rows[:-1]] == [0, 1 << 20, 2 << 20]
    assert b"".join(base64.b64decode(row["base64"]) for row in rows[:-1]) == BIG


def test_only_an_adapter_is_archived_and_a_wallet_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    write_wallet(tmp_path / "wallet.json")
    cid = citrate("add", tmp_path / "f", "--store", tmp_path / "s").stdout.decode().strip()
    done = citrate("archive", cid, "--wallet", tmp_path / "wallet.json", "--store", tmp_path / "s")
    assert (done.returncode, b"is no adapter" in done.stderr) == (2, True)
    done = citrate("archive", cid, "--wallet", tmp_path / "f", "--store", tmp_path / "s")
    assert (done.returncode, b"is not an Arweave wallet" in done.stderr) == (2, True)


def test_restore_takes_the_content_that_was_named_and_no_other(tmp_path: Path) -> None:
    """From a plain web server that gives the same bytes under any transaction id."""

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BIG)

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "f").write_bytes(BIG)
    cid = citrate("cid", tmp_path / "f").stdout.decode().strip()
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = ["--gateway", f"http://127.0.0.1:{server.server_port}", "--transaction", "A" * 43]
        done = citrate("restore", cid, *where, "--store", tmp_path / "s", "--json")
        assert json.loads(done.stdout) == {"type": "restored", "cid": cid, "size_bytes": len(BIG)}
        other = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
        done = citrate("restore", other, *where, "--store", tmp_path / "t")
        assert (done.returncode, b"the id is only a hint" in done.stderr) == (1, True)
        server.shutdown()
    assert not (tmp_path / "t").exists()
    assert citrate("cat", cid, "--store", tmp_path / "s").stdout == BIG


def test_a_folder_whose_contents_lie_in_a_daemon_says_where(tmp_path: Path) -> None:
    folder = tmp_path / "node" / "content"
    folder.mkdir(parents=True)
    (folder / "kubo.json").write_text('{"rpc_url": "http://127.0.0.1:5001", "owner": "node-1"}')
    done = citrate("ls", "--store", tmp_path / "node")
    assert (done.returncode, b"`ipfs files ls /citrate/node-1` lists them" in done.stderr) == (2, True)


@pytest.mark.slow
@needs_package("arlocal", ".bin/arlocal")
def test_an_adapter_goes_to_a_local_arweave_and_comes_back(tmp_path: Path) -> None:
    wallet = write_wallet(tmp_path / "wallet.json")
    (tmp_path / "f").write_bytes(adapter(1).encode())
    cid = citrate("add", tmp_path / "f", "--store", tmp_path / "s").stdout.decode().strip()
    with running_arlocal(tmp_path) as url:
        httpx.get(f"{url}/mint/{wallet.address}/1000000000000", timeout=30)
        sent = citrate(
            "archive",
            cid,
            "--wallet",
            tmp_path / "wallet.json",
            "--gateway",
            url,
            "--store",
            tmp_path / "s",
            "--json",
        )
        transaction = json.loads(sent.stdout)["transaction_id"]
        httpx.get(f"{url}/mine", timeout=30)
        done = citrate(
            "restore", cid, "--transaction", transaction, "--gateway", url, "--store", tmp_path / "t"
        )
    assert done.stdout.decode().strip() == cid
    assert citrate("cat", cid, "--store", tmp_path / "t").stdout == (tmp_path / "f").read_bytes()
