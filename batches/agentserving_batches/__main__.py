"""The batch service: OpenAI's files and batches behind the gateway."""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

import agentserving
import structlog
from agentserving.contract.ticket_keys import verifying_keys
from agentserving_process import logs, options, probes, supervision
from agentserving_process.addresses import split_address
from agentserving_process.backoff import Backoff
from agentserving_process.options import REQUIRED, option
from agentserving_process.probes import Answer, ProbeOptions
from agentserving_process.supervision import CannotStartError, Supervisor

from agentserving_batches.http import server
from agentserving_batches.http.asker import Askers
from agentserving_batches.http.batches import Batches
from agentserving_batches.http.files import Files
from agentserving_batches.limits import Limits
from agentserving_batches.store.contents import Contents
from agentserving_batches.store.database import Database, InUseError
from agentserving_batches.work.gateway import Gateway
from agentserving_batches.work.runner import Runner
from agentserving_batches.work.stages import Stages
from agentserving_batches.work.upkeep import Upkeep

log = structlog.get_logger()


# On a full disk it fails, and batches wait.
UPKEEP_RESTART = Backoff(first_s=1.0, max_s=60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Batches"""

    listen: str = option(REQUIRED, "address for the gateway, host:port or unix:PATH")
    data_dir: Path = option(REQUIRED, "directory of the queue and of files; it must outlive the process")
    gateway: str = option(REQUIRED, "URL of the gateway, by which calls are made")
    gateway_certificate: Path | None = option(
        None, "PEM file with the gateway's certificate, or its CA; none: the system's CAs"
    )
    gateway_key_file: Path = option(REQUIRED, "file of the public key of gateways, which sign who asks")

    def __post_init__(self) -> None:
        if not self.listen.startswith(server.UNIX):
            split_address(self.listen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the process, by topic."""

    serving: Serving
    limits: Limits
    probes: ProbeOptions


async def serve(settings: Settings, supervisor: Supervisor) -> None:
    """Runs until SIGTERM or SIGINT. Calls in progress are broken off, and made again at the next start."""
    serving = settings.serving
    try:
        askers = Askers(verifying_keys(serving.gateway_key_file))
    except (OSError, ValueError) as error:
        raise CannotStartError(f"--gateway-key-file: {serving.gateway_key_file}: {error}") from None
    try:
        gateway = Gateway(serving.gateway, serving.gateway_certificate)
    except OSError as error:
        raise CannotStartError(f"--gateway-certificate: {serving.gateway_certificate}: {error}") from None
    try:
        database = Database(serving.data_dir).__enter__()
        contents = Contents(serving.data_dir)
    except (OSError, sqlite3.Error, InUseError) as error:
        raise CannotStartError(f"--data-dir: {error}") from None
    try:
        async with gateway:
            await _serve(settings, supervisor, database, contents, gateway, askers)
    finally:
        database.__exit__(None, None, None)


async def _serve(
    settings: Settings, supervisor: Supervisor, database: Database, contents: Contents, gateway: Gateway, askers: Askers
) -> None:
    limits = settings.limits
    upkeep = Upkeep(database, contents, limits)
    await upkeep.clear()
    runner = Runner(database, Stages(database, contents, gateway, limits))
    files = Files(database, contents, limits)
    batches = Batches(database, runner, limits, files.check_room)
    app = server.application(askers, [*files.routes(), *batches.routes()])

    def ready() -> Answer:
        return Answer(runner.is_running, "ok" if runner.is_running else "batches that had not ended are being read")

    async with Supervisor() as work:
        work.start("batches", runner.run)
        work.start("upkeep", upkeep.run, restart=UPKEEP_RESTART)
        async with (
            server.served(app, settings.serving.listen),
            probes.served(probes.application(ready=ready), settings.probes),
        ):
            log.info("serving", listen=settings.serving.listen, data_dir=str(settings.serving.data_dir))
            await supervisor.stop_requested()


def main() -> None:
    """Entry point."""
    settings = options.parse(
        Settings, prog="agentserving-batches", description=__doc__, version=agentserving.__version__
    )
    logs.configure()
    sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor)))


if __name__ == "__main__":
    main()
