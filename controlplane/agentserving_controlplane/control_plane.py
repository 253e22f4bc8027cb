"""The control plane's state and what may be done to it; servicers translate, this decides.

One asyncio loop owns everything: the table, the registry of engines, the policy. A change marks rows, `settle` hands
them to the group commit, and only those who promised durability wait for it. Too many writes that wait for the store
are refused at the entrance (`check_room`), where new programs and calls come in; what changes rows that are there
already is bounded by the table itself and always taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from agentserving.contract.policy import Accounting, Source, preset
from agentserving.v1 import admin_service_pb2, call_service_pb2, engine_service_pb2, types_pb2

from agentserving_controlplane.api import convert
from agentserving_controlplane.engines.links import Links
from agentserving_controlplane.engines.load_balancer import LoadBalancer
from agentserving_controlplane.engines.registry import Engine, EngineRegistry
from agentserving_controlplane.errors import DomainError, InvalidError, NotFoundError, OverloadedError
from agentserving_controlplane.policy.gittins import RELEVEL_US, Sizes
from agentserving_controlplane.policy.in_force import POLICY_KEY, REQUESTS_KEY, PolicyInForce
from agentserving_controlplane.settings import Settings
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.port import FencedError, Store, Write
from agentserving_controlplane.table import rows
from agentserving_controlplane.table.admission_keys import AdmissionKeys, digest
from agentserving_controlplane.table.admissions import admission_answer, as_claim, program_for
from agentserving_controlplane.table.endings import Endings
from agentserving_controlplane.table.history import History
from agentserving_controlplane.table.process_table import CANCELLED, CLOSED, COMPLETED, EXPIRED, FAILED, ProcessTable
from agentserving_controlplane.table.program_index import Key
from agentserving_controlplane.table.rows import ProgramRow

log = structlog.get_logger()

# Rows that a walk over many looks at before it lets others run, and calls that it ends: two or three milliseconds.
PER_SLICE, ENDS_PER_SLICE = 100, 25


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


class ControlPlane:
    """Everything a leader knows."""

    def __init__(self, settings: Settings, store: Store, epoch: int, on_fenced: Callable[[Exception], None]) -> None:
        self.settings = settings
        self.epoch = epoch
        self._store = store
        self.policy_in_force = PolicyInForce(preset(settings.policy), settings.balancer)
        self.table = ProcessTable(epoch)
        self.engines = EngineRegistry(self.table.calls_on)
        self.balancer = LoadBalancer()
        self.commits = GroupCommit(store, epoch, on_fenced=on_fenced, max_pending=settings.max_pending_writes)
        self.links = Links(epoch)
        self.keys = AdmissionKeys()
        self.listeners: set[Callable[[], None]] = set()
        # Counted from the clock, so that no revision of an earlier process is taken for one of this.
        self.history = History(now_us())
        self.endings = self.table.endings = Endings(now_us())
        self._use_policy()

    # -- start ---------------------------------------------------------------------------------------------------

    async def recover(self, store: Store) -> None:
        """Takes in what the store holds and begins to write."""
        began = time.monotonic()
        snapshot = await store.load()
        programs = [rows.decode(v) for k, v in snapshot.items.items() if k.startswith("programs/")]
        self.table.restore(programs)
        self.policy_in_force.restore(snapshot.items.get(POLICY_KEY), snapshot.items.get(REQUESTS_KEY))
        self._use_policy()
        now = now_us()
        for row in programs:
            self.keys.restore(row, now)
            for call in row.calls.values():
                # A call in flight is heard of again once its engine attaches: count silence from now.
                call.heard_us = now
                self.engines.ensure(call.engine_id)
        self.commits.start()
        log.info("recovered", programs=len(programs), revision=snapshot.revision, seconds=time.monotonic() - began)

    def _use_policy(self) -> None:
        self._relevel_us = 0
        self.table.accounting = self.policy_in_force.value.accounting
        self.balancer.kind = self.policy_in_force.balancer

    @property
    def policy(self) -> types_pb2.PolicyVersion:
        """The policy in force."""
        return self.policy_in_force.message

    @property
    def revision(self) -> int:
        """Of the newest change."""
        return self.history.revision

    # -- writing down --------------------------------------------------------------------------------------------

    def settle(self) -> int:
        """Queues every changed row; gives the number to wait for with `commits.durable`."""
        groups = self.table.take_changes()
        if not groups:
            return self.commits.number
        self.history.begin()
        for group in groups:
            self.commits.put_together([Write(rows.row_key(r.tenant, r.program_id), rows.encode(r)) for r in group])
            for row in group:
                self.history.note(row.tenant, row.program_id, removed=False)
        self._wake()
        return self.commits.number

    def _wake(self) -> None:
        for listener in self.listeners:
            listener()

    def check_room(self) -> None:
        """OverloadedError while too many writes wait for the store, FencedError when it may have another writer by now:
        before anything is changed."""
        if not self._store.holds(self.epoch):
            raise FencedError(f"epoch {self.epoch} is over")
        if self.commits.full:
            reason = self.commits.last_error or "it is slow"
            raise OverloadedError(
                "STORE_BACKPRESSURE", f"{self.commits.pending} writes wait for the store: {reason}", retry_after_s=1.0
            )

    def describe(self, row: ProgramRow) -> types_pb2.Program:
        """A row as clients see it."""
        root = self.table.root_of(row)
        account = 0 if self.table.accounting is Accounting.NONE else root.attained_service_us
        level = self.policy_in_force.executed.level_of(account, root.name)
        return convert.program_to_message(row, root, self.table.state_of(row), level, self.revision)

    # -- calls ---------------------------------------------------------------------------------------------------

    def admit(self, request: call_service_pb2.AdmitCallRequest, tenant: str) -> call_service_pb2.AdmitCallResponse:
        """Takes a call in. Waits for nothing; refuses only when it must."""
        self.check_room()
        if request.prompt_tokens < 0:
            raise InvalidError("NEGATIVE", "prompt_tokens must not be negative", field="prompt_tokens")
        now, key, asked = now_us(), request.idempotency_key, ""
        if key:
            asked = digest(request)
            kept = self.keys.find(tenant, key, asked, now)
            if kept is not None:
                return admission_answer(self, kept.row, kept.call)
        row = program_for(self.table, request, tenant, now)
        thread_id, parents = request.thread_id, tuple(request.parent_call_ids)
        if request.implicit:
            thread_id, parents = as_claim(self.table, row, thread_id, parents)
        self.table.check_admittable(row, thread_id, parents)
        candidates = self.engines.candidates(
            frozenset(request.exclude_engine_ids), request.model, frozenset(row.engines)
        )
        attempt = 1
        if request.retry_of_call_id and request.retry_of_call_id in row.calls:
            attempt = row.calls[request.retry_of_call_id].attempt + 1
            self.table.end_call(row, request.retry_of_call_id, FAILED, now)
        chosen = self.balancer.choose(row.root, request.prompt_tokens, candidates)
        call = self.table.admit(
            row, now, engine_id=chosen.engine_id, thread_id=thread_id, parents=parents, attempt=attempt,
            key=key, request=asked,
        )  # fmt: skip
        row.closing |= request.final or not request.program_id
        if key:
            self.keys.keep(row, call, now)
        self.settle()
        return admission_answer(self, row, call)

    def end_by_request(self, request: call_service_pb2.EndCallRequest, tenant: str) -> None:
        """EndCall: ends a call no engine will report; one that an engine runs goes on until that engine's word."""
        parts = rows.call_parts(request.call_id)
        row = self.table.rows.get((tenant, parts[0])) if parts else None
        if row is None:
            raise NotFoundError("CALL_NOT_FOUND", f"no call {request.call_id!r}", field="call_id")
        call = row.calls.get(request.call_id)
        if call is not None and (request.never_started or not call.boot_id):
            self.table.end_call(row, request.call_id, convert.outcome(request.outcome) or CANCELLED, now_us())
            self.settle()

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
            heard = convert.reported(call, engine.engine_id)
            row = self.table.report(heard, now)
            if row is None or not heard.outcome:
                continue
            # One call at a time: what must land together stays small.
            self.settle()
            engine.learn(heard.service_us)
            tokens, load = heard.prompt_tokens + heard.output_tokens, engine.load
            self.balancer.ran(row.root, engine.engine_id, tokens, load.prompt_tokens - load.cached_tokens)
            accounts[row.root] = self.table.root_of(row)
        self._spread(engine, accounts)
        return self.settle()

    async def boot_lost(self, engine: Engine, alive: str) -> None:
        """Calls that ran on another boot of an engine than `alive` have failed; charged with what was told last."""
        for number, (call_id, key) in enumerate(list(engine.calls.items())):
            if number % ENDS_PER_SLICE == ENDS_PER_SLICE - 1:
                await asyncio.sleep(0)
            row = self.table.rows.get(key)
            call = row.calls.get(call_id) if row is not None else None
            if row is not None and call is not None and call.boot_id not in ("", alive):
                self.table.end_call(row, call_id, FAILED, now_us())
                self.settle()

    def _spread(self, teller: Engine, accounts: dict[str, ProgramRow]) -> None:
        """Tells other engines that run calls of these programs where their accounts stand now."""
        by_engine: dict[str, list[ProgramRow]] = {}
        for root in accounts.values():
            running_on = {c.engine_id for row in self.table.tree(root) for c in row.calls.values()}
            for engine_id in running_on - {teller.engine_id}:
                by_engine.setdefault(engine_id, []).append(root)
        for engine_id, roots in by_engine.items():
            self.links.direct(engine_id, accounts=convert.accounts(roots))

    def engines_changed(self) -> None:
        """Tells gateways."""
        self._wake()

    def greet(self, engine: Engine) -> engine_service_pb2.Welcome:
        """What an engine that attaches must know first."""
        held = sorted({root for _, root in self.table.held})
        return engine_service_pb2.Welcome(
            epoch=self.epoch, policy=self.policy_in_force.for_engines, held_program_ids=held
        )

    async def brief(self, engine: Engine) -> None:
        """What an engine has missed while it was away: accounts that moved, calls that were cancelled."""
        keys = list(set(engine.calls.values()))
        for begin in range(0, len(keys), PER_SLICE):
            there = [self.table.rows[key] for key in keys[begin : begin + PER_SLICE] if key in self.table.rows]
            roots = {(row.tenant, row.root): self.table.root_of(row) for row in there}
            cancelled = [c.call_id for row in there if row.outcome == CANCELLED for c in row.calls.values()]
            self.links.direct(engine.engine_id, accounts=convert.accounts(list(roots.values())))
            if cancelled:
                self.links.direct(engine.engine_id, cancel=engine_service_pb2.CancelCalls(call_ids=cancelled))
            await asyncio.sleep(0)

    # -- programs ------------------------------------------------------------------------------------------------

    def cancel(self, row: ProgramRow) -> int:
        """Aborts the calls of a program and its children, and closes them."""
        now, count = now_us(), 0
        by_engine: dict[str, list[str]] = {}
        for program in self.table.tree(row):
            for call in program.calls.values():
                by_engine.setdefault(call.engine_id, []).append(call.call_id)
                count += 1
            self.close(program, CANCELLED, now)
        for engine_id, call_ids in by_engine.items():
            self.links.direct(engine_id, cancel=engine_service_pb2.CancelCalls(call_ids=call_ids))
        return count

    def close(self, row: ProgramRow, outcome: int, now: int) -> None:
        """Ends a program; its hold, when it has one, ends everywhere."""
        held = row.held
        self.table.close(row, outcome, now)
        if held:
            self._tell_held(row)

    def hold(self, row: ProgramRow, held: bool) -> None:
        """Holds a program's tree on every engine, or lets it go."""
        self._tell_held(self.table.hold(row, held))

    def _tell_held(self, root: ProgramRow) -> None:
        told = engine_service_pb2.PauseCalls(program_id=root.program_id, paused=root.held)
        self.links.direct_all(pause=told)

    async def apply_policy(self, request: admin_service_pb2.ApplyPolicyRequest) -> types_pb2.PolicyVersion:
        """Puts a policy in force, durably, and tells every engine."""
        made, writes = self.policy_in_force.apply(request)
        if writes:
            self.commits.put_together(writes)
            self._use_policy()
            self.links.direct_all(policy=self.policy_in_force.for_engines)
        await self.commits.durable(self.commits.number)
        return made

    async def tick(self) -> None:
        """Expiry, once in a few seconds; never holds the loop for long."""
        limits = self.settings
        idle, silent, kept = (
            int(seconds * 1_000_000)
            for seconds in (limits.program_idle_s, limits.call_idle_s, limits.closed_retention_s)
        )
        now = now_us()
        await self._relevel(now)
        for number, key in enumerate(list(self.table.rows)):
            if number % PER_SLICE == PER_SLICE - 1:
                await asyncio.sleep(0)
                now = now_us()
            row = self.table.rows.get(key)
            if row is None:
                continue
            held = row.held
            if self.table.expire(row, now, idle_us=idle, silent_us=silent, retention_us=kept):
                self._forget(key)
            self.settle()
            if held and not row.held:
                self._tell_held(row)

    async def _relevel(self, now: int) -> None:
        """Levels from what finished programs took, when the policy asks for that; the table remembers the latest."""
        policy = self.policy_in_force.value
        if policy.source is not Source.GITTINS or now < self._relevel_us:
            return
        self._relevel_us = now + RELEVEL_US
        sizes, live = Sizes(), []
        for number, row in enumerate(list(self.table.rows.values())):
            if number % PER_SLICE == PER_SLICE - 1:
                await asyncio.sleep(0)
            if row.root != row.program_id:
                continue
            if row.state == CLOSED and row.outcome in (COMPLETED, EXPIRED):
                sizes.end(row.name, row.attained_service_us)
            else:
                live.append((row.name, row.attained_service_us))
        sizes.go_on(live)
        executed = await asyncio.to_thread(sizes.relevel, policy)
        # Another policy may have come in force meanwhile.
        if self.policy_in_force.value is policy and self.policy_in_force.execute(executed):
            self.links.direct_all(policy=self.policy_in_force.for_engines)

    def _forget(self, key: Key) -> None:
        self.history.begin()
        self.commits.put_together([Write(rows.row_key(*key), None)])
        self.history.note(*key, removed=True)
        self._wake()

    def overview(self) -> dict[str, int]:
        """Counts for GetOverview and /metrics."""
        table = self.table
        return {
            "programs_live": table.live,
            "programs_running": table.busy,
            "calls_running": table.running_calls,
            "calls_waiting": table.open_calls - table.running_calls,
        }


__all__ = ["COMPLETED", "ControlPlane", "DomainError"]
