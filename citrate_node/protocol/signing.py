"""Ed25519 signatures over domain-separated canonical bytes.

A message kind and its version are the domain, so a signature for one kind is void for every other. Votes
carry a second, secp256k1 signature for the contract: certificate.py.
"""

from __future__ import annotations

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey


def node_key_of(seed: bytes) -> bytes:
    """The Ed25519 public key (32 bytes) of a 32-byte seed."""
    return bytes(SigningKey(seed).verify_key)


def sign(seed: bytes, domain: str, body: bytes) -> bytes:
    """64 bytes. Ed25519 (RFC 8032) over the domain, a zero byte and the body."""
    return SigningKey(seed).sign(domain.encode() + b"\0" + body).signature


def is_signed_by(node_key: bytes, domain: str, body: bytes, signature: bytes) -> bool:
    """Whether the signature is the node's. False for anything malformed; never raises."""
    try:
        VerifyKey(node_key).verify(domain.encode() + b"\0" + body, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True
