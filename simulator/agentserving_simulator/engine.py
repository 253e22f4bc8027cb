"""The simulated engine: chunked prefill, a block pool with a prefix cache, preemption by recompute.

Its calls are ordered by the same `CallQueue`, kept in the same `CallBook` and told over the same channel as vLLM's. A
step is `begin_step` (what runs, how long) and `end_step` (charges and tokens); only `run` knows a clock.
"""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import dataclass

from agentserving.contract.channel import (
    AckCalls,
    Cancel,
    EngineReport,
    Load,
    Preempt,
    SetAccounts,
    SetHolds,
    SetPolicy,
    ToEngine,
)
from agentserving.contract.policy import FCFS, from_dict
from agentserving_engine.call_book import CallBook, copy_record
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.policy import CallQueue, PrefillCost, lost_tokens, wanted_blocks

from agentserving_simulator.block_pool import BlockPool
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.requests import Finished, SimRequest

REPORT_INTERVAL_US = 250_000
REPORTED_PER_INTERVAL = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine has room for; 27,000 blocks of 16 are what 8B leaves on 80 GB at 0.9 (see cost_model)."""

    max_num_seqs: int = 48
    max_model_len: int = 8192
    max_batched_tokens: int = 2048
    num_blocks: int = 27_000
    block_size: int = 16


class SimulatedEngine:
    """Times in microseconds of one monotonic clock that the caller owns."""

    def __init__(self, book: CallBook, limits: Limits, cost: CostModel) -> None:
        self.limits, self.cost = limits, cost
        self.channel: ChannelServer | None = None
        self.requests: dict[str, SimRequest] = {}
        self.load = Load(total_blocks=limits.num_blocks, free_blocks=limits.num_blocks)
        self.policy_version = 0
        self._book = book
        self._calls = CallQueue(FCFS)
        self._prefill = PrefillCost()
        self._pool = BlockPool(limits.num_blocks)
        self._arrived = asyncio.Event()
        self._last_report_us = 0

    def add(self, request: SimRequest, session_id: str | None, now_us: int, unix_s: float) -> None:
        """A request arrives; its ticket is verified."""
        facts = self._book.arrive(request.request_id, session_id, now_us, unix_s, self._calls.policy.accounting)
        self.requests[request.request_id] = request
        self._calls.arrive(facts, now_us)
        call = self._book.call_of(request.request_id)
        if call is not None:
            call.record.prompt_tokens += request.prompt_tokens
        self.load.prompt_tokens += request.prompt_tokens
        self._arrived.set()

    def abort(self, request_id: str, now_us: int) -> None:
        """Ends a request early; unknown ones are none of our business."""
        if request_id in self.requests:
            self._end(request_id, "abort", now_us)

    # -- a step --------------------------------------------------------------------------------------------------

    def begin_step(self, now_us: int) -> tuple[list[str], int]:
        """Directives, decision and token budget: the requests of this step and its length; ([], 0) when none runs."""
        while self.channel is not None and self.channel.inbox:
            self._execute(self.channel.inbox.popleft(), now_us)
        size, waiting_blocks = self.limits.block_size, self._waiting_blocks()
        decision = self._calls.decide(
            now_us,
            slots=self.limits.max_num_seqs,
            free_blocks=self.free_blocks,
            need_blocks=lambda key: self.requests[key].total // size + 1,
            returns_blocks=lambda key: self._pool.returns(self.requests[key].blocks),
            resume_us=lambda key: self._prefill.us_per_token
            * lost_tokens(
                self.requests[key].computed,
                block_size=size,
                findable=True,
                free_blocks=self.free_blocks,
                waiting_blocks=waiting_blocks,
            ),
        )
        self.load.promotions += len(decision.promoted)
        self.load.demotions += len(decision.demoted)
        for key in decision.preempt:
            self._preempt(key, now_us)
            self.load.preemptions_proactive += 1
        for key in decision.admit:
            self._calls.start(key, now_us)
            self._reuse(self.requests[key])
        return self._schedule(now_us)

    def _waiting_blocks(self) -> int:
        running, waiting = self._calls.running_keys, self._calls.waiting_count
        tokens = sum(self.requests[key].total for key in running) if waiting else 0
        return wanted_blocks(waiting, len(running), tokens, self.limits.block_size)

    def _reuse(self, request: SimRequest) -> None:
        """Takes what the prefix cache has; the last token is always computed, for there is no answer without it."""
        size = self.limits.block_size
        request.blocks = self._pool.lookup(request.hashes(size)[: (request.total - 1) // size])
        self._pool.share(request.blocks)
        request.computed = len(request.blocks) * size
        if request.started:
            return
        request.started = True
        request.cached_tokens = request.computed
        self.load.cached_tokens += request.computed
        call = self._book.call_of(request.request_id)
        if call is not None:
            call.record.cached_tokens += request.computed

    def _schedule(self, now_us: int) -> tuple[list[str], int]:
        order = sorted(self._calls.running_keys, key=self._calls.rank)
        budget, context = self.limits.max_batched_tokens, 0
        batch: list[str] = []
        while order and budget:
            request = self.requests[order.pop(0)]
            tokens = min(budget, request.total - request.computed)
            needed = -(-(request.computed + tokens) // self.limits.block_size) - len(request.blocks)
            while needed > self._pool.free and order:
                # The worst-ranked gives its blocks, as vLLM does when the pool runs out.
                self._preempt(order.pop(), now_us)
                self.load.preemptions_reactive += 1
            if needed > self._pool.free:
                self._preempt(request.request_id, now_us)
                self.load.preemptions_reactive += 1
                break
            request.blocks += self._pool.take(needed)
            budget -= tokens
            request.scheduled = tokens
            context += request.computed + tokens
            batch.append(request.request_id)
        new_tokens = self.limits.max_batched_tokens - budget
        return batch, self.cost.step_us(new_tokens, context) if batch else 0

    def end_step(self, batch: list[str], dt_us: int, now_us: int) -> None:
        """The step is over: its requests are charged, and those with all tokens computed get the next one."""
        self.load.steps += 1
        alive = [key for key in batch if key in self.requests]
        self._prefill.observe(dt_us, len(batch), sum(self.requests[key].scheduled for key in alive))
        self._calls.charge(alive, dt_us)
        for key in alive:
            self._book.charge(key, self.load.steps, dt_us)
            request = self.requests[key]
            self._computed(request)
            if request.computed == request.total:
                self._produce(request, now_us)
        self._report(now_us)

    def _computed(self, request: SimRequest) -> None:
        size = self.limits.block_size
        full = request.computed // size
        request.computed += request.scheduled
        request.scheduled = 0
        hashes = request.hashes(size)
        for index in range(full, request.computed // size):
            self._pool.remember(request.blocks[index], hashes[index])

    def _produce(self, request: SimRequest, now_us: int) -> None:
        request.produce()
        self.load.output_tokens += 1
        call = self._book.call_of(request.request_id)
        if call is not None:
            call.record.output_tokens += 1
            if not call.record.first_token_us:
                stats = self._calls.stats(request.request_id, now_us)
                call.record.first_token_us = stats.service_us + stats.wait_us if stats else 0
        if request.generated >= request.max_tokens or request.total >= self.limits.max_model_len:
            self._end(request.request_id, "length", now_us)

    @property
    def free_blocks(self) -> int:
        """Blocks nobody holds."""
        return self._pool.free

    def _preempt(self, key: str, now_us: int) -> None:
        self._calls.preempt(key, now_us)
        self._release(self.requests[key])

    def _release(self, request: SimRequest) -> None:
        self._pool.give(request.blocks)
        request.blocks = []
        request.computed = request.scheduled = 0

    def _end(self, key: str, reason: str, now_us: int) -> None:
        request = self.requests.pop(key)
        self._release(request)
        stats = self._calls.finish(key, now_us)
        outcome = "cancelled" if reason == "abort" else "completed"
        record = self._book.end(key, stats, outcome, now_us, self._calls.policy.accounting)
        if record is not None:
            self._calls.set_account(record.root_program_id, *self._book.account(record.root_program_id))
            if self.channel is not None:
                self.channel.post(EngineReport(self._load_now(), [record], self.policy_version), wake=True)
        request.outputs.put_nowait((request.choice, Finished(reason)))

    # -- directives and reports ----------------------------------------------------------------------------------

    def _execute(self, message: ToEngine, now_us: int) -> None:
        match message:
            case AckCalls():
                self._book.acknowledge(message.calls)
            case SetAccounts():
                for root, attained, wait in message.accounts:
                    self._book.learn(root, attained, wait)
                    self._calls.set_account(root, attained, wait)
            case SetPolicy():
                policy = from_dict(message.policy)
                self._calls.set_policy(policy, lambda key: self._book.facts(key, policy.accounting))
                self.policy_version = message.version
            case Preempt():
                running = set(self._calls.running_keys)
                for key in self._book.requests_of(message.call_id):
                    if key in running:
                        self._preempt(key, now_us)
            case SetHolds():
                wanted = set(message.program_ids)
                for program_id in sorted(wanted ^ self._calls.held_programs):
                    for key in self._calls.pause(program_id, program_id in wanted, now_us):
                        self._preempt(key, now_us)
            case Cancel():
                for call_id in message.call_ids:
                    for key in self._book.requests_of(call_id):
                        self.abort(key, now_us)

    def _load_now(self) -> Load:
        load = self.load
        load.running = len(self._calls.running_keys)
        load.waiting = self._calls.waiting_count
        load.free_blocks = self.free_blocks
        load.unmanaged_calls = self._book.totals.unmanaged_calls
        load.rejected_tickets = self._book.totals.rejected_tickets
        return copy.copy(load)

    def _report(self, now_us: int) -> None:
        if self.channel is None:
            return
        self.channel.step_ended()
        if now_us - self._last_report_us < REPORT_INTERVAL_US and self.requests:
            return
        self._last_report_us = now_us
        records = []
        for call in self._book.snapshot(REPORTED_PER_INTERVAL):
            for key in call.members:
                stats = self._calls.stats(key, now_us)
                if stats is not None:
                    self._book.observe(call, stats)
            records.append(copy_record(call.record))
        load = self._load_now()
        self.channel.set_load(load, self.policy_version)
        self.channel.post(EngineReport(load, records, self.policy_version), wake=True)

    async def run(self) -> None:
        """Steps for ever; waits for a request when there is none, and for directives when all are held."""
        while True:
            began = now_us()
            batch, length_us = self.begin_step(began)
            if not batch:
                self._arrived.clear()
                if not self.requests:
                    self._report(began)
                    await self._arrived.wait()
                else:
                    await asyncio.sleep(0.005)
                    self._report(now_us())
                continue
            await asyncio.sleep(length_us / 1e6)
            ended = now_us()
            self.end_step(batch, ended - began, ended)


def now_us() -> int:
    """This process's monotonic clock."""
    return time.monotonic_ns() // 1000
