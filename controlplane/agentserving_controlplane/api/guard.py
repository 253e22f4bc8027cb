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
from agentserving.contract.identity import ANONYMOUS, Caller
from agentserving.contract.keys import KeyRefusal

from agentserving_controlplane.api.audit import Audit, object_of
from agentserving_controlplane.api.authentication import Admitted, Authenticator, revoked, set_admitted
from agentserving_controlplane.api.authorization import Port, access_to, authorize, short
from agentserving_controlplane.api.servicing import claimed_tenant
from agentserving_controlplane.api.status_codes import abort, code_of
from agentserving_controlplane.errors import DomainError, UnauthenticatedError

_Inner = Callable[[Any, Any], Any]


class OpenStreams:
    """Tasks of open streams by the credential that opened them."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self._ended: dict[asyncio.Task[Any], KeyRefusal] = {}

    def end(self, credential: str, reason: KeyRefusal) -> None:
        """Ends all streams of a credential."""
        for task in self._tasks.get(credential, ()):
            self._ended[task] = reason
            task.cancel()

    @contextlib.contextmanager
    def open(self, credential: str) -> Iterator[None]:
        """Registers the current task; UnauthenticatedError instead of its cancellation by `end`."""
        task = asyncio.current_task()
        assert task is not None, "an RPC runs in a task"
        tasks = self._tasks.setdefault(credential, set())
        tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            reason = self._ended.get(task)
            if reason is None:
                raise
            task.uncancel()
            raise revoked(credential, reason) from None
        finally:
            tasks.discard(task)
            self._ended.pop(task, None)
            if not tasks:
                self._tasks.pop(credential, None)


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

    async def _admit(self, path: str, context: Any, request: Any = None) -> Admitted:
        """The caller, which may use the RPC; ends the RPC otherwise."""
        caller, metadata = ANONYMOUS, context.invocation_metadata() or ()
        try:
            caller = self._authenticator.caller(context, metadata, time.time())
            authorize(caller, path, self._port)
            admitted = Admitted(caller, claimed_tenant(caller, metadata))
        except DomainError as error:
            await self._refuse(caller, path, context, error, request)
        set_admitted(admitted)
        return admitted

    async def _refuse(
        self, caller: Caller, path: str, context: Any, error: DomainError, request: Any = None
    ) -> NoReturn:
        if isinstance(error, UnauthenticatedError) and caller is ANONYMOUS:
            caller = Caller(role=caller.role, credential=error.credential)
        outcome = grpc_name(error)
        self._audit.refused(caller, short(path), context, outcome, error.reason, object_of(request), time.monotonic())
        await abort(context, error)

    def _unary(self, path: str, inner: _Inner) -> _Inner:
        audited = access_to(path).audited

        async def guarded(request: Any, context: Any) -> Any:
            admitted = await self._admit(path, context, request)
            if not audited:
                return await inner(request, context)
            return await self._audited(path, admitted, inner(request, context), request, context)

        return guarded

    async def _audited(self, path: str, admitted: Admitted, call: Awaitable[Any], request: Any, context: Any) -> Any:
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
            self._audit.changed(admitted.caller, short(path), context, outcome, about, admitted.tenant)

    def _server_stream(self, path: str, inner: _Inner) -> _Inner:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            caller = (await self._admit(path, context, request)).caller
            try:
                with self.streams.open(caller.credential):
                    async with contextlib.aclosing(inner(request, context)) as responses:
                        async for response in responses:
                            yield response
            except UnauthenticatedError as error:
                await self._refuse(caller, path, context, error, request)

        return guarded

    def _both_ways(self, path: str, inner: _Inner) -> _Inner:
        audited = access_to(path).audited

        async def guarded(requests: Any, context: Any) -> None:
            caller = (await self._admit(path, context)).caller
            if audited:
                about = f"engine/{caller.name}" if caller.name else ""
                self._audit.changed(caller, short(path), context, "OK", about, "")
            try:
                with self.streams.open(caller.credential):
                    await inner(requests, context)
            except UnauthenticatedError as error:
                await self._refuse(caller, path, context, error)

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
