"""The next call of the current program, for `generate`. `agentserving.programs` provides it, once it is loaded.

Clients are below programs and do not import them: without `agentserving.programs` there is no current program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class CurrentCall(Protocol):
    """A call of the current program that has begun."""

    @property
    def program_id(self) -> str: ...
    @property
    def program_name(self) -> str: ...
    @property
    def parent_program_id(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the calls it follows."""
        ...

    def answered(self, call_id: str) -> None:
        """A successful response has begun."""
        ...

    def end(self) -> None:
        """The response has ended."""
        ...


def _no_program(program_id: str | None) -> CurrentCall | None:
    return None


# Begins a call if a program is current and, when an id is given, has that id.
begin: Callable[[str | None], CurrentCall | None] = _no_program
