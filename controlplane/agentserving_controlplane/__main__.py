"""The only wiring: settings -> gRPC server behind a gate -> store -> leadership, which opens the gate."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import grpc
import structlog
import uvloop
from agentserving.transport.connection import Tls
from agentserving.transport.server_tls import server_credentials
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
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentserving_controlplane.api.admin import AdminServicer
from agentserving_controlplane.api.call import CallServicer
from agentserving_controlplane.api.engine import EngineServicer
from agentserving_controlplane.api.gate import Gate, Services
from agentserving_controlplane.api.program import ProgramServicer
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.leadership import Leadership
from agentserving_controlplane.metrics import Readiness, http_app
from agentserving_controlplane.settings import Settings, parse
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import Store
from agentserving_controlplane.table.rows import NewerSchemaError

log = structlog.get_logger()
START_ANEW = -1
# Calls under way at SIGTERM are answered within a commit; streams do not end by themselves.
GRACE_S = 0.3
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Clients ask for a sign of life every second (agentserving.transport.connection).
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 300),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # And are asked themselves: a sidecar whose node is gone ends no stream, and its engine went on being given calls.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
]


def make_store(settings: Settings) -> Store:
    """The store that the settings name."""
    if settings.store == "memory":
        return MemoryStore()
    tls = Tls.of(settings.etcd_tls_ca, settings.etcd_tls_cert, settings.etcd_tls_key) if settings.etcd_tls_ca else None
    return EtcdStore(settings.etcd_endpoints, settings.etcd_prefix, tls, settings.lease_s)


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
    """Every service of ours."""
    program_service_pb2_grpc.add_ProgramServiceServicer_to_server(ProgramServicer(plane), server)
    call_service_pb2_grpc.add_CallServiceServicer_to_server(CallServicer(plane), server)
    engine_service_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(plane), server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(plane), server)


def add_health(server: grpc.aio.Server) -> Any:
    """Health and reflection."""
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return healthy


def add_services(server: grpc.aio.Server, plane: ControlPlane) -> Any:
    """A control plane without a gate: it leads from the start."""
    register(server, plane)
    return add_health(server)


def listen(server: grpc.aio.Server, settings: Settings) -> bool:
    """False when somebody listens there: found out before the store is taken from whoever that may be."""
    tls = Tls.of(settings.tls_ca, settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    secure = None if tls is None else server_credentials(tls, log)
    try:
        if secure is None:
            server.add_insecure_port(settings.listen)
        else:
            server.add_secure_port(settings.listen, secure)
    except RuntimeError:
        log.error("cannot listen: is the port taken?", listen=settings.listen)
        return False
    return True


async def serve(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT, or until it no longer leads. Gives the exit code, or START_ANEW."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gate, readiness = Gate(), Readiness()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((gate,))
    healthy = add_health(server)
    if not listen(server, settings):
        return 1
    runner = web.AppRunner(http_app(readiness), access_log=None)
    await runner.setup()
    if settings.http_port:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)

    async def open_gate(plane: ControlPlane) -> None:
        services = Services()
        register(services, plane)
        gate.open(services)
        for name in SERVICES:
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)

    store = make_store(settings)
    leadership = Leadership(settings, store, gate, readiness, open_gate)
    try:
        lost = await leadership.run(stop)
        gate.close()
        await server.stop(0 if lost else GRACE_S)
        await leadership.end()
    finally:
        await server.stop(0)
        await store.close()
        await runner.cleanup()
    return START_ANEW if lost else 0


def main() -> None:
    """Entry point."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    settings = parse(sys.argv[1:])
    try:
        code = uvloop.run(serve(settings))
    except (NewerSchemaError, OSError) as error:
        log.error("cannot start", error=str(error))
        sys.exit(1)
    if code == START_ANEW:
        # Nothing of what it knew may be left, and nobody need start it: no back-off of a supervisor's is between.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.exit(code)


if __name__ == "__main__":
    main()
