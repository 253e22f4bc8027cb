"""The control plane's only wiring: settings -> store -> recovered state -> gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from pathlib import Path
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
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.etcd_store import EtcdStore
from agentserving_controlplane.memory_store import MemoryStore
from agentserving_controlplane.metrics import Readiness, http_app
from agentserving_controlplane.rows import NewerSchemaError
from agentserving_controlplane.servicers.admin import AdminServicer
from agentserving_controlplane.servicers.call import CallServicer
from agentserving_controlplane.servicers.engine import EngineServicer
from agentserving_controlplane.servicers.program import ProgramServicer
from agentserving_controlplane.settings import Settings, parse
from agentserving_controlplane.store import Store, StoreUnavailableError

log = structlog.get_logger()
TICK_S, STORE_RETRY_S = 5.0, 0.5


def make_store(settings: Settings) -> Store:
    """The store that the settings name."""
    if settings.store == "memory":
        return MemoryStore()
    secure = None
    if settings.etcd_tls_ca:
        key, cert = (Path(p).read_bytes() if p else None for p in (settings.etcd_tls_key, settings.etcd_tls_cert))
        secure = grpc.ssl_channel_credentials(Path(settings.etcd_tls_ca).read_bytes(), key, cert)
    return EtcdStore(settings.etcd_endpoints, settings.etcd_prefix, secure)


def check_port(listen: str) -> None:
    """OSError when somebody listens there: found out before the store is taken from whoever that may be."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {listen}: {error.strerror}") from error


async def take_over(settings: Settings, store: Store, stop: asyncio.Event, readiness: Readiness) -> ControlPlane | None:
    """Becomes the writer and recovers; tries for as long as the store is away."""
    while not stop.is_set():
        try:
            epoch = await store.acquire(socket.gethostname())

            def fenced(error: Exception) -> None:
                log.error("fenced: another control plane has taken over", error=str(error))
                stop.set()

            plane = ControlPlane(settings, store, epoch, fenced)
            await plane.recover(store)
            return plane
        except StoreUnavailableError as error:
            readiness.waiting = f"waiting for the store: {error}"
            log.warning("store away, trying again", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), STORE_RETRY_S)
    return None


def add_services(server: grpc.aio.Server, plane: ControlPlane) -> Any:
    """Every service, health and reflection."""
    program_service_pb2_grpc.add_ProgramServiceServicer_to_server(ProgramServicer(plane), server)
    call_service_pb2_grpc.add_CallServiceServicer_to_server(CallServicer(plane), server)
    engine_service_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(plane), server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(plane), server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = [
        module.DESCRIPTOR.services_by_name[name].full_name
        for module, name in (
            (program_service_pb2, "ProgramService"),
            (call_service_pb2, "CallService"),
            (engine_service_pb2, "EngineService"),
            (admin_service_pb2, "AdminService"),
        )
    ]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return healthy


def credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS when a certificate is given; client certificates are asked for when a CA is."""
    if not settings.tls_cert:
        return None
    pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())
    ca = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


async def tick(plane: ControlPlane, stop: asyncio.Event) -> None:
    """Expiry until the end; as often as the shortest limit asks for."""
    limits = plane.settings
    shortest = min(limits.program_idle_s, limits.call_idle_s, limits.closed_retention_s)
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), min(TICK_S, shortest / 4))
        except TimeoutError:
            await plane.tick()


async def serve(settings: Settings) -> int:
    """Runs until SIGTERM, SIGINT or fenced. Gives the exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    check_port(settings.listen)
    readiness = Readiness()
    runner = web.AppRunner(http_app(readiness), access_log=None)
    await runner.setup()
    if settings.http_port:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
    store = make_store(settings)
    plane = await take_over(settings, store, stop, readiness)
    if plane is None:
        return 0
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
    healthy = add_services(server, plane)
    secure = credentials(settings)
    try:
        if secure is None:
            server.add_insecure_port(settings.listen)
        else:
            server.add_secure_port(settings.listen, secure)
    except RuntimeError:
        log.error("cannot listen: is the port taken?", listen=settings.listen)
        return 1
    await server.start()
    readiness.plane = plane
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    log.info("serving", listen=settings.listen, epoch=plane.epoch, policy=plane.policy.policy.name)
    await tick(plane, stop)
    await server.stop(1.0)
    await plane.commits.close()
    await store.close()
    await runner.cleanup()
    return 1 if plane.commits.fenced else 0


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
        sys.exit(uvloop.run(serve(settings)))
    except (NewerSchemaError, OSError) as error:
        log.error("cannot start", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
