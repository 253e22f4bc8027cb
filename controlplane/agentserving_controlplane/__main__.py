"""Wiring of the control plane: a gRPC server behind a gate, the store, and leadership, which opens the gate."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
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
    key_service_pb2,
    key_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
    stream_service_pb2,
    stream_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from agentserving_process import certificate_expiry, logs, probes, supervision
from agentserving_process.certificate_expiry import Use
from agentserving_process.frames.server import StreamServer
from agentserving_process.listening import listen
from agentserving_process.malformed import TolerantServer
from agentserving_process.supervision import CannotStartError, Supervisor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentserving_controlplane.api.admin import AdminServicer
from agentserving_controlplane.api.audit import Audit
from agentserving_controlplane.api.authentication import Authenticator
from agentserving_controlplane.api.authorization import Port
from agentserving_controlplane.api.call import CallServicer
from agentserving_controlplane.api.engine import EngineServicer
from agentserving_controlplane.api.gate import Gate, Services
from agentserving_controlplane.api.guard import Guard, OpenStreams
from agentserving_controlplane.api.key import KeyServicer
from agentserving_controlplane.api.program import ProgramServicer
from agentserving_controlplane.api.stream import FRAMED, StreamServicer
from agentserving_controlplane.api.tenant import TenantServicer
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.leadership import Leadership
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.settings import Settings, StoreOptions, parse
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import FencedError, Store
from agentserving_controlplane.table.rows import NewerSchemaError
from agentserving_controlplane.telemetry import wiring

log = structlog.get_logger()
RESTART = -1
# Calls in flight at SIGTERM are answered within a commit; streams do not end by themselves.
GRACE_S = 0.3
MAX_REQUEST_BYTES = 16 << 20
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Streams of one connection; further ones wait at their sender.
    ("grpc.max_concurrent_streams", 1000),
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
        return EtcdStore(
            options.etcd_endpoints, options.etcd_prefix, options.etcd_tls, options.lease_s, options.etcd_quota_bytes
        )
    except OSError as error:
        raise CannotStartError(str(error)) from None


SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (program_service_pb2, "ProgramService"),
        (call_service_pb2, "CallService"),
        (engine_service_pb2, "EngineService"),
        (admin_service_pb2, "AdminService"),
        (key_service_pb2, "KeyService"),
        (stream_service_pb2, "StreamService"),
        (tenant_service_pb2, "TenantService"),
    )
)


def register(server: Any, plane: ControlPlane, streams_address: str = "") -> None:
    """Registers the services of the control plane. `streams_address`: of framed streams, if it serves them."""
    program_service_pb2_grpc.add_ProgramServiceServicer_to_server(ProgramServicer(plane), server)
    call_service_pb2_grpc.add_CallServiceServicer_to_server(CallServicer(plane), server)
    engine_service_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(plane), server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(plane), server)
    key_service_pb2_grpc.add_KeyServiceServicer_to_server(KeyServicer(plane), server)
    stream_service_pb2_grpc.add_StreamServiceServicer_to_server(StreamServicer(streams_address), server)
    tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(TenantServicer(plane), server)


def add_health(server: grpc.aio.Server, *, reflect: bool = True) -> Any:
    """Registers health, which needs no credential, and reflection."""
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, TolerantServer(server))
    if reflect:
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return healthy


def add_services(server: grpc.aio.Server, plane: ControlPlane) -> Any:
    """Registers everything without a gate: for a control plane that leads from the start."""
    register(server, plane)
    return add_health(server)


class Servers:
    """The gRPC servers of this process: one for the parts, and one for clients if they have a port of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.parts, self.clients = Gate(), Gate() if settings.serving.clients_listen else None
        self._audit, self._streams = Audit(), OpenStreams()
        # None: clients have keys only.
        self.tokens = settings.tokens.watch()
        if self.tokens is not None:
            self.tokens.on_change.add(self._streams.keep_signed_by)
        self._servers: list[grpc.aio.Server] = []
        self._health: list[Any] = []
        self._framed: StreamServer | None = None
        self._streams_address = ""

    @property
    def refusals(self) -> Mapping[str, int]:
        """Callers who were not let in, by reason."""
        return self._audit.refusals

    async def start(self) -> None:
        """Serves health, and refuses everything else until `open`. CannotStartError."""
        serving, tls = self._settings.serving, self._settings.tls
        # Before the store is touched: a second process on this address must not take over the first one's lease.
        await self._start(self.parts, serving.listen, tls.server())
        if serving.streams_listen:
            framed = StreamServer(self.parts, FRAMED, MAX_REQUEST_BYTES, tls.server_context())
            self._streams_address = serving.streams_address(await framed.start(serving.streams_listen))
            self._framed = framed
        if self.clients is not None:
            await self._start(self.clients, serving.clients_listen, tls.server_for_clients())

    async def _start(self, gate: Gate, address: str, credentials: grpc.ServerCredentials | None) -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((gate,))
        healthy = add_health(server, reflect=not self._settings.access.required)
        listen(server, address, credentials)
        await server.start()
        self._servers.append(server)
        self._health.append(healthy)
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)

    async def open(self, plane: ControlPlane) -> None:
        """Admits RPCs: this process leads."""
        services = Services()
        register(services, plane, self._streams_address)
        plane.api_keys.on_end.add(self._streams.end)
        if self.clients is None:
            self.parts.open(services, self._guard(plane, Port.SHARED, has_certificates=True))
        else:
            self.parts.open(services, self._guard(plane, Port.PARTS, has_certificates=True))
            self.clients.open(services, self._guard(plane, Port.CLIENTS, has_certificates=False))
        for healthy in self._health:
            for name in SERVICES:
                await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)

    def _guard(self, plane: ControlPlane, port: Port, *, has_certificates: bool) -> Guard | None:
        access = self._settings.access
        if not access.required:
            return None
        authenticator = Authenticator(
            plane.api_keys.keys,
            has_certificates=has_certificates and bool(self._settings.tls.tls_cert),
            cluster=access.cluster,
            tokens=self.tokens.verifier if self.tokens is not None else None,
        )
        return Guard(authenticator, port, self._audit, self._streams)

    def close(self) -> None:
        """Refuses new RPCs."""
        for gate in (self.parts, self.clients):
            if gate is not None:
                gate.close()

    async def stop(self, grace_s: float) -> None:
        """Ends RPCs after so much time, and listens no more."""
        ends = [server.stop(grace_s) for server in self._servers]
        if self._framed is not None:
            ends.append(self._framed.stop(grace_s))
        await asyncio.gather(*ends)


async def serve(settings: Settings, supervisor: Supervisor) -> int:
    """Runs until SIGTERM or SIGINT (0), or until the lease is lost (RESTART)."""
    if not settings.access.required:
        log.warning(
            "no authentication: anyone who reaches this port may read, pause and cancel every tenant's programs, attach"
            " engines and change the policy (--client-auth keys closes it)",
            listen=settings.serving.listen,
        )
    wiring.check(settings.telemetry)
    settings.tls.report_expiry()
    certificate_expiry.report(Use.ETCD, settings.store.etcd_tls_cert)
    servers = Servers(settings)
    if servers.tokens is not None:
        supervisor.start("keys of JWTs", servers.tokens.run)
    try:
        await servers.start()
        store = make_store(settings.store)
        leadership = Leadership(settings, store, servers.parts, servers.open, servers.clients)
        page = probes.application(
            ready=leadership.readiness, metrics=lambda: exposition(leadership.plane, servers.refusals)
        )
        try:
            async with probes.served(page, settings.probes):
                return await _lead(leadership, servers, supervisor)
        finally:
            await store.close()
    finally:
        await servers.stop(0)


async def _lead(leadership: Leadership, servers: Servers, supervisor: Supervisor) -> int:
    try:
        async with supervisor.child() as tasks:
            tasks.start(
                "leadership", lambda: leadership.lead(tasks), may_end=True, passes=(FencedError, NewerSchemaError)
            )
            await supervisor.stop_requested()
            # The lease is still renewed meanwhile.
            servers.close()
            await servers.stop(GRACE_S)
            await leadership.resign()
        return 0
    except FencedError as error:
        if supervisor.stopping:
            # Our own resignation, or a loss that no longer matters.
            return 0
        servers.close()
        await leadership.lost(error)
        return RESTART
    except Exception as error:
        servers.close()
        await servers.stop(0)
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
