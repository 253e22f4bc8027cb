"""What of an engine's HTTP port is open to whom, where calls need tickets. Pure.

| door | requests | opened by |
|---|---|---|
| OPEN | /health, which kubelet asks | nothing |
| CALL | POST to the routes that generate | a ticket, for one request (entrance.py) |
| READ | what gateways forward besides calls: tokens, scores, stored responses, names of models | a gateway's ticket |
| POD | all else: metrics, documentation, adapters, sleep, whatever a version of vLLM adds | the secret of the pod |

The secret opens READ as well: the sidecar asks for the list of models. A ticket of the control plane does not, because
clients hold it themselves.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from enum import Enum

from agentserving.contract.engine_http import COUNTED, MODELS, POD_HEADER, RESPONSES, SCORED, SHOWN

from agentserving_engine.http.dialects import ROUTES
from agentserving_engine.http.entrance import Entrance, RefusedEntryError

_OPEN = frozenset({"/health", "/ping"})
_READ = {
    "POST": frozenset({*COUNTED, *SCORED}),
    "GET": frozenset({*SHOWN, MODELS}),
}
_POD_HEADER = POD_HEADER.encode()
TICKET_HEADER = b"x-session-id"


class Door(Enum):
    """What opens a route."""

    OPEN = "open"
    CALL = "call"
    READ = "read"
    POD = "pod"


def door_of(method: str, path: str) -> Door:
    """The door of a request; `path` as vLLM's router compares it."""
    if path in _OPEN:
        return Door.OPEN
    if path in ROUTES and method == "POST":
        return Door.CALL
    if path in _READ.get(method, ()) or path.startswith(RESPONSES + "/"):
        return Door.READ
    return Door.POD


def check(method: str, path: str, headers: Iterable[tuple[bytes, bytes]], entrance: Entrance, unix_s: float) -> None:
    """Raises RefusedEntryError for a request that must not reach vLLM; calls are checked by `Entrance.enter`.

    `headers`: names in lower case.
    """
    door = door_of(method, path)
    if door in (Door.OPEN, Door.CALL) or not entrance.is_closed:
        return
    sent = dict(reversed(list(headers)))
    given = sent.get(_POD_HEADER, b"")
    if entrance.pod_secret and hmac.compare_digest(given, entrance.pod_secret.encode()):
        return
    if door is Door.POD:
        raise RefusedEntryError("pod_only")
    entrance.read(sent.get(TICKET_HEADER, b"").decode("latin-1"), unix_s)
