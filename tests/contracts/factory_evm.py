"""AdapterFactory in two independent EVMs behind one face: py-evm in this process, and anvil (revm) beside it.

Used by the tests of this folder. Every call acts as a named account and answers with decoded values; what the
contract refuses is raised as `Refused`.
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import httpx
from eth_account import Account
from eth_hash.auto import keccak

from citrate_node.chain.anvil import find_anvil
from citrate_node.chain.contract_abi import DEFAULT_CONTRACT, Event, Reverted, factory_abi
from citrate_node.chain.genesis import GenesisBaseModel, build_genesis, fund_equally
from citrate_node.chain.pyevm_chain import CallReverted, PyEvmChain
from citrate_node.protocol.certificate import (
    CertifiedUpdate,
    CheckpointCommitment,
    Validator,
    account_of,
    commitment_digest,
    compact_signature,
    node_keys_hash,
    ordered,
    seat_words,
    sign_digest,
    updates_hash,
    validator_set_hash,
)

ABI = factory_abi()
ANVIL = find_anvil()
GAS = 30_000_000


def key(name: str) -> bytes:
    return keccak(f"test account {name}".encode())


@lru_cache(maxsize=1024)
def account(name: str) -> bytes:
    return account_of(key(name))


def digest_of(text: str) -> bytes:
    return keccak(text.encode())


def validator(name: str, stake: int = 100) -> Validator:
    return Validator(digest_of(f"node key {name}"), account(name), stake)


PEOPLE = ("alice", "bob", "carol")
VALIDATOR_NAMES = ("v1", "v2", "v3", "v4")
VALIDATORS = [validator(name) for name in VALIDATOR_NAMES]
GENESIS_RECORD = digest_of("genesis record")
BASE = GenesisBaseModel(digest_of("base"), "tiny llama", "ipfs://" + "b" * 60, "Apache-2.0", 1_800_000)
OTHER_BASE = GenesisBaseModel(
    digest_of("other base"), "n" * 64, "", "MIT", 2**64 - 1, registrar=account("carol")
)


class Refused(Exception):
    """The contract reverted."""

    def __init__(self, why: Reverted) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(frozen=True, slots=True)
class Receipt:
    gas_used: int
    events: tuple[Event, ...]
    result: Any


class Evm(Protocol):
    name: str
    chain_id: int

    def read(self, function: str, *args: Any, sender: str = "alice") -> Any: ...
    def send(self, function: str, *args: Any, sender: str = "alice") -> Receipt: ...
    def reset(self, validators: Sequence[Validator] = VALIDATORS) -> None: ...
    def storage(self, slot: int) -> int: ...
    def block_number(self) -> int: ...
    def close(self) -> None: ...


def genesis(validators: Sequence[Validator]) -> dict[str, Any]:
    return build_genesis(
        validators,
        GENESIS_RECORD,
        funded=fund_equally(account(name) for name in (*PEOPLE, *VALIDATOR_NAMES)),
        timestamp=1_700_000_000,
        base_models=[BASE, OTHER_BASE],
    )


class PyEvm:
    name = "py-evm"

    def __init__(self) -> None:
        self.reset()
        self.chain_id = self._chain.chain_id

    def reset(self, validators: Sequence[Validator] = VALIDATORS) -> None:
        self._chain = PyEvmChain(genesis(validators))

    def read(self, function: str, *args: Any, sender: str = "alice") -> Any:
        try:
            data = self._chain.call(ABI.call_data(function, *args), sender=account(sender), gas=GAS)
        except CallReverted as error:
            raise Refused(ABI.error(error.data)) from error
        return ABI.result(function, data) if ABI.outputs(function) else None

    def send(self, function: str, *args: Any, sender: str = "alice") -> Receipt:
        result = self.read(function, *args, sender=sender)
        signed = Account.sign_transaction(
            {
                "nonce": self._chain.nonce(account(sender)),
                "to": DEFAULT_CONTRACT,
                "data": ABI.call_data(function, *args),
                "gas": GAS,
                "gasPrice": self._chain.pending.base_fee_per_gas,
                "chainId": self.chain_id,
                "value": 0,
            },
            key(sender),
        )
        outcome = self._chain.apply(self._chain.decode(signed.raw_transaction))
        self._chain.mine(0)
        assert outcome.succeeded, outcome
        events = [ABI.event(list(log.topics), log.data) for log in outcome.logs]
        return Receipt(outcome.gas_used, tuple(event for event in events if event), result)

    def storage(self, slot: int) -> int:
        return self._chain.storage(DEFAULT_CONTRACT, slot)

    def block_number(self) -> int:
        return self._chain.head.block_number

    def close(self) -> None:
        pass


class Anvil:
    name = "anvil"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._validators: tuple[Validator, ...] = ()
        self._fresh = ""
        self.reset()
        self.chain_id = int(self._rpc("eth_chainId"), 16)

    def reset(self, validators: Sequence[Validator] = VALIDATORS) -> None:
        """Back to genesis: a snapshot where the validators are the same, else another process."""
        if tuple(validators) == self._validators:
            assert self._rpc("evm_revert", self._fresh)
        else:
            self.close()
            self._start(validators)
        self._fresh = self._rpc("evm_snapshot")

    def _start(self, validators: Sequence[Validator]) -> None:
        self._validators = tuple(validators)
        path = self._folder / "genesis.json"
        path.write_text(json.dumps(genesis(validators)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [
                *(
                    str(ANVIL),
                    "--init",
                    str(path),
                    "--chain-id",
                    "40299",
                    "--hardfork",
                    "cancun",
                    "--accounts",
                    "0",
                ),
                *(
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                    "--gas-limit",
                    "60000000",
                    "--auto-impersonate",
                ),
                "--silent",
            ],
            stdout=subprocess.DEVNULL,
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        deadline = time.monotonic() + 20
        while True:
            try:
                self._rpc("eth_chainId")
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "anvil does not answer"
                assert self._process.poll() is None, "anvil ended at once"
                time.sleep(0.02)

    def _rpc(self, method: str, *params: Any) -> Any:
        answer = self._http.post(
            "/", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        ).json()
        if "error" in answer:
            data = answer["error"].get("data")
            if answer["error"]["code"] == 3 and isinstance(data, str):
                raise Refused(ABI.error(bytes.fromhex(data[2:])))
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _call(self, function: str, args: Iterable[Any], sender: str) -> dict[str, str]:
        return {
            "from": "0x" + account(sender).hex(),
            "to": "0x" + DEFAULT_CONTRACT.hex(),
            "data": "0x" + ABI.call_data(function, *args).hex(),
            "gas": hex(GAS),
        }

    def read(self, function: str, *args: Any, sender: str = "alice") -> Any:
        data = self._rpc("eth_call", self._call(function, args, sender), "latest")
        return ABI.result(function, bytes.fromhex(data[2:])) if ABI.outputs(function) else None

    def send(self, function: str, *args: Any, sender: str = "alice") -> Receipt:
        result = self.read(function, *args, sender=sender)
        receipt = self._rpc("eth_sendTransactionSync", self._call(function, args, sender))
        assert receipt["status"] == "0x1", receipt
        events = [
            ABI.event([bytes.fromhex(topic[2:]) for topic in log["topics"]], bytes.fromhex(log["data"][2:]))
            for log in receipt["logs"]
        ]
        return Receipt(int(receipt["gasUsed"], 16), tuple(event for event in events if event), result)

    def block_number(self) -> int:
        return int(self._rpc("eth_blockNumber"), 16)

    def storage(self, slot: int) -> int:
        return int(self._rpc("eth_getStorageAt", "0x" + DEFAULT_CONTRACT.hex(), hex(slot), "latest"), 16)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
            self._http.close()


# ---------------------------------------------------------------------------------------------- arguments


def weights_cid(text: str, codec: int = 0x70, size: int | None = 4096) -> bytes:
    """adapterWeights by CID: 36 bytes, or 44 with the size."""
    tail = b"" if size is None else size.to_bytes(8, "big")
    return b"\x01" + bytes([codec]) + b"\x12\x20" + digest_of(text) + tail


def update(adapter_id: bytes, text: str, accuracy_ppm: int = 18_000, codec: int = 0x55) -> CertifiedUpdate:
    return CertifiedUpdate(adapter_id, digest_of(text), codec, 4096, accuracy_ppm)


def commitment(
    number: int,
    parent: bytes = GENESIS_RECORD,
    updates: Iterable[CertifiedUpdate] = (),
    validators: Sequence[Validator] = VALIDATORS,
    next_validators: Sequence[Validator] | None = None,
    record: bytes | None = None,
    round: int = 0,
) -> CheckpointCommitment:
    present = validator_set_hash(validators)
    return CheckpointCommitment(
        number=number,
        parent_record_hash=parent,
        record_hash=digest_of(f"record {number}") if record is None else record,
        validator_set_hash=present,
        next_validator_set_hash=present if next_validators is None else validator_set_hash(next_validators),
        updates=tuple(sorted(updates, key=lambda entry: entry.adapter_id)),
        round=round,
    )


def commitment_argument(made: CheckpointCommitment) -> tuple[Any, ...]:
    return (
        made.number,
        made.round,
        made.parent_record_hash,
        made.record_hash,
        made.next_validator_set_hash,
        [(u.adapter_id, u.weights_hash, u.codec, u.size_bytes, u.accuracy_ppm) for u in made.updates],
    )


def quorum_argument(
    chain_id: int,
    made: CheckpointCommitment,
    signers: Iterable[str],
    validators: Sequence[Validator] = VALIDATORS,
) -> tuple[Any, ...]:
    digest = commitment_digest(chain_id, DEFAULT_CONTRACT, made)
    by_account = {account(name): name for name in signers}
    bitmap, signatures = 0, []
    for seat, holder in enumerate(ordered(validators)):
        if holder.account in by_account:
            bitmap |= 1 << seat
            signatures.append(compact_signature(sign_digest(key(by_account[holder.account]), digest)))
    return (seat_words(validators), node_keys_hash(validators), bitmap, signatures)


def validators_argument(validators: Sequence[Validator] | None) -> list[tuple[bytes, str, int]]:
    return [(v.node_key, "0x" + v.account.hex(), v.stake) for v in ordered(validators)] if validators else []


def commit(
    evm: Evm,
    made: CheckpointCommitment,
    signers: Iterable[str] = VALIDATOR_NAMES[:3],
    validators: Sequence[Validator] = VALIDATORS,
    next_validators: Sequence[Validator] | None = None,
    sender: str = "bob",
) -> Receipt:
    quorum = quorum_argument(evm.chain_id, made, signers, validators)
    return evm.send(
        "commitCheckpoint",
        commitment_argument(made),
        quorum,
        validators_argument(next_validators),
        sender=sender,
    )


def create(
    evm: Evm, text: str, sender: str = "alice", rank: int = 8, base: bytes = BASE.base_model_id
) -> bytes:
    return evm.send("createAdapter", base, f"adapter {text}", weights_cid(text), rank, sender=sender).result


def refusal_of(evm: Evm, function: str, *args: Any, sender: str = "alice") -> Reverted:
    """Why the contract refuses this call."""
    try:
        evm.send(function, *args, sender=sender)
    except Refused as refused:
        return refused.why
    raise AssertionError(f"{function} was not refused")


def commit_refusal(
    evm: Evm,
    made: CheckpointCommitment,
    signers: Iterable[str] = VALIDATOR_NAMES[:3],
    validators: Sequence[Validator] = VALIDATORS,
    next_validators: Sequence[Validator] | None = None,
) -> Reverted:
    quorum = quorum_argument(evm.chain_id, made, signers, validators)
    arguments = (commitment_argument(made), quorum, validators_argument(next_validators))
    return refusal_of(evm, "commitCheckpoint", *arguments, sender="bob")


def vote_argument(chain_id: int, made: CheckpointCommitment, signer: str) -> tuple[Any, ...]:
    digest = commitment_digest(chain_id, DEFAULT_CONTRACT, made)
    return (
        made.number,
        made.round,
        made.parent_record_hash,
        made.record_hash,
        made.validator_set_hash,
        made.next_validator_set_hash,
        updates_hash(made.updates),
        compact_signature(sign_digest(key(signer), digest)),
    )


def seat_of(name: str, validators: Sequence[Validator] = VALIDATORS) -> int:
    return [v.account for v in ordered(validators)].index(account(name))


def with_stakes(*stakes: int) -> list[Validator]:
    return [replace(v, stake=stake) for v, stake in zip(VALIDATORS, stakes, strict=True)]
