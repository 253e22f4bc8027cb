"""A cluster in virtual time: the control plane's process table, engine registry and load balancer, simulated engines.

The simulation is a heap of events: a program arrives, a tool returns, an engine's steps end. Calls are admitted,
reported and charged by the production code. Only the wire is missing: reports arrive the moment they are sent.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from agentserving.contract.ids import CallId, EngineId, ProgramId
from agentserving.contract.policy import Policy, Source
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import Health
from agentserving_controlplane.engines.load_balancer import Balancer, LoadBalancer, Wanted
from agentserving_controlplane.engines.registry import EngineRegistry
from agentserving_controlplane.engines.sizing import context_share
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.policy.computed import computed
from agentserving_controlplane.policy.contention import Contention, Recent
from agentserving_controlplane.policy.gittins import RELEVEL_US, Sizes
from agentserving_controlplane.table.admission_plan import AdmissionPlan, AdmissionRequest
from agentserving_controlplane.table.expiry import Limits
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import Outcome
from agentserving_engine.policy import CallFacts
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual.context_cache import Segment
from agentserving_simulator.virtual.engine import VirtualEngine
from agentserving_simulator.virtual.limits import EngineLimits
from agentserving_simulator.virtual.requests import Ended, Request

from agentserving_replay.contexts import Contexts
from agentserving_replay.reports import TENANT, final_report
from agentserving_replay.results import CallResult, ProgramResult
from agentserving_replay.traces.trace import Call, Program

# Closed programs are removed from the table immediately: nothing asks about them.
NO_RETENTION = Limits(program_idle_us=0, call_idle_us=0, closed_retention_us=0)


@dataclass(slots=True)
class _Engine:
    """An engine: the simulated one, and what the control plane knows of it."""

    model: VirtualEngine
    known: Engine
    # Number of the newest wake-up: events of older ones are void.
    version: int = 0
    # System prompts by class of programs.
    systems: dict[str, Segment] = field(default_factory=dict)

    @property
    def engine_id(self) -> EngineId:
        return self.known.engine_id

    def report_load(self) -> None:
        """Reports the engine's load to the control plane, if it has changed."""
        counters, load = self.model.counters, self.known.load
        if (counters.prompt_tokens, counters.cached_tokens) != (load.prompt_tokens, load.cached_tokens):
            self.known.load = Load(
                prompt_tokens=counters.prompt_tokens,
                cached_tokens=counters.cached_tokens,
                prefill_us_per_token=self.model.prefill_us_per_token,
            )


@dataclass(slots=True, kw_only=True)
class _Live:
    program: Program
    row: ProgramRow
    # By call: the number of parents that have not ended, and the calls that wait for it.
    unfinished_parents: list[int]
    children: list[list[int]]
    # Contexts on each engine that the program has run on.
    contexts: dict[EngineId, Contexts] = field(default_factory=dict)
    # The engine of each call that has ended.
    ran_on: dict[int, _Engine] = field(default_factory=dict)
    open: int = 0
    done: int = 0
    idle_since_us: int = 0
    tool_us: int = 0
    # Remaining work, for clairvoyant policies.
    needs_us: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """The cluster that runs the programs."""

    policy: Policy
    cost: CostModel
    limits: EngineLimits = field(default_factory=EngineLimits)
    engines: int = 1
    balancer: Balancer = Balancer.PREFIX_AWARE
    # For comparison only: calls carry their program's remaining work in place of its attained service.
    clairvoyant: bool = False


class VirtualCluster:
    """`add` programs, then `run`; `now_us` and `engines` may be read in between."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.now_us = 0
        self.results: list[ProgramResult] = []
        self._table = ProcessTable(1, spec.policy.accounting)
        self._registry = EngineRegistry(self._table.index.calls_on, self._table.index.engines_changed)
        self._balancer = LoadBalancer(self._registry, spec.balancer)
        self._sizes, self._contention = Sizes(), Recent()
        # What engines execute, and what `auto` has chosen.
        decided = computed(spec.policy, self._sizes, Contention(), (), 0)
        self._executed, self.choices = decided.policy, decided.choices
        self._engines = {engine.engine_id: engine for engine in map(self._attached, range(spec.engines))}
        self.engines = list(self._engines.values())
        # There is, or may be, a choice of the engine.
        self._balances = spec.engines > 1
        self._live: dict[ProgramId, _Live] = {}
        # The program of a call in flight, and the call's index in it.
        self._calls: dict[CallId, tuple[_Live, int]] = {}
        # When, in which order at the same time, and what happens.
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        # True while a recomputation of the levels is scheduled.
        self._relevel_scheduled = False
        # Closed loop: the programs that have not arrived yet. One arrives whenever one ends.
        self._feed: Iterator[Program] | None = None
        self.calls: list[CallResult] = []

    def _attached(self, number: int) -> _Engine:
        """A new engine, known to the control plane as its hello would make it known."""
        limits = self.spec.limits
        model = VirtualEngine(self._executed, self.spec.cost, limits)
        known = self._registry.ensure(EngineId(f"engine-{number}"))
        known.attached, known.address, known.health = True, "in virtual time", Health.SERVING
        known.capabilities = Capabilities(
            max_num_seqs=limits.max_num_seqs, block_size=limits.block_size, num_blocks=model.cache.size
        )
        return _Engine(model, known)

    @property
    def _now(self) -> Instant:
        return Instant(self.now_us, self.now_us)

    def add(self, programs: Iterable[Program]) -> None:
        """Schedules the arrival of programs."""
        for program in programs:
            self._at(int(program.arrival_s * 1e6), partial(self._open, program))

    def keep_open(self, programs: Iterator[Program], count: int, ramp_s: float) -> None:
        """Closed loop: `count` programs are open at a time, the first ones from spread over `ramp_s` on.

        Their arrival times are ignored. `calls` records every call that ends.
        """
        self._feed = programs
        for index in range(count):
            when_s = ramp_s * index / count
            self._at(int(when_s * 1e6), partial(self._open, replace(next(programs), arrival_s=when_s)))

    def open_calls(self) -> list[CallResult]:
        """The calls that have not ended."""
        return [CallResult.of(request, 0) for engine in self.engines for request in engine.model.requests.values()]

    @property
    def next_s(self) -> float:
        """Time of the next event; infinite when there is none."""
        return self._events[0][0] / 1e6 if self._events else math.inf

    @property
    def open_programs(self) -> int:
        return len(self._live)

    @property
    def age_s(self) -> float:
        """Sum of the ages of all live programs."""
        return sum(self.now_us / 1e6 - live.program.arrival_s for live in self._live.values())

    def run(self, until_s: float = math.inf) -> list[ProgramResult]:
        """Runs to `until_s`, or until all programs have ended; gives all results so far, in the order of the ends."""
        last_us, events = until_s * 1e6, self._events
        while events and events[0][0] <= last_us:
            self.now_us, _, happens = heapq.heappop(events)
            happens()
        return self.results

    def _relevel(self) -> None:
        """Recomputes the levels from the service of finished programs, as the control plane does."""
        self._relevel_scheduled = False
        self._sizes.go_on((live.program.name, live.row.attained_service_us) for live in self._live.values())
        queues = [engine.model.queue for engine in self.engines]
        contention = self._contention.with_past(
            Contention.of(
                sum(queue.waiting_count for queue in queues),
                sum(queue.running_count for queue in queues),
                ((live.program.name, live.open) for live in self._live.values()),
                context_share(self._table.demand.signals(self.now_us), self._registry),
            ),
            self._table.totals.times,
        )
        decided = computed(self.spec.policy, self._sizes, contention, self.choices, self.now_us)
        policy, self.choices = decided.policy, decided.choices
        for engine in self.engines if policy != self._executed else ():
            engine.model.set_policy(policy)
            if engine.model.busy:
                self._wake(engine, engine.model.cut(self.now_us, directive=True))
        self._executed = policy
        self._relevel_later()

    def _relevel_later(self) -> None:
        if self.spec.policy.source is not Source.FIXED and not self._relevel_scheduled and self._live:
            self._relevel_scheduled = True
            self._at(self.now_us + RELEVEL_US, self._relevel)

    def _at(self, when_us: int, happens: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when_us, self._order, happens))

    # -- programs ------------------------------------------------------------------------------------------------

    def _open(self, program: Program) -> None:
        calls = program.calls
        children: list[list[int]] = [[] for _ in calls]
        for index, call in enumerate(calls):
            for parent in call.parents:
                children[parent].append(index)
        opening = OpenRequest(
            tenant=TENANT, program_id=program.program_id, name=program.name, service_class=program.service_class
        )
        row = self._table.programs.open(opening, self._now)
        live = self._live[program.program_id] = _Live(
            program=program,
            row=row,
            unfinished_parents=[len(call.parents) for call in calls],
            children=children,
            idle_since_us=self.now_us,
        )
        if self.spec.clairvoyant:
            live.needs_us = sum(self._call_us(call) for call in calls)
        self._relevel_later()
        for index, call in enumerate(calls):
            if not call.parents:
                self._issue_after(live, index, call.gap_s)

    def _issue_after(self, live: _Live, index: int, gap_s: float) -> None:
        if gap_s > 0:
            self._at(self.now_us + int(gap_s * 1e6), partial(self._issue, live, index))
        else:
            self._issue(live, index)

    def _issue(self, live: _Live, index: int) -> None:
        call, row, now = live.program.calls[index], live.row, self.now_us
        if not live.open:
            live.tool_us += now - live.idle_since_us
        live.open += 1
        request = AdmissionRequest(
            tenant=TENANT, program_id=row.program_id, thread_id=call.thread, prompt_tokens=call.prompt_tokens
        )
        plan = self._table.plan_admission(request)
        engine = self._choose(plan)
        admitted = self._table.commit(plan, engine.engine_id, self._now)
        self._calls[admitted.call_id] = (live, index)
        contexts = live.contexts.get(engine.engine_id)
        if contexts is None:
            contexts = live.contexts[engine.engine_id] = Contexts(
                live.program, engine.systems, engine.model.limits.block_size
            )
        on_engine = Request(admitted.call_id, contexts.path(index), call.prompt_tokens, call.output_tokens)
        # An arrival of 0 means unknown.
        account, arrived = admitted.attained_service_us, row.open_us + 1
        if self.spec.clairvoyant:
            account = int(live.needs_us)
        facts = CallFacts(
            admitted.call_id,
            row.root_key,
            attained_service_us=account,
            program_wait_us=row.account_wait_us,
            program_arrival_us=arrived,
            class_name=live.program.name,
            service_class=row.service_class,
        )
        engine.model.arrive(on_engine, facts, now)
        # An idle engine begins after all other events of this instant, so that siblings arrive together.
        self._wake(engine, engine.model.cut(now) if engine.model.busy else now)

    def _call_us(self, call: Call) -> float:
        """Work of a call in a full batch with short contexts: accurate enough to tell short programs from long ones."""
        cost = self.spec.cost
        step_us = cost.decode_us(self.spec.limits.max_num_seqs, 0, 1)
        return call.output_tokens * step_us + (call.prompt_tokens - call.shared_tokens) * cost.compute_us_per_token

    def _choose(self, plan: AdmissionPlan) -> _Engine:
        """The engine of a call. All engines are ready, so there is no choice where there is only one."""
        if not self._balances:
            return self.engines[0]
        for engine in self.engines:
            engine.report_load()
        wanted = Wanted(program=plan.root, prompt_tokens=plan.request.prompt_tokens, holding=plan.engines)
        chosen = self._balancer.choose_many(wanted, self.now_us, count=1)[0]
        return self._engines[chosen.engine_id]

    # -- engines -------------------------------------------------------------------------------------------------

    def _wake(self, engine: _Engine, when_us: int | None) -> None:
        engine.version += 1
        if when_us is not None:
            self._at(when_us, partial(self._step, engine, engine.version))

    def _step(self, engine: _Engine, version: int) -> None:
        if version != engine.version:
            return
        for ended in engine.model.end(self.now_us):
            self._ended(engine, ended)
        self._wake(engine, engine.model.begin(self.now_us))

    def _ended(self, engine: _Engine, ended: Ended) -> None:
        call_id = CallId(ended.request.key)
        live, index = self._calls.pop(call_id)
        row = live.row
        root = row.root_key
        call = live.program.calls[index]
        common = call.shared_tokens if live.ran_on.get(call.extends) is engine else 0
        live.ran_on[index] = engine
        report = final_report(engine.engine_id, ended, row, common, engine.model.limits.block_size)
        self._table.report(report, self._now)
        if self._feed is not None:
            self.calls.append(CallResult.of(ended.request, self.now_us))
        if self._balances:
            # What a choice depends on.
            engine.report_load()
            engine.known.learn(report.service_us)
            self._balancer.ran(root, engine.known, ended.request.total)
        for each in self.engines:
            each.model.queue.set_account(root, row.attained_service_us, row.account_wait_us)
        live.open -= 1
        live.done += 1
        if self.spec.clairvoyant:
            live.needs_us -= self._call_us(live.program.calls[index])
        live.idle_since_us = self.now_us
        for child in live.children[index]:
            live.unfinished_parents[child] -= 1
            if not live.unfinished_parents[child]:
                self._issue_after(live, child, live.program.calls[child].gap_s)
        if live.done == len(live.program.calls):
            self._close(live)

    def _close(self, live: _Live) -> None:
        row, program = live.row, live.program
        self._table.programs.close(row, Outcome.COMPLETED, self._now)
        for ended in self._table.programs.take_ended():
            for engine_id in ended.engines:
                if engine_id in self._engines:
                    self._engines[engine_id].model.program_ended(ended.key)
        self._sizes.end(program.name, row.attained_service_us)
        self.results.append(
            ProgramResult(
                program_id=program.program_id,
                name=program.name,
                arrival_s=program.arrival_s,
                latency_s=self.now_us / 1e6 - program.arrival_s,
                tool_s=live.tool_us / 1e6,
                wait_s=row.wait_us / 1e6,
                service_s=row.total_service_us / 1e6,
                calls=row.calls_completed,
                output_tokens=row.output_tokens,
                prompt_tokens=row.prompt_tokens,
                cached_tokens=row.cached_tokens,
                preemptions=row.preemptions,
            )
        )
        del self._live[program.program_id]
        self._table.take_changes()
        self._table.expiring.expire(row, NO_RETENTION, Instant(self.now_us + 1, self.now_us + 1))
        if self._feed is not None and (following := next(self._feed, None)) is not None:
            self._at(self.now_us, partial(self._open, replace(following, arrival_s=self.now_us / 1e6)))
