"""`agentserving.Client`: the control plane and the engines over gRPC, blocking. `AsyncClient` is its twin for asyncio.

    with agentserving.Client("127.0.0.1:7070") as client:
        for program in client.list_programs():
            print(program.program_id, program.attained_service_us)
        with client.generate("/v1/chat/completions", {"model": "tiny", "messages": [...]}) as response:
            for chunk in response:
                ...

`operations` defines the operations; this module runs them for OS threads, `aio` for asyncio. Every operation has a
deadline, is retried while no server answers, and raises an AgentServingError.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from agentserving.transport.channels import dial
from agentserving.transport.connection import Attempts, Settings, find_leader, look_elsewhere
from agentserving.transport.errors import AgentServingError, InternalError, from_rpc
from agentserving.v1 import call_service_pb2, program_service_pb2

P = ParamSpec("P")
R = TypeVar("R")


class Run(Generic[P, R]):
    """Makes a method of `Client` of an operation: the same arguments, and the operation's result."""

    def __init__(self, operation: Callable[P, Operation[R]]) -> None:
        self._operation = operation
        self.__doc__ = operation.__doc__

    @overload
    def __get__(self, client: None, owner: type[Client]) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type[Client]) -> Callable[P, R]: ...
    def __get__(self, client: Client | None, owner: type[Client]) -> Self | Callable[P, R]:
        if client is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> R:
            return client.run(self._operation(*args, **kwargs))

        method.__doc__ = self.__doc__
        return method


class Client:
    """A client of one cluster: its control planes, and the sidecars of its engines. Safe for use by many OS threads."""

    def __init__(
        self, address: str | None = None, *, api_key: str | None = None, settings: Settings | None = None
    ) -> None:
        """`api_key`: in place of the one in `settings`, which by default is the environment's."""
        self._leader = find_leader(address)
        self.settings = settings or Settings()
        if api_key is not None:
            self.settings = replace(self.settings, api_key=api_key)
        self._channels: dict[str, grpc.Channel] = {}

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

    def list_programs(self, *, states: Iterable[ProgramState] = (), page_size: int = 0) -> Iterator[Program]:
        """All programs in order of their ids, read page by page. No states = all but CLOSED."""
        wanted, token = tuple(states), ""
        while True:
            page = self.run(operations.list_page(wanted, page_size=page_size, page_token=token))
            yield from page.programs
            token = page.next_page_token
            if not token:
                return

    def list_keys(self, tenant: str = "") -> Iterator[ApiKey]:
        """API keys of a tenant, "" = of all, in the order of their ids, read page by page. For administrators."""
        token = ""
        while True:
            page = self.run(key_operations.list_keys_page(tenant, page_token=token))
            yield from page.keys
            token = page.next_page_token
            if not token:
                return

    def list_tenants(self) -> Iterator[TenantSettings]:
        """Tenants that something has been set for, in the order of their names. For administrators."""
        token = ""
        while True:
            page = self.run(tenant_operations.list_tenants_page(page_token=token))
            yield from page.tenants
            token = page.next_page_token
            if not token:
                return

    def watch_programs(self, *, after_revision: int = 0, program_id: str = "") -> Iterator[ProgramChanges]:
        """Changes as they happen, without end. `after_revision` 0 = from now on. Broken streams are opened again."""
        watch = watches.Watch(after_revision, program_id)
        while True:
            address = self._leader.address
            try:
                revision = self.run(operations.list_page(page_size=1)).revision
                request, address = watch.request(revision), self._leader.address
                if request is None or watch.must_list:
                    yield watch.listed(self.list_programs(states=watches.EVERY_STATE), revision)
                    continue
                response = program_service_pb2.WatchProgramsResponse
                stream = self._stream(address, watches.PATH, request, response, known=self._leader.known)
                for message in stream:
                    yield watch.changes(message)
            except (grpc.RpcError, AgentServingError) as error:
                time.sleep(watch.delay_s(self._lost(error, address)))

    def watch_endings(self, *, after_position: int = 0) -> Iterator[Endings]:
        """Calls and programs as they end, without end; the first item comes immediately and may be empty.

        `after_position` 0 = from now on.
        """
        watch = watches.EndingsWatch(after_position)
        while True:
            address = self._leader.address
            try:
                path, response = watches.ENDINGS_PATH, call_service_pb2.WatchEndingsResponse
                stream = self._stream(address, path, watch.request(), response, known=self._leader.known)
                for message in stream:
                    yield watch.endings(message)
            except (grpc.RpcError, AgentServingError) as error:
                time.sleep(watch.delay_s(self._lost(error, address)))

    def generate(
        self, path: str, body: Mapping[str, Any] | bytes, *, program_id: str | None = None, thread_id: str = ""
    ) -> Generation:
        """Runs one call on an engine and returns its response as it arrives.

        path: of the engine's OpenAI API, like /v1/chat/completions. body: its JSON. program_id: by default the current
        program, else a program of this one call. Closing the response (`with`, or `close`) aborts the call.
        """
        call = GenerateCall(path, body, program_id, thread_id)
        try:
            while True:
                admission = self.run(call.admit())
                try:
                    generation = self._generation(call, admission)
                    break
                except AgentServingError as error:
                    if not call.may_retry(error, admission):
                        raise
        except BaseException:
            self._end_call(call.abandoned())
            raise
        self._end_call(call.responded(admission, generation.http_status))
        return generation

    def _end_call(self, operation: Operation[None] | None) -> None:
        """Best effort: a call that is not ended expires."""
        if operation is not None:
            with contextlib.suppress(AgentServingError):
                self.run(operation)

    def _generation(self, call: GenerateCall, admission: Admission) -> Generation:
        response = call_service_pb2.GenerateResponse
        stream = self._stream(admission.sidecar_address, GENERATE, call.admitted(admission), response)
        try:
            head = next(stream, None)
        except grpc.RpcError as error:
            raise from_rpc(error, admission.sidecar_address) from error
        except BaseException:
            stream.cancel()
            raise
        if head is None:
            raise InternalError(f"{admission.sidecar_address}: the response ended before it began")
        return Generation(call, admission, stream, head)

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, operation: Operation[R]) -> R:
        """Runs an operation at the leader, again where that is safe, until the deadline of its attempts."""
        attempts = Attempts(self.settings, time.monotonic(), again=operation.may_retry, leader=self._leader)
        while True:
            address = self._leader.address
            call = self._channel(address, self._leader.known).unary_unary(
                operation.path,
                request_serializer=type(operation.request).SerializeToString,
                response_deserializer=operation.response.FromString,
            )
            try:
                timeout = attempts.left_s(time.monotonic())
                response = call(operation.request, timeout=timeout, metadata=self.settings.pairs())
                self._leader.found(address)
                return operation.read(response)
            except grpc.RpcError as error:
                translated = from_rpc(error, address)
                delay = attempts.delay_s(translated, address, time.monotonic())
                if delay is None:
                    raise translated from error
            time.sleep(delay)

    def _lost(self, error: grpc.RpcError | AgentServingError, address: str) -> AgentServingError:
        """The error that ended a stream; the next stream is opened at the current leader."""
        translated = from_rpc(error, address)
        if translated is not error:
            look_elsewhere(self._leader, translated, address, time.monotonic())
        return translated

    def _stream(self, address: str, path: str, request: Any, response: Any, *, known: Sequence[str] = ()) -> Any:
        call = self._channel(address, known).unary_stream(
            path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        return call(request, metadata=self.settings.pairs())

    def _channel(self, address: str, known: Sequence[str]) -> grpc.Channel:
        channel = self._channels.get(address)
        if channel is None:
            made = dial(address, self.settings, known=known)
            channel = self._channels.setdefault(address, made)
        return channel

    def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Generation:
    """A response as it arrives: iterate over its bytes. Leaving a `with` block early aborts the call in the engine."""

    def __init__(self, call: GenerateCall, admission: Admission, stream: Any, head: Any) -> None:
        self.admission = admission
        self.http_status: int = head.http_status
        self.content_type: str = head.content_type
        self._call, self._stream = call, stream

    @property
    def call_id(self) -> str:
        """The call's id in the control plane."""
        return self.admission.call_id

    def __iter__(self) -> Iterator[bytes]:
        try:
            for message in self._stream:
                if message.chunk:
                    yield message.chunk
        except grpc.RpcError as error:
            raise from_rpc(error, self.admission.sidecar_address) from error
        finally:
            self._call.end()

    def read(self) -> bytes:
        """The rest of the body."""
        return b"".join(self)

    def close(self) -> None:
        """Aborts the call if it is still running."""
        self._stream.cancel()
        self._call.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


__all__ = ["Client", "Generation"]
