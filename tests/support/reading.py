"""Reads of a body's conversation, without their pauses."""

from __future__ import annotations

from agentserving.contract.ids import ProgramId, Tenant
from agentserving_gateway.body import Body
from agentserving_gateway.content import Conversation, Reading, Runs


def read_whole(steps: Reading) -> Conversation | None:
    """The result of a reading."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Conversation | None = end.value
            return found


def program_of(runs: Runs, tenant: Tenant, body: Body) -> ProgramId:
    """The program that a call without an id joins, as the picker finds it."""
    conversation = read_whole(runs.reading(body))
    return ProgramId("") if conversation is None else runs.join(tenant, conversation)
