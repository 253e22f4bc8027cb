"""The sidecar of one engine: reports to the control plane, directives to the engine, and a journal in between."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import grpc
import uvloop
from agentserving import __version__
from agentserving.contract.ids import EngineId
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_process import engine_tls, logs, options, supervision
from agentserving_process.backoff import Backoff
from agentserving_process.engine_tls import EngineTls
from agentserving_process.listening import listen
from agentserving_process.malformed import TolerantServer
from agentserving_process.probes import served
from agentserving_process.supervision import CannotStartError, Supervisor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agentserving_sidecar.api.attach import LeaderLink
from agentserving_sidecar.api.generate import add_generate
from agentserving_sidecar.draining import drain_socket, drained
from agentserving_sidecar.engine_http import EngineHttp
from agentserving_sidecar.engine_link import EngineLinks
from agentserving_sidecar.http_front import http_app
from agentserving_sidecar.journal import Journal, JournalInUseError, NewerFormatError
from agentserving_sidecar.probing import ModelList, probe_front
from agentserving_sidecar.settings import EngineOptions, Settings
from agentserving_sidecar.sidecar import Sidecar

PROG = "agentserving-sidecar"
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Streams of one connection; further ones wait at their sender.
    ("grpc.max_concurrent_streams", 1000),
]
# The model list is a help for routing: the sidecar works without.
MODELS_RESTART = Backoff(first_s=1.0, max_s=30.0)


def parse(argv: list[str] | None = None) -> Settings:
    """Settings from flags and environment; exits with status 2 when they make no sense."""
    return options.parse(Settings, prog=PROG, description=__doc__, argv=argv, version=__version__)


def open_journal(settings: Settings) -> Journal:
    """CannotStartError when another sidecar or a newer version owns the directory, or it cannot be written."""
    try:
        return Journal(settings.sidecar.state_dir / "journal")
    except (JournalInUseError, NewerFormatError, OSError) as error:
        raise CannotStartError(str(error)) from error


def engine_http(engine: EngineOptions) -> EngineHttp:
    """The client of the engine. CannotStartError when a certificate cannot be read."""
    tls = EngineTls(engine.engine_ca, engine.engine_cert, engine.engine_key)
    return EngineHttp(
        engine.engine_address, engine.engine_api_key_file, tls, engine.channel_dir, engine_id=engine.engine_id
    )


@asynccontextmanager
async def generate_server(settings: Settings, engine: EngineHttp) -> AsyncIterator[None]:
    """CallService.Generate and gRPC health checks, while the block runs."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, TolerantServer(server))
    add_generate(server, engine, settings.sidecar.ticket_check(settings.engine.engine_id))
    # With a certificate but no CA, anybody could call: then it serves in the clear, as without a certificate.
    listen(server, settings.sidecar.listen, settings.leader.server() if settings.leader.tls_ca else None)
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await server.stop(1.0)


def connected_sidecar(settings: Settings, journal: Journal) -> tuple[Sidecar, EngineLinks, LeaderLink]:
    """The sidecar with both of its streams."""
    engine, leader = settings.engine, settings.leader
    sidecar = Sidecar(
        engine_id=EngineId(engine.engine_id),
        engine_address=engine.engine_address,
        sidecar_address=settings.sidecar.listen,
        journal=journal,
        step_limit_us=int(engine.stuck_s * 1_000_000),
    )
    sidecar.link = link = EngineLinks(engine.channel_dir, sidecar)
    sidecar.leader = leader_link = LeaderLink(LeaderChannel(leader.control_plane, leader.client_settings()), sidecar)
    return sidecar, link, leader_link


async def serve(settings: Settings, supervisor: Supervisor) -> None:
    """Runs until SIGTERM or SIGINT, then drains."""
    engine = settings.engine
    settings.leader.report_expiry()
    engine_tls.report_expiry(engine.engine_ca, engine.engine_cert)
    with closing(open_journal(settings)) as journal:
        sidecar, link, leader_link = connected_sidecar(settings, journal)
        async with (
            engine_http(engine) as http,
            generate_server(settings, http),
            served(http_app(sidecar, http), settings.probes),
            drain_socket(sidecar, engine.channel_dir, engine.drain_s),
            Supervisor() as tasks,
        ):
            models = ModelList(http, sidecar.models_changed)
            sidecar.on_front_ready = models.refresh
            tasks.start("engine channel", link.run)
            tasks.start("attach", leader_link.run)
            tasks.start("journal", sidecar.recorder.run)
            tasks.start("health", sidecar.watch_health)
            tasks.start("front probe", lambda: probe_front(http, sidecar.front_answered))
            tasks.start("models", models.run, restart=MODELS_RESTART)
            await supervisor.stop_requested()
            sidecar.leave()
            await drained(sidecar, engine.drain_s)


def main() -> None:
    """Entry point."""
    settings = parse()
    logs.configure()
    sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor), loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
