"""The control plane's state and what may be done to it; servicers translate, this decides.

One asyncio loop owns everything: the table, the registry of engines, the policy. A change marks rows dirty, `settle`
hands them to the group commit, and only those who promised durability wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import structlog
from agentserving import ticket
from agentserving.policy import Accounting, Policy, preset
from agentserving.v1 import call_service_pb2, engine_service_pb2, types_pb2

from agentserving_controlplane import convert, rows
from agentserving_controlplane.engines import Engine, EngineRegistry
from agentserving_controlplane.errors import ConflictError, DomainError, InvalidError, NotFoundError, OverloadedError
from agentserving_controlplane.group_commit import GroupCommit
from agentserving_controlplane.load_balancer import LoadBalancer
from agentserving_controlplane.process_table import CANCELLED, CLOSED, COMPLETED, ProcessTable
from agentserving_controlplane.rows import ProgramRow
from agentserving_controlplane.settings import Settings
from agentserving_controlplane.store import Store

log = structlog.get_logger()

TICKET_LIFETIME_S = 600
POLICY_KEY = "policy"
HISTORY = 20_000

Push = Callable[[engine_service_pb2.AttachResponse], None]


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


class ControlPlane:
    """Everything a leader knows."""

    def __init__(self, settings: Settings, store: Store, epoch: int, on_fenced: Callable[[Exception], None]) -> None:
        self.settings = settings
        self.epoch = epoch
        self.policy = types_pb2.PolicyVersion(
            version=1,
            policy=convert.policy_to_message(preset(settings.policy)),
            balancer=convert.balancer_to_number(settings.balancer),
        )
        self.table = ProcessTable(epoch)
        self.engines = EngineRegistry()
        self.balancer = LoadBalancer()
        self.commits = GroupCommit(store, epoch, on_fenced=on_fenced)
        self.links: dict[str, Push] = {}
        self.listeners: set[Callable[[], None]] = set()
        self.history: deque[tuple[int, str, str, bool]] = deque(maxlen=HISTORY)
        self.revision = 0
        self.changed = asyncio.Condition()
        self._use_policy(preset(settings.policy))

    # -- start ---------------------------------------------------------------------------------------------------

    async def recover(self, store: Store) -> None:
        """Takes in what the store holds and begins to write."""
        began = time.monotonic()
        snapshot = await store.load()
        self.revision = snapshot.revision
        programs = [rows.decode(v) for k, v in snapshot.items.items() if k.startswith("programs/")]
        self.table.restore(programs)
        stored = snapshot.items.get(POLICY_KEY)
        if stored is not None:
            self.policy = types_pb2.PolicyVersion.FromString(stored)
            self._use_policy(convert.policy_from_message(self.policy.policy))
        for row in programs:
            for call in row.calls.values():
                # A call in flight is heard of again once its engine attaches: count silence from now.
                call.heard_us = now_us()
                self.engines.ensure(call.engine_id).in_flight += 1
        self.commits.start()
        log.info("recovered", programs=len(programs), revision=snapshot.revision, seconds=time.monotonic() - began)

    def _use_policy(self, policy: Policy) -> None:
        self.table.accounting = policy.accounting
        self._policy_value = policy
        self.balancer.kind = convert.balancer_from_number(self.policy.balancer)

    # -- writing down --------------------------------------------------------------------------------------------

    def settle(self, *, force: bool = False) -> int:
        """Queues every changed row; gives the number to wait for with `commits.durable`."""
        changed = self.table.take_dirty()
        if changed:
            self.revision += 1
        number = self.commits.number
        for row in changed:
            number = self.commits.put(rows.row_key(row.tenant, row.program_id), rows.encode(row), force=force)
            self._tell(row.tenant, row.program_id, removed=False)
        return number

    def _tell(self, tenant: str, program_id: str, *, removed: bool) -> None:
        self.history.append((self.revision, tenant, program_id, removed))
        for listener in self.listeners:
            listener()

    def describe(self, row: ProgramRow) -> types_pb2.Program:
        """A row as clients see it."""
        root = self.table.root_of(row)
        level = self._policy_value.level_of(0 if self.table.accounting is Accounting.NONE else root.attained_service_us)
        return convert.program_to_message(row, root, level, self.revision)

    # -- calls ---------------------------------------------------------------------------------------------------

    def admit(self, request: call_service_pb2.AdmitCallRequest, tenant: str) -> call_service_pb2.AdmitCallResponse:
        """Takes a call in. Waits for nothing; refuses only when it must."""
        if self.commits.full:
            raise OverloadedError("STORE_BACKPRESSURE", "too many writes wait for the store", retry_after_s=1.0)
        if request.prompt_tokens < 0:
            raise InvalidError("NEGATIVE", "prompt_tokens must not be negative", field="prompt_tokens")
        now = now_us()
        row = self._program_for(request, tenant, now)
        parents = tuple(request.parent_call_ids)
        self.table.check_admittable(row, request.thread_id, parents)
        candidates = self.engines.candidates(
            frozenset(request.exclude_engine_ids), request.model, frozenset(row.engines)
        )
        attempt = 1
        if request.retry_of_call_id and request.retry_of_call_id in row.calls:
            attempt = row.calls[request.retry_of_call_id].attempt + 1
            self.end_call(row, request.retry_of_call_id, types_pb2.OUTCOME_FAILED)
        chosen = self.balancer.choose(row.root, request.prompt_tokens, candidates)
        engine = self.engines.engines[chosen.engine_id]
        call = self.table.admit(
            row, now, engine_id=engine.engine_id, thread_id=request.thread_id, parents=parents, attempt=attempt
        )
        row.closing |= request.final or not request.program_id
        engine.in_flight += 1
        self.settle()
        root = self.table.root_of(row)
        signed = ticket.sign(
            ticket.Ticket(
                call.call_id,
                attempt,
                row.program_id,
                row.root,
                tenant,
                call.thread_id,
                engine.engine_id,
                call.attained_service_us,
                root.account_wait_us,
                self.policy.version,
                self.epoch,
                now // 1_000_000 + TICKET_LIFETIME_S,
                root.open_us,
            ),
            self.settings.ticket_key,
        )
        return call_service_pb2.AdmitCallResponse(
            call_id=call.call_id,
            attempt=attempt,
            program_id=row.program_id,
            engine_id=engine.engine_id,
            engine_address=engine.address,
            ticket=signed,
            sidecar_address=engine.sidecar_address,
            epoch=self.epoch,
        )

    def _program_for(self, request: call_service_pb2.AdmitCallRequest, tenant: str, now: int) -> ProgramRow:
        known = self.table.rows.get((tenant, request.program_id)) if request.program_id else None
        if known is not None:
            if known.state == CLOSED and request.implicit:
                # A header is a claim, never an error: an id used again after its end is the same program, gone on.
                known.state, known.outcome, known.close_us = 1, 0, 0
            return known
        if request.program_id and not request.implicit:
            return self.table.find(tenant, request.program_id)
        parent = request.parent_program_id
        if parent and request.implicit and (tenant, parent) not in self.table.rows:
            self.table.open(tenant, parent, now)
        return self.table.open(
            tenant, request.program_id, now, name=request.name[:100], parent=parent, key=request.idempotency_key
        )

    def end_call(self, row: ProgramRow, call_id: str, outcome: int) -> None:
        """Ends a call on the word of a gateway or client."""
        call = row.calls.get(call_id)
        if call is None:
            return
        self.engines.ensure(call.engine_id).in_flight -= 1
        self.table.end_call(row, call_id, outcome, now_us())

    def end_by_request(self, request: call_service_pb2.EndCallRequest, tenant: str) -> None:
        """EndCall: ends a call no engine will report; one that an engine runs goes on until that engine's word."""
        parts = rows.call_parts(request.call_id)
        row = self.table.rows.get((tenant, parts[0])) if parts else None
        if row is None:
            raise NotFoundError("CALL_NOT_FOUND", f"no call {request.call_id!r}", field="call_id")
        call = row.calls.get(request.call_id)
        if call is None:
            return
        if request.never_started or not call.boot_id:
            self.end_call(row, request.call_id, request.outcome or CANCELLED)
            self.settle(force=True)

    # -- engines -------------------------------------------------------------------------------------------------

    def report(self, engine: Engine, told: engine_service_pb2.Report) -> int:
        """A sidecar's report. Gives the commit number after which it is durable."""
        now = now_us()
        engine.heard_us = now
        if told.HasField("load"):
            engine.load = told.load
        engine.stuck = told.stuck
        accounts: dict[str, ProgramRow] = {}
        for call in told.calls:
            before = self.table.open_calls
            row = self.table.report(convert.reported(call, engine.engine_id), now)
            if row is None:
                continue
            if call.outcome:
                if self.table.open_calls < before:
                    engine.in_flight -= 1
                engine.learn(call.service_us)
                self.balancer.ran(
                    row.root,
                    engine.engine_id,
                    call.prompt_tokens + call.output_tokens,
                    engine.load.prompt_tokens - engine.load.cached_tokens,
                )
                accounts[row.root] = self.table.root_of(row)
        if told.engine_down:
            lost = self.table.engine_lost(engine.engine_id, told.boot_id, now)
            engine.in_flight = max(0, engine.in_flight - len(lost))
        self._spread(engine, accounts)
        return self.settle(force=True)

    def _spread(self, teller: Engine, accounts: dict[str, ProgramRow]) -> None:
        """Tells other engines that run calls of these programs where their accounts stand now."""
        by_engine: dict[str, list[types_pb2.Program | ProgramRow]] = {}
        for root in accounts.values():
            running_on = {c.engine_id for row in self.table.tree(root) for c in row.calls.values()}
            for engine_id in running_on - {teller.engine_id}:
                by_engine.setdefault(engine_id, []).append(root)
        for engine_id, roots in by_engine.items():
            told = [
                engine_service_pb2.ProgramAccount(
                    program_id=root.program_id,
                    root_program_id=root.program_id,
                    attained_service_us=root.attained_service_us,
                    wait_us=root.account_wait_us if isinstance(root, ProgramRow) else 0,
                )
                for root in roots
            ]
            self.direct(engine_id, accounts=engine_service_pb2.Accounts(accounts=told))

    def direct(self, engine_id: str, **directive: object) -> None:
        """Sends a directive to an engine, if it is attached."""
        push = self.links.get(engine_id)
        if push is not None:
            message = engine_service_pb2.Directive(epoch=self.epoch, **directive)  # type: ignore[arg-type]
            push(engine_service_pb2.AttachResponse(directive=message))

    def engines_changed(self) -> None:
        """Tells gateways."""
        for listener in self.listeners:
            listener()

    # -- programs ------------------------------------------------------------------------------------------------

    def cancel(self, row: ProgramRow) -> int:
        """Aborts the calls of a program and its children, and closes them."""
        now, count = now_us(), 0
        by_engine: dict[str, list[str]] = {}
        for program in self.table.tree(row):
            for call in program.calls.values():
                by_engine.setdefault(call.engine_id, []).append(call.call_id)
                count += 1
            self.table.close(program, CANCELLED, now)
        for engine_id, call_ids in by_engine.items():
            self.direct(engine_id, cancel=engine_service_pb2.CancelCalls(call_ids=call_ids))
        return count

    def pause(self, row: ProgramRow, paused: bool) -> None:
        """Holds a program on every engine, or lets it go."""
        self.table.set_state(row, 3 if paused else 1)
        for engine_id in self.links:
            self.direct(engine_id, pause=engine_service_pb2.PauseCalls(program_id=row.root, paused=paused))

    def paused_roots(self) -> list[str]:
        """Programs that an engine must hold."""
        return [row.root for row in self.table.rows.values() if row.state == 3]

    async def apply_policy(self, policy: Policy | None, balancer: int, expected_version: int) -> None:
        """Puts a policy in force, durably, and tells every engine."""
        if expected_version and expected_version != self.policy.version:
            raise ConflictError(
                "VERSION_MISMATCH", f"version {self.policy.version} is in force, not {expected_version}"
            )
        wanted = types_pb2.PolicyVersion()
        wanted.CopyFrom(self.policy)
        wanted.version += 1
        if policy is not None:
            wanted.policy.CopyFrom(convert.policy_to_message(policy))
        if balancer:
            wanted.balancer = convert.balancer_to_number(convert.balancer_from_number(balancer))
        number = self.commits.put(POLICY_KEY, wanted.SerializeToString(), force=True)
        self.policy = wanted
        self._use_policy(convert.policy_from_message(wanted.policy))
        for engine_id in self.links:
            self.direct(engine_id, policy=wanted)
        await self.commits.durable(number)

    def tick(self) -> None:
        """Expiry; once in a few seconds."""
        limits = self.settings
        for row in self.table.rows.values():
            for call in row.calls.values():
                if now_us() - call.heard_us > limits.call_idle_s * 1_000_000:
                    self.engines.ensure(call.engine_id).in_flight -= 1
        gone = self.table.expire(
            now_us(),
            idle_us=int(limits.program_idle_s * 1_000_000),
            silent_us=int(limits.call_idle_s * 1_000_000),
            retention_us=int(limits.closed_retention_s * 1_000_000),
        )
        self.settle(force=True)
        for tenant, program_id in gone:
            self.revision += 1
            self.commits.put(rows.row_key(tenant, program_id), None, force=True)
            self._tell(tenant, program_id, removed=True)

    def overview(self) -> dict[str, int]:
        """Counts for GetOverview and /metrics."""
        live = [row for row in self.table.rows.values() if row.state != CLOSED]
        calls = [call for row in live for call in row.calls.values()]
        return {
            "programs_live": len(live),
            "programs_running": sum(1 for row in live if row.calls),
            "calls_running": sum(1 for call in calls if call.running),
            "calls_waiting": sum(1 for call in calls if not call.running),
        }


__all__ = ["COMPLETED", "ControlPlane", "DomainError"]
