"""Operations on API keys, in the form of operations.py. For administrators. Pure."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from agentserving.client import messages
from agentserving.client.keys import ApiKey, NewApiKey
from agentserving.client.operations import Operation
from agentserving.contract.service_class import ServiceClass
from agentserving.v1 import key_service_pb2 as pb
from agentserving.v1 import types_pb2

KEYS = "/agentserving.v1.KeyService/"


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of a list of keys. An empty `next_page_token` marks the last one."""

    keys: tuple[ApiKey, ...]
    next_page_token: str


def create_key(
    tenant: str = "",
    *,
    name: str = "",
    lifetime_s: float = 0.0,
    admin: bool = False,
    calls_per_minute: int = 0,
    prompt_tokens_per_minute: int = 0,
    service_class: ServiceClass = ServiceClass.UNSPECIFIED,
) -> Operation[NewApiKey]:
    """Makes an API key of a tenant's clients, or of an administrator (no tenant); durable when it returns.

    `lifetime_s` 0 = it does not expire. Calls and prompt tokens a minute (estimated from the length of requests) are
    bounded at each gateway; 0 = unbounded. `service_class`: of programs opened with the key that ask for none, and the
    best that they may ask for; UNSPECIFIED = as the tenant's. For administrators.
    """
    request = pb.CreateKeyRequest(
        role=pb.ROLE_ADMIN if admin else pb.ROLE_CLIENT,
        tenant=tenant,
        name=name,
        idempotency_key=uuid.uuid4().hex,
        calls_per_minute=calls_per_minute,
        prompt_tokens_per_minute=prompt_tokens_per_minute,
        service_class=types_pb2.ServiceClass.ValueType(service_class),
    )
    if lifetime_s:
        request.lifetime.FromMilliseconds(round(lifetime_s * 1000))
    return Operation(
        KEYS + "CreateKey",
        request,
        pb.CreateKeyResponse,
        lambda response: NewApiKey(messages.read(ApiKey, response.key), response.text),
    )


def list_keys_page(tenant: str = "", *, page_size: int = 0, page_token: str = "") -> Operation[KeyPage]:
    """A page of the API keys of a tenant, "" = of all, in the order of their ids. For administrators."""
    return Operation(
        KEYS + "ListKeys",
        pb.ListKeysRequest(tenant=tenant, page_size=page_size, page_token=page_token),
        pb.ListKeysResponse,
        lambda response: KeyPage(tuple(messages.read(ApiKey, key) for key in response.keys), response.next_page_token),
    )


def revoke_key(key_id: str) -> Operation[ApiKey]:
    """Ends an API key; durable when it returns, in force on every gateway within seconds. For administrators."""
    return Operation(
        KEYS + "RevokeKey",
        pb.RevokeKeyRequest(key_id=key_id),
        pb.RevokeKeyResponse,
        lambda response: messages.read(ApiKey, response.key),
    )
