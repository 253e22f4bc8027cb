"""A cluster in virtual time: the control plane's process table and load balancer before the simulator's engines.

What happens is a heap of instants: a program arrives, a call's tool has answered, an engine's steps are over. Calls are
admitted, reported and charged as in production, without the wire: reports arrive as they are made.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Policy, Source
from agentserving_controlplane.engines.load_balancer import Balancer, Candidate, LoadBalancer
from agentserving_controlplane.policy.gittins import RELEVEL_US, Sizes
from agentserving_controlplane.table.process_table import COMPLETED, ProcessTable, Reported
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_engine.policy import CallFacts
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual.context_cache import Segment
from agentserving_simulator.virtual.engine import EngineLimits, VirtualEngine
from agentserving_simulator.virtual.requests import Ended, Request

from agentserving_replay.contexts import Contexts
from agentserving_replay.traces.trace import Call, Program

TENANT = Tenant("default")
# Weight of the newest call in an engine's mean service, as agentserving_controlplane.engines.registry learns it.
SMOOTHING = 0.1


@dataclass(slots=True)
class ProgramResult:
    """What became of one program; seconds."""

    name: str
    arrival_s: float
    latency_s: float
    # Time in which no call was open: its tools worked.
    tool_s: float
    wait_s: float
    service_s: float
    calls: int
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    program_id: str = ""

    @property
    def token_latency_s(self) -> float:
        """Response time a token (paper, section 6), tools excluded: no scheduler makes them faster."""
        return (self.latency_s - self.tool_s) / max(1, self.output_tokens)


@dataclass(slots=True)
class _Engine:
    name: str
    model: VirtualEngine
    version: int = 0
    call_us: float = 500_000.0
    in_flight: int = 0
    # System prompts by the names of programs.
    systems: dict[str, Segment] = field(default_factory=dict)


@dataclass(slots=True)
class _Live:
    """A program under way."""

    program: Program
    row: ProgramRow
    # On each engine that it has run on.
    contexts: dict[str, Contexts]
    waits_for: list[int]
    children: list[list[int]]
    open: int = 0
    done: int = 0
    idle_since_us: int = 0
    tool_us: int = 0
    # For clairvoyant policies.
    needs_us: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """What runs the programs."""

    policy: Policy
    cost: CostModel
    limits: EngineLimits = field(default_factory=EngineLimits)
    engines: int = 1
    balancer: Balancer = Balancer.PREFIX_AWARE
    # For comparison only: calls come with what their program still needs, not with what it has attained.
    clairvoyant: bool = False


class VirtualCluster:
    """`add`, then `run`; `now_us` and `engines` may be looked at between."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.now_us = 0
        self.results: list[ProgramResult] = []
        self.engines = [
            _Engine(f"engine-{i}", VirtualEngine(spec.policy, spec.cost, spec.limits)) for i in range(spec.engines)
        ]
        self._by_name = {engine.name: engine for engine in self.engines}
        self._table = ProcessTable(1, spec.policy.accounting)
        self._balancer = LoadBalancer(spec.balancer)
        self._live: dict[str, _Live] = {}
        # request key -> (program id, index of the call)
        self._calls: dict[str, tuple[str, int]] = {}
        self._events: list[tuple[int, int, tuple[object, ...]]] = []
        self._order = 0
        self._sizes = Sizes()
        # Levels are going to be made anew.
        self._relevels = False

    def add(self, programs: Iterable[Program]) -> None:
        """Programs that are going to arrive."""
        for program in programs:
            self._at(int(program.arrival_s * 1e6), program)

    @property
    def next_s(self) -> float:
        """When something happens next; infinite when nothing will."""
        return self._events[0][0] / 1e6 if self._events else math.inf

    @property
    def age_s(self) -> float:
        """Time since their arrival of all programs that are under way, in all."""
        return sum(self.now_us / 1e6 - live.program.arrival_s for live in self._live.values())

    def run(self, until_s: float = math.inf) -> list[ProgramResult]:
        """Goes on to a time, or until all programs have ended; results in the order in which they did."""
        last_us = until_s * 1e6
        while self._events and self._events[0][0] <= last_us:
            self.now_us, _, event = heapq.heappop(self._events)
            match event:
                case (Program() as program,):
                    self._open(program)
                case (str() as program_id, int() as index):
                    self._issue(self._live[program_id], index)
                case (_Engine() as engine, int() as version) if version == engine.version:
                    self._step(engine)
                case (Source.GITTINS,):
                    self._relevel()
        return self.results

    def _relevel(self) -> None:
        """Levels made anew from what finished programs took, as the control plane does it."""
        self._relevels = False
        self._sizes.go_on((live.program.name, live.row.attained_service_us) for live in self._live.values())
        policy = self._sizes.relevel(self.spec.policy)
        for engine in self.engines:
            engine.model.set_policy(policy)
            if engine.model.busy:
                self._wake(engine, engine.model.cut(self.now_us, directive=True))
        self._relevel_later()

    def _relevel_later(self) -> None:
        if self.spec.policy.source is Source.GITTINS and not self._relevels and self._live:
            self._relevels = True
            self._at(self.now_us + RELEVEL_US, Source.GITTINS)

    def _at(self, when_us: int, *event: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (when_us, self._order, event))

    # -- programs ------------------------------------------------------------------------------------------------

    def _open(self, program: Program) -> None:
        calls = program.calls
        children: list[list[int]] = [[] for _ in calls]
        for index, call in enumerate(calls):
            for parent in call.parents:
                children[parent].append(index)
        row = self._table.open(TENANT, program.program_id, self.now_us, name=program.name)
        live = self._live[program.program_id] = _Live(
            program, row, {}, [len(c.parents) for c in calls], children,
            idle_since_us=self.now_us,
        )  # fmt: skip
        live.needs_us = sum(self._call_us(call) for call in calls)
        self._relevel_later()
        for index, call in enumerate(calls):
            if not call.parents:
                self._issue_after(live, index, call.gap_s)

    def _issue_after(self, live: _Live, index: int, gap_s: float) -> None:
        if gap_s > 0:
            self._at(self.now_us + int(gap_s * 1e6), live.program.program_id, index)
        else:
            self._issue(live, index)

    def _issue(self, live: _Live, index: int) -> None:
        call, row, now = live.program.calls[index], live.row, self.now_us
        if not live.open:
            live.tool_us += now - live.idle_since_us
        live.open += 1
        engine = self._choose(row.root, call.prompt_tokens)
        admitted = self._table.admit(row, now, engine_id=engine.name, thread_id=call.thread)
        self._calls[admitted.call_id] = (row.program_id, index)
        contexts = live.contexts.get(engine.name)
        if contexts is None:
            contexts = live.contexts[engine.name] = Contexts(
                live.program, engine.systems, engine.model.limits.block_size
            )
        request = Request(admitted.call_id, contexts.path(index), call.prompt_tokens, call.output_tokens)
        # 0 would mean that nobody knows when the program arrived.
        account, arrived = admitted.attained_service_us, row.open_us + 1
        if self.spec.clairvoyant:
            account = int(live.needs_us)
        facts = CallFacts(
            admitted.call_id,
            _key(row.root),
            attained_service_us=account,
            program_wait_us=row.account_wait_us,
            program_arrival_us=arrived,
            class_name=live.program.name,
        )
        engine.model.arrive(request, facts, now)
        engine.in_flight += 1
        # An idle engine begins after everything else that happens at this instant: siblings arrive together.
        self._wake(engine, engine.model.cut(now) if engine.model.busy else now)

    def _call_us(self, call: Call) -> float:
        """What a call needs in a full batch, beside short contexts: enough to tell a short program from a long one."""
        cost = self.spec.cost
        step_us = cost.decode_us(self.spec.limits.max_num_seqs, 0, 1)
        return call.output_tokens * step_us + (call.prompt_tokens - call.shared_tokens) * cost.compute_us_per_token

    def _choose(self, root: str, prompt_tokens: int) -> _Engine:
        if len(self.engines) == 1:
            return self.engines[0]
        limits = self.spec.limits
        candidates = [
            Candidate(
                engine.name,
                engine.in_flight,
                limits.max_num_seqs,
                engine.model.cache.size * limits.block_size,
                engine.model.counters.prompt_tokens - engine.model.counters.cached_tokens,
                self.spec.cost.compute_us_per_token,
                engine.call_us,
            )
            for engine in self.engines
        ]
        return self._by_name[self._balancer.choose(root, prompt_tokens, candidates).engine_id]

    # -- engines -------------------------------------------------------------------------------------------------

    def _wake(self, engine: _Engine, when_us: int | None) -> None:
        engine.version += 1
        if when_us is not None:
            self._at(when_us, engine, engine.version)

    def _step(self, engine: _Engine) -> None:
        for ended in engine.model.end(self.now_us):
            self._ended(engine, ended)
        self._wake(engine, engine.model.begin(self.now_us))

    def _ended(self, engine: _Engine, ended: Ended) -> None:
        key, stats = ended.request.key, ended.stats
        program_id, index = self._calls.pop(key)
        live = self._live[program_id]
        row = live.row
        told = Reported(
            key, 1, program_id, TENANT, "", row.root, 0, engine.name, "b",
            stats.service_us, stats.wait_us, ended.request.prompt, max(0, ended.request.cached),
            ended.request.output, stats.preemptions, stats.level, False, COMPLETED,
        )  # fmt: skip
        self._table.report(told, self.now_us)
        counters, tokens = engine.model.counters, ended.request.total
        self._balancer.ran(row.root, engine.name, tokens, counters.prompt_tokens - counters.cached_tokens)
        engine.in_flight -= 1
        engine.call_us += SMOOTHING * (stats.service_us - engine.call_us)
        for each in self.engines:
            each.model.queue.set_account(_key(row.root), row.attained_service_us, row.account_wait_us)
        live.open -= 1
        live.done += 1
        live.needs_us -= self._call_us(live.program.calls[index])
        live.idle_since_us = self.now_us
        for child in live.children[index]:
            live.waits_for[child] -= 1
            if not live.waits_for[child]:
                self._issue_after(live, child, live.program.calls[child].gap_s)
        if live.done == len(live.program.calls):
            self._close(live)

    def _close(self, live: _Live) -> None:
        row, program = live.row, live.program
        self._table.close(row, COMPLETED, self.now_us)
        self._sizes.end(program.name, row.attained_service_us)
        self.results.append(
            ProgramResult(
                program.name, program.arrival_s, self.now_us / 1e6 - program.arrival_s, live.tool_us / 1e6,
                row.wait_us / 1e6, row.total_service_us / 1e6, row.calls_completed, row.output_tokens,
                row.prompt_tokens, row.cached_tokens, row.preemptions, row.program_id,
            )
        )  # fmt: skip
        del self._live[program.program_id]
        self._table.take_changes()
        self._table.expire(row, self.now_us + 1, idle_us=0, silent_us=0, retention_us=0)


def _key(program_id: str) -> ProgramKey:
    return ProgramKey(TENANT, ProgramId(program_id))
