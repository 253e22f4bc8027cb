"""How commands reach a running cluster, and how they say what went wrong."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click
import grpc
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, program_service_pb2_grpc

DEADLINE_S = 10.0


def default_state_dir() -> Path:
    """Under XDG_STATE_HOME or ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "agentserving" / "default"


def address_of(state_dir: Path, control_plane: str) -> str:
    """The flag, else AGENTSERVING_CONTROL_PLANE, else the local cluster's."""
    given = control_plane or os.environ.get("AGENTSERVING_CONTROL_PLANE", "")
    if given:
        return given
    described = state_dir / "cluster.json"
    if not described.exists():
        fail(f"no cluster runs in {state_dir}: start one with `agentserving up`, or name one with --control-plane")
    return str(json.loads(described.read_text())["control_plane"])


def fail(message: str) -> NoReturn:
    """One clear line and exit code 1."""
    raise click.ClickException(message)


class Services:
    """Stubs over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.programs = program_service_pb2_grpc.ProgramServiceStub(channel)


@contextmanager
def services(state_dir: Path, control_plane: str) -> Iterator[Services]:
    """Connects; a refusal becomes its message."""
    address = address_of(state_dir, control_plane)
    with grpc.insecure_channel(address) as channel:
        try:
            yield Services(channel)
        except grpc.RpcError as error:
            detail = error.details() if isinstance(error, grpc.Call) else str(error)
            fail(f"{address}: {detail}")


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
