"""A chain, its gate and the page, without nodes; a browser, and in it a wallet that really signs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from wallet_chain import WalletChain, wallet_chain

from citrate_node.chain.rpc_proxy import RpcProxy
from citrate_node.dashboard.feed import Feed
from citrate_node.dashboard.server import PageServer
from citrate_node.protocol.identifiers import ADAPTER_FACTORY_ADDRESS
from citrate_node.runtime.devnet_folder import free_ports

UNKNOWN_CHAIN = 4902
DECLINED = 4001

PROVIDER = """
(() => {
  const handlers = {};
  const provider = {
    on: (name, handler) => { (handlers[name] ??= []).push(handler); },
    request: async (request) => {
      const answer = JSON.parse(await window.askWallet(JSON.stringify(request)));
      if (answer.error) throw Object.assign(new Error(answer.error.message), answer.error);
      return answer.result;
    },
  };
  window.switchAccount = (to) => handlers.accountsChanged.forEach((handler) => handler(to ? [to] : []));
  const info = %s;
  if (!info) { window.ethereum = provider; return; }
  const announce = () => window.dispatchEvent(
    new CustomEvent("eip6963:announceProvider", { detail: Object.freeze({ info, provider }) }));
  window.addEventListener("eip6963:requestProvider", announce);
  announce();
})();
"""
"""What a wallet's content script puts into a page; the wallet itself is `BrowserWallet`, outside of it."""

ICON = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"


@dataclass
class BrowserWallet:
    """The part of a wallet that pages do not see: a key, networks, and a person who agrees (or not)."""

    key: bytes
    name: str = "Test wallet"
    announces: bool = True
    """By EIP-6963; else it is window.ethereum, as wallets of old."""
    declines: bool = False
    chain_id: int = 1
    networks: dict[int, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(Account.from_key(self.key).address)

    def script(self) -> str:
        info = {"uuid": f"uuid of {self.name}", "name": self.name, "icon": ICON, "rdns": "org.example.wallet"}
        return PROVIDER % json.dumps(info if self.announces else None)

    def ask(self, text: str) -> str:
        request = json.loads(text)
        self.requests.append(request["method"])
        try:
            return json.dumps({"result": self._answer(request["method"], request.get("params") or [])})
        except WalletError as error:
            return json.dumps({"error": error.args[0]})

    def _answer(self, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_requestAccounts" | "eth_accounts":
                return [self.address]
            case "eth_chainId":
                return hex(self.chain_id)
            case "wallet_switchEthereumChain":
                wanted = int(params[0]["chainId"], 16)
                if wanted not in self.networks:
                    raise WalletError({"code": UNKNOWN_CHAIN, "message": "Unrecognized chain ID"})
                self.chain_id = wanted
                return None
            case "wallet_addEthereumChain":
                self.chain_id = int(params[0]["chainId"], 16)
                self.networks[self.chain_id] = params[0]["rpcUrls"][0]
                assert self._rpc("eth_chainId") == params[0]["chainId"], "wallets check what they are told"
                return None
            case "eth_sendTransaction":
                if self.declines:
                    raise WalletError({"code": DECLINED, "message": "User rejected the request."})
                return self._send(params[0])
            case _:
                return self._rpc(method, *params)

    def _send(self, wanted: dict[str, str]) -> str:
        assert wanted["from"] == self.address
        base_fee = int(self._rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
        signed = Account.sign_transaction(
            {
                "chainId": self.chain_id,
                "nonce": int(self._rpc("eth_getTransactionCount", self.address, "pending"), 16),
                "to": wanted["to"],
                "data": wanted["data"],
                "value": 0,
                "gas": int(wanted["gas"], 16),
                "maxFeePerGas": 2 * base_fee + 10**9,
                "maxPriorityFeePerGas": 10**9,
            },
            self.key,
        )
        return str(self._rpc("eth_sendRawTransaction", "0x" + signed.raw_transaction.hex()))

    def _rpc(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = httpx.post(self.networks[self.chain_id], json=body, timeout=20).json()
        if "error" in answer:
            raise WalletError(answer["error"])
        return answer["result"]


class WalletError(Exception):
    """Carries the error object that the page is given."""


@dataclass
class PageWorld:
    """A served page; `run` runs a coroutine in the loop of its server."""

    chain: WalletChain
    feed: Feed
    page: PageServer
    rpc_url: str
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def take(self, fact: dict[str, Any]) -> None:
        self.loop.call_soon_threadsafe(self.feed.take, fact)


@contextmanager
def page_world(folder: Path) -> Iterator[PageWorld]:
    with wallet_chain(folder) as chain:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="page of the tests")
        thread.start()
        (port,) = free_ports(1)
        gate, feed = RpcProxy(chain.rpc_url, "127.0.0.1", port, allow_origin="*"), Feed()
        world = PageWorld(
            chain,
            feed,
            PageServer(feed, chain.rpc_url, port=0, preset="devnet"),
            f"http://127.0.0.1:{port}",
            loop,
        )
        try:
            world.run(gate.start())
            world.run(world.page.__aenter__())
            try:
                world.take(devnet_fact(world))
                yield world
            finally:
                world.run(world.page.__aexit__(None, None, None))
                world.run(gate.stop())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def devnet_fact(world: PageWorld) -> dict[str, Any]:
    """As runtime/devnet.py says it, with paths that a page must not show."""
    return {
        "type": "devnet",
        "dir": "/secret/folder",
        "rpc_url": world.rpc_url,
        "inner_rpc_url": world.chain.rpc_url,
        "page_url": world.page.url,
        "chain_id": world.chain.choices.chain_id,
        "contract": "0x" + ADAPTER_FACTORY_ADDRESS.hex(),
        "adapter_id": "0x" + "12" * 32,
        "founder": "0x" + "34" * 20,
        "founder_key_file": "/secret/folder/founder.key",
        "abi_file": "/secret/folder/abi",
        "nodes": 2,
    }


def checkpoint_fact(number: int, **changes: Any) -> dict[str, Any]:
    """A row as runtime/devnet.py shows it."""
    return {
        "type": "checkpoint",
        "number": number,
        "signals": 4,
        "scores_ppm": [10_800, -500],
        "weights_hash": f"{number:064x}",
        "tx": f"0x{number + 7:064x}",
        "gas_used": 176_902,
        "block": 40 + number,
        "accuracy_ppm": 15_900 * number,
        "reputations": {"node-1": 200_000, "node-2": 290_000},
        "finalized_by": [1, 2],
    } | changes
