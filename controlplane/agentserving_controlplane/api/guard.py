"""What stands before every RPC of a leader: authenticate, authorize, and write the audit log.

`Guard.wrap` puts it around a handler once, when the handler is first used. A stream is checked when it opens and ends
when its key does (`OpenStreams`); its messages cost nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import grpc
from agentserving.contract.identity import Caller, Role
from agentserving.contract.keys import KeyRefusal
from agentserving_process.web_tokens.jwks import Jwks
from agentserving_process.web_tokens.verifier import signed_by

from agentserving_controlplane.api.audit import Audit, object_of
from agentserving_controlplane.api.authentication import (
    Admitted,
    Authenticator,
    admitted,
    expired,
    noted_refusal,
    revoked,
    set_admitted,
    unsigned,
)
from agentserving_controlplane.api.authorization import Port, access_to, not_allowed, short
from agentserving_controlplane.api.status_codes import abort, code_of
from agentserving_controlplane.errors import DomainError, OverloadedError, UnauthenticatedError

# Of one client's or administrator's key. Each has a few.
MAX_STREAMS = 100
# A JWT may be valid for longer; its streams are opened again then. libuv's timers have milliseconds in 64 bits.
LONGEST_TIMER_S = 30 * 86_400.0
_Inner = Callable[[Any, Any], Any]


class OpenStreams:
    """Tasks of open streams by the credential that opened them."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self._ended: dict[asyncio.Task[Any], UnauthenticatedError] = {}

    def end(self, credential: str, reason: KeyRefusal) -> None:
        """Ends all streams of a key."""
        for task in self._tasks.get(credential, ()):
            self._end(task, revoked(credential, reason))

    def keep_signed_by(self, jwks: Jwks) -> None:
        """Ends the streams of JWTs that no key of this set has signed."""
        for credential in [each for each in self._tasks if not signed_by(each, jwks)]:
            for task in self._tasks[credential]:
                self._end(task, unsigned(credential))

    def _end(self, task: asyncio.Task[Any], why: UnauthenticatedError) -> None:
        self._ended[task] = why
        task.cancel()

    @contextlib.contextmanager
    def open(self, caller: Caller, until_unix_s: float = 0.0) -> Iterator[None]:
        """Registers the current task; UnauthenticatedError instead of its cancellation by `end`, or at `until_unix_s`
        (0 = never). OverloadedError."""
        task = asyncio.current_task()
        assert task is not None, "an RPC runs in a task"
        credential = caller.credential
        tasks = self._tasks.setdefault(credential, set())
        # The parts of one role may share a certificate, and their number is the administrator's.
        if caller.role in (Role.CLIENT, Role.ADMIN) and len(tasks) >= MAX_STREAMS:
            raise OverloadedError(
                "TOO_MANY_STREAMS",
                f"this key has {len(tasks)} open streams, of at most {MAX_STREAMS}",
                retry_after_s=5.0,
            )
        tasks.add(task)
        timer = self._timer(task, credential, until_unix_s) if until_unix_s else None
        try:
            yield
        except asyncio.CancelledError:
            why = self._ended.get(task)
            if why is None:
                raise
            task.uncancel()
            raise why from None
        finally:
            if timer is not None:
                timer.cancel()
            tasks.discard(task)
            self._ended.pop(task, None)
            if not tasks:
                self._tasks.pop(credential, None)

    def _timer(self, task: asyncio.Task[Any], credential: str, until_unix_s: float) -> asyncio.TimerHandle:
        delay_s = min(max(0.0, until_unix_s - time.time()), LONGEST_TIMER_S)
        return asyncio.get_running_loop().call_later(delay_s, self._end, task, expired(credential))


class Guard:
    """Of one port."""

    def __init__(self, authenticator: Authenticator, port: Port, audit: Audit, streams: OpenStreams) -> None:
        self._authenticator, self._port, self._audit, self.streams = authenticator, port, audit, streams

    def wrap(self, path: str, handler: Any) -> Any:
        """The handler of an RPC, behind the checks."""
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(path, handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            assert inspect.isasyncgenfunction(handler.unary_stream), path
            return grpc.unary_stream_rpc_method_handler(
                self._server_stream(path, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        assert inspect.iscoroutinefunction(handler.stream_stream), path
        return grpc.stream_stream_rpc_method_handler(
            self._both_ways(path, handler.stream_stream), handler.request_deserializer, handler.response_serializer
        )

    def _enter(self, path: str, roles: frozenset[Role], context: Any) -> Admitted:
        """Lets a caller in, or raises DomainError."""
        entered = self._authenticator.admit(context, context.invocation_metadata() or (), time.time())
        # Also when it is refused: the audit log says who it was.
        set_admitted(entered)
        if entered.caller.role not in roles:
            raise not_allowed(entered.caller, path, self._port)
        return entered

    def _roles(self, path: str) -> frozenset[Role]:
        access = access_to(path)
        return frozenset() if self._port is Port.CLIENTS and not access.for_clients else access.roles

    async def _refuse(self, path: str, context: Any, error: DomainError, request: Any = None) -> NoReturn:
        known = admitted()
        caller = known.caller if known is not None else Caller(role=Role.ANONYMOUS, credential=error.credential)
        outcome = grpc_name(error)
        self._audit.refused(caller, short(path), context, outcome, error.reason, object_of(request), time.monotonic())
        await abort(context, error)

    def _note(self, path: str, caller: Caller, context: Any, request: Any = None) -> None:
        """Writes a refusal of the servicer itself to the audit log, if there was one."""
        error = noted_refusal()
        if error is not None:
            about, now_s = object_of(request), time.monotonic()
            self._audit.refused(caller, short(path), context, grpc_name(error), error.reason, about, now_s)

    def _unary(self, path: str, inner: _Inner) -> _Inner:
        audited, roles = access_to(path).audited, self._roles(path)

        async def guarded(request: Any, context: Any) -> Any:
            try:
                entered = self._enter(path, roles, context)
            except DomainError as error:
                await self._refuse(path, context, error, request)
            try:
                if not audited:
                    return await inner(request, context)
                return await self._audited(path, entered, inner(request, context), request, context)
            except grpc.aio.AbortError:
                self._note(path, entered.caller, context, request)
                raise

        return guarded

    async def _audited(self, path: str, entered: Admitted, call: Awaitable[Any], request: Any, context: Any) -> Any:
        response, outcome = None, "CANCELLED"
        try:
            response = await call
            outcome = "OK"
            return response
        except Exception:
            outcome = _outcome(context)
            raise
        finally:
            about = object_of(request, response)
            self._audit.changed(entered.caller, short(path), context, outcome, about, entered.tenant)

    def _server_stream(self, path: str, inner: _Inner) -> _Inner:
        roles = self._roles(path)

        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                entered = self._enter(path, roles, context)
                with self.streams.open(entered.caller, entered.until_unix_s):
                    async with contextlib.aclosing(inner(request, context)) as responses:
                        async for response in responses:
                            yield response
            except DomainError as error:
                await self._refuse(path, context, error, request)

        return guarded

    def _both_ways(self, path: str, inner: _Inner) -> _Inner:
        audited, roles = access_to(path).audited, self._roles(path)

        async def guarded(requests: Any, context: Any) -> None:
            try:
                entered = self._enter(path, roles, context)
                caller = entered.caller
                if audited:
                    about = f"engine/{caller.name}" if caller.name else ""
                    self._audit.changed(caller, short(path), context, "OK", about, "")
                with self.streams.open(caller, entered.until_unix_s):
                    await inner(requests, context)
            except DomainError as error:
                await self._refuse(path, context, error)
            except grpc.aio.AbortError:
                self._note(path, caller, context)
                raise

        return guarded


def grpc_name(error: DomainError) -> str:
    """Name of the gRPC code of a refusal."""
    number = code_of(error)
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")


def _outcome(context: Any) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), "UNKNOWN")
