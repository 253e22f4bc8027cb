"""One call through `Generate`: its admissions, and what happens when an engine does not answer. Pure.

An engine that cannot be reached before its first byte is excluded and another one is tried, as a gateway does. A call
that no engine will report is ended here: until then it would count as in flight in the control plane.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentserving.client import current_call, operations
from agentserving.client.operations import Operation
from agentserving.client.values import Admission, Outcome
from agentserving.contract.ids import EngineId
from agentserving.transport.errors import InvalidArgumentError, UnavailableError
from agentserving.v1 import call_service_pb2 as pb

PATH = "/agentserving.v1.CallService/Generate"
# A request may be what kills engines: it is tried on one other engine at most.
MAX_ATTEMPTS = 2
# English prose has about this many characters per token; the load balancer needs no more than an estimate.
BYTES_PER_TOKEN = 4


class GenerateCall:
    """A call of `program_id`, or of the current program, with all of its attempts."""

    def __init__(self, path: str, body: Mapping[str, Any] | bytes, program_id: str | None, thread_id: str) -> None:
        if not path.startswith("/v1/"):
            raise InvalidArgumentError(f"path: must begin with /v1/, got {path!r}", field="path")
        self._path = path
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._model = "" if isinstance(body, bytes) else str(body.get("model", ""))
        self._carried = None if thread_id else current_call.begin(program_id)
        self._program_id, self._thread_id = program_id or "", thread_id
        self._excluded: list[EngineId] = []
        # The last attempt, as long as no engine is known to have it.
        self._open: Admission | None = None

    def admit(self) -> Operation[Admission]:
        """Admission of the next attempt. It names the one before, which ends with it."""
        carried, before = self._carried, self._open
        program_id = carried.program_id if carried else self._program_id
        return operations.admit(
            # A call without a program was given one by the first admission.
            program_id or (before.program_id if before else ""),
            thread_id=carried.thread_id if carried else self._thread_id,
            parent_call_ids=carried.parents if carried else (),
            name=carried.program_name if carried else "",
            parent_program_id=carried.parent_program_id if carried else "",
            implicit=True,
            model=self._model,
            prompt_tokens=len(self._body) // BYTES_PER_TOKEN,
            retry_of_call_id=before.call_id if before else "",
            exclude_engine_ids=self._excluded,
        )

    def admitted(self, admission: Admission) -> pb.GenerateRequest:
        """The request for the sidecar of the chosen engine."""
        self._open = admission
        return pb.GenerateRequest(ticket=admission.ticket, call_id=admission.call_id, path=self._path, body=self._body)

    def may_retry(self, error: BaseException, admission: Admission) -> bool:
        """Whether to try another engine after this error."""
        self._excluded.append(admission.engine_id)
        return isinstance(error, UnavailableError) and len(self._excluded) < MAX_ATTEMPTS

    def responded(self, admission: Admission, http_status: int) -> Operation[None] | None:
        """The head of the response is there. Gives what the control plane must know: engines report no errors."""
        self._open = None
        if http_status < 300 and self._carried is not None:
            self._carried.answered(admission.call_id)
        if http_status < 400:
            return None
        outcome = Outcome.REJECTED if http_status < 500 else Outcome.FAILED
        return operations.end_call(admission.call_id, outcome=outcome)

    def abandoned(self) -> Operation[None] | None:
        """No response will come. Ends the last attempt; the control plane ignores it if an engine reported the call."""
        self.end()
        before, self._open = self._open, None
        return operations.end_call(before.call_id, outcome=Outcome.FAILED) if before else None

    def end(self) -> None:
        """The response has been read, or will not be."""
        if self._carried is not None:
            self._carried.end()
