"""A node's libp2p peer id is its Ed25519 key in another spelling.

Pure and light, so that the runtime and the command line can name peers without loading libp2p: an Ed25519
peer id is the base58 of an identity multihash over the protobuf-encoded public key, so either can be had
from the other. Called by the facade, by the peer exchange, and by the runtime where it maps the registered
node keys to connections.
"""

from typing import Final

_PREFIX: Final = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes, then the protobuf fields: key type 1 (Ed25519), data of 32 bytes."""
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_PEER_ID_LENGTH: Final = 52


def peer_id_of(node_key: bytes) -> str:
    """The peer id (`12D3KooW…`) of a 32-byte Ed25519 public key."""
    if len(node_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(node_key)}")
    data = _PREFIX + node_key
    number = int.from_bytes(data, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    leading_zeros = len(data) - len(data.lstrip(b"\0"))
    return _ALPHABET[0] * leading_zeros + text


def node_key_of(peer_id: str) -> bytes:
    """The Ed25519 public key inside a peer id; ValueError for any other text or kind of key."""
    if len(peer_id) != _PEER_ID_LENGTH or not set(peer_id) <= _VALUES.keys():
        raise ValueError(f"{peer_id[:60]!r} is not the peer id of an Ed25519 key (12D3KooW…)")
    number = 0
    for character in peer_id:
        number = number * 58 + _VALUES[character]
    data = number.to_bytes(39, "big")[1:]
    if data[:6] != _PREFIX or peer_id_of(data[6:]) != peer_id:
        raise ValueError(f"{peer_id!r} is not the peer id of an Ed25519 key (12D3KooW…)")
    return data[6:]
