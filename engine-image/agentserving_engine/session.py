"""One engine's session with the control plane: directives in, accounts and reports out, and the policy in between.

The scheduler plugin in vLLM and the simulator in real time are the same session over two engines. An engine implements
`SessionEngine` and reports what happens: arrivals, starts, steps, tokens and ends. All methods run on the thread that
makes the engine's steps; the channel's thread only fills the inbox and sends what is posted. Pure except for the
channel and the log: time is an argument, microseconds on the engine's monotonic clock.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from agentserving.contract.channel import (
    AckCalls,
    CallRecord,
    Cancel,
    EngineReport,
    FromEngine,
    Load,
    ProgramEnded,
    SetAccounts,
    SetPaused,
    SetPolicy,
    SetShares,
    ToEngine,
    ToolWait,
)
from agentserving.contract.ids import CallId, ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import FCFS, from_dict

from agentserving_engine.calls import CallBook, OpenCall
from agentserving_engine.calls.book import copy_record
from agentserving_engine.calls.overtaken import Overtaken
from agentserving_engine.calls.prefixes import Prefixes, Prompt
from agentserving_engine.policy import CallEnd, CallQueue, Engine, EnginePolicy, Memory, origin_of

logger = logging.getLogger("vllm.agentserving")

REPORT_INTERVAL_US = 250_000
# Open calls reported per interval: all of them take turns, however many there are.
REPORTED_PER_INTERVAL = 64


class SessionEngine(Engine, Protocol):
    """What a session asks its engine to do, in addition to what the policy asks."""

    def preempt(self, key: str) -> bool:
        """Puts a running request back to waiting, not to start again in the next step; False if it does not run."""

    def abort(self, keys: Sequence[str]) -> None:
        """Ends requests; their clients receive the tokens generated so far."""

    def reorder(self) -> None:
        """The order of the running calls may have changed."""

    def read_load(self, load: Load) -> None:
        """Sets the gauges that only the engine knows: running, waiting, free_blocks, total_blocks."""


class Channel(Protocol):
    """The connection to the sidecar."""

    inbox: deque[ToEngine]

    def post(self, message: FromEngine) -> None:
        """Sends a message; never blocks."""

    def set_load(self, load: Load, policy_version: int) -> None:
        """Sets what the next heartbeat says."""

    def step_ended(self) -> None:
        """The engine makes progress."""

    def ensure_running(self) -> None:
        """Restarts the channel's thread if it has died."""


class EngineSession:
    """Calls, accounts and policy of one engine."""

    def __init__(self, engine: SessionEngine, memory: Memory, book: CallBook) -> None:
        self._engine = engine
        self.book = book
        self.policy = EnginePolicy(FCFS, engine, memory)
        self.policy_version = 0
        self.load = Load()
        self._prefixes = Prefixes()
        self._overtaken = Overtaken()
        # None = there is no sidecar: the engine works with tickets alone.
        self.channel: Channel | None = None
        self._steps_in_flight: deque[int] = deque()
        self._last_step_end_us = 0
        self._last_report_us = 0
        self._computed_tokens = 0
        # Records of calls that a step has ended, until its report.
        self._step_is_ending = False
        self._is_idle = False
        self._final: list[CallRecord] = []

    @property
    def calls(self) -> CallQueue:
        """The policy's queue; another one after `rebuild`."""
        return self.policy.queue

    # -- requests ------------------------------------------------------------------------------------------------

    def arrive(
        self, key: str, session_id: str | None, *, prompt_tokens: int, now_us: int, unix_s: float
    ) -> OpenCall | None:
        """A request arrives: its ticket is verified and its call joins the queue. None for an unmanaged one."""
        facts = self.book.arrive(key, session_id, now_us, unix_s, self.calls.policy.accounting)
        for line in self.book.rejections.take_lines():
            logger.warning("agentserving: %s", line)
        self.policy.arrive(facts, now_us)
        self._is_idle = False
        call = self.book.call_of(key)
        if call is not None:
            call.record.prompt_tokens += prompt_tokens
            call.timeline.arrived(now_us, self.calls.stopped_us(call.program, now_us))
            self._overtaken.arrived(CallId(call.record.call_id), key, now_us)
        return call

    def started(self, key: str, now_us: int) -> None:
        """A waiting request runs from the next step on."""
        self.calls.start(key, now_us)
        self._engine.reorder()
        call = self.book.call_of(key)
        if call is not None:
            call.timeline.started(key, now_us, self.calls.stopped_us(call.program, now_us))

    def first_started(self, key: str, *, prompt_tokens: int, cached_tokens: int, prompt: Prompt | None = None) -> None:
        """A request starts for the first time: its prompt is counted, however often it is recomputed later.

        `prompt`: what was looked up in the prefix cache; None when the cache was not asked.
        """
        call = self.book.call_of(key)
        if call is not None:
            record = call.record
            record.cached_tokens += cached_tokens
            if prompt is not None and not record.prefix_miss:
                miss, record.common_tokens = self._prefixes.explain(_program(record), record.thread_id, prompt)
                record.prefix_miss = int(miss)
        self.load.cached_tokens += cached_tokens
        self.load.prompt_tokens += prompt_tokens

    def preempted(self, key: str, now_us: int) -> None:
        """The engine itself has preempted a request because blocks ran out."""
        if self.calls.is_running(key):
            self._waits_again(key, now_us)
            self.load.preemptions_reactive += 1

    def produced(self, key: str, tokens: int) -> None:
        """A request has new output tokens."""
        self.load.output_tokens += tokens
        call = self.book.call_of(key)
        if call is not None:
            call.record.output_tokens += tokens
            call.tokens[key] = call.tokens.get(key, 0) + tokens
            if tokens:
                # They are those of the step that has just ended.
                call.timeline.produced(key, self._last_step_end_us)

    def remember(
        self, key: str, hashes: Sequence[Hashable], *, tokens: int, prompt_tokens: int, block_size: int, salt: str = ""
    ) -> None:
        """A request is about to end normally: later prompts of its program are compared with its context."""
        call = self.book.call_of(key)
        if call is not None:
            # No step has computed with the last token: a block that it fills is not in the cache.
            computed = hashes[: (tokens - 1) // block_size]
            prompt_blocks = prompt_tokens // block_size
            self._prefixes.remember(_program(call.record), call.record.thread_id, computed, prompt_blocks, salt)

    def retain(self, key: str, context: Sequence[object], tokens: int, now_us: int) -> None:
        """A request is about to end normally, with this context of `tokens` tokens: it may be retained."""
        call = self.book.call_of(key)
        if call is not None:
            origin = origin_of(call.record.program_id, call.record.thread_id)
            self.policy.retain(CallEnd(key=key, origin=origin, context=context, tokens=tokens), now_us)

    def ended(self, key: str, outcome: str, output_tokens: int, now_us: int) -> None:
        """A request has left the engine with so many output tokens in total; its call's last one ends the call."""
        call = self.book.call_of(key)
        if call is not None:
            # vLLM frees a request before it hands out the last tokens: count those that were not seen yet.
            call.record.output_tokens += output_tokens - call.tokens.pop(key, 0)
            stopped_us, others = self.calls.stopped_us(call.program, now_us), len(call.members) > 1
            call.timeline.ended(key, now_us, stopped_us, others=others)
        stats = self.policy.finish(key, now_us)
        record = self.book.end(key, stats, outcome, now_us, self.calls.policy.accounting)
        if call is not None and not call.members:
            account = self.book.accounts.of(call.program)
            self.calls.set_account(call.program, account.attained_us, account.wait_us)
        if record is not None and self.channel is not None:
            self._final.append(record)
            # A step is followed by its report, an abort between steps by nothing.
            if not self._step_is_ending:
                self._post_report([])

    def rebuild(self, requests: Iterable[str], running: Iterable[str], now_us: int) -> None:
        """Restores the queue from the engine's own lists, after a failure in the middle of its work.

        `requests`: all requests in the engine, in the order of arrival. Accounts and records are kept.
        """
        there, accounting, run = dict.fromkeys(requests), self.calls.policy.accounting, dict.fromkeys(running)
        for key in self.book.request_ids:
            if key not in there:
                self.book.end(key, None, "failed", now_us, accounting)
        self.policy.rebuild([self.book.facts(key, accounting) for key in there], run, now_us)
        for call in filter(None, map(self.book.call_of, there)):
            call.timeline.resync(run.keys() & call.members.keys(), now_us, self.calls.stopped_us(call.program, now_us))
        self._engine.reorder()

    # -- steps ---------------------------------------------------------------------------------------------------

    def abort_refused(self) -> None:
        """Ends requests that have come without a ticket although they need one, or after their call was cancelled."""
        if refused := [*self.book.take_refused(), *self._overtaken.take_late()]:
            self._engine.abort(refused)

    def decide(self, now_us: int) -> None:
        """Executes the policy's decision for the next step, every `decision_interval_steps` steps."""
        if self.load.steps % self.calls.policy.decision_interval_steps:
            return
        decision = self.policy.decide(now_us)
        self.load.promotions += len(decision.promoted)
        self.load.demotions += len(decision.demoted)
        if decision.promoted or decision.demoted or self.calls.tenants_moved():
            self._engine.reorder()
        for key in decision.preempt:
            self._preempt(key, now_us)

    def startable(
        self, now_us: int, *, free_slots: int, waiting: Iterable[str], whole_order: bool = True
    ) -> list[str] | None:
        """Waiting calls that may start in the next step without the KV retained for others; None when all may.

        See `EnginePolicy.startable`.
        """
        startable = None
        if free_slots > 0 and self.calls.waiting_count > self.calls.paused_count:
            startable = self.policy.startable(
                now_us, slots=free_slots, taken_tokens=self._computed_tokens, waiting=waiting, whole_order=whole_order
            )
        retention = self.policy.retention
        self.load.kept_blocks, self.load.behind_kept = retention.kept_blocks, retention.passed_over
        return startable

    def step_began(self, tokens: int, now_us: int) -> None:
        """A step of so many tokens goes to the model; steps end in the order in which they began."""
        self._computed_tokens += tokens
        self._steps_in_flight.append(now_us)

    def step_ended(self, tokens: Mapping[str, int], now_us: int) -> None:
        """Charges a step's requests with its time, which is counted once however many steps overlap.

        The requests that it finishes end next, and then its `report` follows.
        """
        self._step_is_ending = True
        began_us = self._steps_in_flight.popleft() if self._steps_in_flight else now_us
        dt_us = now_us - max(began_us, self._last_step_end_us)
        self._last_step_end_us = now_us
        self.load.steps += 1
        if dt_us > 0 and tokens:
            self.policy.prefill.observe(dt_us, len(tokens), sum(tokens.values()))
            self.policy.charge_tenants(dt_us, tokens)
            self.calls.charge(tokens, dt_us)
            for key in tokens:
                self.book.charge(key, dt_us)
            # Levels see what the whole call receives, not its sequences one by one.
            for keys in self.book.together(tokens):
                self.calls.charge(keys, dt_us * (len(keys) - 1))

    def _preempt(self, key: str, now_us: int) -> None:
        if self._engine.preempt(key):
            self.load.preemptions_proactive += 1
            self._waits_again(key, now_us)

    def _waits_again(self, key: str, now_us: int) -> None:
        self.calls.preempt(key, now_us)
        call = self.book.call_of(key)
        if call is not None:
            call.timeline.preempted(key, now_us, self.calls.stopped_us(call.program, now_us))

    # -- directives ----------------------------------------------------------------------------------------------

    def take_directives(self, now_us: int, *, steers: bool = True) -> None:
        """Executes what has arrived since the last step; without `steers` nothing that orders or pauses calls."""
        if self.channel is None:
            return
        inbox = self.channel.inbox
        while inbox:
            self.execute(inbox.popleft(), now_us, steers=steers)

    def execute(self, message: ToEngine, now_us: int, *, steers: bool = True) -> None:
        """Executes one directive between two steps."""
        match message:
            case AckCalls():
                self.book.outbox.acknowledge(message.calls)
            case SetAccounts():
                for tenant, root, attained_us, wait_us in message.accounts:
                    program = _key(tenant, root)
                    self.book.accounts.raise_to(program, attained_us, wait_us)
                    self.calls.set_account(program, attained_us, wait_us)
            case SetShares():
                self.calls.tenants.set_weights({Tenant(tenant): weight for tenant, weight in message.weights})
            case Cancel():
                self._cancel([CallId(call) for call in message.call_ids], now_us)
            case SetPolicy() if steers:
                self._set_policy(message, now_us)
            case SetPaused() if steers:
                wanted = {_key(tenant, root) for tenant, root in message.programs}
                for program in sorted(wanted ^ self.calls.paused_programs):
                    self._pause(program, program in wanted, now_us)
            case ProgramEnded(tenant, root):
                self.policy.program_ended(_key(tenant, root))
            case ToolWait() if steers:
                self.policy.tool_wait(
                    _key(message.tenant, message.root_program_id),
                    origin_of(message.program_id, message.thread_id),
                    waiting=message.waiting,
                    expected_us=message.expected_us,
                    now_us=now_us,
                )

    def _cancel(self, calls: Sequence[CallId], now_us: int) -> None:
        requests = {call: self.book.requests_of(call) for call in calls}
        self._engine.abort([key for keys in requests.values() for key in keys])
        for call in (call for call, keys in requests.items() if not keys):
            self._overtaken.cancelled(call, now_us)

    def _set_policy(self, message: SetPolicy, now_us: int) -> None:
        policy = from_dict(message.policy)
        self.policy.set_policy(policy, lambda key: self.book.facts(key, policy.accounting), now_us)
        self.policy_version = message.version
        self._engine.reorder()

    def _pause(self, program: ProgramKey, paused: bool, now_us: int) -> None:
        for key in self.calls.pause(program, paused, now_us):
            self._preempt(key, now_us)

    # -- reports -------------------------------------------------------------------------------------------------

    def report(self, now_us: int, *, idle: bool) -> None:
        """Reports the calls that the step has ended, progress every REPORT_INTERVAL_US, and that the engine is `idle`.

        All of it is one message: each wakes the sidecar.
        """
        self._step_is_ending = False
        self.book.sweep(now_us)
        if self.channel is None:
            return
        self.channel.step_ended()
        becomes_idle, self._is_idle = idle and not self._is_idle, idle
        if now_us - self._last_report_us < REPORT_INTERVAL_US and not becomes_idle:
            if self._final:
                self._post_report([])
            return
        self._last_report_us = now_us
        self.channel.ensure_running()
        records = []
        for call in self.book.rotate(REPORTED_PER_INTERVAL):
            for key in call.members:
                stats = self.calls.stats(key, now_us)
                if stats is not None:
                    self.book.observe(call, stats)
            call.record.phases = call.timeline.phases(now_us, self.calls.stopped_us(call.program, now_us))
            records.append(copy_record(call.record))
        self._post_report(records)

    def _post_report(self, progress: list[CallRecord]) -> None:
        """Sends the records of ended calls and of those in progress, and the load."""
        assert self.channel is not None
        load = self._load_now()
        records, self._final = self._final + progress, []
        self.channel.set_load(load, self.policy_version)
        self.channel.post(EngineReport(load, records, self.policy_version))

    def _load_now(self) -> Load:
        load = self.load
        self._engine.read_load(load)
        load.unmanaged_calls = self.book.unmanaged_calls
        load.rejected_tickets = self.book.rejections.total
        load.prefill_us_per_token = self.policy.prefill.us_per_token
        load.last_step_age_us = 0
        return copy.copy(load)


def _program(record: CallRecord) -> ProgramKey:
    return ProgramKey(Tenant(record.tenant), ProgramId(record.program_id))


def _key(tenant: str, root_program_id: str) -> ProgramKey:
    return ProgramKey(Tenant(tenant), ProgramId(root_program_id))
