"""The headers by which a call names its program, and their valid values. Pure; gateways use this module, too."""

from __future__ import annotations

import hashlib
import re

PROGRAM_ID = "x-agentserving-program-id"
PARENT_PROGRAM_ID = "x-agentserving-parent-program-id"
PROGRAM_NAME = "x-agentserving-program-name"
THREAD_ID = "x-agentserving-thread-id"
PARENT_CALL_IDS = "x-agentserving-parent-call-ids"
# Of the program's tree, as in agentserving.contract.budgets; in responses what remains of it, once little does.
BUDGET = "x-agentserving-budget"
# interactive, standard or batch: of the program that the call opens.
SERVICE_CLASS = "x-agentserving-service"
# "true" with a program's last call: the program is completed when its calls have ended.
FINAL = "x-agentserving-final"
# In the gateway's responses.
CALL_ID = "x-agentserving-call-id"

SENT = (PROGRAM_ID, PARENT_PROGRAM_ID, PROGRAM_NAME, THREAD_ID, PARENT_CALL_IDS, BUDGET)

MAX_NAME_BYTES = 128
_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
_UNSAFE = re.compile(r"[^\x20-\x7e]+")


def is_program_id(text: str) -> bool:
    """Whether it may be one: 1 to 128 of A-Z a-z 0-9 . _ : @ / -"""
    return _ID.fullmatch(text) is not None


def thread_id(name: str) -> str:
    """A thread's name as an id: unchanged, or a hash when it has other characters or is too long."""
    if _ID.fullmatch(name):
        return name
    return "h-" + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:40]


def short_name(name: str) -> str:
    """A program's name, cut to the limit of the control plane."""
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def headers_of(
    program_id: str,
    *,
    parent_program_id: str = "",
    name: str = "",
    thread: str = "",
    parents: tuple[str, ...] = (),
    budget: str = "",
    service_class: str = "",
) -> dict[str, str]:
    """The headers whose values are not empty; in a name, `?` replaces what is not printable ASCII."""
    name = _UNSAFE.sub("?", name).strip()
    values = (program_id, parent_program_id, name, thread, ",".join(parents), budget, service_class)
    return {header: value for header, value in zip((*SENT, SERVICE_CLASS), values, strict=True) if value}
