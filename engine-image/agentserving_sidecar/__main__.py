"""The sidecar's only wiring."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import aiohttp
import grpc
import structlog
import uvloop
from agentserving.transport.connection import Tls
from agentserving.transport.leader_channel import LeaderChannel, settings_of
from agentserving.transport.server_tls import server_credentials
from agentserving.v1 import call_service_pb2_grpc
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agentserving_sidecar.attach import LeaderLink
from agentserving_sidecar.draining import drained
from agentserving_sidecar.generate import GenerateServicer
from agentserving_sidecar.http_front import http_app
from agentserving_sidecar.journal import Journal, NewerFormatError
from agentserving_sidecar.progress_probe import Progress
from agentserving_sidecar.sidecar import Sidecar

log = structlog.get_logger()

MODELS_RETRY_S = 0.5
PROGRESS_EVERY_S = 0.5


def parse(argv: list[str]) -> argparse.Namespace:
    """Flags, each with an environment variable AGENTSERVING_<FLAG>."""
    parser = argparse.ArgumentParser(prog="agentserving-sidecar", description=__doc__)
    flags: tuple[tuple[str, str | None, type], ...] = (
        ("engine-id", None, str),
        ("engine-address", None, str),
        ("channel-dir", None, str),
        ("state-dir", None, str),
        ("control-plane", "127.0.0.1:7070", str),
        ("listen", "127.0.0.1:7071", str),
        ("http-host", "127.0.0.1", str),
        ("http-port", "0", int),
        ("stuck-s", "5", float),
        ("drain-s", "30", float),
        # To control planes; with a certificate of its own it also serves by TLS, for clients of that CA only.
        ("tls-ca", "", str),
        ("tls-cert", "", str),
        ("tls-key", "", str),
        ("tls-server-name", "", str),  # what control planes' certificates must say; empty = the host they are known by
    )
    for name, default, kind in flags:
        value = os.environ.get("AGENTSERVING_" + name.upper().replace("-", "_"), default)
        parser.add_argument(f"--{name}", default=value, required=value is None, type=kind)
    return parser.parse_args(argv)


async def learn_models(sidecar: Sidecar, session: aiohttp.ClientSession) -> None:
    """Asks the engine what it serves, once it answers; then attaches."""
    while True:
        try:
            async with session.get(f"http://{sidecar.engine_address}/v1/models") as answer:
                listed = await answer.json()
                sidecar.models = [model["id"] for model in listed["data"]]
                break
        except (aiohttp.ClientError, KeyError, ValueError):
            await asyncio.sleep(MODELS_RETRY_S)
    if sidecar.leader is not None:
        sidecar.leader.renew()


async def watch_progress(sidecar: Sidecar) -> None:
    """For ever."""
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        sidecar.check_progress()


def channel_of(settings: argparse.Namespace) -> LeaderChannel:
    """To the control planes. ValueError names the flag."""
    tls = settings_of(settings.tls_ca, settings.tls_cert, settings.tls_key, settings.tls_server_name)
    try:
        return LeaderChannel(settings.control_plane, tls)
    except ValueError as error:
        raise ValueError(f"--control-plane: {error}") from error


def listen(server: grpc.aio.Server, settings: argparse.Namespace) -> bool:
    """False when somebody listens there, or its certificate cannot be read."""
    try:
        if settings.tls_ca and settings.tls_cert:
            tls = Tls.of(settings.tls_ca, settings.tls_cert, settings.tls_key)
            server.add_secure_port(settings.listen, server_credentials(tls, log))
        else:
            server.add_insecure_port(settings.listen)
    except OSError as error:
        log.error("cannot start", error=str(error))
        return False
    except RuntimeError:
        log.error("cannot listen: is the port taken?", listen=settings.listen)
        return False
    return True


async def serve(settings: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        journal = Journal(Path(settings.state_dir) / "journal")
        channel = channel_of(settings)
    except (NewerFormatError, ValueError) as error:
        log.error("cannot start", error=str(error))
        return 1
    sidecar = Sidecar(
        settings.engine_id, settings.engine_address, settings.listen, journal, Progress(int(settings.stuck_s * 1e6))
    )
    sidecar.connect(Path(settings.channel_dir), LeaderLink(channel, sidecar))
    assert sidecar.link is not None
    assert sidecar.leader is not None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        call_service_pb2_grpc.add_CallServiceServicer_to_server(
            GenerateServicer(settings.engine_address, session), server
        )
        if not listen(server, settings):
            return 1
        await server.start()
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        runner = web.AppRunner(http_app(sidecar, session, settings.drain_s), access_log=None)
        await runner.setup()
        if settings.http_port:
            await web.TCPSite(runner, settings.http_host, settings.http_port).start()
        tasks = [
            asyncio.create_task(coroutine)
            for coroutine in (
                learn_models(sidecar, session),
                sidecar.link.run(),
                sidecar.leader.run(),
                watch_progress(sidecar),
            )
        ]
        await stop.wait()
        sidecar.leave()
        await drained(sidecar, settings.drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(1.0)
        await runner.cleanup()
    await channel.close()
    journal.close()
    return 0


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
    sys.exit(uvloop.run(serve(parse(sys.argv[1:]))))


if __name__ == "__main__":
    main()
