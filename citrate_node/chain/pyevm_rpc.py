"""JSON-RPC in front of the chain in Python, for machines without anvil. Run as a program by devnet_chain.py:

    python -m citrate_node.chain.pyevm_rpc FOLDER PORT BLOCK_TIME_SECONDS

Reads FOLDER/genesis.json, replays FOLDER/blocks.jsonl, makes a block every BLOCK_TIME_SECONDS. About a tenth
of anvil's speed; no websocket, no traces, no state of old blocks. What wallets and our client ask is here.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from eth.abc import SignedTransactionAPI
from eth_hash.auto import keccak

from .block_journal import BlockJournal, JournalBlock
from .pyevm_chain import CallReverted, Log, Outcome, PyEvmChain
from .recursion_limit import PARSING_LIMIT, recursion_limit

REQUEST_BYTES_MAX = 1 << 20
TRANSACTION_BYTES_MAX = 128 * 1024
"""As geth: larger ones do not travel between nodes."""
POOL_MAX = 1_000
LOGS_MAX = 10_000


class RpcRefused(Exception):
    """An answer with an error: code, message, and revert data where there is some."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.fields: dict[str, Any] = {"code": code, "message": message}
        if data is not None:
            self.fields["data"] = data


class PyEvmNode:
    """Blocks, pool and receipts. Everything happens in one thread, one step after the other."""

    def __init__(self, genesis: dict[str, Any], journal: BlockJournal) -> None:
        self._chain = PyEvmChain(genesis)
        self._journal = journal
        self._pool: list[tuple[bytes, SignedTransactionAPI]] = []
        self._blocks: list[dict[str, Any]] = [self._block_row(0, [])]
        self._numbers: dict[str, int] = {self._blocks[0]["hash"]: 0}
        self._receipts: dict[str, dict[str, Any]] = {}
        self._transactions: dict[str, dict[str, Any]] = {}
        self._logs: list[dict[str, Any]] = []
        for block in journal.replay():
            self._make_block(block)

    # ---------------------------------------------------------------- blocks

    def mine(self, timestamp: int) -> None:
        """A block of what waits in the pool. Written down before anybody can see it."""
        fitting: list[bytes] = []
        gas_left = self._chain.head.gas_limit
        waiting: list[tuple[bytes, SignedTransactionAPI]] = []
        for raw, transaction in self._pool:
            if transaction.gas > gas_left:
                waiting.append((raw, transaction))
                continue
            gas_left -= transaction.gas
            fitting.append(raw)
        self._pool = waiting
        block = JournalBlock(max(timestamp, self._chain.head.timestamp + 1), tuple(fitting))
        self._journal.append(block)
        self._make_block(block)

    def _make_block(self, block: JournalBlock) -> None:
        outcomes: list[tuple[SignedTransactionAPI, Outcome]] = []
        for raw in block.transactions:
            transaction = self._chain.decode(raw)
            try:
                outcomes.append((transaction, self._chain.apply(transaction)))
            except Exception as error:  # py-evm has many kinds; a replay drops the same ones again
                print(f"dropped {transaction.hash.hex()}: {error}", file=sys.stderr)
        header = self._chain.mine(block.timestamp)
        hashes = ["0x" + transaction.hash.hex() for transaction, _ in outcomes]
        row = self._block_row(header.block_number, hashes)
        self._blocks.append(row)
        self._numbers[row["hash"]] = header.block_number
        used = 0
        for index, (transaction, outcome) in enumerate(outcomes):
            used += outcome.gas_used
            self._record(row, index, transaction, outcome, used)

    def _record(
        self,
        block: dict[str, Any],
        index: int,
        transaction: SignedTransactionAPI,
        outcome: Outcome,
        used: int,
    ) -> None:
        place = {
            "blockHash": block["hash"],
            "blockNumber": block["number"],
            "transactionIndex": hex(index),
        }
        name = "0x" + transaction.hash.hex()
        shown = _transaction_row(transaction)
        logs = [
            _log_row(log, {**place, "transactionHash": name}, hex(self._log_count(block["number"]) + i))
            for i, log in enumerate(outcome.logs)
        ]
        self._logs += logs
        self._transactions[name] = {**shown, **place, "hash": name}
        self._receipts[name] = {
            **place,
            "transactionHash": name,
            "from": shown["from"],
            "to": shown["to"],
            "type": shown["type"],
            "status": "0x1" if outcome.succeeded else "0x0",
            "gasUsed": hex(outcome.gas_used),
            "cumulativeGasUsed": hex(used),
            "effectiveGasPrice": block["baseFeePerGas"],
            "contractAddress": None,
            "logs": logs,
            "logsBloom": "0x" + bytes(256).hex(),
        }

    def _log_count(self, block_number: str) -> int:
        count = 0
        for log in reversed(self._logs):
            if log["blockNumber"] != block_number:
                break
            count += 1
        return count

    def _block_row(self, number: int, transactions: list[str]) -> dict[str, Any]:
        header = self._chain.block(number).header
        return {
            "number": hex(number),
            "hash": "0x" + header.hash.hex(),
            "parentHash": "0x" + header.parent_hash.hex(),
            "stateRoot": "0x" + header.state_root.hex(),
            "transactionsRoot": "0x" + header.transaction_root.hex(),
            "receiptsRoot": "0x" + header.receipt_root.hex(),
            "sha3Uncles": "0x" + header.uncles_hash.hex(),
            "miner": "0x" + header.coinbase.hex(),
            "extraData": "0x" + header.extra_data.hex(),
            "logsBloom": "0x" + header.bloom.to_bytes(256, "big").hex(),
            "nonce": "0x" + header.nonce.hex(),
            "mixHash": "0x" + header.mix_hash.hex(),
            "difficulty": "0x0",
            "totalDifficulty": "0x0",
            "gasLimit": hex(header.gas_limit),
            "gasUsed": hex(header.gas_used),
            "timestamp": hex(header.timestamp),
            "baseFeePerGas": hex(header.base_fee_per_gas or 0),
            "size": "0x400",
            "uncles": [],
            "transactions": transactions,
        }

    # ---------------------------------------------------------------- methods

    def answer(self, request: Any) -> dict[str, Any]:
        """One request to one answer; whatever it is, something comes back."""
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no request"}}
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id")}
        method = self._methods.get(request["method"])
        params = request.get("params") or []
        try:
            if method is None or not isinstance(params, list):
                raise RpcRefused(-32601, f"the method {request['method']} does not exist or is not available")
            answer["result"] = method(self, *params)
        except RpcRefused as refused:
            answer["error"] = refused.fields
        except CallReverted as reverted:
            answer["error"] = {"code": 3, "message": "execution reverted", "data": "0x" + reverted.data.hex()}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            answer["error"] = {"code": -32602, "message": f"invalid params: {error}"}
        return answer

    def _chain_id(self) -> str:
        return hex(self._chain.chain_id)

    def _net_version(self) -> str:
        return str(self._chain.chain_id)

    def _block_number(self) -> str:
        return self._blocks[-1]["number"]  # type: ignore[no-any-return]

    def _block_by_number(self, number: str, full: bool = False) -> dict[str, Any] | None:
        index = self._number(number)
        return self._shown(self._blocks[index], full) if index < len(self._blocks) else None

    def _block_by_hash(self, name: str, full: bool = False) -> dict[str, Any] | None:
        index = self._numbers.get(name.lower())
        return None if index is None else self._shown(self._blocks[index], full)

    def _shown(self, row: dict[str, Any], full: bool) -> dict[str, Any]:
        if not full:
            return row
        return {**row, "transactions": [self._transactions[name] for name in row["transactions"]]}

    def _number(self, tag: str) -> int:
        if tag in ("latest", "pending", "safe", "finalized"):
            return len(self._blocks) - 1
        return 0 if tag == "earliest" else int(tag, 16)

    def _require_newest(self, tag: str) -> None:
        if self._number(tag) != len(self._blocks) - 1:
            raise RpcRefused(-32000, "the state of old blocks is not kept by the chain in Python")

    def _balance(self, account: str, tag: str = "latest") -> str:
        self._require_newest(tag)
        return hex(self._chain.balance(_bytes(account, 20)))

    def _code(self, account: str, tag: str = "latest") -> str:
        self._require_newest(tag)
        return "0x" + self._chain.code(_bytes(account, 20)).hex()

    def _storage(self, account: str, slot: str, tag: str = "latest") -> str:
        self._require_newest(tag)
        return f"0x{self._chain.storage(_bytes(account, 20), int(slot, 16)):064x}"

    def _nonce(self, account: str, tag: str = "latest") -> str:
        sender = _bytes(account, 20)
        waiting = (
            sum(transaction.sender == sender for _, transaction in self._pool) if tag == "pending" else 0
        )
        return hex(self._chain.nonce(sender) + waiting)

    def _call(self, call: dict[str, Any], tag: str = "latest", *_: Any) -> str:
        self._require_newest(tag)
        to, data, sender, value = self._call_fields(call)
        return "0x" + self._chain.call(data, to=to, sender=sender, value=value).hex()

    def _estimate(self, call: dict[str, Any], *_: Any) -> str:
        to, data, sender, value = self._call_fields(call)
        return hex(self._chain.gas_needed(data, to=to, sender=sender, value=value))

    def _call_fields(self, call: dict[str, Any]) -> tuple[bytes, bytes, bytes, int]:
        to, data, sender = _call_fields(call)
        value = int(call.get("value") or "0x0", 16)
        if value < 0:
            raise ValueError("value is negative")
        if value > self._chain.balance(sender):
            raise RpcRefused(-32000, "insufficient funds for gas * price + value")
        return to, data, sender, value

    def _gas_price(self) -> str:
        return hex((self._chain.pending.base_fee_per_gas or 0) + 10**9)

    def _tip(self) -> str:
        return hex(10**9)

    def _send_raw(self, text: str) -> str:
        raw = _bytes(text)
        if len(raw) > TRANSACTION_BYTES_MAX:
            raise RpcRefused(-32000, f"oversized data: {len(raw)} bytes, limit {TRANSACTION_BYTES_MAX}")
        name = "0x" + keccak(raw).hex()
        if name in self._transactions or any(keccak(other) == keccak(raw) for other, _ in self._pool):
            raise RpcRefused(-32000, "already known")
        if len(self._pool) >= POOL_MAX:
            raise RpcRefused(-32000, "txpool is full")
        try:
            transaction = self._chain.decode(raw)
            transaction.validate()
            sender: bytes = transaction.sender
        except Exception as error:  # rlp, py-evm and eth_keys each have their own
            raise RpcRefused(-32000, f"invalid transaction: {error}") from None
        if transaction.chain_id != self._chain.chain_id:
            raise RpcRefused(-32000, f"invalid chain id, this is {self._chain.chain_id}")
        expected = int(self._nonce("0x" + sender.hex(), "pending"), 16)
        if transaction.nonce < expected:
            raise RpcRefused(-32000, f"nonce too low: next nonce {expected}, tx nonce {transaction.nonce}")
        if transaction.nonce > expected:
            raise RpcRefused(-32000, f"nonce too high: next nonce {expected}, tx nonce {transaction.nonce}")
        if transaction.gas < transaction.intrinsic_gas:
            raise RpcRefused(-32000, f"intrinsic gas too low: gas {transaction.gas}")
        if transaction.gas > self._chain.head.gas_limit:
            raise RpcRefused(-32000, "exceeds block gas limit")
        if self._chain.balance(sender) < transaction.gas * transaction.max_fee_per_gas + transaction.value:
            raise RpcRefused(-32000, "insufficient funds for gas * price + value")
        self._pool.append((raw, transaction))
        return name

    def _receipt(self, name: str) -> dict[str, Any] | None:
        return self._receipts.get(name.lower())

    def _transaction(self, name: str) -> dict[str, Any] | None:
        for raw, transaction in self._pool:
            if "0x" + keccak(raw).hex() == name.lower():
                nowhere = dict.fromkeys(("blockHash", "blockNumber", "transactionIndex"))
                return {**_transaction_row(transaction), **nowhere, "hash": name.lower()}
        return self._transactions.get(name.lower())

    def _get_logs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        first = self._number(query.get("fromBlock", "latest"))
        last = self._number(query.get("toBlock", "latest"))
        wanted = query.get("address")
        addresses = {text.lower() for text in ([wanted] if isinstance(wanted, str) else wanted or [])}
        topics: list[Any] = query.get("topics") or []
        found = [
            log
            for log in self._logs
            if first <= int(log["blockNumber"], 16) <= last
            and (not addresses or log["address"] in addresses)
            and _topics_match(topics, log["topics"])
        ]
        if len(found) > LOGS_MAX:
            raise RpcRefused(-32005, f"query returned more than {LOGS_MAX} results")
        return found

    _methods: dict[str, Callable[..., Any]] = {  # noqa: RUF012
        "eth_chainId": _chain_id,
        "net_version": _net_version,
        "web3_clientVersion": lambda _: "citrate-pyevm/1",
        "net_listening": lambda _: True,
        "eth_syncing": lambda _: False,
        "eth_accounts": lambda _: [],
        "eth_blockNumber": _block_number,
        "eth_getBlockByNumber": _block_by_number,
        "eth_getBlockByHash": _block_by_hash,
        "eth_getBalance": _balance,
        "eth_getCode": _code,
        "eth_getStorageAt": _storage,
        "eth_getTransactionCount": _nonce,
        "eth_call": _call,
        "eth_estimateGas": _estimate,
        "eth_gasPrice": _gas_price,
        "eth_maxPriorityFeePerGas": _tip,
        "eth_sendRawTransaction": _send_raw,
        "eth_getTransactionReceipt": _receipt,
        "eth_getTransactionByHash": _transaction,
        "eth_getLogs": _get_logs,
    }


async def serve(node: PyEvmNode, port: int, block_time_s: float) -> None:
    """Until SIGTERM or SIGINT."""

    async def respond(request: web.Request) -> web.Response:
        try:
            text = await request.read()
            with recursion_limit(PARSING_LIMIT):
                body = json.loads(text)
        except (ValueError, RecursionError):
            return web.json_response(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "no JSON"}}
            )
        if isinstance(body, list):
            return web.json_response([node.answer(part) for part in body[:100]])
        return web.json_response(node.answer(body))

    app = web.Application(client_max_size=REQUEST_BYTES_MAX)
    app.router.add_post("/", respond)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        due = loop.time() + block_time_s
        while not stop.is_set():
            try:
                async with asyncio.timeout_at(due):
                    await stop.wait()
            except TimeoutError:
                node.mine(int(time.time()))
                due = max(due + block_time_s, loop.time())
    finally:
        await runner.cleanup()


def main(folder: Path, port: int, block_time_s: float) -> None:
    journal = BlockJournal(folder / "blocks.jsonl")
    node = PyEvmNode(json.loads((folder / "genesis.json").read_text()), journal)
    try:
        asyncio.run(serve(node, port, block_time_s))
    finally:
        journal.close()


def _call_fields(call: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    data = call.get("data") or call.get("input") or "0x"
    return _bytes(call["to"], 20), _bytes(data), _bytes(call.get("from") or "0x" + "00" * 20, 20)


def _transaction_row(transaction: SignedTransactionAPI) -> dict[str, Any]:
    kind = transaction.type_id or 0
    row: dict[str, Any] = {
        "type": hex(kind),
        "nonce": hex(transaction.nonce),
        "from": "0x" + transaction.sender.hex(),
        "to": "0x" + transaction.to.hex() if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(transaction.max_fee_per_gas),
        "input": "0x" + transaction.data.hex(),
        "chainId": hex(transaction.chain_id or 0),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "v": hex(transaction.y_parity),
    }
    if kind == 2:
        row["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        row["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return row


def _log_row(log: Log, place: dict[str, Any], index: str) -> dict[str, Any]:
    return {
        **place,
        "address": "0x" + log.address.hex(),
        "topics": ["0x" + topic.hex() for topic in log.topics],
        "data": "0x" + log.data.hex(),
        "logIndex": index,
        "removed": False,
    }


def _topics_match(wanted: list[Any], topics: list[str]) -> bool:
    if len(wanted) > len(topics):
        return False
    for want, topic in zip(wanted, topics, strict=False):
        choices = [want] if isinstance(want, str) else want
        if choices and topic not in {choice.lower() for choice in choices}:
            return False
    return True


def _bytes(text: str, length: int | None = None) -> bytes:
    data = bytes.fromhex(text.removeprefix("0x"))
    if length is not None and len(data) != length:
        raise ValueError(f"{text} must have {length} bytes")
    return data


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
