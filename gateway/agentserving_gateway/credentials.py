"""Who sends a request: the credential in its head. Pure but for the clock.

A credential is a key, verified against the keys that the leader has sent, or a JWT, verified against its issuer's
public keys, or a grant of this gateway, with which the batch service makes the calls of a client's batch. It comes as
`Authorization: Bearer <credential>` (OpenAI) or `x-api-key: <credential>` (Anthropic). What a request claims about its
tenant is never read: the credential names it. Without keys (--client-auth none) everybody is the tenant `default`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from agentserving.contract.grant import GrantRefusedError, is_grant
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRefusal, KeyRefusedError, KeyRow, KeySet, from_authorization, parse
from agentserving.contract.service_class import ServiceClass
from agentserving_process.web_tokens.verifier import PREFIX as OF_TOKENS
from agentserving_process.web_tokens.verifier import TokenRefusedError, TokenVerifier, is_token

from agentserving_gateway import metrics
from agentserving_gateway.envoy.names import API_KEY, AUTHORIZATION, CREDENTIALS
from agentserving_gateway.errors import HttpError
from agentserving_gateway.grants import Grants
from agentserving_gateway.rates import UNLIMITED, Limits

# A gateway that starts has the keys as soon as a leader answers.
KEYS_COME_S = 2.0


class ClientAuth(Enum):
    """How clients show who they are."""

    KEYS = "keys"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client that was let in. `credential`: the id of its key, or `jwt:<kid>:<sub>`; empty without keys.

    `for_engines`: a credential that is passed on when engines are asked on the client's behalf."""

    tenant: Tenant
    credential: str = ""
    for_engines: str = ""
    limits: Limits = UNLIMITED
    # The best class of service that the key may use; UNSPECIFIED = any.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED
    # The batch service sends it for the client.
    acts_by_grant: bool = False


_WHERE = "send `Authorization: Bearer as_...` (OPENAI_API_KEY) or `x-api-key: as_...` (ANTHROPIC_API_KEY)"
_MAKE = "an administrator makes one with `agentserving key create`"
_MESSAGES = {
    KeyRefusal.NO_CREDENTIAL: f"no API key was sent: {_WHERE}; {_MAKE}",
    KeyRefusal.UNKNOWN_KEY: "this API key is not a client's of this cluster: check that it is complete; " + _MAKE,
    KeyRefusal.KEY_EXPIRED: "API key {key_id} has expired: use another one; " + _MAKE,
    KeyRefusal.KEY_REVOKED: "API key {key_id} has been revoked: use another one; " + _MAKE,
}


class Authenticator:
    """One per process. `keys` gives the current set, None while no leader has sent one; without it everybody comes in.

    `is_current`: a key that is not in the set does not exist. `now`: Unix time.
    """

    def __init__(
        self,
        keys: Callable[[], KeySet | None] | None = None,
        now: Callable[[], float] = time.time,
        tokens: TokenVerifier | None = None,
        grants: Grants | None = None,
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """`tokens`: JWTs are accepted as well as keys. `grants`: so are grants of this gateway."""
        self._keys, self._now, self._tokens, self._grants = keys, now, tokens, grants
        self._is_current = is_current

    @property
    def is_ready(self) -> bool:
        """False while no caller can be admitted, because no keys are known."""
        return self._keys is None or self._keys() is not None

    @property
    def removed_headers(self) -> tuple[str, ...]:
        """Headers that engines must not see."""
        return () if self._keys is None else CREDENTIALS

    def client_of(self, headers: Mapping[str, str]) -> Client:
        """Who sends a request with these headers (names in lower case). HttpError 401, or 503 while no keys are known.

        503, too, for a key that only the leader may know, while it is not connected.

        Takes a few microseconds: keys need no slow hash.
        """
        if self._keys is None:
            return Client(tenant=Tenant("default"), for_engines=headers.get(AUTHORIZATION, ""))
        sent = _sent(headers)
        if self._tokens is not None and is_token(sent):
            return self._by_token(self._tokens, sent)
        keys = self._keys()
        if keys is None:
            raise _not_yet("NO_KEYS_YET", "this gateway has not received the API keys of its clients yet")
        if self._grants is not None and is_grant(sent):
            return self._by_grant(self._grants, keys, sent)
        try:
            row = keys.verify(sent, self._now())
        except KeyRefusedError as error:
            raise self._refusal(error, is_a_key=parse(sent) is not None) from None
        return Client(tenant=row.tenant, credential=row.key_id, limits=_limits_of(row), service_class=row.service_class)

    def _refusal(self, error: KeyRefusedError, *, is_a_key: bool) -> HttpError:
        """`is_a_key`: by its form. Clients give up after 401, and a leader that is not connected may know the key."""
        if error.reason is KeyRefusal.UNKNOWN_KEY and is_a_key and not self._is_current():
            return _not_yet("KEYS_NOT_CURRENT", "this gateway does not know the API key, and reaches no leader")
        metrics.UNAUTHENTICATED.labels(error.reason.value).inc()
        return _refused(error, self._tokens is not None)

    def _by_grant(self, grants: Grants, keys: KeySet, text: str) -> Client:
        """The client that has created a batch, while its key is valid; its calls are of class batch."""
        try:
            found = grants.read(text)
        except GrantRefusedError as error:
            metrics.UNAUTHENTICATED.labels("INVALID_GRANT").inc()
            raise HttpError(
                401, f"the credential of this batch is not valid: {error}", code="invalid_grant",
                challenge=_CHALLENGE + _INVALID, refusal="INVALID_GRANT",
            ) from None  # fmt: skip
        row = keys.get(found.credential)
        # A JWT cannot be revoked: the grant's own expiry bounds its batches.
        is_of_key = not found.credential.startswith(OF_TOKENS)
        refusal = row.refusal(self._now()) if row is not None else KeyRefusal.UNKNOWN_KEY if is_of_key else None
        if refusal is not None:
            raise self._refusal(KeyRefusedError(refusal, found.credential), is_a_key=True)
        return Client(
            tenant=Tenant(found.tenant),
            credential=found.credential,
            limits=UNLIMITED if row is None else _limits_of(row),
            service_class=ServiceClass.BATCH,
            acts_by_grant=True,
        )

    def _by_token(self, tokens: TokenVerifier, text: str) -> Client:
        try:
            found = tokens.verify(text, self._now())
        except TokenRefusedError as error:
            metrics.UNAUTHENTICATED.labels(error.reason.value).inc()
            raise HttpError(
                401, str(error), code="invalid_token", challenge=_CHALLENGE + _INVALID, refusal=error.reason.value,
                credential=error.credential,
            ) from None  # fmt: skip
        return Client(tenant=found.tenant, credential=found.credential)


def _limits_of(row: KeyRow) -> Limits:
    if not (row.calls_per_minute or row.prompt_tokens_per_minute):
        return UNLIMITED
    return Limits(calls_per_minute=row.calls_per_minute, prompt_tokens_per_minute=row.prompt_tokens_per_minute)


# RFC 6750, section 3: a request without a credential gets no error code.
_CHALLENGE, _INVALID = 'Bearer realm="agentserving"', ', error="invalid_token"'


def _sent(headers: Mapping[str, str]) -> str:
    """The credential of a request; some SDKs send both headers, one of them with a placeholder."""
    bearer = from_authorization(headers.get(AUTHORIZATION, ""))
    api_key = headers.get(API_KEY, "").strip()
    if parse(bearer) is None and not is_token(bearer) and api_key:
        return api_key
    # A credential of another kind is no key, and is not nothing.
    return bearer or headers.get(AUTHORIZATION, "")


def _not_yet(reason: str, message: str) -> HttpError:
    metrics.UNAUTHENTICATED.labels(reason).inc()
    return HttpError(503, f"{message}: try again in a moment", "server_error", "no_keys", retry_after_s=KEYS_COME_S)


def _refused(error: KeyRefusedError, takes_tokens: bool) -> HttpError:
    is_missing = error.reason is KeyRefusal.NO_CREDENTIAL
    message = _MESSAGES[error.reason].format(key_id=error.key_id)
    return HttpError(
        401,
        message + ("; a JWT of your organisation's issuer is accepted as well" if takes_tokens else ""),
        code="missing_api_key" if is_missing else "invalid_api_key",
        refusal=error.reason.value,
        credential=error.key_id,
        # RFC 6750, section 3: a request without a credential gets no error code.
        challenge=_CHALLENGE + ("" if is_missing else _INVALID),
    )
