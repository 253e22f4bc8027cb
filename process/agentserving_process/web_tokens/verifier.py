"""Who a JWT says its bearer is. Pure: the Unix time is an argument, and so are the keys.

A token takes some 250 us of CPU to verify, so one that was found valid is remembered, by its SHA-256, until it
expires or the keys change. The algorithm and the key are ours to choose: of a token's header only `alg` and `kid` are
read, and both must be among what was configured (RFC 8725, sections 3.1 and 3.10).
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import jwt
from agentserving.contract.ids import Tenant

from agentserving_process.web_tokens.jwks import Jwks, VerifyingKey

# gRPC's limit for all metadata of a call, by default. Tokens have one or two kilobytes.
MAX_TOKEN_CHARS = 8192
# Valid tokens that are remembered; the one that is unused for longest is forgotten.
MAX_REMEMBERED = 10_000
# OpenID Connect Core, section 2.
MAX_SUBJECT_CHARS = 255
PREFIX = "jwt:"
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REQUIRED = ["iss", "aud", "exp", "sub"]


class TokenRefusal(enum.StrEnum):
    """Why a token opens nothing: the reason of UNAUTHENTICATED, and a metric label."""

    BAD_TOKEN = "BAD_TOKEN"
    ALGORITHM_NOT_ALLOWED = "ALGORITHM_NOT_ALLOWED"
    UNKNOWN_SIGNING_KEY = "UNKNOWN_SIGNING_KEY"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    WRONG_ISSUER = "WRONG_ISSUER"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_NOT_YET_VALID = "TOKEN_NOT_YET_VALID"
    NO_TENANT = "NO_TENANT"


class TokenRefusedError(Exception):
    """A token that opens nothing. The message says what to do, and contains nothing of the token but its key's id.

    `credential`: whose it is, for the audit log; empty before its signature is verified.
    """

    def __init__(self, reason: TokenRefusal, message: str, credential: str = "") -> None:
        super().__init__(message)
        self.reason, self.credential = reason, credential


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say. `tenant_claim`: the name of a claim, or for nested ones a JSON pointer (RFC 6901)."""

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    tenant_claim: str
    # Clocks differ by so many seconds.
    leeway_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClient:
    """The bearer of a valid token. `credential`: `jwt:<kid>:<sub>`, both percent-encoded, for logs and accounts.

    `until_unix_s`: from then on it is not valid.
    """

    tenant: Tenant
    credential: str
    until_unix_s: float


def is_token(text: str) -> bool:
    """Whether a credential has the form of a signed JWT, or of an unsigned one."""
    return text.count(".") == 2 and not text.startswith("as_")


def signed_by(credential: str, jwks: Jwks) -> bool:
    """Whether the key that a credential names is in the set; True for credentials of other kinds."""
    return not credential.startswith(PREFIX) or credential.split(":")[1] in {quote(kid, safe="") for kid in jwks.keys}


class TokenVerifier:
    """One per process, owned by its event loop; `verify` waits for nothing."""

    def __init__(self, rules: TokenRules, jwks: Jwks) -> None:
        self._rules, self._jwks = rules, jwks
        self._valid: OrderedDict[bytes, TokenClient] = OrderedDict()
        self._library = jwt.PyJWT(
            # Times are checked against the caller's clock.
            {"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        )

    @property
    def jwks(self) -> Jwks:
        """The keys in force."""
        return self._jwks

    @property
    def remembered(self) -> int:
        """Valid tokens that are remembered."""
        return len(self._valid)

    def replace(self, jwks: Jwks) -> None:
        """Makes these the only keys, for tokens that were valid before as well."""
        self._jwks = jwks
        self._valid.clear()

    def verify(self, text: str, now_unix_s: float) -> TokenClient:
        """The bearer of a token that is valid now. TokenRefusedError, whatever `text` contains."""
        if len(text) > MAX_TOKEN_CHARS:
            raise _refused(TokenRefusal.BAD_TOKEN, f"it has {len(text)} characters, of at most {MAX_TOKEN_CHARS}")
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        known = self._valid.get(digest)
        if known is None:
            known = self._verified(text, now_unix_s)
            self._valid[digest] = known
            if len(self._valid) > MAX_REMEMBERED:
                self._valid.popitem(last=False)
        elif known.until_unix_s <= now_unix_s:
            del self._valid[digest]
            raise _expired(known.credential)
        else:
            self._valid.move_to_end(digest)
        return known

    def _verified(self, text: str, now_unix_s: float) -> TokenClient:
        key, algorithm = self._key_of(text)
        try:
            claims = self._library.decode(
                text, key.key, [algorithm], audience=self._rules.audiences, issuer=self._rules.issuer
            )
        except jwt.InvalidTokenError as error:
            raise self._why(error) from None
        except (ValueError, TypeError, RecursionError):
            raise _refused(TokenRefusal.BAD_TOKEN, "its claims are no JSON object") from None
        subject = claims["sub"]
        if not 0 < len(subject) <= MAX_SUBJECT_CHARS:
            raise _refused(TokenRefusal.BAD_TOKEN, f"sub: 1 to {MAX_SUBJECT_CHARS} characters")
        credential = f"{PREFIX}{quote(key.key_id, safe='')}:{quote(subject, safe='@', errors='replace')}"
        until_unix_s = self._until(claims, now_unix_s, credential)
        return TokenClient(tenant=self._tenant(claims, credential), credential=credential, until_unix_s=until_unix_s)

    def _key_of(self, text: str) -> tuple[VerifyingKey, str]:
        """The key that a token's header names, and the algorithm, both among those that are trusted."""
        if _FORM.fullmatch(text) is None:
            raise _refused(TokenRefusal.BAD_TOKEN, "it is not three parts of base64url with dots between them")
        try:
            header = jwt.get_unverified_header(text)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise _refused(TokenRefusal.BAD_TOKEN, "its header cannot be read") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        # Before the key: what a token asks for is refused whoever signed it.
        if algorithm not in self._rules.algorithms:
            permitted = ", ".join(self._rules.algorithms)
            raise _refused(TokenRefusal.ALGORITHM_NOT_ALLOWED, f"alg: it must be signed with {permitted}")
        if "crit" in header or header.get("b64", True) is not True:
            raise _refused(TokenRefusal.BAD_TOKEN, "crit, b64: extensions of the header are not supported")
        key = self._jwks.keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise _refused(
                TokenRefusal.UNKNOWN_SIGNING_KEY, "kid: it names no key of the issuer's JWK Set here: get a new token"
            )
        if algorithm not in key.algorithms:
            usable = ", ".join(sorted(key.algorithms))
            raise _refused(TokenRefusal.ALGORITHM_NOT_ALLOWED, f"alg: key {key.key_id!r} is for {usable}")
        return key, algorithm

    def _why(self, error: jwt.InvalidTokenError) -> TokenRefusedError:
        match error:
            case jwt.InvalidSignatureError():
                return _refused(TokenRefusal.BAD_SIGNATURE, "its signature is not that of the key that it names")
            case jwt.InvalidIssuerError():
                return _refused(TokenRefusal.WRONG_ISSUER, f"iss: it must be {self._rules.issuer!r}")
            case jwt.InvalidAudienceError() | jwt.MissingRequiredClaimError(claim="aud"):
                expected = " or ".join(repr(each) for each in self._rules.audiences)
                return _refused(TokenRefusal.WRONG_AUDIENCE, f"aud: it must contain {expected}")
            case jwt.MissingRequiredClaimError():
                return _refused(TokenRefusal.BAD_TOKEN, f"it has no claim {error.claim!r}")
            case _:
                return _refused(TokenRefusal.BAD_TOKEN, "a part of it, or one of its claims, has the wrong form")

    def _until(self, claims: dict[str, Any], now_unix_s: float, credential: str) -> float:
        leeway_s = self._rules.leeway_s
        until_unix_s = _time(claims, "exp", math.inf) + leeway_s
        if until_unix_s <= now_unix_s:
            raise _expired(credential)
        if max(_time(claims, "nbf", 0.0), _time(claims, "iat", 0.0)) - leeway_s > now_unix_s:
            raise _refused(
                TokenRefusal.TOKEN_NOT_YET_VALID, "nbf, iat: it is not valid yet: compare the clocks", credential
            )
        return until_unix_s

    def _tenant(self, claims: dict[str, Any], credential: str) -> Tenant:
        name = self._rules.tenant_claim
        # RFC 6901, section 4: ~1 stands for a slash in a name, ~0 for a tilde.
        steps = [step.replace("~1", "/").replace("~0", "~") for step in name[1:].split("/")]
        found: Any = claims
        for step in steps if name.startswith("/") else [name]:
            found = found.get(step) if isinstance(found, dict) else None
        if not isinstance(found, str) or _TENANT.fullmatch(found) is None:
            wanted = "1 to 64 of A-Z a-z 0-9 . _ -"
            raise _refused(TokenRefusal.NO_TENANT, f"{name}: this claim must name its tenant ({wanted})", credential)
        return Tenant(found)


def _time(claims: dict[str, Any], name: str, absent: float) -> float:
    found = claims.get(name, absent)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 1e15:
        raise _refused(TokenRefusal.BAD_TOKEN, f"{name}: a number of Unix seconds is expected")
    return float(found)


def _expired(credential: str) -> TokenRefusedError:
    return _refused(TokenRefusal.TOKEN_EXPIRED, "exp: it has expired: get a new one from your issuer", credential)


def _refused(reason: TokenRefusal, what: str, credential: str = "") -> TokenRefusedError:
    return TokenRefusedError(reason, f"this JWT is not accepted: {what}", credential)
