"""What validators sign to finalize a checkpoint, and the certificate their votes make.

Pure. The bytes here are the ones that contracts/src/AdapterFactory.sol computes: a vote is secp256k1 over
an EIP-712 digest, so that the contract can verify it and any wallet can show it. The shared cases are in
tests/vectors/certificate.json. Called by node/ (voting, counting), chain/ (committing) and simulation/.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from coincurve import PrivateKey, PublicKey
from eth_hash.auto import keccak

CONTRACT_NAME = "Citrate AdapterFactory"
CONTRACT_VERSION = "1"

CODEC_RAW = 0x55
"""Multicodec of weights that are one block: the digest is the sha256 of the file."""
CODEC_DAG_PB = 0x70
"""Multicodec of weights that are a tree of blocks: the digest is that of its root."""
ACCURACY_UNKNOWN_PPM = -(2**63)
"""Accuracy of a version that nobody measured (published by its owner). Never certified."""
UPDATES_MAX = 64
"""Updates in one commitment: bounds the gas of a commit, which must fit one block."""
VALIDATORS_MAX = 256
"""Seats in one set: the signers of a certificate are the bits of one EVM word."""

_DOMAIN_TYPE = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_UPDATE_TYPE = (
    b"CertifiedUpdate(bytes32 adapterId,bytes32 weightsHash,uint8 codec,uint64 sizeBytes,int64 accuracyPpm)"
)
_COMMITMENT_TYPE = (
    b"CheckpointCommitment(uint64 number,uint32 round,bytes32 parentRecordHash,bytes32 recordHash,"
    b"bytes32 validatorSetHash,bytes32 nextValidatorSetHash,CertifiedUpdate[] updates)" + _UPDATE_TYPE
)
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def _require_length(name: str, value: bytes, length: int) -> None:
    if len(value) != length:
        raise ValueError(f"{name} has {len(value)} bytes, must have {length}")


def _require_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, must be from {least} to {most}")


@dataclass(frozen=True, slots=True)
class Validator:
    """One seat of the validator set: who speaks (node key), who votes (account), with what weight."""

    node_key: bytes
    """Ed25519 public key, 32 bytes: signs messages, and is the libp2p identity."""

    account: bytes
    """Address of the secp256k1 key that signs votes, 20 bytes. Sets are ordered by it."""

    stake: int
    """Weight of the vote, a positive uint96."""

    def __post_init__(self) -> None:
        _require_length("node_key", self.node_key, 32)
        _require_length("account", self.account, 20)
        _require_range("stake", self.stake, 1, 2**96 - 1)


@dataclass(frozen=True, slots=True)
class CertifiedUpdate:
    """The next version of one adapter, as the validators agreed on it."""

    adapter_id: bytes
    """Identity on chain, 32 bytes."""

    weights_hash: bytes
    """sha256 digest of the root block of the weights, 32 bytes."""

    codec: int
    """CODEC_RAW or CODEC_DAG_PB; with weights_hash it is the CID."""

    size_bytes: int
    """Size of the weights file, a positive uint64: the budget of whoever fetches it."""

    accuracy_ppm: int
    """Improvement over the base model in parts per million, int64 above ACCURACY_UNKNOWN_PPM."""

    def __post_init__(self) -> None:
        _require_length("adapter_id", self.adapter_id, 32)
        _require_length("weights_hash", self.weights_hash, 32)
        if self.codec not in (CODEC_RAW, CODEC_DAG_PB):
            raise ValueError(f"codec is {self.codec:#x}, must be {CODEC_RAW:#x} or {CODEC_DAG_PB:#x}")
        _require_range("size_bytes", self.size_bytes, 1, 2**64 - 1)
        _require_range("accuracy_ppm", self.accuracy_ppm, ACCURACY_UNKNOWN_PPM + 1, 2**63 - 1)


@dataclass(frozen=True, slots=True)
class CheckpointCommitment:
    """All that a vote binds, beside the chain id and the contract."""

    number: int
    """Checkpoint number, from 1: exactly one more than the last committed."""

    parent_record_hash: bytes
    """Hash of the record of the checkpoint before. The first one's parent is the network's genesis record."""

    record_hash: bytes
    """Hash of the checkpoint record, the key under which the content store holds it."""

    validator_set_hash: bytes
    """The set whose stake the votes are counted against."""

    next_validator_set_hash: bytes
    """The set of the checkpoint after; the same hash where nothing changes."""

    updates: tuple[CertifiedUpdate, ...]
    """New versions, strictly ascending by adapter id; at most UPDATES_MAX."""

    round: int = 0
    """Attempt at this number, a uint32. Two votes for one number, parent and round are equivocation; a voter
    whose proposal found no quorum may vote again in a later round."""

    def __post_init__(self) -> None:
        _require_range("number", self.number, 1, 2**64 - 1)
        _require_range("round", self.round, 0, 2**32 - 1)
        _require_length("parent_record_hash", self.parent_record_hash, 32)
        _require_length("record_hash", self.record_hash, 32)
        _require_length("validator_set_hash", self.validator_set_hash, 32)
        _require_length("next_validator_set_hash", self.next_validator_set_hash, 32)
        _require_range("number of updates", len(self.updates), 0, UPDATES_MAX)
        ids = [update.adapter_id for update in self.updates]
        if any(left >= right for left, right in pairwise(ids)):
            raise ValueError("updates must be strictly ascending by adapter_id: one per adapter")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Votes of a quorum for one commitment: all that commitCheckpoint needs beside the validators."""

    commitment: CheckpointCommitment
    signatures: Mapping[bytes, bytes]
    """Account (20 bytes) to its signature (65 bytes, r ‖ s ‖ v)."""


def ordered(validators: Iterable[Validator]) -> list[Validator]:
    """The set in the one order that hashes and bitmaps use. Raises ValueError on a seat held twice."""
    seats = sorted(validators, key=lambda validator: validator.account)
    _require_range("number of validators", len(seats), 1, VALIDATORS_MAX)
    if len({seat.account for seat in seats}) != len(seats) or len({seat.node_key for seat in seats}) != len(
        seats
    ):
        raise ValueError("two validators share an account or a node key")
    return seats


def seat_words(validators: Iterable[Validator]) -> list[bytes]:
    """One EVM word per validator, account ‖ stake, ascending: what commitCheckpoint takes in calldata."""
    return [seat.account + seat.stake.to_bytes(12, "big") for seat in ordered(validators)]


def node_keys_hash(validators: Iterable[Validator]) -> bytes:
    return keccak(b"".join(seat.node_key for seat in ordered(validators)))


def validator_set_hash(validators: Collection[Validator]) -> bytes:
    """keccak256(keccak256(account ‖ stake of each) ‖ keccak256(node key of each)), ascending by account.

    Two halves, because a commit repeats the first in calldata and needs only the hash of the second.
    """
    return keccak(keccak(b"".join(seat_words(validators))) + node_keys_hash(validators))


def updates_hash(updates: Iterable[CertifiedUpdate]) -> bytes:
    """EIP-712 encoding of the `updates` array: keccak256 over the struct hashes, in order."""
    return keccak(b"".join(_update_hash(update) for update in updates))


def commitment_digest(chain_id: int, contract: bytes, commitment: CheckpointCommitment) -> bytes:
    """The 32 bytes that a validator signs. Another chain, contract, number or field gives other bytes."""
    _require_range("chain_id", chain_id, 1, 2**256 - 1)
    _require_length("contract", contract, 20)
    struct = keccak(
        keccak(_COMMITMENT_TYPE)
        + _word(commitment.number)
        + _word(commitment.round)
        + commitment.parent_record_hash
        + commitment.record_hash
        + commitment.validator_set_hash
        + commitment.next_validator_set_hash
        + updates_hash(commitment.updates)
    )
    return keccak(b"\x19\x01" + _domain_separator(chain_id, contract) + struct)


def sign_digest(private_key: bytes, digest: bytes) -> bytes:
    """r ‖ s ‖ v (v is 27 or 28), low s, nonce by RFC 6979: the same inputs give the same 65 bytes."""
    _require_length("private_key", private_key, 32)
    _require_length("digest", digest, 32)
    signature: bytes = PrivateKey(private_key).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def recover_account(digest: bytes, signature: bytes) -> bytes:
    """The account that signed. Raises ValueError on wrong length, v, range, and on a high s."""
    _require_length("digest", digest, 32)
    _require_length("signature", signature, 65)
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    if v not in (27, 28):
        raise ValueError(f"signature has v = {v}, must be 27 or 28")
    if not 0 < r < _SECP256K1_ORDER or not 0 < s <= _SECP256K1_ORDER // 2:
        raise ValueError("signature is out of range, or has the high s that anyone can make from the low one")
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([v - 27]), digest, hasher=None)
    except Exception as error:  # coincurve raises bare Exception where no point has this r
        raise ValueError("signature recovers to no key") from error
    return _address(key)


def account_of(private_key: bytes) -> bytes:
    _require_length("private_key", private_key, 32)
    return _address(PrivateKey(private_key).public_key)


def compact_signature(signature: bytes) -> tuple[bytes, bytes]:
    """EIP-2098: r, and s with the recovery bit on top. 64 bytes instead of 96 in calldata."""
    _require_length("signature", signature, 65)
    top = (signature[64] - 27) << 255
    return signature[:32], (int.from_bytes(signature[32:64], "big") | top).to_bytes(32, "big")


def has_quorum(validators: Collection[Validator], accounts: Collection[bytes]) -> bool:
    """Whether these accounts hold strictly more than 2/3 of the stake. Strangers and repeats add nothing."""
    voted = set(accounts)
    got = sum(validator.stake for validator in validators if validator.account in voted)
    return 3 * got > 2 * sum(validator.stake for validator in validators)


def check_certificate(
    chain_id: int, contract: bytes, validators: Collection[Validator], certificate: Certificate
) -> None:
    """Raises ValueError, naming the fault, unless the contract would count a quorum of these validators."""
    commitment = certificate.commitment
    if commitment.validator_set_hash != validator_set_hash(validators):
        raise ValueError("certificate was made for another validator set")
    seated = {validator.account for validator in validators}
    digest = commitment_digest(chain_id, contract, commitment)
    for account, signature in certificate.signatures.items():
        if account not in seated:
            raise ValueError(f"0x{account.hex()} is not a validator")
        if recover_account(digest, signature) != account:
            raise ValueError(f"signature of 0x{account.hex()} is not over this commitment")
    if not has_quorum(validators, certificate.signatures.keys()):
        raise ValueError(f"{len(certificate.signatures)} votes are not more than 2/3 of the stake")


def _update_hash(update: CertifiedUpdate) -> bytes:
    return keccak(
        keccak(_UPDATE_TYPE)
        + update.adapter_id
        + update.weights_hash
        + _word(update.codec)
        + _word(update.size_bytes)
        + _word(update.accuracy_ppm)
    )


@lru_cache(maxsize=16)
def _domain_separator(chain_id: int, contract: bytes) -> bytes:
    return keccak(
        keccak(_DOMAIN_TYPE)
        + keccak(CONTRACT_NAME.encode())
        + keccak(CONTRACT_VERSION.encode())
        + _word(chain_id)
        + bytes(12)
        + contract
    )


def _word(value: int) -> bytes:
    """An integer as the EVM holds it: 32 bytes, negative ones in two's complement."""
    return (value % 2**256).to_bytes(32, "big")


def _address(key: PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[12:]
