"""How commands reach a running cluster, and how they say what went wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import click
import grpc
from agentserving import AgentServingError, Client
from agentserving.client.operations import Operation
from agentserving.transport.channels import dial
from agentserving.transport.connection import Pem, Settings
from agentserving.transport.errors import from_rpc, hint_of
from agentserving.transport.leader import split
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, program_service_pb2_grpc
from google.protobuf.message import Message

from agentserving_cli.local.state_dir import is_claimed, read_addresses

DEADLINE_S = 10.0


def default_state_dir() -> Path:
    """Under XDG_STATE_HOME or ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "agentserving" / "default"


def address_of(state_dir: Path, control_plane: str) -> str:
    """The flag, else AGENTSERVING_CONTROL_PLANE, else the local cluster's."""
    given = control_plane or os.environ.get("AGENTSERVING_CONTROL_PLANE", "")
    if given:
        try:
            return ",".join(split(given))
        except ValueError as error:
            fail(str(error))
    told = read_addresses(state_dir)
    if told and is_claimed(state_dir):
        return str(told["control_plane"])
    if is_claimed(state_dir):
        fail(f"the cluster in {state_dir} is not up yet: try again when `agentserving up` says Ready")
    fail(f"no cluster runs in {state_dir}: start one with `agentserving up`, or name one with --control-plane")


def fail(message: str) -> NoReturn:
    """One clear line and exit code 1."""
    raise click.ClickException(message)


class _Leading:
    """What generated stubs want of a channel: each call goes to whoever leads then. Raises grpc.RpcError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def unary_unary(self, path: str, *, response_deserializer: Any, **_: object) -> Callable[..., Any]:
        """See gRPC. Every call has the client's deadline."""
        response: Any = SimpleNamespace(FromString=response_deserializer)

        def call(request: Message, timeout: float = DEADLINE_S) -> Any:
            try:
                return self._client.run(Operation(path, request, response, lambda message: message))
            except AgentServingError as error:
                raise error.__cause__ or error from None

        return call

    def unary_stream(self, path: str, **_: object) -> None:
        """No command reads one."""


class Services:
    """Stubs to the control plane that leads."""

    def __init__(self, client: Client) -> None:
        channel: Any = _Leading(client)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.programs = program_service_pb2_grpc.ProgramServiceStub(channel)


def connect(address: str, tls: Pem | None = None) -> Client:
    """To the control planes at these addresses."""
    return Client(address, settings=Settings(tls=tls, deadline_s=DEADLINE_S))


@contextmanager
def services(state_dir: Path, control_plane: str) -> Iterator[Services]:
    """Connects to the cluster that the flags mean; a refusal becomes its message."""
    with connected(address_of(state_dir, control_plane)) as stubs:
        yield stubs


@contextmanager
def connected(address: str, tls: Pem | None = None) -> Iterator[Services]:
    """Connects; a refusal becomes its message."""
    with connect(address, tls) as client:
        try:
            yield Services(client)
        except grpc.RpcError as error:
            fail(refusal(error, address))


def named_leader(address: str, tls: Pem | None = None) -> str:
    """Whom the control plane at an address names as the leader, host:port; "" when it leads, or cannot tell."""
    with dial(address, Settings(tls=tls), known=(address,)) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        try:
            stub.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return hint_of(from_rpc(error, address)) or ""
    return ""


def refusal(error: grpc.RpcError, address: str) -> str:
    """One line for a user."""
    if not isinstance(error, grpc.Call):
        return f"{address}: {error}"
    details = (error.details() or "").strip()
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if "failed to connect" in details or "Connection refused" in details:
            return f"the control plane at {address} does not answer: is its cluster up?"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the control plane at {address} did not answer within {DEADLINE_S:.0f} s: its log may tell why"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{address} is no control plane of agentserving"
        case code:
            return details or f"{address}: {code.name}"


def wait_for_policy(stubs: Services, version: int, bound_s: float = 15.0) -> int:
    """Until every attached engine has acknowledged it."""
    deadline = time.monotonic() + bound_s
    while True:
        told = stubs.admin.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=DEADLINE_S)
        if told.policy.version != version or not told.pending_engine_ids:
            return int(told.policy.version)
        if time.monotonic() > deadline:
            fail(f"version {version} is in force, but not acknowledged by {', '.join(told.pending_engine_ids)}")
        time.sleep(0.1)
