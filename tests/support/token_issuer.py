"""An issuer of JWTs with keys that tests choose, and a forger who signs what PyJWT would not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "agentserving"
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
# Made once: a key takes a tenth of a second.
RSA_KEY, OTHER_RSA_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Key, kid: str, **members: Any) -> dict[str, Any]:
    """The public key as a member of a JWK Set."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        found = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        found = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        found = OKPAlgorithm.to_jwk(public, as_dict=True)
    found.pop("key_ops", None)
    return {**found, "kid": kid, "use": "sig", **members}


def jwks(*keys: Any) -> bytes:
    """A JWK Set."""
    return json.dumps({"keys": list(keys)}).encode()


def replace(file: Path, data: bytes) -> None:
    """As a mounted Secret is replaced: by a rename."""
    scratch = file.with_suffix(".new")
    scratch.write_bytes(data)
    scratch.replace(file)


def claims(tenant: Any = "acme", sub: Any = "ci-bot", now_unix_s: float | None = None, **more: Any) -> dict[str, Any]:
    """What a good token says; None removes a claim."""
    now = int(time.time() if now_unix_s is None else now_unix_s)
    found = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": sub, "tenant": tenant, "iat": now, "exp": now + 600, **more,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def token(key: Key = RSA_KEY, kid: str | None = "rsa-1", alg: str = "RS256", header: Any = None, **said: Any) -> str:
    """A token that is signed by a private key."""
    headers = {**({"kid": kid} if kid is not None else {}), **(header or {})}
    return jwt.encode(claims(**said), key, algorithm=alg, headers=headers)


def part(value: Any) -> str:
    """One part of a token: JSON, or bytes as they are."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: Any, payload: Any, signature: bytes = b"") -> str:
    """Any header and payload, with any signature."""
    return f"{part(header)}.{part(payload)}.{part(signature)}"


def hmac_by_public_key(kid: str = "rsa-1", form: str = "pem") -> str:
    """The attack on verifiers that let a token choose: an HMAC whose secret is the public key."""
    secret = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if form == "stripped":
        secret = secret.strip()
    elif form == "der":
        secret = RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    head = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{part(claims())}"
    return f"{head}.{part(hmac.new(secret, head.encode(), hashlib.sha256).digest())}"
