"""The picker with its sockets, as one context: what `__main__` runs until it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from agentserving.contract.ids import CallId, EngineId, Tenant
from agentserving.contract.program_headers import ProgramHeader
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_process.engine_tls import EngineTls
from agentserving_process.probes import Answer
from agentserving_process.web_tokens.verifier import TokenVerifier

from agentserving_gateway import authz, metrics, model_lists
from agentserving_gateway.admission import Admission
from agentserving_gateway.calls import EndOfCall
from agentserving_gateway.content import Runs
from agentserving_gateway.credentials import Authenticator
from agentserving_gateway.crowd import Crowd
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.envoy import BUDGET_HOLD_S, MAX_CONNECTIONS, FrontSettings
from agentserving_gateway.envoy_admin import EnvoyAdmin
from agentserving_gateway.exchange_log import service as exchange_log
from agentserving_gateway.exchange_log.verdict import Exchange, ending_of, failed_engines
from agentserving_gateway.ext_proc import service as ext_proc_service
from agentserving_gateway.ext_proc.service import ExtProc, ExtProcOptions
from agentserving_gateway.grants import Grants
from agentserving_gateway.identity import SOURCES
from agentserving_gateway.key_watch import KeyWatch
from agentserving_gateway.own_tickets import OwnTickets
from agentserving_gateway.picker import Picker
from agentserving_gateway.refused_clients import RefusedClients
from agentserving_gateway.responses import Responses
from agentserving_gateway.uploads import SHARE, Uploads


class FrontPicker:
    """Serves one Envoy over the sockets in `run_dir`. `admission.run`, `keys.run` and `crowd.run` are tasks that
    its owner supervises."""

    def __init__(
        self, run_dir: Path, channel: LeaderChannel, ext_proc: ExtProcOptions | None = None,
        *, keys_channel: LeaderChannel | None = None, own_tickets: OwnTickets | None = None,
        group_by_content: bool = True, tokens: TokenVerifier | None = None, max_connections: int = MAX_CONNECTIONS,
        engine_tls: EngineTls | None = None, hold_s: float = 0.0, budget_hold_s: float = BUDGET_HOLD_S,
        grants: Grants | None = None, sources: Sequence[ProgramHeader] = SOURCES,
    ) -> None:  # fmt: skip
        """`ext_proc`: also serves gateways of others. `keys_channel`: clients have keys, which come by it.
        `own_tickets`: for calls while there is no leader. `group_by_content`: calls without an id, too.
        `tokens`: clients may have JWTs as well. `max_connections`: Envoy's own bound. `engine_tls`: how
        engines are reached; in the clear by default. `hold_s`: how long calls wait while there is no engine,
        `budget_hold_s`: while the budget of their program is spent. `grants`: for the batch service. `sources`:
        headers that name programs; Envoy must send them."""
        self._sources = sources
        self._engine_tls = engine_tls or EngineTls()
        self._runs = Runs() if group_by_content else None
        self.run_dir = run_dir.absolute()
        self._paths = FrontSettings(listen=":0", run_dir=self.run_dir)
        self.admin = EnvoyAdmin(Path(self._paths.admin_socket))
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.crowd = Crowd(self.admin, self._paths.crowd_file, max_connections)
        most = max(1, int(max_connections * SHARE))
        self._uploads = Uploads(most, self._paths.request_s, lambda: self.crowd.is_there)
        self._refused = RefusedClients()
        self.admission = Admission(
            channel, EnginesFile(self._paths.engines_file), self.admin.knows, own_tickets, hold_s, budget_hold_s
        )
        self.keys = KeyWatch(keys_channel, self._paths.keys_file) if keys_channel is not None else None
        self._grants = grants
        self.authenticator = Authenticator(
            self.keys.current if self.keys is not None else None,
            tokens=tokens,
            grants=grants,
            is_current=lambda: self.keys is None or self.keys.is_current,
        )
        self._ext_proc = ext_proc if ext_proc is not None and ext_proc.ext_proc_listen else None
        self._endpoint_picker: ExtProc | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        paths, stack = self._paths, self._stack
        await stack.enter_async_context(self.admin)
        await stack.enter_async_context(exchange_log.served(paths.log_socket, self._ended, self._passed_on))
        await stack.enter_async_context(
            model_lists.served(
                self.admission, self.authenticator, Path(paths.reads_socket), self._engine_tls, self._refused
            )
        )
        responses = Responses(self._engine_tls)
        stack.push_async_callback(responses.close)
        picker = self.core = Picker(
            self.admission, responses, self.authenticator, self._runs, refused=self._refused, uploads=self._uploads,
            grants=self._grants, sources=self._sources,
        )  # fmt: skip
        await stack.enter_async_context(authz.served(picker, Path(paths.picker_socket)))
        if self._ext_proc is not None:
            self._endpoint_picker = ExtProc(
                picker, ended=self._ended, ready=lambda: self.ready.ok,
                max_body_bytes=self._ext_proc.ext_proc_max_body_bytes,
            )  # fmt: skip
            await stack.enter_async_context(ext_proc_service.served(self._endpoint_picker, self._ext_proc))
        return self

    @property
    def ready(self) -> Answer:
        """Whether requests can be served."""
        if not self.authenticator.is_ready:
            return Answer(False, "no keys of clients known yet")
        return Answer(True, "ok") if self.admission.ready else Answer(False, "no engine known yet")

    async def drain(self, settle_s: float, limit_s: float) -> None:
        """Returns when no request is being served, after `limit_s` at the latest."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.admin.drain(settle_s, limit_s))
            if self._endpoint_picker is not None:
                group.create_task(self._endpoint_picker.drain(limit_s))

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _passed_on(self, calls: Mapping[Tenant, Sequence[CallId]]) -> None:
        """Envoy has logged exchanges of calls that went as planned."""
        for tenant, call_ids in calls.items():
            self.admission.passed_on(tenant, call_ids)

    def _ended(self, exchange: Exchange) -> None:
        """Envoy has logged the end of an exchange that did not go as planned."""
        metrics.RETRIES.inc(max(0, exchange.attempts - 1))
        for address in failed_engines(exchange):
            self.admission.avoid_address(address)
        ending = ending_of(exchange)
        if ending is None or not exchange.call_id:
            return
        last = self.admission.engine_at(exchange.last)
        self.admission.end(
            EndOfCall(
                call_id=CallId(exchange.call_id),
                tenant=Tenant(exchange.tenant),
                ending=ending,
                never_started=not exchange.was_sent,
                engine_id=last.engine_id if last is not None else EngineId(""),
                tries=exchange.attempts,
            )
        )
