"""`agentserving.AsyncClient`: `Client` for asyncio. `operations` defines what each operation does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import grpc

from agentserving.client import key_operations, operations, tenant_operations, traces, watches
from agentserving.client.generation import PATH as GENERATE
from agentserving.client.generation import GenerateCall
from agentserving.client.keys import ApiKey
from agentserving.client.operations import Operation
from agentserving.client.values import Admission, Endings, Program, ProgramChanges, ProgramState, TenantSettings
from agentserving.transport.channels import dial_async
from agentserving.transport.connection import Attempts, Settings, find_leader, look_elsewhere
from agentserving.transport.errors import AgentServingError, InternalError, decoded, from_rpc
from agentserving.v1 import call_service_pb2, program_service_pb2

P = ParamSpec("P")
R = TypeVar("R")


class Run(Generic[P, R]):
    """Makes a coroutine method of `AsyncClient` of an operation: the same arguments, and the operation's result."""

    def __init__(self, operation: Callable[P, Operation[R]]) -> None:
        self._operation = operation
        self.__doc__ = operation.__doc__

    @overload
    def __get__(self, client: None, owner: type[AsyncClient]) -> Self: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type[AsyncClient]) -> Callable[P, Awaitable[R]]: ...
    def __get__(self, client: AsyncClient | None, owner: type[AsyncClient]) -> Self | Callable[P, Awaitable[R]]:
        if client is None:
            return self

        async def method(*args: P.args, **kwargs: P.kwargs) -> R:
            return await client.run(self._operation(*args, **kwargs))

        method.__doc__ = self.__doc__
        return method


class AsyncClient:
    """A client of one cluster: its control planes, and the sidecars of its engines. Belongs to one event loop."""

    def __init__(
        self, address: str | None = None, *, api_key: str | None = None, settings: Settings | None = None
    ) -> None:
        """`api_key`: in place of the one in `settings`, which by default is the environment's."""
        self._leader = find_leader(address)
        self.settings = settings or Settings()
        if api_key is not None:
            self.settings = replace(self.settings, api_key=api_key)
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def address(self) -> str:
        """Address of the leading control plane, or of the one that is tried next."""
        return self._leader.address

    open_program = Run(operations.open_program)
    close_program = Run(operations.close_program)
    get_trace = Run(traces.get_trace)
    get_program = Run(operations.get_program)
    cancel_program = Run(operations.cancel_program)
    pause_program = Run(operations.pause_program)
    resume_program = Run(operations.resume_program)
    begin_tool_wait = Run(operations.begin_tool_wait)
    end_tool_wait = Run(operations.end_tool_wait)
    admit = Run(operations.admit)
    end_call = Run(operations.end_call)
    get_policy = Run(operations.get_policy)
    set_policy = Run(operations.set_policy)
    list_engines = Run(operations.list_engines)
    drain_engine = Run(operations.drain_engine)
    undrain_engine = Run(operations.undrain_engine)
    get_overview = Run(operations.get_overview)
    get_demand = Run(operations.get_demand)
    create_key = Run(key_operations.create_key)
    revoke_key = Run(key_operations.revoke_key)
    set_tenant = Run(tenant_operations.set_tenant)
    remove_tenant = Run(tenant_operations.remove_tenant)

    async def list_programs(self, *, states: Iterable[ProgramState] = (), page_size: int = 0) -> AsyncIterator[Program]:
        """All programs in order of their ids, read page by page. No states = all but CLOSED."""
        wanted, token = tuple(states), ""
        while True:
            page = await self.run(operations.list_page(wanted, page_size=page_size, page_token=token))
            for program in page.programs:
                yield program
            token = page.next_page_token
            if not token:
                return

    async def list_keys(self, tenant: str = "") -> AsyncIterator[ApiKey]:
        """API keys of a tenant, "" = of all, in the order of their ids, read page by page. For administrators."""
        token = ""
        while True:
            page = await self.run(key_operations.list_keys_page(tenant, page_token=token))
            for key in page.keys:
                yield key
            token = page.next_page_token
            if not token:
                return

    async def list_tenants(self) -> AsyncIterator[TenantSettings]:
        """Tenants that something has been set for, in the order of their names. For administrators."""
        token = ""
        while True:
            page = await self.run(tenant_operations.list_tenants_page(page_token=token))
            for tenant in page.tenants:
                yield tenant
            token = page.next_page_token
            if not token:
                return

    async def watch_programs(self, *, after_revision: int = 0, program_id: str = "") -> AsyncIterator[ProgramChanges]:
        """Changes as they happen, without end. `after_revision` 0 = from now on. Broken streams are opened again."""
        watch = watches.Watch(after_revision, program_id)
        while True:
            address = self._leader.address
            try:
                revision = (await self.run(operations.list_page(page_size=1))).revision
                request, address = watch.request(revision), self._leader.address
                if request is None or watch.must_list:
                    programs = [program async for program in self.list_programs(states=watches.EVERY_STATE)]
                    yield watch.listed(programs, revision)
                    continue
                response = program_service_pb2.WatchProgramsResponse
                stream = self._stream(address, watches.PATH, request, response, known=self._leader.known)
                async for message in stream:
                    yield watch.changes(decoded(message, address))
            except (grpc.RpcError, AgentServingError) as error:
                await asyncio.sleep(watch.delay_s(self._lost(error, address)))

    async def watch_endings(self, *, after_position: int = 0) -> AsyncIterator[Endings]:
        """Calls and programs as they end, without end; as `Client.watch_endings`."""
        watch = watches.EndingsWatch(after_position)
        while True:
            address = self._leader.address
            try:
                path, response = watches.ENDINGS_PATH, call_service_pb2.WatchEndingsResponse
                stream = self._stream(address, path, watch.request(), response, known=self._leader.known)
                async for message in stream:
                    yield watch.endings(decoded(message, address))
            except (grpc.RpcError, AgentServingError) as error:
                await asyncio.sleep(watch.delay_s(self._lost(error, address)))

    async def generate(
        self, path: str, body: Mapping[str, Any] | bytes, *, program_id: str | None = None, thread_id: str = ""
    ) -> AsyncGeneration:
        """Runs one call on an engine and returns its response as it arrives; as `Client.generate`."""
        call = GenerateCall(path, body, program_id, thread_id)
        try:
            while True:
                admission = await self.run(call.admit())
                try:
                    generation = await self._generation(call, admission)
                    break
                except AgentServingError as error:
                    if not call.may_retry(error, admission):
                        raise
        except BaseException:
            await self._end_call(call.abandoned())
            raise
        await self._end_call(call.responded(admission, generation.http_status))
        return generation

    async def _end_call(self, operation: Operation[None] | None) -> None:
        """Best effort: a call that is not ended expires."""
        if operation is not None:
            with contextlib.suppress(AgentServingError):
                await self.run(operation)

    async def _generation(self, call: GenerateCall, admission: Admission) -> AsyncGeneration:
        response = call_service_pb2.GenerateResponse
        stream = self._stream(admission.sidecar_address, GENERATE, call.admitted(admission), response)
        try:
            head = await stream.read()
        except grpc.RpcError as error:
            raise from_rpc(error, admission.sidecar_address) from error
        except BaseException:
            stream.cancel()
            raise
        if head is grpc.aio.EOF:
            raise InternalError(f"{admission.sidecar_address}: the response ended before it began")
        return AsyncGeneration(call, admission, stream, decoded(head, admission.sidecar_address))

    # -- running -------------------------------------------------------------------------------------------------

    async def run(self, operation: Operation[R]) -> R:
        """Runs an operation at the leader, again where that is safe, until the deadline of its attempts."""
        attempts = Attempts(self.settings, time.monotonic(), again=operation.may_retry, leader=self._leader)
        while True:
            address = self._leader.address
            call: Any = self._channel(address, self._leader.known).unary_unary(
                operation.path,
                request_serializer=type(operation.request).SerializeToString,
                response_deserializer=operation.response.FromString,
            )
            try:
                timeout = attempts.left_s(time.monotonic())
                response = await call(operation.request, timeout=timeout, metadata=self.settings.pairs())
                self._leader.found(address)
                return operation.read(decoded(response, address))
            except grpc.RpcError as error:
                translated = from_rpc(error, address)
                delay = attempts.delay_s(translated, address, time.monotonic())
                if delay is None:
                    raise translated from error
            await asyncio.sleep(delay)

    def _lost(self, error: grpc.RpcError | AgentServingError, address: str) -> AgentServingError:
        """The error that ended a stream; the next stream is opened at the current leader."""
        translated = from_rpc(error, address)
        if translated is not error:
            look_elsewhere(self._leader, translated, address, time.monotonic())
        return translated

    def _stream(self, address: str, path: str, request: Any, response: Any, *, known: Sequence[str] = ()) -> Any:
        call: Any = self._channel(address, known).unary_stream(
            path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        return call(request, metadata=self.settings.pairs())

    def _channel(self, address: str, known: Sequence[str]) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = dial_async(address, self.settings, known=known)
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class AsyncGeneration:
    """A response as it arrives: `async for` its bytes. Leaving an `async with` block early aborts the call."""

    def __init__(self, call: GenerateCall, admission: Admission, stream: Any, head: Any) -> None:
        self.admission = admission
        self.http_status: int = head.http_status
        self.content_type: str = head.content_type
        self._call, self._stream = call, stream

    @property
    def call_id(self) -> str:
        """The call's id in the control plane."""
        return self.admission.call_id

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (message := await self._stream.read()) is not grpc.aio.EOF:
                if decoded(message, self.admission.sidecar_address).chunk:
                    yield message.chunk
        except grpc.RpcError as error:
            raise from_rpc(error, self.admission.sidecar_address) from error
        finally:
            self._call.end()

    async def read(self) -> bytes:
        """The rest of the body."""
        return b"".join([chunk async for chunk in self])

    async def close(self) -> None:
        """Aborts the call if it is still running."""
        self._stream.cancel()
        self._call.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


__all__ = ["AsyncClient", "AsyncGeneration"]
