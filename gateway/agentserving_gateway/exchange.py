"""One request of a client, to the end of its answer: admission, attempts on engines, and the account of the call.

Retries: as long as no byte of an answer has gone to the client, a request that an engine did not answer, or answered
with a server error, is tried on another one. It is sent to two engines at most: a request that kills engines must not
take down all of them. Engines that did not even take a connection do not count.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from agentserving.contract.ids import EngineId
from agentserving.programs import headers as header_names

from agentserving_gateway import metrics
from agentserving_gateway.admission import Admission
from agentserving_gateway.attempt import Attempt, Verdict
from agentserving_gateway.body import Body, read_body
from agentserving_gateway.calls import Admitted, CallRequest, Ending, OpenCall
from agentserving_gateway.errors import HttpError
from agentserving_gateway.identity import identify
from agentserving_gateway.models import Fetched, answer_of, fetch_models
from agentserving_gateway.request import Handling, Request, Route
from agentserving_gateway.upstream_pool import UpstreamPool

log = structlog.get_logger()

# Engines that one request reaches, and those that are tried for it, unreachable ones included.
MAX_SENT, MAX_TRIED = 2, 8


class Client(Protocol):
    """Takes the answer; one of `begin` and `refuse` is called once."""

    def begin(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """The head of an engine's answer."""

    def write(self, data: bytes) -> None:
        """More of the body."""

    def finish(self, *, complete: bool) -> None:
        """No more comes; `complete` False when the engine broke off."""

    def refuse(self, error: HttpError) -> None:
        """The whole answer is an error of the gateway."""

    def reply(self, answer: Fetched) -> None:
        """The whole answer, made by the gateway."""


@dataclass(frozen=True, slots=True)
class Backends:
    """What requests are served with."""

    admission: Admission
    pool: UpstreamPool


class Exchange:
    """`serve` runs as a task; `client_gone` may come at any time. Implements attempt.Sink."""

    def __init__(self, backends: Backends, request: Request, client: Client) -> None:
        self._admission, self._pool = backends.admission, backends.pool
        self._request, self._client = request, client
        self._attempt: Attempt | None = None
        self._call: OpenCall | None = None
        self._engine_id = EngineId("")

    async def serve(self) -> None:
        """Until the answer has begun, or the client has been refused. The rest comes by callbacks."""
        metrics.OPEN.inc()
        try:
            route = self._request.route
            assert route is not None, "the request was checked"
            if route.handling is Handling.CALL:
                await self._serve_call()
            elif route.handling is Handling.PASS_ON:
                await self._pass_on(route)
            else:
                await self._serve_models(route)
        except HttpError as error:
            self._client.refuse(error)
        except Exception:
            log.exception("a request failed in the gateway", route=self._request.route_name)
            self._drop(Ending.FAILED)
            self._client.refuse(HttpError(500, "the gateway failed on this request: its log says why",
                                          "server_error", "internal"))  # fmt: skip
        finally:
            metrics.OPEN.dec()

    def client_gone(self) -> None:
        """The client has left before the end: the engine aborts the call, and the leader learns that it is over."""
        self._drop(Ending.CANCELLED)

    def _drop(self, ending: Ending) -> None:
        if self._attempt is not None:
            self._attempt.abandon()
        self._end_call(ending)

    def _end_call(self, ending: Ending) -> None:
        if self._call is not None:
            self._call.end(ending, was_sent=self._attempt is not None and self._attempt.is_sent)

    def pause(self) -> None:
        """The client reads slowly."""
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._attempt is not None:
            self._attempt.resume()

    # -- a call --------------------------------------------------------------------------------------------------

    async def _serve_call(self) -> None:
        began = time.perf_counter()
        request, body = self._request, read_body(self._request.body)
        may_stream = bool(body.stream)
        wanted = _call_request(request, body)
        tried: list[EngineId] = []
        sent = 0
        while sent < MAX_SENT and len(tried) < MAX_TRIED:
            try:
                admitted = await self._admission.admit(self._retry(wanted, tried))
            except HttpError:
                if not tried:
                    raise
                break  # no other engine takes it: the client learns what became of those that were tried
            if tried:
                metrics.RETRIES.inc()
            else:
                metrics.ADMIT_SECONDS.observe(time.perf_counter() - began)
            self._use(admitted)
            attempt = self._attempt = Attempt(self._pool, request, admitted.engine_address, self)
            verdict = await attempt.run(
                ticket=admitted.ticket, call_id=admitted.call_id, may_stream=may_stream, hold_errors=sent == 0
            )
            if verdict is Verdict.ANSWERED:
                self._admission.trust(admitted.engine_id)
                return
            sent += attempt.is_sent
            tried.append(admitted.engine_id)
            if verdict is not Verdict.HELD:
                self._admission.avoid(admitted.engine_id)
        self._give_up(tried, sent)

    def _retry(self, wanted: CallRequest, tried: list[EngineId]) -> CallRequest:
        """The admission after an attempt that failed: the same program, another engine."""
        if self._call is None:
            return wanted
        failed = self._call.admitted
        return replace(
            wanted,
            program_id=failed.program_id or wanted.program_id,
            retry_of_call_id=failed.call_id,
            exclude=tuple(tried),
        )

    def _use(self, admitted: Admitted) -> None:
        """Replaces the failed attempt. A managed admission has ended its call, an unmanaged one has not."""
        if self._call is not None and admitted.call_id:
            self._call.settle()
        self._drop(Ending.FAILED)
        self._call, self._engine_id = OpenCall(admitted, self._admission.end), admitted.engine_id

    def _give_up(self, tried: list[EngineId], sent: int) -> None:
        """The answer when no engine is left to try."""
        if self._attempt is not None and self._attempt.is_held:
            self._attempt.release()
            return
        self._end_call(Ending.FAILED)
        raise _no_answer(tried, sent)

    # -- other routes --------------------------------------------------------------------------------------------

    async def _pass_on(self, route: Route) -> None:
        model = read_body(self._request.body).model_name
        tried: list[EngineId] = []
        while len(tried) < MAX_SENT:
            engine = self._admission.engine_in_turn(model, tried)
            if engine is None:
                break
            if self._attempt is not None:
                self._attempt.abandon()
            self._engine_id = engine.engine_id
            attempt = self._attempt = Attempt(self._pool, self._request, engine.address, self)
            try:
                async with asyncio.timeout(route.answer_s):
                    verdict = await attempt.run(hold_errors=not tried)
            except TimeoutError:
                attempt.abandon()
                verdict = Verdict.BROKEN
            if verdict is Verdict.ANSWERED:
                return
            if verdict is not Verdict.HELD:
                self._admission.avoid(engine.engine_id)
            tried.append(engine.engine_id)
        self._give_up(tried, len(tried))

    async def _serve_models(self, route: Route) -> None:
        engines = self._admission.ready_engines()
        if not engines:
            raise _no_answer([], 0)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(fetch_models(self._pool, self._request, engine.address, route.answer_s))
                for engine in engines
            ]
        answers = [task.result() for task in asked]
        for engine, answer in zip(engines, answers, strict=True):
            if answer is None:
                self._admission.avoid(engine.engine_id)
        self._client.reply(answer_of(self._request.path, [answer for answer in answers if answer is not None]))

    # -- Sink ----------------------------------------------------------------------------------------------------

    def begin(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """See Sink."""
        named = [(b"x-agentserving-engine", self._engine_id.encode())]
        if self._call is not None:
            admitted = self._call.admitted
            if admitted.program_id:
                named.append((header_names.PROGRAM_ID.encode(), admitted.program_id.encode()))
            if admitted.call_id:
                named.append((header_names.CALL_ID.encode(), admitted.call_id.encode()))
            if status >= 300:
                # Refused before the engine's scheduler saw it, or failed: no report is sure to come.
                self._end_call(Ending.FAILED if status >= 500 else Ending.REJECTED)
        self._client.begin(status, reason, headers + named, framed=framed)

    def write(self, data: bytes) -> None:
        """See Sink."""
        self._client.write(data)

    def finish(self, *, complete: bool) -> None:
        """See Sink."""
        if not complete:
            self._end_call(Ending.FAILED)
        elif self._call is not None:
            self._call.settle()
        self._attempt = None
        self._client.finish(complete=complete)


def _call_request(request: Request, body: Body) -> CallRequest:
    identity = identify(request.header_map(), body)
    metrics.IDENTITIES.labels(identity.source).inc()
    return CallRequest(
        tenant=request.tenant(),
        program_id=identity.program_id,
        parent_program_id=identity.parent_program_id,
        thread_id=identity.thread_id,
        parent_call_ids=identity.parent_call_ids,
        program_name=identity.name,
        prompt_tokens=len(request.body) // 4,
        model=body.model_name,
        final=identity.final,
    )


def _no_answer(tried: list[EngineId], sent: int) -> HttpError:
    names = ", ".join(tried)
    if sent:
        return HttpError(502, f"no engine answered (tried {names})", "server_error", "engine_unreachable")
    message = f"no engine can be reached (tried {names})" if tried else "no engine is ready"
    return HttpError(503, f"{message}: try again in a moment", "server_error", "no_engine", retry_after_s=1.0)
