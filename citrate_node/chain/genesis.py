"""The genesis state of a network: the predeploy with its storage, and the accounts that hold money.

A predeploy has no constructor, so what one would write stands here as storage words, at the places that the
compiler's storage layout names. Called by devnet_chain.py, the command line and tests; the file it gives is
the genesis.json that anvil, geth, reth and Besu read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_hash.auto import keccak

from ..errors import ConfigError
from ..protocol.certificate import Validator, ordered, validator_set_hash
from .contract_abi import DEFAULT_CONTRACT, artifact, runtime_code

DEFAULT_CHAIN_ID = 40299
"""Our own. Citrate's public test network is 40204: what is signed for it could be replayed there."""

BLOCK_GAS_LIMIT = 60_000_000
_TEXT_BYTES_MAX = 64
_URI_BYTES_MAX = 256


@dataclass(frozen=True, slots=True)
class GenesisBaseModel:
    """A base model that is registered from the first block on."""

    base_model_id: bytes
    name: str
    uri: str
    licence: str
    size_bytes: int
    registrar: bytes = bytes(20)
    """Account shown as registrar; zero says that genesis did it."""

    def __post_init__(self) -> None:
        if len(self.base_model_id) != 32 or not any(self.base_model_id):
            raise ConfigError("a base model id is 32 bytes and not zero")
        for field, text, least, most in (
            ("name", self.name, 1, _TEXT_BYTES_MAX),
            ("licence", self.licence, 1, _TEXT_BYTES_MAX),
            ("uri", self.uri, 0, _URI_BYTES_MAX),
        ):
            if not least <= len(text.encode()) <= most:
                raise ConfigError(f"base model {field} must have {least} to {most} bytes: {text!r}")
        if not 0 < self.size_bytes < 2**64:
            raise ConfigError("base model size_bytes must be a positive uint64")


def factory_storage(
    validators: Sequence[Validator],
    genesis_record_hash: bytes,
    base_models: Sequence[GenesisBaseModel] = (),
) -> dict[bytes, bytes]:
    """Storage words (32 bytes to 32 bytes, none zero) of an AdapterFactory that has committed nothing.

    genesis_record_hash: parent of checkpoint 1. It must differ between networks: with the same validators on
    the same chain id, it is all that keeps the votes of an earlier network from counting in this one.
    """
    if len(genesis_record_hash) != 32 or not any(genesis_record_hash):
        raise ConfigError("genesis_record_hash must be 32 bytes and not zero: it tells networks apart")
    slots = {entry["label"]: int(entry["slot"]) for entry in artifact()["storageLayout"]["storage"]}
    words: dict[int, bytes] = {}

    seats = ordered(validators)
    words[slots["_setHash"]] = validator_set_hash(seats)
    words[slots["_validators"]] = _word(len(seats))
    first_seat = _slot(_word(slots["_validators"]))
    for i, seat in enumerate(seats):
        words[first_seat + 2 * i] = seat.node_key
        words[first_seat + 2 * i + 1] = seat.stake.to_bytes(12, "big") + seat.account

    words[_slot(_word(0) + _word(slots["_checkpoints"]))] = genesis_record_hash

    if len({model.base_model_id for model in base_models}) != len(base_models):
        raise ConfigError("a base model is listed twice in genesis")
    words[slots["_baseModelIds"]] = _word(len(base_models))
    for place, model in enumerate(base_models, 1):
        words[_slot(_word(slots["_baseModelIds"])) + place - 1] = model.base_model_id
        row = _slot(model.base_model_id + _word(slots["_baseModels"]))
        words[row] = place.to_bytes(4, "big") + model.size_bytes.to_bytes(8, "big") + model.registrar
        for offset, text in enumerate((model.name, model.uri, model.licence), 1):
            words |= _text_words(row + offset, text.encode())
    return {_word(slot): word.rjust(32, b"\0") for slot, word in words.items() if any(word)}


def build_genesis(
    validators: Sequence[Validator],
    genesis_record_hash: bytes,
    *,
    funded: Mapping[bytes, int],
    timestamp: int,
    chain_id: int = DEFAULT_CHAIN_ID,
    base_models: Sequence[GenesisBaseModel] = (),
    contract: bytes = DEFAULT_CONTRACT,
) -> dict[str, Any]:
    """genesis.json with the predeploy. `funded` maps accounts (20 bytes) to wei.

    The extra data carries the genesis record hash, so that two networks have different genesis block hashes.
    """
    if chain_id == 40204:
        raise ConfigError(
            "chain id 40204 is a public test network: transactions could be replayed there; choose another"
        )
    if not 0 < chain_id < 2**53:
        raise ConfigError(
            f"chain id {chain_id} must be positive and below 2^53 (wallets read it as a double)"
        )
    alloc: dict[str, Any] = {_hex(account): {"balance": hex(wei)} for account, wei in funded.items()}
    storage = factory_storage(validators, genesis_record_hash, base_models)
    alloc[_hex(contract)] = {
        "balance": "0x0",
        "nonce": "0x1",  # as a created contract has: an account without one may count as empty
        "code": _hex(runtime_code()),
        "storage": {_hex(slot): _hex(word) for slot, word in sorted(storage.items())},
    }
    blocks = (
        "homestead",
        "eip150",
        "eip155",
        "eip158",
        "byzantium",
        "constantinople",
        "petersburg",
        "istanbul",
        "berlin",
        "london",
    )
    return {
        "config": {
            "chainId": chain_id,
            **{f"{name}Block": 0 for name in blocks},
            "terminalTotalDifficulty": 0,
            "terminalTotalDifficultyPassed": True,
            "shanghaiTime": 0,
            "cancunTime": 0,
            # geth refuses a genesis with Cancun and without this; the numbers are those of EIP-4844
            "blobSchedule": {"cancun": {"target": 3, "max": 6, "baseFeeUpdateFraction": 3338477}},
        },
        "nonce": "0x0",
        "timestamp": hex(timestamp),
        "extraData": _hex(genesis_record_hash),
        "gasLimit": hex(BLOCK_GAS_LIMIT),
        "difficulty": "0x0",
        "mixHash": _hex(bytes(32)),
        "coinbase": _hex(bytes(20)),
        "baseFeePerGas": hex(10**9),
        "alloc": alloc,
    }


def fund_equally(accounts: Iterable[bytes], wei: int = 10**21) -> dict[bytes, int]:
    """A thousand coins each: at devnet prices enough for years of checkpoints."""
    return dict.fromkeys(accounts, wei)


def _text_words(slot: int, text: bytes) -> dict[int, bytes]:
    """How Solidity stores a string: in its slot up to 31 bytes, else in a run of words at the slot's hash."""
    if len(text) < 32:
        return {slot: text.ljust(31, b"\0") + bytes([2 * len(text)])}
    start = _slot(_word(slot))
    words = {start + i // 32: text[i : i + 32].ljust(32, b"\0") for i in range(0, len(text), 32)}
    return {slot: _word(2 * len(text) + 1), **words}


def _slot(data: bytes) -> int:
    return int.from_bytes(keccak(data), "big")


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
