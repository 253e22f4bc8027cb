"""The keys that sign and verify tickets, and their rotation. Pure: time and random bytes are arguments.

Pods read a changed Secret at different times. Therefore a new key is first announced (`key.next` verifies but does not
sign), then it signs, and the old one (`key.previous`) still verifies until the last ticket it signed has expired. The
Secret's annotations record which request for a new key is in progress or done, and since when. Engines mount the
public keys (`public`, `public.next`, `public.previous`) and no other.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

from agentserving.contract.signatures import public_bytes

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object
from agentserving_operator.spec.crd import GROUP

KEY_BYTES = 32
# Annotation of an AgentServingCluster: a new value requests a new key.
ROTATE = f"{GROUP}/rotate-ticket-key"
_DONE, _SINCE = f"{GROUP}/rotation", f"{GROUP}/rotation-step-since"
# kubelet updates a mounted Secret within two minutes, and a cluster is visited every five.
ANNOUNCED_FOR = datetime.timedelta(minutes=10)
# Tickets are valid for ten minutes.
KEPT_FOR = datetime.timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """At most one of `next` and `previous` is set. `request` led to these keys, `since` is the last step's time."""

    key: bytes
    next: bytes | None = None
    previous: bytes | None = None
    request: str = ""
    since: datetime.datetime | None = None


def rotated(
    keys: TicketKeys, request: str, now: datetime.datetime, random_bytes: Callable[[int], bytes]
) -> TicketKeys:  # fmt: skip
    """The next step, if it is due. A request that arrives during a rotation is served after it."""
    age = now - keys.since if keys.since is not None else ANNOUNCED_FOR + KEPT_FOR
    if keys.next is not None:
        if age < ANNOUNCED_FOR:
            return keys
        return replace(keys, key=keys.next, next=None, previous=keys.key, since=now)
    if keys.previous is not None:
        return keys if age < KEPT_FOR else replace(keys, previous=None, since=now)
    if request in ("", keys.request):
        return keys
    return replace(keys, next=random_bytes(KEY_BYTES), request=request, since=now)


def ticket_key_secret(cluster: AgentServingCluster, keys: TicketKeys) -> Manifest:
    """The Secret that pods mount."""
    files = {"key": keys.key, "key.next": keys.next, "key.previous": keys.previous}
    data = {}
    for name, key in files.items():
        if key is not None:
            data[name] = base64.b64encode(key).decode()
            data[public_name(name)] = base64.b64encode(public_bytes(key)).decode()
    secret = child_object(
        cluster, "v1", "Secret", Component.CONTROL_PLANE, cluster.ticket_key_name, type="Opaque", data=data
    )  # fmt: skip
    if keys.since is not None:
        since = keys.since.strftime("%Y-%m-%dT%H:%M:%SZ")
        secret["metadata"]["annotations"] = {_DONE: keys.request, _SINCE: since}
    return secret


def public_name(name: str) -> str:
    """The public key that belongs to a key of the Secret."""
    return name.replace("key", "public", 1)


def has_public_keys(secret: Manifest) -> bool:
    """False for a Secret from before engines verified tickets by public keys."""
    data = secret.get("data") or {}
    return all(public_name(name) in data for name in data if name.split(".")[0] == "key")


def ticket_keys_of(secret: Manifest) -> TicketKeys | None:
    """The keys in a Secret; None when it has no valid key."""
    annotations = secret["metadata"].get("annotations") or {}
    try:
        found = {name: base64.b64decode(each, validate=True) for name, each in (secret.get("data") or {}).items()}
        since = datetime.datetime.fromisoformat(annotations[_SINCE]) if _SINCE in annotations else None
        return TicketKeys(
            found["key"], found.get("key.next"), found.get("key.previous"), annotations.get(_DONE, ""), since
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
