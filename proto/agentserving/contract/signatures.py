"""Ed25519 signatures. Of cryptography's API, only what tickets need; every vLLM brings the package (through mcp)."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES, PUBLIC_KEY_BYTES = 64, 32
# Of the file that a private key is made from.
MIN_SECRET_BYTES = 16

SigningKey = Ed25519PrivateKey
VerifyingKey = Ed25519PublicKey


def signing_key(secret: bytes) -> SigningKey:
    """The private key made from a secret of any length. ValueError when it is shorter than MIN_SECRET_BYTES."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"needs at least {MIN_SECRET_BYTES} bytes, has {len(secret)}")
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"agentserving ticket\0" + secret).digest())


def public_bytes(secret: bytes) -> bytes:
    """The public key that belongs to a secret, PUBLIC_KEY_BYTES. ValueError as `signing_key`."""
    return signing_key(secret).public_key().public_bytes_raw()


def verifying_key(data: bytes) -> VerifyingKey:
    """A public key from its bytes. ValueError when they are not PUBLIC_KEY_BYTES."""
    if len(data) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes, this has {len(data)}")
    return Ed25519PublicKey.from_public_bytes(data)


def is_signed(body: bytes, signature: bytes, key: VerifyingKey) -> bool:
    """The signature of `body` is that of the key's owner."""
    try:
        key.verify(signature, body)
    except InvalidSignature:
        return False
    return True
