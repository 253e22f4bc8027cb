"""One call through `Generate`: what it asks for, and what is done when its engine does not answer. Pure.

An engine that cannot be reached before its first byte is left out and another asked for, like a gateway does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentserving.client import operations
from agentserving.client.operations import Operation
from agentserving.client.values import Admission, Outcome
from agentserving.programs import context
from agentserving.transport.errors import InvalidArgumentError, UnavailableError
from agentserving.v1 import call_service_pb2 as pb

PATH = "/agentserving.v1.CallService/Generate"
MAX_ATTEMPTS = 3
# English prose has about this many characters a token; the load balancer wants no more than an estimate.
BYTES_PER_TOKEN = 4


class Generating:
    """A call of `program_id`, or of the current program."""

    def __init__(self, path: str, body: Mapping[str, Any] | bytes, program_id: str | None, thread_id: str) -> None:
        if not path.startswith("/v1/"):
            raise InvalidArgumentError(f"path: must begin with /v1/, got {path!r}", field="path")
        self._path = path
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._model = "" if isinstance(body, bytes) else str(body.get("model", ""))
        at = context.current_point()
        inside = at is not None and program_id in (None, at.thread.tracker.program_id) and not thread_id
        self._carried = context.begin_call() if inside else None
        self._program_id, self._thread_id = program_id or "", thread_id
        self._excluded: list[str] = []

    def admit(self) -> Operation[Admission]:
        """The next admission to ask for."""
        carried = self._carried
        tracker = carried.tracker if carried else None
        return operations.admit(
            carried.program_id if carried else self._program_id,
            thread_id=carried.thread_id if carried else self._thread_id,
            parent_call_ids=carried.parents if carried else (),
            name=tracker.name if tracker else "",
            parent_program_id=tracker.parent_program_id if tracker else "",
            implicit=True,
            model=self._model,
            prompt_tokens=len(self._body) // BYTES_PER_TOKEN,
            exclude_engine_ids=self._excluded,
        )

    def request(self, admission: Admission) -> pb.GenerateRequest:
        """For the engine's sidecar."""
        return pb.GenerateRequest(ticket=admission.ticket, call_id=admission.call_id, path=self._path, body=self._body)

    def elsewhere(self, error: BaseException, admission: Admission) -> bool:
        """True when another engine should be tried after this error."""
        self._excluded.append(admission.engine_id)
        return isinstance(error, UnavailableError) and len(self._excluded) < MAX_ATTEMPTS

    @staticmethod
    def let_go(admission: Admission) -> Operation[None]:
        """What the control plane must hear of a call that has not begun, or it waits for its end until it expires."""
        return operations.end_call(admission.call_id, outcome=Outcome.FAILED)

    def answered(self, admission: Admission, http_status: int) -> None:
        """The answer has begun."""
        if self._carried is not None and http_status < 300:
            self._carried.answered(admission.call_id)

    def end(self) -> None:
        """Nothing more will come."""
        if self._carried is not None:
            self._carried.end()
