"""The picker of a front: answers Envoy's question where each request goes."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import agentserving
import structlog
import uvloop
from agentserving.contract.signatures import SigningKey
from agentserving.contract.ticket_keys import TicketKeys, signing_keys
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_process import certificate_expiry, engine_tls, logs, open_files, options, probes, supervision
from agentserving_process.certificate_expiry import Use
from agentserving_process.options import option
from agentserving_process.probes import Answer, ProbeOptions
from agentserving_process.supervision import CannotStartError, Supervisor
from agentserving_process.tls import LeaderOptions
from agentserving_process.web_tokens.watch import TokenOptions
from aiohttp import web

from agentserving_gateway.certificate_files import FrontTls, certificate_files
from agentserving_gateway.credentials import ClientAuth
from agentserving_gateway.drain import SETTLE_S
from agentserving_gateway.envoy import BUDGET_HOLD_S, MAX_CONNECTIONS, FrontSettings
from agentserving_gateway.envoy_admin import EnvoyAdmin
from agentserving_gateway.ext_proc.service import ExtProcOptions
from agentserving_gateway.front_picker import FrontPicker
from agentserving_gateway.grants import Grants
from agentserving_gateway.identity_options import IdentityOptions
from agentserving_gateway.own_tickets import OwnTickets

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Envoy"""

    run_dir: Path = option(Path("run"), "directory that Envoy and the picker share")
    client_auth: ClientAuth = option(
        ClientAuth.NONE, "keys: each request needs a key of a client; none: everybody who reaches the port is served"
    )
    ticket_key_file: Path | None = option(
        None,
        "file of the secret that signs tickets while no control plane can be reached, and grants of batches; "
        "none: neither is there",
    )
    group_by_content: bool = option(
        True, "a call without an id whose messages extend an earlier call's joins its program; false: it is a program"
    )
    max_connections: int = option(
        MAX_CONNECTIONS, "client connections that Envoy takes, its --max-connections", least=1
    )
    hold_s: float = option(0.0, "seconds that calls wait while there is no engine; 0: they are refused", least=0)
    budget_hold_s: float = option(
        BUDGET_HOLD_S,
        "seconds that calls wait while the budget of their program is spent; 0: they are refused",
        least=0,
    )
    drain_s: float = option(0.0, "seconds that requests may go on after SIGTERM", least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the process, by topic."""

    serving: Serving
    identity: IdentityOptions
    ext_proc: ExtProcOptions
    probes: ProbeOptions
    leader: LeaderOptions
    tokens: TokenOptions
    tls: FrontTls

    def __post_init__(self) -> None:
        if self.tokens.jwt_issuer and self.serving.client_auth is not ClientAuth.KEYS:
            raise ValueError("--jwt-issuer: --client-auth keys is needed with it: JWTs are accepted beside keys")


async def serve(settings: Settings, supervisor: Supervisor) -> None:
    """Runs until SIGTERM or SIGINT, then drains Envoy: a SIGTERM alone would cut its streams."""
    serving = settings.serving
    channel, keys_channel = (
        LeaderChannel(settings.leader.control_plane, settings.leader.client_settings()) for _ in range(2)
    )
    has_keys = serving.client_auth is ClientAuth.KEYS
    if not has_keys:
        log.warning("no authentication: anyone who reaches the gateway's port is served (--client-auth keys closes it)")
    settings.leader.report_expiry()
    engine_tls.report_expiry(settings.tls.engine_ca, settings.tls.engine_cert)
    certificate_expiry.report(Use.FRONT, settings.tls.front_cert)
    certificate_expiry.report(Use.ENDPOINT_PICKER, settings.ext_proc.ext_proc_cert)
    tokens = settings.tokens.watch()
    keys = _keys(serving)
    made = FrontPicker(
        serving.run_dir, channel, settings.ext_proc,
        keys_channel=keys_channel if has_keys else None, own_tickets=OwnTickets(keys) if keys is not None else None,
        grants=Grants(keys) if keys is not None else None,
        group_by_content=serving.group_by_content, max_connections=serving.max_connections,
        tokens=tokens.verifier if tokens is not None else None, engine_tls=settings.tls.to_engines(),
        hold_s=serving.hold_s, budget_hold_s=serving.budget_hold_s, sources=settings.identity.sources(),
    )  # fmt: skip
    async with made as front:
        supervisor.start("admissions", front.admission.run)
        supervisor.start("crowd", front.crowd.run)
        if front.keys is not None:
            supervisor.start("keys", front.keys.run)
        paths = settings.tls.added_to(FrontSettings(listen=":0", run_dir=front.run_dir))
        for number, files in enumerate(certificate_files(paths)):
            supervisor.start(f"certificates {number}", files.run)
        if tokens is not None:
            supervisor.start("keys of JWTs", tokens.run)
        envoy = _EnvoyWatch(front.admin)
        supervisor.start("watch of Envoy", envoy.run)

        def ready() -> Answer:
            if envoy.leaving:
                return Answer(False, "leaving")
            if not envoy.serves:
                return Answer(False, "Envoy does not serve yet")
            return front.ready

        async def envoy_metrics(_: web.Request) -> web.Response:
            text = await front.admin.metrics()
            return web.Response(status=503 if text is None else 200, text=text or "Envoy does not answer\n")

        routes = [web.get("/envoy/metrics", envoy_metrics)]
        async with probes.served(probes.application(ready=ready, routes=routes), settings.probes):
            log.info("serving", run_dir=str(front.run_dir), control_plane=settings.leader.control_plane)
            await supervisor.stop_requested()
            envoy.leaving = True
            await front.drain(SETTLE_S, serving.drain_s)
            await front.admission.flush()


def _keys(serving: Serving) -> TicketKeys[SigningKey] | None:
    if serving.ticket_key_file is None:
        return None
    try:
        return signing_keys(serving.ticket_key_file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CannotStartError(f"--ticket-key-file: {serving.ticket_key_file}: {reason}") from None


class _EnvoyWatch:
    """Knows whether Envoy serves; `run` is its supervised task."""

    # Often while it starts: the front is not ready before.
    STARTING_S, EVERY_S = 0.05, 0.5

    def __init__(self, admin: EnvoyAdmin) -> None:
        self._admin = admin
        self.serves = False
        self.leaving = False

    async def run(self) -> None:
        """Asks until it is cancelled."""
        while True:
            self.serves = await self._admin.is_ready()
            await asyncio.sleep(self.EVERY_S if self.serves else self.STARTING_S)


def main() -> None:
    """Entry point."""
    settings = options.parse(
        Settings, prog="agentserving-picker", description=__doc__, version=agentserving.__version__
    )
    logs.configure()
    open_files.raise_limit()
    sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor), loop_factory=uvloop.new_event_loop))


if __name__ == "__main__":
    main()
