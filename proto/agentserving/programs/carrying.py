"""What the hooks of all HTTP libraries share: which request becomes a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from agentserving.programs import context, headers
from agentserving.programs.context import CarriedCall
from agentserving.programs.gateways import Gateways, Url

# A process that is started in a program: its calls outside of programs of its own belong to that one.
PROGRAM_ID = "AGENTSERVING_PROGRAM_ID"

_sending: ContextVar[bool] = ContextVar("agentserving_sending", default=False)


class InheritedCall:
    """A call of the program that this process was started in, which sees neither its threads nor its other calls."""

    def __init__(self, program_id: str) -> None:
        self.headers = headers.headers_of(program_id)

    def answered(self, call_id: str) -> None:
        """As CarriedCall."""

    def end(self) -> None:
        """As CarriedCall."""


Call = CarriedCall | InheritedCall
# (method, URL, the program that the request names already) -> the call that it becomes
CallFor = Callable[[str, Url, str], Call | None]
# Class, name of a method, and the wrapper of the original.
Patch = tuple[type[Any], str, Callable[[Any], Any]]


def inherited_program_id() -> str:
    """Of the environment; empty without one, and for an invalid one."""
    found = os.environ.get(PROGRAM_ID, "")
    return found if headers.is_program_id(found) else ""


def call_for(gateways: Gateways, method: str, url: Url, named: str) -> Call | None:
    """The call that a request becomes; None outside of programs, for other servers, and for another program's."""
    at = context.current_point()
    program_id = at.thread.tracker.program_id if at is not None else inherited_program_id()
    if not program_id or method != "POST" or _sending.get() or named not in ("", program_id):
        return None
    if not gateways.include(url):
        if at is not None:
            at.thread.tracker.elsewhere(f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else ""))
        return None
    return context.begin_call() if at is not None else InheritedCall(program_id)


@contextmanager
def sending() -> Iterator[None]:
    """Requests in the block are parts of a call: of its transport, or tried again."""
    token = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(token)
