"""How a watch continues after its stream has broken. Pure; `Client` and `AsyncClient` carry it out.

A stream that breaks is opened again after the last revision seen. When the control plane does not remember that
revision (GoneError), or its revision is lower (it lost its store), the programs must be listed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentserving.client import messages
from agentserving.client.values import Endings, Program, ProgramChanges, ProgramState
from agentserving.contract.ids import ProgramId
from agentserving.transport.errors import AgentServingError, DeadlineExceededError, GoneError, UnavailableError
from agentserving.v1 import call_service_pb2
from agentserving.v1 import program_service_pb2 as pb

PATH = "/agentserving.v1.ProgramService/WatchPrograms"
ENDINGS_PATH = "/agentserving.v1.CallService/WatchEndings"
FIRST_DELAY_S, MAX_DELAY_S = 0.2, 5.0
EVERY_STATE = tuple(state for state in ProgramState if state)


class _Retries:
    """Delays between streams: doubled up to a limit, reset by each message."""

    def __init__(self) -> None:
        self._delay_s = FIRST_DELAY_S

    def delay_s(self, error: AgentServingError) -> float:
        """Seconds until the next stream; raises an error that a retry cannot cure."""
        if not isinstance(error, UnavailableError | DeadlineExceededError):
            raise error
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, MAX_DELAY_S)
        return max(delay, error.retry_after_s)


class Watch(_Retries):
    """One watch across its streams. `must_list`: list all programs and pass them to `listed` before the next stream."""

    def __init__(self, after_revision: int, program_id: str) -> None:
        super().__init__()
        self._revision, self._program_id = after_revision, program_id
        self.must_list = False

    def request(self, current_revision: int) -> pb.WatchProgramsRequest | None:
        """The request of the next stream, given the current revision; None when `must_list` has become true."""
        if not self._revision:
            self._revision = current_revision
        if current_revision < self._revision:
            self.must_list = True
            return None
        return pb.WatchProgramsRequest(after_revision=self._revision, program_id=self._program_id)

    def listed(self, programs: Iterable[Program], revision: int) -> ProgramChanges:
        """A complete list, as a change."""
        self.must_list, self._revision = False, revision
        found = tuple(p for p in programs if self._program_id in ("", p.program_id))
        return ProgramChanges(revision=revision, changed=found, removed_program_ids=(), relisted=True)

    def changes(self, response: Any) -> ProgramChanges:
        """A message of the stream."""
        self._revision, self._delay_s = response.revision, FIRST_DELAY_S
        changed = tuple(messages.read(Program, program) for program in response.changed)
        removed = tuple(ProgramId(each) for each in response.removed_program_ids)
        return ProgramChanges(revision=response.revision, changed=changed, removed_program_ids=removed)

    def delay_s(self, error: AgentServingError) -> float:
        """Seconds until the next stream; raises an error that a retry cannot cure."""
        if isinstance(error, GoneError):
            self.must_list = True
            return 0.0
        return super().delay_s(error)


class EndingsWatch(_Retries):
    """One watch of endings across its streams; the second of two streams sends, or counts, what ended in between."""

    def __init__(self, after_position: int) -> None:
        super().__init__()
        self._position = after_position

    def request(self) -> call_service_pb2.WatchEndingsRequest:
        """The request of the next stream."""
        return call_service_pb2.WatchEndingsRequest(after_position=self._position)

    def endings(self, response: call_service_pb2.WatchEndingsResponse) -> Endings:
        """A message of the stream."""
        self._position, self._delay_s = response.position, FIRST_DELAY_S
        return messages.endings(response)
