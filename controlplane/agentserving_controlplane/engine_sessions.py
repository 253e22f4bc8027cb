"""The conversation with one engine's sidecar, in values. `api/engine.py` carries the messages.

A session begins with `hello`. Reports change the table and are acknowledged, in order, once the commit that holds them
has landed. An acknowledgement of a number covers all smaller ones. A sidecar sends old and new reports through one
queue, so calls of an earlier boot are given up only after the reports that were unacknowledged at `hello` have come.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from dataclasses import dataclass, field

import msgspec
import structlog
from agentserving.contract.ids import CallId, EngineId

from agentserving_controlplane.account_spreading import accounts_of
from agentserving_controlplane.call_ends import CallEnds
from agentserving_controlplane.engines.directives import (
    Acknowledgement,
    Welcome,
    cancel_in_parts,
)
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import Health
from agentserving_controlplane.engines.identity import EngineIdentity
from agentserving_controlplane.engines.links import Link
from agentserving_controlplane.errors import ConflictError, InvalidError, NotLeaderError
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import Outcome

log = structlog.get_logger()

ENGINE_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
MAX_BOOT_ID_CHARS, MAX_REASON_CHARS = 128, 1000
# Unknown calls that one engine may report to one leader. Lost are those admitted in the last 50 ms before a crash, at
# most as many as an engine queues; all beyond are refused, because each may make a row for any tenant.
MAX_ADOPTED = 4096
# Acknowledgements that wait for the store individually; further ones are merged into the newest.
MAX_WAITING_ACKS = 1000
# Between two acknowledgements on one stream: a message costs much more than what is in it, and the sidecar's journal
# can wait. One that is leaving cannot.
ACK_INTERVAL_S = 1.0
# Rows examined, and calls ended, before other tasks run: two or three milliseconds of work.
ROWS_PER_SLICE, ENDS_PER_SLICE = 100, 25


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHello:
    """First message of a sidecar, repeated when its engine boots. While LOADING or DOWN `boot_id` may be empty."""

    engine_id: EngineId
    boot_id: str
    address: str
    sidecar_address: str
    capabilities: Capabilities = field(default_factory=Capabilities)
    # Highest epoch that the sidecar has seen.
    epoch: int = 0
    draining: bool = False
    # Highest seq among the reports that are not acknowledged yet, all of which follow; 0 = none.
    unacked_seq: int = 0
    health: Health = Health.SERVING
    health_reason: str = ""


class EngineReport(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A report; `seq` 0: nothing to acknowledge. `engine_down`: calls of `boot_id` without final report have failed."""

    seq: int = 0
    load: Load | None = None
    calls: tuple[CallReport, ...] = ()
    health: Health = Health.SERVING
    health_reason: str = ""
    boot_id: str = ""
    engine_down: bool = False


class EngineSession:
    """One stream of a sidecar."""

    def __init__(self, state: LeaderState, ends: CallEnds, identity: EngineIdentity | None = None) -> None:
        self._state, self._ends, self._identity = state, ends, identity
        self.link = Link()
        self.engine: Engine | None = None
        # (commit number, seq) of reports that wait to be acknowledged.
        self._acks: deque[tuple[int, int]] = deque()
        self._acks_waiting = asyncio.Event()
        self._is_leaving = asyncio.Event()
        self._seen_seq = 0
        # Calls of earlier boots are given up once reports up to this seq have come.
        self._give_up_after_seq: int | None = None

    # -- hello ---------------------------------------------------------------------------------------------------

    async def hello(self, hello: EngineHello) -> None:
        """Attaches the engine, or renews what is known of it."""
        self._check(hello)
        state, now = self._state, self._state.now()
        engine = self.engine = state.engines.ensure(hello.engine_id, now.steady_us)
        if hello.boot_id:
            engine.boot(hello.boot_id, now.unix_us)
        engine.address, engine.sidecar_address = hello.address, hello.sidecar_address
        engine.capabilities, engine.leaving = hello.capabilities, hello.draining
        (self._is_leaving.set if hello.draining else self._is_leaving.clear)()
        engine.health, engine.health_reason = hello.health, hello.health_reason[:MAX_REASON_CHARS]
        engine.attached, engine.heard_us, engine.heard_unix_us = True, now.steady_us, now.unix_us
        state.links.attach(engine.engine_id, self.link)
        paused = tuple(sorted(state.table.index.paused))
        self.link.push(Welcome(state.policy_in_force.for_engines, paused, state.tenants.shares()))
        log.info(
            "engine attached",
            engine=engine.engine_id,
            boot=engine.boot_id,
            address=engine.address,
            state=engine.state.name,
            reason=engine.condition.reason,
        )
        state.wake()
        await self._catch_up(engine)
        self._give_up_after_seq = hello.unacked_seq if hello.boot_id else None
        await self._give_up(engine)

    def _check(self, hello: EngineHello) -> None:
        needs_boot = hello.health not in (Health.LOADING, Health.DOWN)
        if (
            ENGINE_ID.fullmatch(hello.engine_id) is None
            or len(hello.boot_id) > MAX_BOOT_ID_CHARS
            or (needs_boot and not hello.boot_id)
        ):
            raise InvalidError(
                "BAD_ENGINE_ID", "engine_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, with a boot_id", field="engine_id"
            )
        if self.engine is not None and self.engine.engine_id != hello.engine_id:
            raise InvalidError("ENGINE_CHANGED", "engine_id: one stream, one engine", field="engine_id")
        if self._identity is not None:
            self._identity.check(hello.engine_id, address=hello.address, sidecar_address=hello.sidecar_address)
        if hello.epoch > self._state.epoch:
            self._state.note_later_epoch(hello.epoch)
            raise NotLeaderError(f"the sidecar has seen epoch {hello.epoch}, this is epoch {self._state.epoch}")

    async def _catch_up(self, engine: Engine) -> None:
        """Sends what the engine missed while it was away: accounts that moved, calls that were cancelled."""
        table = self._state.table
        keys = list(dict.fromkeys(engine.calls.values()))
        for begin in range(0, len(keys), ROWS_PER_SLICE):
            rows = [table.rows[key] for key in keys[begin : begin + ROWS_PER_SLICE] if key in table.rows]
            roots = {row.root_key: table.index.root_of(row) for row in rows}
            self.link.push(accounts_of(list(roots.values())))
            cancelled: list[CallId] = []
            for row in rows:
                if row.cancelled:
                    cancelled += [c.call_id for c in row.calls.values() if c.engine_id == engine.engine_id]
            for directive in cancel_in_parts(cancelled):
                self.link.push(directive)
            await asyncio.sleep(0)

    def detach(self) -> None:
        """The stream is over."""
        engine = self.engine
        if engine is not None and self._state.links.detach(engine.engine_id, self.link):
            self._state.engines.detach(engine, self._state.now().steady_us)
            log.warning("engine detached", engine=engine.engine_id)
            self._state.wake()

    # -- reports -------------------------------------------------------------------------------------------------

    def _attached(self) -> Engine:
        if self.engine is None:
            raise ConflictError("HELLO_FIRST", "the first message must be hello")
        return self.engine

    async def report(self, report: EngineReport) -> None:
        """Applies a report and queues its acknowledgement."""
        engine = self._attached()
        self._note_health(engine, report)
        number = self._apply(engine, report.calls)
        if report.engine_down:
            await self._fail_calls(engine, engine.boot_id if engine.boot_id != report.boot_id else "")
        if not report.seq:
            return
        self._seen_seq = max(self._seen_seq, report.seq)
        if len(self._acks) >= MAX_WAITING_ACKS:
            self._acks.pop()
        self._acks.append((number, report.seq))
        self._acks_waiting.set()
        await self._give_up(engine)

    def _note_health(self, engine: Engine, report: EngineReport) -> None:
        now = self._state.now()
        engine.heard_us, engine.heard_unix_us = now.steady_us, now.unix_us
        if report.load is not None and report.load != engine.load:
            engine.load = report.load
        reason = report.health_reason[:MAX_REASON_CHARS]
        if (report.health, reason) == (engine.health, engine.health_reason):
            return
        before = engine.condition
        engine.health, engine.health_reason = report.health, reason
        if engine.condition != before:
            log.warning(
                "engine changed", engine=engine.engine_id, state=engine.state.name, reason=engine.condition.reason
            )
            self._state.wake()

    def _apply(self, engine: Engine, reports: tuple[CallReport, ...]) -> int:
        """Applies call reports; returns the number of the commit that holds them all."""
        state, now = self._state, self._state.now()
        for report in reports:
            adopted = state.table.totals.calls_adopted
            found = state.table.index.call(report.call_id, report.tenant)
            if found is not None and found[1].engine_id != engine.engine_id:
                self._ends.passed_over(found[1], engine.engine_id)
            row = state.table.report(report, now, may_adopt=self._may_adopt(engine))
            engine.adopted += state.table.totals.calls_adopted - adopted
            if row is None:
                continue
            if report.outcome or state.table.totals.calls_adopted != adopted:
                # One call at a time, so that what must land together stays small.
                state.settle()
            if report.outcome:
                self._learn(engine, row, report, now.steady_us)
                if report.call_id in row.calls:
                    self._ends.try_failed(report.call_id)
                    continue
                state.accounts.moved(row.root_key, engine.engine_id)
        state.accounts.flush()
        return state.settle()

    def _may_adopt(self, engine: Engine) -> bool:
        """False once an engine has reported more unknown calls than a crash can have lost, or the store is behind."""
        return engine.adopted < MAX_ADOPTED and not self._state.commits.full

    def _learn(self, engine: Engine, row: ProgramRow, report: CallReport, now_us: int) -> None:
        if report.outcome is Outcome.COMPLETED:
            engine.learn(report.service_us)
        else:
            self._state.engines.call_ended(engine.engine_id, row.root_key, report.outcome, now_us, report.boot_id)
        tokens = report.prompt_tokens + report.output_tokens
        self._state.balancer.ran(row.root_key, engine, tokens)

    async def _give_up(self, engine: Engine) -> None:
        if self._give_up_after_seq is not None and self._seen_seq >= self._give_up_after_seq:
            self._give_up_after_seq = None
            await self._fail_calls(engine, engine.boot_id)

    async def _fail_calls(self, engine: Engine, alive: str) -> None:
        """Ends the calls that ran on another boot than `alive` as FAILED, charged with their last report."""
        state = self._state
        for count, (call_id, key) in enumerate(list(engine.calls.items()), start=1):
            if count % ENDS_PER_SLICE == 0:
                await asyncio.sleep(0)
            row = state.table.rows.get(key)
            call = row.calls.get(call_id) if row is not None else None
            if call is not None and call.engine_id == engine.engine_id and call.boot_id not in ("", alive):
                if state.table.fail_try(key, call_id, state.now()) is not None:
                    self._ends.try_failed(call_id)
                state.settle()

    def acknowledge_policy(self, version: int, error: str) -> None:
        """The engine executes a policy version, or refuses it with an error."""
        engine = self._attached()
        if error:
            engine.policy_error = error[:MAX_REASON_CHARS]
            log.error("engine refused the policy", engine=engine.engine_id, version=version, error=engine.policy_error)
        else:
            engine.policy_version, engine.policy_error = version, ""

    async def acknowledge_reports(self) -> None:
        """Runs for the life of the stream: queues an acknowledgement for all reports that have landed, now and then."""
        commits = self._state.commits
        while True:
            await self._acks_waiting.wait()
            number, seq = self._acks.popleft()
            await commits.durable(number)
            while self._acks and commits.has_landed(self._acks[0][0]):
                seq = max(seq, self._acks.popleft()[1])
            if not self._acks:
                self._acks_waiting.clear()
            self.link.push(Acknowledgement(seq))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_INTERVAL_S):
                    await self._is_leaving.wait()
