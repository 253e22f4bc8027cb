"""Where a request goes: the engines to try, in order, and what they are sent with it.

The transport is an adapter's (authz.py for our Envoy). A request is decided by its head whenever that names its
program; the body is read only when the head does not, and then nothing but the fields of `Body`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant

from agentserving_gateway import metrics
from agentserving_gateway.admission import Admission, HoldError
from agentserving_gateway.body import Body, read_body
from agentserving_gateway.calls import CallRequest, Ending
from agentserving_gateway.engines import Engine
from agentserving_gateway.errors import HttpError
from agentserving_gateway.identity import from_body, from_headers
from agentserving_gateway.responses import Responses
from agentserving_gateway.routes import RESPONSES, Kind, Route, is_response_id, response_id_of

# The engines named for a request: the chosen one, and those that a retry may go to.
MAX_ENDPOINTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request without its body; names of headers in lower case. `length`: bytes of the body, 0 = unknown."""

    route: Route
    path: str
    headers: Mapping[str, str]
    tenant: Tenant
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """`addresses` in the order in which they are tried; empty strings for what a request without a ticket has not."""

    addresses: tuple[str, ...]
    program_id: ProgramId = ProgramId("")
    call_id: CallId = CallId("")
    tenant: Tenant = Tenant("")
    ticket: str = ""


class NeedsBodyError(Exception):
    """Ask again, with the body."""


class Picker:
    """One per process."""

    def __init__(self, admission: Admission, responses: Responses) -> None:
        self._admission, self._responses = admission, responses

    async def pick(self, head: Head, content: bytes | None) -> Pick:
        """Raises HttpError for a refusal; NeedsBodyError when `content` is None and either has to be read, or the call
        has to be held while a leader is elected: only the question with the body may take that long."""
        if content is None and self._needs_body(head):
            raise NeedsBodyError
        if head.route.kind is Kind.CALL:
            return await self._call(head, content)
        body = Body() if content is None else read_body(content)
        if head.route.kind is Kind.RESPONSE:
            holder = await self._holder(head, response_id_of(head.path))
            if holder is not None:
                return Pick(addresses=(holder.address,))
        return self._any_engine(body.model_name)

    def drop(self, pick: Pick) -> None:
        """The client has left before the request was sent, as far as can be known: a report of an engine prevails."""
        if pick.call_id:
            self._admission.end_by_id(pick.call_id, pick.tenant, Ending.CANCELLED, False)

    def _needs_body(self, head: Head) -> bool:
        if head.route.methods != ("POST",) or head.route.kind is Kind.RESPONSE:
            return False
        # The previous response is on one engine.
        if self._admission.models_differ or head.path == RESPONSES:
            return True
        return head.route.kind is Kind.CALL and from_headers(head.headers) is None

    async def _call(self, head: Head, content: bytes | None) -> Pick:
        began = time.perf_counter()
        body = Body() if content is None else read_body(content)
        identity = from_headers(head.headers) or from_body(body)
        holder = None
        if head.path == RESPONSES and is_response_id(body.previous_response_id):
            holder = await self._holder(head, body.previous_response_id)
        metrics.IDENTITIES.labels(identity.source).inc()
        request = CallRequest(
            tenant=head.tenant,
            program_id=identity.program_id,
            parent_program_id=identity.parent_program_id,
            thread_id=identity.thread_id,
            parent_call_ids=identity.parent_call_ids,
            program_name=identity.name,
            prompt_tokens=(head.length if content is None else len(content)) // 4,
            model=body.model_name,
            final=identity.final,
            exclude=self._all_but(holder),
        )
        try:
            # The question without the body is answered soon, so that a picker that hangs is noticed.
            admitted = await self._admission.admit(request, may_hold=content is not None)
        except HoldError:
            raise NeedsBodyError from None
        metrics.ADMIT_SECONDS.observe(time.perf_counter() - began)
        others = self._others(body.model_name, admitted.engine_address) if holder is None else ()
        return Pick(
            addresses=(admitted.engine_address, *others),
            program_id=admitted.program_id,
            call_id=admitted.call_id,
            tenant=admitted.tenant,
            ticket=admitted.ticket,
        )

    async def _holder(self, head: Head, response_id: str) -> Engine | None:
        """The engine that has a stored response; None: any engine says that there is none."""
        authorization = head.headers.get("authorization", "")
        return await self._responses.engine_of(response_id, self._admission.known_engines, authorization)

    def _all_but(self, engine: Engine | None) -> tuple[EngineId, ...]:
        if engine is None:
            return ()
        return tuple(e.engine_id for e in self._admission.known_engines if e.engine_id != engine.engine_id)

    def _any_engine(self, model: str) -> Pick:
        engine = self._admission.engine_in_turn(model, ())
        if engine is None:
            raise no_engine()
        return Pick(addresses=(engine.address, *self._others(model, engine.address)))

    def _others(self, model: str, chosen: str) -> list[str]:
        """Engines for a retry."""
        others: list[Engine] = self._admission.others(model, chosen)
        return [engine.address for engine in others[: MAX_ENDPOINTS - 1]]


def no_engine() -> HttpError:
    """The refusal of a request that no engine can take."""
    return HttpError(503, "no engine is ready: try again in a moment", "server_error", "no_engine", retry_after_s=1.0)
