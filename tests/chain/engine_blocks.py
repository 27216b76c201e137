"""Blocks from an execution client: what a beacon node does each slot, over the Engine API, as often as asked.

A genesis with the merge behind it makes no blocks by itself: a consensus client tells it to. Any client that
speaks the Engine API (geth, reth, Besu, EthereumJS) is driven so. Called by test_other_evm.py.
"""

from __future__ import annotations

import itertools
import threading
import time
from hashlib import sha256
from typing import Any

import httpx


class EngineRefused(Exception):
    """The client answered with an error, or called a block of its own invalid."""


class BlockMaker:
    """Makes a block every `interval_s` until it is stopped; `failure` holds what went wrong, if anything."""

    def __init__(self, rpc_url: str, engine_url: str, interval_s: float) -> None:
        self._rpc_url = rpc_url
        self._engine_url = engine_url
        self._interval_s = interval_s
        self._http = httpx.Client(timeout=20, trust_env=False)
        self._ids = itertools.count(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="blocks")
        self.failure: Exception | None = None

    def __enter__(self) -> BlockMaker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._http.close()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self.make_block()
        except Exception as error:  # shown by __exit__, in the thread of the test
            self.failure = error

    def make_block(self) -> str:
        """One block on top of the newest; its hash."""
        parent = self._ask(self._rpc_url, "eth_getBlockByNumber", "latest", False)
        root = "0x" + sha256(parent["hash"].encode()).hexdigest()
        attributes = {
            "timestamp": hex(max(int(time.time()), int(parent["timestamp"], 16) + 1)),
            "prevRandao": root,
            "suggestedFeeRecipient": "0x" + "00" * 20,
            "withdrawals": [],
            "parentBeaconBlockRoot": root,
        }
        begun = self._choose(parent["hash"], attributes)
        made = self._ask(self._engine_url, "engine_getPayloadV3", begun["payloadId"])
        payload = made["executionPayload"]
        status = self._ask(self._engine_url, "engine_newPayloadV3", payload, [], root)
        if status["status"] != "VALID":
            raise EngineRefused(f"its own block is {status}")
        self._choose(payload["blockHash"], None)
        return str(payload["blockHash"])

    def _choose(self, head: str, attributes: dict[str, Any] | None) -> dict[str, Any]:
        fork = {"headBlockHash": head, "safeBlockHash": head, "finalizedBlockHash": head}
        answer: dict[str, Any] = self._ask(self._engine_url, "engine_forkchoiceUpdatedV3", fork, attributes)
        if answer["payloadStatus"]["status"] != "VALID":
            raise EngineRefused(f"it does not take {head} as its head: {answer['payloadStatus']}")
        return answer

    def _ask(self, url: str, method: str, *params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        answer = self._http.post(url, json=request).json()
        if "error" in answer:
            raise EngineRefused(f"{method}: {answer['error']}")
        return answer["result"]
