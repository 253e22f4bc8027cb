"""How a watch goes on after its stream has broken. Pure; `Client` and `AsyncClient` do what it says.

A stream that breaks is opened again after the revision seen last. When the control plane no longer keeps that far back
(GoneError), or counts from lower than we have seen (it lost its store), what was seen is void: list again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentserving.client import messages
from agentserving.client.values import Endings, Program, ProgramChanges, ProgramState
from agentserving.transport.errors import AgentServingError, DeadlineExceededError, GoneError, UnavailableError
from agentserving.v1 import call_service_pb2
from agentserving.v1 import program_service_pb2 as pb

PATH = "/agentserving.v1.ProgramService/WatchPrograms"
ENDINGS_PATH = "/agentserving.v1.CallService/WatchEndings"
FIRST_DELAY_S, MAX_DELAY_S = 0.2, 5.0
EVERY_STATE = tuple(state for state in ProgramState if state)


class _Patience:
    """Delays between streams: doubled up to a bound, short again once a stream has told something."""

    def __init__(self) -> None:
        self._delay_s = FIRST_DELAY_S

    def delay_s(self, error: AgentServingError) -> float:
        """How long to wait before going on; raises an error that will not pass."""
        if not isinstance(error, UnavailableError | DeadlineExceededError):
            raise error
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, MAX_DELAY_S)
        return max(delay, error.retry_after_s)


class Watch(_Patience):
    """One watch across its streams. `must_list`: list all programs and tell `listed`, before the next stream."""

    def __init__(self, after_revision: int, program_id: str) -> None:
        super().__init__()
        self._revision, self._program_id = after_revision, program_id
        self.must_list = False

    def request(self, current_revision: int) -> pb.WatchProgramsRequest | None:
        """For the next stream, given the control plane's revision now; None when `must_list` has become true."""
        if not self._revision:
            self._revision = current_revision
        if current_revision < self._revision:
            self.must_list = True
            return None
        return pb.WatchProgramsRequest(after_revision=self._revision, program_id=self._program_id)

    def listed(self, programs: Iterable[Program], revision: int) -> ProgramChanges:
        """What a list gave."""
        self.must_list, self._revision = False, revision
        found = tuple(p for p in programs if self._program_id in ("", p.program_id))
        return ProgramChanges(revision, found, (), relisted=True)

    def changes(self, response: Any) -> ProgramChanges:
        """What the stream gave."""
        self._revision, self._delay_s = response.revision, FIRST_DELAY_S
        changed = tuple(messages.read(Program, program) for program in response.changed)
        return ProgramChanges(response.revision, changed, tuple(response.removed_program_ids))

    def delay_s(self, error: AgentServingError) -> float:
        """How long to wait before going on; raises an error that will not pass."""
        if isinstance(error, GoneError):
            self.must_list = True
            return 0.0
        return super().delay_s(error)


class EndingsWatch(_Patience):
    """One watch of endings across its streams; what ended between two of them is told by the second, or counted."""

    def __init__(self, after_position: int) -> None:
        super().__init__()
        self._position = after_position

    def request(self) -> call_service_pb2.WatchEndingsRequest:
        """For the next stream."""
        return call_service_pb2.WatchEndingsRequest(after_position=self._position)

    def endings(self, response: call_service_pb2.WatchEndingsResponse) -> Endings:
        """What the stream gave."""
        self._position, self._delay_s = response.position, FIRST_DELAY_S
        return messages.endings(response)
