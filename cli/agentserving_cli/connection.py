"""How commands reach the control plane of a running cluster, and how they say what went wrong.

Commands speak `agentserving.Client` and its values; this is the one module of the command line that sees gRPC.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click
import grpc
from agentserving import AgentServingError, Client
from agentserving.client import operations
from agentserving.transport.channels import dial
from agentserving.transport.connection import Pem, Settings, key_from_environment
from agentserving.transport.errors import DeadlineExceededError, UnavailableError, from_rpc, hint_of
from agentserving.transport.leader import split

from agentserving_cli.local.credentials import Credentials
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
    addresses = read_addresses(state_dir)
    if addresses and is_claimed(state_dir):
        return str(addresses["control_plane"])
    if is_claimed(state_dir):
        fail(f"the cluster in {state_dir} is not up yet: try again when `agentserving up` says Ready")
    fail(f"no cluster runs in {state_dir}: start one with `agentserving up`, or name one with --control-plane")


def fail(message: str) -> NoReturn:
    """One clear line and exit code 1."""
    raise click.ClickException(message)


def key_of(state_dir: Path, address: str) -> str:
    """AGENTSERVING_API_KEY, else the administrator's key of the local cluster at this address, else a client's key in
    the variables of SDKs; empty for none."""
    if given := os.environ.get("AGENTSERVING_API_KEY", ""):
        return given
    if address != read_addresses(state_dir).get("control_plane"):
        return key_from_environment()
    try:
        return Credentials(state_dir).read("admin")
    except FileNotFoundError:
        return ""  # --no-auth
    except OSError as error:
        fail(f"the administrator's key of the cluster cannot be read: {error}")


def connect(address: str, tls: Pem | None = None, api_key: str = "") -> Client:
    """A client of the control planes at these addresses; each operation goes to the one that leads."""
    return Client(address, settings=Settings(tls=tls, deadline_s=DEADLINE_S, api_key=api_key))


@contextmanager
def client_of(state_dir: Path, control_plane: str) -> Iterator[Client]:
    """A client of the cluster that the flags name; an error becomes one line."""
    address = address_of(state_dir, control_plane)
    with connected(address, api_key=key_of(state_dir, address)) as client:
        yield client


@contextmanager
def connected(address: str, tls: Pem | None = None, api_key: str = "") -> Iterator[Client]:
    """A client; an error becomes one line."""
    with connect(address, tls, api_key) as client:
        try:
            yield client
        except AgentServingError as error:
            fail(reason_of(error, address))


def named_leader(address: str, tls: Pem | None = None) -> str:
    """The leader that the control plane at an address names, host:port; "" when it leads itself, or knows of none."""
    operation = operations.get_policy()
    with dial(address, Settings(tls=tls), known=(address,)) as channel:
        call = channel.unary_unary(
            operation.path,
            request_serializer=type(operation.request).SerializeToString,
            response_deserializer=operation.response.FromString,
        )
        try:
            call(operation.request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return hint_of(from_rpc(error, address)) or ""
    return ""


def reason_of(error: AgentServingError, address: str) -> str:
    """One line for a user."""
    cause = error.__cause__
    code = cause.code() if isinstance(cause, grpc.Call) else None
    details = (cause.details() or "").strip() if isinstance(cause, grpc.Call) else ""
    unreachable = "failed to connect" in details or "Connection refused" in details
    if isinstance(error, UnavailableError) and unreachable:
        return f"the control plane at {address} does not answer: is its cluster up?"
    if isinstance(error, DeadlineExceededError):
        return f"the control plane at {address} did not answer within {DEADLINE_S:.0f} s: its log may say why"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{address} is not a control plane of agentserving, or an older one ({details or 'no such method'})"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"{details or error}. Set AGENTSERVING_API_KEY to a key of the cluster at {address}"
    if code is grpc.StatusCode.PERMISSION_DENIED and error.reason == "NOT_ALLOWED":
        return f"{details or error}. Set AGENTSERVING_API_KEY to the key of an administrator"
    return details or str(error)


def wait_for_policy(client: Client, version: int, bound_s: float = 15.0) -> int:
    """Waits until every attached engine has acknowledged a version; gives the version in force."""
    deadline = time.monotonic() + bound_s
    while True:
        policy = client.get_policy()
        if policy.version != version or not policy.pending_engine_ids:
            return policy.version
        if time.monotonic() > deadline:
            fail(f"version {version} is in force, but not acknowledged by {', '.join(policy.pending_engine_ids)}")
        time.sleep(0.1)
