"""Wiring of the control plane: a gRPC server behind a gate, the store, and leadership, which opens the gate."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
import uvloop
from agentserving.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    call_service_pb2,
    call_service_pb2_grpc,
    engine_service_pb2,
    engine_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
)
from agentserving_process import logs, probes, supervision
from agentserving_process.listening import listen
from agentserving_process.supervision import CannotStartError, Supervisor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentserving_controlplane.api.admin import AdminServicer
from agentserving_controlplane.api.call import CallServicer
from agentserving_controlplane.api.engine import EngineServicer
from agentserving_controlplane.api.gate import Gate, Services
from agentserving_controlplane.api.program import ProgramServicer
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.leadership import Leadership
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.settings import Settings, StoreOptions, parse
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import FencedError, Store
from agentserving_controlplane.table.rows import NewerSchemaError

log = structlog.get_logger()
RESTART = -1
# Calls in flight at SIGTERM are answered within a commit; streams do not end by themselves.
GRACE_S = 0.3
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Clients ping every second (agentserving.transport.channels).
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 300),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # And are pinged: a sidecar whose node is gone ends no stream, and calls would still be sent to its engine.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
]


def make_store(options: StoreOptions) -> Store:
    """The store that the options name. CannotStartError when a certificate cannot be read."""
    if options.store == "memory":
        return MemoryStore()
    try:
        return EtcdStore(options.etcd_endpoints, options.etcd_prefix, options.etcd_tls, options.lease_s)
    except OSError as error:
        raise CannotStartError(str(error)) from None


SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (program_service_pb2, "ProgramService"),
        (call_service_pb2, "CallService"),
        (engine_service_pb2, "EngineService"),
        (admin_service_pb2, "AdminService"),
    )
)


def register(server: Any, plane: ControlPlane) -> None:
    """Registers the services of the control plane."""
    program_service_pb2_grpc.add_ProgramServiceServicer_to_server(ProgramServicer(plane), server)
    call_service_pb2_grpc.add_CallServiceServicer_to_server(CallServicer(plane), server)
    engine_service_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(plane), server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(plane), server)


def add_health(server: grpc.aio.Server) -> Any:
    """Registers health and reflection."""
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return healthy


def add_services(server: grpc.aio.Server, plane: ControlPlane) -> Any:
    """Registers everything without a gate: for a control plane that leads from the start."""
    register(server, plane)
    return add_health(server)


@asynccontextmanager
async def rpc_server(settings: Settings, gate: Gate) -> AsyncIterator[tuple[grpc.aio.Server, Any]]:
    """(server, health servicer), serving behind the gate while the block runs. CannotStartError."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((gate,))
    healthy = add_health(server)
    # Before the store is touched: a second process on this address must not take over the first one's lease.
    listen(server, settings.serving.listen, settings.tls.server())
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield server, healthy
    finally:
        await server.stop(0)


async def serve(settings: Settings, supervisor: Supervisor) -> int:
    """Runs until SIGTERM or SIGINT (0), or until the lease is lost (RESTART)."""
    gate = Gate()
    async with rpc_server(settings, gate) as (server, healthy):

        async def open_gate(plane: ControlPlane) -> None:
            services = Services()
            register(services, plane)
            gate.open(services)
            for name in SERVICES:
                await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)

        store = make_store(settings.store)
        leadership = Leadership(settings, store, gate, open_gate)
        page = probes.application(ready=leadership.readiness, metrics=lambda: exposition(leadership.plane))
        try:
            async with probes.served(page, settings.probes):
                return await _lead(leadership, gate, server, supervisor)
        finally:
            await store.close()


async def _lead(leadership: Leadership, gate: Gate, server: grpc.aio.Server, supervisor: Supervisor) -> int:
    try:
        async with supervisor.child() as tasks:
            tasks.start(
                "leadership", lambda: leadership.lead(tasks), may_end=True, passes=(FencedError, NewerSchemaError)
            )
            await supervisor.stop_requested()
            # The lease is still renewed meanwhile.
            gate.close()
            await server.stop(GRACE_S)
            await leadership.resign()
        return 0
    except FencedError as error:
        if supervisor.stopping:
            # Our own resignation, or a loss that no longer matters.
            return 0
        gate.close()
        await leadership.lost(error)
        return RESTART
    except Exception as error:
        gate.close()
        await server.stop(0)
        await leadership.resign()
        if isinstance(error, NewerSchemaError):
            raise CannotStartError(str(error)) from error
        raise


def main() -> None:
    """Entry point."""
    settings = parse()
    logs.configure()
    code = supervision.run(lambda supervisor: serve(settings, supervisor), loop_factory=uvloop.new_event_loop)
    if code == RESTART:
        # A new process image: no state of the lost leadership remains, and no supervisor's back-off delays it.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.exit(code)


if __name__ == "__main__":
    main()
