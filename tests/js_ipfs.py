"""JavaScript programs of other people that tests talk to, and js-ipfs, the IPFS daemon among them.

They are installed by `make content-packages` into tests/content/js/*/node_modules; a test that needs one is
skipped by name where it is missing. Not Kubo: js-ipfs 0.66.1 (archived, RPC version 0.18.1) is
the one IPFS daemon with an RPC that npm still installs.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parent / "content" / "js"
POLYFILL = """
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}
"""


def needs_package(folder: str, path: str) -> pytest.MarkDecorator:
    """Skips by name where tests/content/js/`folder` is not installed."""
    return pytest.mark.skipif(
        not (PACKAGES / folder / "node_modules" / path).exists(),
        reason=f"tests/content/js/{folder} is not installed: run `make content-packages`",
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@contextmanager
def running_js_ipfs(folder: Path) -> Iterator[str]:
    """The RPC's URL of a daemon without network, alone on a fresh repository."""
    folder.mkdir(parents=True, exist_ok=True)
    api, gateway = free_ports(2)
    (folder / "polyfill.cjs").write_text(POLYFILL)
    environment = {**os.environ, "IPFS_PATH": str(folder / "repo")}
    program = PACKAGES / "js-ipfs" / "node_modules" / ".bin" / "jsipfs"
    jsipfs = ["node", "--require", str(folder / "polyfill.cjs"), str(program)]
    subprocess.run(
        [*jsipfs, "init", "--empty-repo"], env=environment, check=True, capture_output=True, timeout=120
    )
    config = json.loads((folder / "repo" / "config").read_text())
    config["Addresses"] |= {
        "Swarm": [],
        "Delegates": [],
        "API": f"/ip4/127.0.0.1/tcp/{api}",
        "Gateway": f"/ip4/127.0.0.1/tcp/{gateway}",
    }
    config["Bootstrap"] = []
    config["Discovery"] = {"MDNS": {"Enabled": False}, "webRTCStar": {"Enabled": False}}
    config["Routing"] = {"Type": "none"}
    (folder / "repo" / "config").write_text(json.dumps(config))
    log = folder / "daemon.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen([*jsipfs, "daemon", "--offline"], env=environment, stdout=out, stderr=out)
    try:
        for _ in range(300):
            assert daemon.poll() is None, log.read_text()
            if b"Daemon is ready" in log.read_bytes():
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{api}"
    finally:
        daemon.kill()
        daemon.wait(20)
