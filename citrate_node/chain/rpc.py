"""JSON-RPC to an EVM over AsyncWeb3, with errors that a person can act on.

web3 is imported only when a connection is opened: it takes a second. Called by adapter_factory.py,
transactions.py and devnet_chain.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import ServiceError
from .contract_abi import factory_abi
from .recursion_limit import recursion_limit

if TYPE_CHECKING:
    from web3 import AsyncHTTPProvider

REQUEST_TIMEOUT_SECONDS = 15.0
PRUNED_RETRIES = 3


class ContractRefusal(ServiceError):
    """The contract reverted with one of its errors: `name`, and `args_by_name` with the facts it carries."""

    def __init__(self, name: str, args_by_name: dict[str, Any], text: str) -> None:
        super().__init__(text)
        self.name = name
        self.args_by_name = args_by_name


class RpcError(ServiceError):
    """The chain answered with an error that is no revert."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"the chain refused {method}: {message} (code {code})")
        self.code = code
        self.message = message


class Rpc:
    """One endpoint. Every failure is a ServiceError; a revert is a ContractRefusal."""

    def __init__(self, rpc_url: str) -> None:
        import aiohttp

        with recursion_limit():
            from web3 import AsyncHTTPProvider

        self.rpc_url = rpc_url
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        # no hidden retries: whoever calls knows better whether to wait
        self._provider: AsyncHTTPProvider = AsyncHTTPProvider(
            rpc_url, request_kwargs={"timeout": timeout}, exception_retry_configuration=None
        )

    async def close(self) -> None:
        await self._provider.disconnect()

    async def request(self, method: str, *params: Any) -> Any:
        """The result. Raises ContractRefusal on a revert, RpcError on other errors, else ServiceError.

        anvil with pruned history forgets a block's state in the moment in which it makes the next one, and
        then refuses a call on "latest" that it had already resolved: asked again, it answers.
        """
        for _ in range(PRUNED_RETRIES):
            try:
                return await self._request(method, *params)
            except RpcError as error:
                if "BlockOutOfRange" not in error.message:
                    raise
        return await self._request(method, *params)

    async def _request(self, method: str, *params: Any) -> Any:
        import aiohttp

        try:
            answer: Any = await self._provider.make_request(method, list(params))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            raise ServiceError(
                f"cannot reach the chain at {self.rpc_url} ({_reason(error)})\n"
                "  start one with `citrate devnet up`, or set chain.rpc_url in node.toml"
            ) from error
        error_fields = answer.get("error") if isinstance(answer, dict) else None
        if error_fields is not None:
            raise _refusal(method, error_fields)
        if not isinstance(answer, dict) or "result" not in answer:
            raise ServiceError(
                f"{self.rpc_url} does not speak Ethereum JSON-RPC\n  check chain.rpc_url in node.toml"
            )
        return answer["result"]

    async def call(self, contract: bytes, data: bytes, sender: bytes = bytes(20)) -> bytes:
        """eth_call on the newest block."""
        request = {"from": hexed(sender), "to": hexed(contract), "data": hexed(data)}
        return unhexed(await self.request("eth_call", request, "latest"))


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


def unhexed(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _refusal(method: str, error: Any) -> ServiceError:
    """Nodes put revert data under `data`, as text or in an object; the code differs between them."""
    if not isinstance(error, dict):
        return RpcError(method, 0, str(error))
    data = error.get("data")
    if isinstance(data, dict):
        data = data.get("data")
    if isinstance(data, str) and len(data) >= 10 and data.startswith("0x"):
        try:
            why = factory_abi().error(unhexed(data))
        except ValueError:  # not hex after all
            why = None
        if why is not None:
            return ContractRefusal(why.name, why.args, f"the contract refused: {why}")
    return RpcError(method, int(error.get("code", 0)), str(error.get("message", error)))


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {REQUEST_TIMEOUT_SECONDS:.0f} s"
    number = getattr(getattr(error, "os_error", error), "errno", None)  # aiohttp wraps the plain error
    return os.strerror(number) if number else str(error) or type(error).__name__
