"""The keys that sign and verify tickets, and how one takes the other's place. Pure: time and bytes are arguments.

Pods read a changed Secret at different times. So a new key is announced first (`key.next`: verifies, does not sign),
then signs, and the one before verifies for as long as a ticket of it may be on its way (`key.previous`). Which request
for a new key is under way or done, and since when, is written on the Secret.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest
from agentserving_operator.spec.crd import GROUP

KEY_BYTES = 32
# On an AgentServingCluster, by whoever wants a new key: any value but the last one.
ROTATE = f"{GROUP}/rotate-ticket-key"
_DONE, _SINCE = f"{GROUP}/rotation", f"{GROUP}/rotation-step-since"
# kubelets bring a changed Secret within two minutes; this often we come by at least: every five.
ANNOUNCED_FOR = datetime.timedelta(minutes=10)
# A ticket is good for ten minutes.
KEPT_FOR = datetime.timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """At most one of `next` and `previous` is there. `request`: the one that these keys answer, `since`: when."""

    key: bytes
    next: bytes | None = None
    previous: bytes | None = None
    request: str = ""
    since: datetime.datetime | None = None


def rotated(
    keys: TicketKeys, request: str, now: datetime.datetime, random_bytes: Callable[[int], bytes]
) -> TicketKeys:  # fmt: skip
    """One step further, where it is time for one. A request that comes meanwhile is answered afterwards."""
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
    """As pods mount it."""
    files = {"key": keys.key, "key.next": keys.next, "key.previous": keys.previous}
    data = {name: base64.b64encode(key).decode() for name, key in files.items() if key is not None}
    secret = made(
        cluster, "v1", "Secret", Component.CONTROL_PLANE, cluster.ticket_key_name, type="Opaque", data=data
    )  # fmt: skip
    if keys.since is not None:
        since = keys.since.strftime("%Y-%m-%dT%H:%M:%SZ")
        secret["metadata"]["annotations"] = {_DONE: keys.request, _SINCE: since}
    return secret


def ticket_keys_of(secret: Manifest) -> TicketKeys | None:
    """What a Secret holds; None when that is no key."""
    told = secret["metadata"].get("annotations") or {}
    try:
        found = {name: base64.b64decode(each, validate=True) for name, each in (secret.get("data") or {}).items()}
        since = datetime.datetime.fromisoformat(told[_SINCE]) if _SINCE in told else None
        return TicketKeys(
            found["key"], found.get("key.next"), found.get("key.previous"), told.get(_DONE, ""), since
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
