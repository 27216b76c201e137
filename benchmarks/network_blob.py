"""Blob transfer between two processes: ours against a bare libp2p stream and against TCP, in MB/s.

    python benchmarks/network_blob.py [--mebibytes 1 10 50] [--repeat 3] [--json FILE]

Ours reads a file, sends it over TCP + Noise + yamux, hashes it as it arrives, writes it, syncs it to disk and
renames it. The bare stream is py-libp2p as it is over the same TCP + Noise + yamux, bytes from memory to
nowhere. TCP is one socket, bytes from memory to nowhere: the limit. Best of the repetitions.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from mathematics_timing import as_json, compared, table  # noqa: E402

RAW_PROTOCOL = "/citrate/benchmark/raw/1"
CHUNK = 1 << 18


def blob_of(mebibytes: int) -> bytes:
    return random.Random(mebibytes).randbytes(mebibytes << 20)


async def no_answer(peer_id: str, payload: bytes) -> bytes:
    return b""


# servers, each in a process of its own; each prints where it is reached and ends with its input


async def serve_ours(folder: Path) -> None:
    from citrate_node.network.libp2p_network import Libp2pNetwork
    from citrate_node.network.settings import NetworkConfig

    def find(digest: bytes, size_bytes: int) -> Path:
        return folder / f"{size_bytes >> 20}"

    config = NetworkConfig(identity_seed=bytes((1,)) * 32)
    async with Libp2pNetwork(
        config, validate=lambda topic, data: True, find_blob=find, answer=no_answer
    ) as network:
        print(json.dumps({"address": network.addresses[0]}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def serve_bare() -> None:
    import trio
    from libp2p import new_host
    from multiaddr import Multiaddr

    listen = Multiaddr("/ip4/127.0.0.1/tcp/0")
    host = new_host(listen_addrs=[listen])

    async def handle(stream: Any) -> None:
        data = blob_of((await stream.read(1))[0])
        await stream.write(b"!")  # ready: making up the bytes is not measured
        await stream.read(1)
        for start in range(0, len(data), CHUNK):
            await stream.write(data[start : start + CHUNK])
        await stream.close()

    host.set_stream_handler(RAW_PROTOCOL, handle)
    async with host.run([listen]):
        print(json.dumps({"address": str(host.get_addrs()[0])}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        os._exit(0)  # a clean stop is not what is measured here


def serve_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(json.dumps({"address": server.getsockname()[1]}), flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                mebibytes = connection.recv(1)[0]
                if mebibytes == 0:
                    return
                data = blob_of(mebibytes)
                connection.sendall(b"!")
                connection.recv(1)
                connection.sendall(data)


# clients; each answers with the seconds of each repetition


async def fetch_ours(address: str, mebibytes: int, repeat: int) -> list[float]:
    from citrate_node.network.libp2p_network import Libp2pNetwork
    from citrate_node.network.settings import NetworkConfig
    from citrate_node.protocol.content_id import content_id

    name = content_id(blob_of(mebibytes))
    config = NetworkConfig(identity_seed=bytes((2,)) * 32)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        async with Libp2pNetwork(
            config, validate=lambda topic, data: True, find_blob=lambda digest, size: None, answer=no_answer
        ) as network:
            peer_id = await network.connect(address)
            for number in range(repeat):
                begun = time.perf_counter()
                await network.fetch_blob(peer_id, name.digest, name.size_bytes, Path(folder) / str(number))
                times.append(time.perf_counter() - begun)
    return times


async def fetch_bare(address: str, mebibytes: int, repeat: int) -> list[float]:
    from libp2p import new_host
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    listen = Multiaddr("/ip4/127.0.0.1/tcp/0")
    host, times = new_host(listen_addrs=[listen]), []
    async with host.run([listen]):
        peer = info_from_p2p_addr(Multiaddr(address))
        await host.connect(peer)
        for _ in range(repeat):
            stream = await host.new_stream(peer.peer_id, [RAW_PROTOCOL])
            await stream.write(bytes((mebibytes,)))
            await stream.read(1)
            missing = mebibytes << 20
            begun = time.perf_counter()
            await stream.write(b"!")
            while missing:
                missing -= len(await stream.read(min(missing, 65_536)))
            times.append(time.perf_counter() - begun)
        await host.close()
    return times


def fetch_tcp(port: int, mebibytes: int, repeat: int) -> list[float]:
    times = []
    for _ in range(repeat):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(bytes((mebibytes,)))
            connection.recv(1)
            missing, buffer = mebibytes << 20, bytearray(1 << 20)
            begun = time.perf_counter()
            connection.sendall(b"!")
            while missing:
                missing -= connection.recv_into(buffer)
            times.append(time.perf_counter() - begun)
    return times


async def fetch(kind: str, address: str, mebibytes: int, repeat: int) -> list[float]:
    if kind == "ours":
        return await fetch_ours(address, mebibytes, repeat)
    if kind == "bare":
        import trio

        return await asyncio.to_thread(trio.run, fetch_bare, address, mebibytes, repeat)
    return await asyncio.to_thread(fetch_tcp, int(address), mebibytes, repeat)


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def measure(kind: str, folder: Path, mebibytes: int, repeat: int) -> float:
    """The best MB/s of one kind. Both ends are new processes: our hardening changes the library in place."""
    server = await start("--serve", kind, str(folder))
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        address = str(json.loads(await server.stdout.readline())["address"])
        client = await start("--fetch", kind, address, str(mebibytes), str(repeat))
        output, _ = await asyncio.wait_for(client.communicate(), 120)
        times: list[float] = json.loads(output)
    finally:
        if kind == "tcp":
            with socket.create_connection(("127.0.0.1", int(address))) as connection:
                connection.sendall(b"\0")
        server.stdin.close()
        await asyncio.wait_for(server.wait(), 20)
    return (mebibytes << 20) / 1e6 / min(times)


def serve(kind: str, folder: Path) -> None:
    if kind == "ours":
        asyncio.run(serve_ours(folder))
    elif kind == "bare":
        import trio

        trio.run(serve_bare)
    else:
        serve_tcp()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--fetch", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]))
        return
    if options.fetch:
        kind, address, mebibytes, repeat = options.fetch
        print(json.dumps(asyncio.run(fetch(kind, address, int(mebibytes), int(repeat)))))
        return
    load_before = os.getloadavg()[0]  # figures taken on a busy machine say so
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for mebibytes in options.mebibytes:
            (Path(name) / str(mebibytes)).write_bytes(blob_of(mebibytes))
            speeds = {
                kind: asyncio.run(measure(kind, Path(name), mebibytes, options.repeat))
                for kind in ("tcp", "bare", "ours")
            }
            claim, ours = f"blob of {mebibytes} MiB, verified and synced to disk", speeds["ours"]
            least = 0.5 if mebibytes >= 10 else 0.2  # a small one is mostly opening, syncing and renaming
            rows.append(compared(claim, ours, "MB/s", "a bare libp2p stream", speeds["bare"], least))
            rows.append(compared(claim, ours, "MB/s", "one TCP socket", speeds["tcp"], least / 50))
    print(table(rows))
    if options.json is not None:
        result = {
            "machine": platform.machine(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
            "rows": as_json(rows),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
