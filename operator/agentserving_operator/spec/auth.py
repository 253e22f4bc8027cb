"""Who may use a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, Rule, choice, integer, items, struct, text


class ClientAuth(StrEnum):
    """What clients must present."""

    KEYS = "Keys"
    NONE = "None"


class Algorithm(StrEnum):
    """Signatures of JWTs, by a private key only (RFC 7518, RFC 8037)."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"


# Without spaces, and without the $ that kubelet replaces in command lines.
WORD = r"^[!#%-~]+$"
# The file in the Secret.
JWKS_KEY = "jwks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt:
    """JWTs of an organisation's own issuer, which clients may present instead of keys."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule("size(self.algorithms) > 0", "algorithms needs one", lambda j: bool(j.algorithms), "algorithms"),
    )

    issuer: str = text("The claim iss, letter by letter.", 512, min_length=1, pattern=WORD)
    audience: str = text(
        "The claim aud must contain it. It should name this cluster alone: tokens for other services open it else.",
        256,
        min_length=1,
        pattern=r"^[!#%-+\--~]+$",
    )
    jwks_secret_name: str = text(
        f"Secret with the issuer's public keys, a JWK Set, in {JWKS_KEY}; read again when it changes.",
        253,
        min_length=1,
        pattern=DNS_SUBDOMAIN,
    )
    tenant_claim: str = text(
        "The claim that names a client's tenant; for a nested one a JSON pointer, such as /kubernetes.io/namespace.",
        256,
        default="tenant",
        min_length=1,
        pattern=WORD,
    )
    algorithms: tuple[Algorithm, ...] = items(
        "Signatures that are accepted.", 10, list_type="set", default=(Algorithm.RS256, Algorithm.ES256)
    )
    leeway_seconds: int = integer("By how much clocks may differ.", 0, 300, default=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """What clients must present. The cluster's own parts have certificates (spec.tls)."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.jwt) || (has(self.clients) && self.clients == 'Keys')",
            "jwt needs clients Keys: JWTs are accepted beside keys",
            lambda a: a.jwt is None or a.clients is ClientAuth.KEYS,
            "jwt",
        ),
    )

    clients: ClientAuth | None = choice(
        "Keys: every call and every RPC of a client needs a key, which belongs to a tenant, and engines refuse calls "
        "without a ticket; needs spec.tls. None: anyone who reaches a port is served as any tenant. Absent: Keys for a "
        "new cluster, None without TLS; what is in force stays (status.clientAuth), so a cluster from before keys "
        "existed stays without.",
        default=None,
    )
    jwt: Jwt | None = struct("JWTs that clients may present instead of keys; absent: none.", default=None)


def in_force(given: ClientAuth | None, tls_on: bool, status: Mapping[str, Any]) -> ClientAuth:
    """What clients must present, from the spec and the cluster's last status.

    The API server would fill in a default of the CRD for stored objects as well, and so change clusters that serve
    clients without keys. A status with a URL and without `clientAuth` was written by an operator from before keys.
    """
    if given is not None:
        return given
    if not tls_on:
        return ClientAuth.NONE
    before = status.get("clientAuth") or (ClientAuth.NONE if status.get("url") else ClientAuth.KEYS)
    return ClientAuth(before)
