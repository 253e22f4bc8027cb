"""The keys that sign and verify tickets, and their rotation. Pure: time and random bytes are arguments.

Pods read a changed Secret at different times. Therefore a new key is first announced (`key.next` verifies but does not
sign), then it signs, and the old one (`key.previous`) still verifies until the last ticket it signed has expired. The
Secret's annotations record which request for a new key is in progress or done, and since when. Engines mount the
public keys (`public`, `public.next`, `public.previous`) and no other.

Gateways sign tickets while no control plane can be reached, with keys of their own (`gateway-key`, ...). These are
derived from the control plane's, so they rotate with them; the other direction is a one-way function.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace

from agentserving.contract.signatures import public_bytes

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object
from agentserving_operator.spec.crd import GROUP

KEY_BYTES = 32
_GATEWAY = b"agentserving tickets of gateways"
FILES = ("key", "public", "gateway-key", "gateway-public")
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
    data: dict[str, str] = {}
    for suffix, key in (("", keys.key), (".next", keys.next), (".previous", keys.previous)):
        if key is not None:
            files = files_of(key)
            data |= {f"{name}{suffix}": base64.b64encode(content).decode() for name, content in files.items()}
    secret = child_object(
        cluster, "v1", "Secret", Component.CONTROL_PLANE, cluster.ticket_key_name, type="Opaque", data=data
    )  # fmt: skip
    if keys.since is not None:
        since = keys.since.strftime("%Y-%m-%dT%H:%M:%SZ")
        secret["metadata"]["annotations"] = {_DONE: keys.request, _SINCE: since}
    return secret


def files_of(key: bytes) -> dict[str, bytes]:
    """What goes with one key of the control plane, by the name of its file without a suffix."""
    gateway = hmac.digest(key, _GATEWAY, "sha256")
    return {"key": key, "public": public_bytes(key), "gateway-key": gateway, "gateway-public": public_bytes(gateway)}


def has_all_files(secret: Manifest) -> bool:
    """False for a Secret from before engines verified tickets by public keys, or before gateways signed any."""
    data = secret.get("data") or {}
    suffixes = [name.removeprefix("key") for name in data if name.split(".")[0] == "key"]
    return all(f"{name}{suffix}" in data for name in FILES for suffix in suffixes)


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
