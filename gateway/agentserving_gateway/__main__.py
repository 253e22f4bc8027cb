"""The gateway's only wiring."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import structlog
import uvloop
from agentserving.transport.leader_channel import LeaderChannel, settings_of
from aiohttp import web

from agentserving_gateway import metrics
from agentserving_gateway.admission import Admission
from agentserving_gateway.client_connection import ClientConnection
from agentserving_gateway.draining import Connections
from agentserving_gateway.known_engines import KnownEngines
from agentserving_gateway.upstream_pool import UpstreamPool

log = structlog.get_logger()


def parse(argv: list[str]) -> argparse.Namespace:
    """Flags, each with an environment variable AGENTSERVING_<FLAG>."""
    parser = argparse.ArgumentParser(prog="agentserving-gateway", description=__doc__)
    for name, default in (
        ("listen", "127.0.0.1:8080"),
        ("control-plane", "127.0.0.1:7070"),
        ("http-host", "127.0.0.1"),
        ("http-port", "0"),
        ("max-body-bytes", str(8 << 20)),
        ("drain-s", "0"),  # how long calls may run on once it is told to end
        ("state-dir", ""),
        ("tls-ca", ""),
        ("tls-cert", ""),
        ("tls-key", ""),
        ("tls-server-name", ""),  # what control planes' certificates must say; empty = the host that they are known by
    ):
        value = os.environ.get("AGENTSERVING_" + name.upper().replace("-", "_"), default)
        parser.add_argument(
            f"--{name}", default=value, type=int if name in ("http-port", "max-body-bytes", "drain-s") else str
        )
    return parser.parse_args(argv)


async def serve(settings: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        leader = LeaderChannel(
            settings.control_plane,
            settings_of(settings.tls_ca, settings.tls_cert, settings.tls_key, settings.tls_server_name),
        )
    except ValueError as error:
        log.error("cannot start", error=f"--control-plane: {error}")
        return 1
    admission = Admission(leader, KnownEngines(Path(settings.state_dir) if settings.state_dir else None))
    admission.start()
    pool, connections = UpstreamPool(), Connections()
    host, _, port = settings.listen.rpartition(":")
    try:
        server = await loop.create_server(
            lambda: ClientConnection(admission, pool, settings.max_body_bytes, connections), host, int(port)
        )
    except OSError as error:
        log.error("cannot listen: is the port taken?", listen=settings.listen, error=error.strerror)
        return 1

    async def readyz(_: web.Request) -> web.Response:
        if connections.leaving:
            return web.Response(status=503, text="leaving\n")
        if not admission.ready:
            return web.Response(status=503, text="no engine known yet\n")
        return web.Response(text="ok\n")

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics.endpoint)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    if settings.http_port:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
    log.info("serving", listen=settings.listen, control_plane=settings.control_plane)
    await stop.wait()
    await connections.drain(settings.drain_s, server.close)
    pool.close()
    await admission.close()
    await runner.cleanup()
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
