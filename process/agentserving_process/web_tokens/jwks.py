"""The public keys of an issuer: a JWK Set (RFC 7517), of which the keys that can verify signatures are taken. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
# A set has a handful of keys of less than a kilobyte.
MAX_BYTES, MAX_KEYS, MAX_KEY_ID_CHARS = 1 << 20, 100, 128
# RFC 7518, section 3.3.
MIN_RSA_BITS = 2048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
# Signatures by a private key only: whoever could verify an HMAC could make one.
ALGORITHMS = (*_RSA, *_CURVES.values(), "EdDSA")
# Members that only a private key has (RFC 7518, sections 6.2.2 and 6.3.2).
_PRIVATE = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyingKey:
    """One public key. `algorithms`: those that a token signed with it may name."""

    key_id: str
    key: PublicKey
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class Jwks:
    """The keys by `kid`. `skipped`: why other keys of the set are not used, for the log."""

    keys: Mapping[str, VerifyingKey] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def read_jwks(data: bytes, algorithms: Collection[str]) -> Jwks:
    """The keys of a set that fit these algorithms. ValueError when the data are no JWK Set.

    A key that cannot be used is left out and does not cost the others. A set without keys is valid: it ends all.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes: a JWK Set has at most {MAX_BYTES}")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ValueError('not a JWK Set: an object with a list "keys" is expected (RFC 7517)')
    if len(found) > MAX_KEYS:
        raise ValueError(f"{len(found)} keys: at most {MAX_KEYS}")
    keys: dict[str, VerifyingKey] = {}
    skipped = []
    for index, each in enumerate(found):
        try:
            key = _key(each, algorithms)
            if key.key_id in keys:
                raise ValueError(f"a second key with kid {key.key_id!r}")
            keys[key.key_id] = key
        except ValueError as error:
            skipped.append(f"keys[{index}]: {error}")
    return Jwks(keys, tuple(skipped))


def _key(jwk: Any, algorithms: Collection[str]) -> VerifyingKey:
    """ValueError says why it is not used."""
    if not isinstance(jwk, dict):
        raise ValueError("not an object")
    key_id = jwk.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
        raise ValueError(f"kid: 1 to {MAX_KEY_ID_CHARS} characters are needed, since tokens name their key by it")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise ValueError(f"{key_id}: not a key for signatures (use, key_ops)")
    if not _PRIVATE.isdisjoint(jwk):
        raise ValueError(f"{key_id}: a private key: publish the public one, and replace this one, which was disclosed")
    key = _public_key(jwk)
    possible = _possible(key)
    named = jwk.get("alg")
    usable = [each for each in possible.intersection(algorithms) if named in (None, each)]
    if not usable:
        raise ValueError(f"{key_id}: for {named or ', '.join(sorted(possible))}, of which none is permitted")
    return VerifyingKey(key_id=key_id, key=key, algorithms=frozenset(usable))


def _public_key(jwk: dict[str, Any]) -> PublicKey:
    readers: dict[str, Callable[[Any], Any]] = {
        "RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk,
    }  # fmt: skip
    reader = readers.get(str(jwk.get("kty")))
    if reader is None:
        raise ValueError(f"{jwk['kid']}: kty {jwk.get('kty')!r} is none of RSA, EC, OKP")
    try:
        key = reader(jwk)
    # Whatever a broken key makes the library raise.
    except (InvalidKeyError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{jwk['kid']}: not a valid key: {error}") from None
    if not isinstance(key, PublicKey):
        raise ValueError(f"{jwk['kid']}: crv {jwk.get('crv')!r} is not supported")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise ValueError(f"{jwk['kid']}: RSA with {key.key_size} bits: at least {MIN_RSA_BITS} are needed")
    return key


def _possible(key: PublicKey) -> frozenset[str]:
    if isinstance(key, rsa.RSAPublicKey):
        return frozenset(_RSA)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return frozenset(("EdDSA",))
    return frozenset((_CURVES[key.curve.name],)) if key.curve.name in _CURVES else frozenset()
