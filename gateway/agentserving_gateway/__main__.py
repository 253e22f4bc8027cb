"""The picker of a front: tells Envoy where each request goes."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import agentserving
import structlog
import uvloop
from agentserving.contract.ids import CallId, Tenant
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_process import logs, options, probes, supervision
from agentserving_process.options import option
from agentserving_process.probes import Answer, ProbeOptions
from agentserving_process.supervision import Supervisor
from agentserving_process.tls import LeaderOptions

from agentserving_gateway import authz, model_lists
from agentserving_gateway.admission import Admission
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.envoy import FrontSettings
from agentserving_gateway.envoy_admin import EnvoyAdmin
from agentserving_gateway.exchange_log import service as exchange_log
from agentserving_gateway.exchange_log.verdict import Exchange, ending_of, failed_engines
from agentserving_gateway.picker import Picker

log = structlog.get_logger()

# Until the last node knows that the pod is leaving.
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Envoy"""

    run_dir: Path = option(Path("run"), "directory that Envoy and the picker share")
    drain_s: float = option(0.0, "seconds that requests may go on after SIGTERM", least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of them."""

    serving: Serving
    probes: ProbeOptions
    leader: LeaderOptions


async def serve(settings: Settings, supervisor: Supervisor) -> None:
    """Runs until SIGTERM or SIGINT, then drains Envoy: a SIGTERM alone would cut its streams."""
    serving = settings.serving
    paths = FrontSettings(listen=":0", run_dir=serving.run_dir.absolute())
    paths.run_dir.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(EnvoyAdmin(Path(paths.admin_socket)))
        channel = LeaderChannel(settings.leader.control_plane, settings.leader.client_settings())
        admission = Admission(channel, EnginesFile(paths.engines_file), admin.knows)
        supervisor.start("admissions", admission.run)
        envoy = _EnvoyWatch(admin)
        supervisor.start("watch of Envoy", envoy.run)

        def ended(exchange: Exchange) -> None:
            for address in failed_engines(exchange):
                admission.avoid_address(address)
            ending = ending_of(exchange)
            if ending is not None and exchange.call_id:
                admission.end_by_id(CallId(exchange.call_id), Tenant("default"), ending, not exchange.was_sent)

        def ready() -> Answer:
            if envoy.leaving:
                return Answer(False, "leaving")
            if not envoy.serves:
                return Answer(False, "Envoy does not serve yet")
            return Answer(True, "ok") if admission.ready else Answer(False, "no engine known yet")

        await stack.enter_async_context(exchange_log.served(paths.log_socket, ended))
        await stack.enter_async_context(model_lists.served(admission, Path(paths.reads_socket)))
        await stack.enter_async_context(authz.served(Picker(admission), Path(paths.picker_socket)))
        await stack.enter_async_context(probes.served(probes.application(ready=ready), settings.probes))
        log.info("serving", run_dir=str(paths.run_dir), control_plane=settings.leader.control_plane)
        await supervisor.stop_requested()
        envoy.leaving = True
        await admin.drain(SETTLE_S, serving.drain_s)
        await admission.flush()


class _EnvoyWatch:
    """Knows whether Envoy serves; `run` is its supervised task."""

    EVERY_S = 0.5

    def __init__(self, admin: EnvoyAdmin) -> None:
        self._admin = admin
        self.serves = False
        self.leaving = False

    async def run(self) -> None:
        """Asks until it is cancelled."""
        while True:
            self.serves = await self._admin.is_ready()
            await asyncio.sleep(self.EVERY_S)


def main() -> None:
    """Entry point."""
    settings = options.parse(
        Settings, prog="agentserving-picker", description=__doc__, version=agentserving.__version__
    )
    logs.configure()
    sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor), loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
