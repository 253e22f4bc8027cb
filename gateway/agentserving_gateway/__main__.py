"""The OpenAI- and Anthropic-speaking front of a cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import agentserving
import structlog
import uvloop
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_process import logs, options, probes, supervision
from agentserving_process.listening import split_address
from agentserving_process.options import option
from agentserving_process.probes import Answer, ProbeOptions
from agentserving_process.supervision import CannotStartError, Supervisor
from agentserving_process.tls import LeaderOptions

from agentserving_gateway.admission import Admission
from agentserving_gateway.client_connection import ClientConnection
from agentserving_gateway.draining import Connections
from agentserving_gateway.engine_cache import EngineCache
from agentserving_gateway.exchange import Backends
from agentserving_gateway.upstream_pool import UpstreamPool

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Clients"""

    listen: str = option("127.0.0.1:8080", "address for clients, host:port or [IPv6]:port")
    max_body_bytes: int = option(8 << 20, "largest request body", least=1)
    drain_s: float = option(0.0, "seconds that calls may go on after SIGTERM", least=0)
    state_dir: Path | None = option(None, "directory for the last known engines; none: they are forgotten")

    def __post_init__(self) -> None:
        split_address(self.listen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of them."""

    serving: Serving
    probes: ProbeOptions
    leader: LeaderOptions


async def serve(settings: Settings, supervisor: Supervisor) -> None:
    """Runs until SIGTERM or SIGINT."""
    serving = settings.serving
    channel = LeaderChannel(settings.leader.control_plane, settings.leader.client_settings())
    admission = Admission(channel, EngineCache(serving.state_dir))
    supervisor.start("admissions", admission.run)
    pool, connections = UpstreamPool(), Connections()
    backends = Backends(admission, pool)
    server = await _listen(lambda: ClientConnection(backends, serving.max_body_bytes, connections), serving.listen)

    def ready() -> Answer:
        if connections.leaving:
            return Answer(False, "leaving")
        return Answer(True, "ok") if admission.ready else Answer(False, "no engine known yet")

    async with probes.served(probes.application(ready=ready), settings.probes):
        log.info("serving", listen=serving.listen, control_plane=settings.leader.control_plane)
        await supervisor.stop_requested()
        await connections.drain(serving.drain_s, server.close)
        pool.close()
        await admission.flush()


async def _listen(protocol: Callable[[], ClientConnection], address: str) -> asyncio.Server:
    host, port = split_address(address)
    try:
        return await asyncio.get_running_loop().create_server(protocol, host or None, port)
    except OSError as error:
        # asyncio puts the address into strerror, the resolver has codes of its own.
        cause = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise CannotStartError(f"cannot listen on {address}: {cause}") from None


def main() -> None:
    """Entry point."""
    settings = options.parse(
        Settings, prog="agentserving-gateway", description=__doc__, version=agentserving.__version__
    )
    logs.configure()
    sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor), loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
