"""A program without its text: calls, tokens, times, and the order in which calls may be made. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from agentserving.contract.ids import ProgramId
from agentserving.contract.service_class import ServiceClass


class Call(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One LLM call. Indices refer to earlier calls of the same program."""

    # Tokens of the whole prompt, including those repeated from earlier calls.
    prompt_tokens: int
    output_tokens: int
    # The call is made when its parents have ended and its tool, if any, has taken `gap_s`.
    parents: tuple[int, ...] = ()
    gap_s: float = 0.0
    # The prompt begins with `shared_tokens` of this call's context (prompt and output); -1: of the system prompt.
    extends: int = -1
    shared_tokens: int = 0
    thread: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """One run of an agent. `name` is its class; programs of one name share a system prompt."""

    program_id: ProgramId
    name: str
    arrival_s: float
    calls: tuple[Call, ...]
    service_class: ServiceClass = ServiceClass.STANDARD

    @property
    def output_tokens(self) -> int:
        return sum(call.output_tokens for call in self.calls)
