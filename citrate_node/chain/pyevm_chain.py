"""An EVM in this process, in Python (py-evm): no binary, no socket, nothing kept.

A tenth of anvil's speed, but pip installs it. Called by pyevm_rpc.py (the chain of machines without anvil)
and by the contract tests, which run on it and on anvil: two independent EVMs. py-evm is an extra.
"""

from dataclasses import dataclass
from typing import Any

from eth.abc import BlockAPI, BlockHeaderAPI, ComputationAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert
from eth.vm.forks.cancun import CancunVM
from eth.vm.spoof import SpoofTransaction

from .contract_abi import DEFAULT_CONTRACT


class CallReverted(Exception):
    """A call that the EVM undid. `data` is what it returned: empty where it ran out of gas."""

    def __init__(self, data: bytes, reason: str) -> None:
        super().__init__(reason)
        self.data = data


@dataclass(frozen=True, slots=True)
class Log:
    """One log of a transaction."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one transaction did."""

    transaction_hash: bytes
    succeeded: bool
    gas_used: int
    logs: tuple[Log, ...]
    revert_data: bytes


class PyEvmChain:
    """Blocks on top of a genesis.json: transactions go into the block being built, `mine` closes it."""

    def __init__(self, genesis: dict[str, Any]) -> None:
        self.chain_id: int = genesis["config"]["chainId"]
        parameters: dict[str, Any] = {
            "difficulty": 0,
            "gas_limit": int(genesis["gasLimit"], 16),
            "timestamp": int(genesis["timestamp"], 16),
            "extra_data": _bytes(genesis["extraData"]),
            "nonce": bytes(8),
            "mix_hash": bytes(32),
            "coinbase": bytes(20),
        }
        state: dict[Any, Any] = {
            _bytes(account): {
                "balance": int(entry["balance"], 16),
                "nonce": int(entry.get("nonce", "0x0"), 16),
                "code": _bytes(entry.get("code", "0x")),
                "storage": {int(k, 16): int(v, 16) for k, v in entry.get("storage", {}).items()},
            }
            for account, entry in genesis["alloc"].items()
        }
        machines = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, CancunVM),))
        kind = _FixedGasLimitChain.configure(
            __name__="CitrateChain", vm_configuration=machines, chain_id=self.chain_id
        )
        # py-evm's NewTypes for bytes and int say nothing here that the names do not
        self._chain: Any = kind.from_genesis(AtomicDB(), parameters, state)

    @property
    def head(self) -> BlockHeaderAPI:
        head: BlockHeaderAPI = self._chain.get_canonical_head()
        return head

    @property
    def pending(self) -> BlockHeaderAPI:
        header: BlockHeaderAPI = self._chain.header
        return header

    def block(self, number: int) -> BlockAPI:
        block: BlockAPI = self._chain.get_canonical_block_by_number(number)
        return block

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """A signed transaction from its bytes. Raises on malformed ones (py-evm's and rlp's own errors)."""
        builder = self._chain.get_vm().get_transaction_builder()
        transaction: SignedTransactionAPI = builder.decode(raw)
        return transaction

    def apply(self, transaction: SignedTransactionAPI) -> Outcome:
        """Puts a transaction into the block being built. Raises ValidationError where it has no place."""
        before = self.pending.gas_used
        _, receipt, computation = self._chain.apply_transaction(transaction)
        return Outcome(
            transaction.hash,
            computation.is_success,
            receipt.gas_used - before,
            tuple(
                Log(log.address, tuple(topic.to_bytes(32, "big") for topic in log.topics), log.data)
                for log in receipt.logs
            ),
            _revert_data(computation),
        )

    def mine(self, timestamp: int) -> BlockHeaderAPI:
        """Closes the block being built. A timestamp not after the parent's is moved to one second after."""
        self._chain.set_header_timestamp(max(timestamp, self.head.timestamp + 1))
        header: BlockHeaderAPI = self._chain.mine_block().header
        return header

    def call(
        self,
        data: bytes,
        *,
        to: bytes = DEFAULT_CONTRACT,
        sender: bytes = bytes(20),
        gas: int = 50_000_000,
        value: int = 0,
    ) -> bytes:
        """What a call answers on top of the latest block and of what is pending. Raises CallReverted.

        The sender must own `value`, in wei.
        """
        computation = self._execute(data, to, sender, gas, value)
        if computation.is_error:
            raise CallReverted(_revert_data(computation), str(computation.error))
        return bytes(computation.output)

    def gas_needed(self, data: bytes, *, to: bytes, sender: bytes, value: int = 0) -> int:
        """Gas of a transaction, with a fifth on top: storage prices depend on what comes before it."""
        computation = self._execute(data, to, sender, 50_000_000, value)
        if computation.is_error:
            raise CallReverted(_revert_data(computation), str(computation.error))
        return 6 * (computation.get_gas_used() + self._intrinsic_gas(data)) // 5

    def _execute(self, data: bytes, to: bytes, sender: bytes, gas: int, value: int) -> ComputationAPI:
        # a base fee of zero lets accounts without money read
        machine = self._chain.get_vm(self.pending.copy(base_fee_per_gas=0))
        transaction = machine.get_transaction_builder().create_unsigned_transaction(
            nonce=machine.state.get_nonce(sender), gas_price=0, gas=gas, to=to, value=value, data=data
        )
        before = machine.state.snapshot()
        computation: ComputationAPI = machine.state.apply_transaction(
            SpoofTransaction(transaction, from_=sender)
        )
        machine.state.revert(before)
        return computation

    def nonce(self, account: bytes) -> int:
        return int(self._chain.get_vm().state.get_nonce(account))

    def balance(self, account: bytes) -> int:
        return int(self._chain.get_vm().state.get_balance(account))

    def code(self, account: bytes) -> bytes:
        return bytes(self._chain.get_vm().state.get_code(account))

    def storage(self, account: bytes, slot: int) -> int:
        return int(self._chain.get_vm().state.get_storage(account, slot))

    @staticmethod
    def _intrinsic_gas(data: bytes) -> int:
        zeros = data.count(0)
        return 21_000 + 4 * zeros + 16 * (len(data) - zeros)


class _FixedGasLimitChain(MiningChain):
    """The gas limit stays where genesis put it; py-evm would let it drift to that of the main network."""

    def create_header_from_parent(self, parent_header: BlockHeaderAPI, **fields: Any) -> BlockHeaderAPI:
        return super().create_header_from_parent(
            parent_header, **{**fields, "gas_limit": parent_header.gas_limit}
        )


def _revert_data(computation: ComputationAPI) -> bytes:
    return (
        bytes(computation.output) if computation.is_error and isinstance(computation.error, Revert) else b""
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
