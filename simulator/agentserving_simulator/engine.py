"""The simulated engine: chunked prefill, a block pool with a prefix cache, preemption by recompute.

It runs the same `EngineSession` as the plugin in vLLM: policy, retention, accounts, directives and reports. A step is
`begin_step` (which requests run, and for how long) and `end_step` (charges and tokens); only `run` knows a clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agentserving.contract.channel import Load
from agentserving_engine.calls import CallBook
from agentserving_engine.calls.prefixes import Prompt
from agentserving_engine.clock import now_us
from agentserving_engine.policy import KvTraits
from agentserving_engine.session import EngineSession

from agentserving_simulator.block_pool import BlockPool
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.requests import Finished, SimRequest

# How long the engine sleeps when it has requests and none of them may run.
NOTHING_RUNS_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The engine's capacity; 27,000 blocks of 16 tokens are what 8B leaves on 80 GB at 0.9 (see cost_model)."""

    max_num_seqs: int = 48
    max_model_len: int = 8192
    max_batched_tokens: int = 2048
    num_blocks: int = 27_000
    block_size: int = 16


def _always(key: str) -> bool:
    return True


class SimulatedEngine:
    """agentserving_engine.session.SessionEngine without a model. Times: microseconds on a clock of the caller."""

    def __init__(self, book: CallBook, limits: Limits, cost: CostModel) -> None:
        self.limits, self.cost = limits, cost
        self.kv = KvTraits(
            block_size=limits.block_size,
            blocks=limits.num_blocks,
            findable=True,
            reloadable=False,
        )
        self.requests: dict[str, SimRequest] = {}
        self.pool = BlockPool(limits.num_blocks)
        self.session = EngineSession(self, self.pool, book)
        self.load = self.session.load
        self._arrived = asyncio.Event()
        # Preempted in this step: they do not start again in it.
        self._preempted: set[str] = set()
        self._now_us = 0

    def add(self, request: SimRequest, session_id: str | None, now_us: int, unix_s: float) -> None:
        """A request arrives with its ticket, if it has one."""
        self.requests[request.request_id] = request
        self.session.arrive(
            request.request_id, session_id, prompt_tokens=request.prompt_tokens, now_us=now_us, unix_s=unix_s
        )
        self._arrived.set()

    def cancel(self, request_id: str, now_us: int) -> None:
        """Ends a request early; an unknown one is ignored."""
        if request_id in self.requests:
            self._end(request_id, "abort", now_us)

    # -- what the policy asks (agentserving_engine.policy.Engine) ------------------------------------------------

    def slots(self) -> int:
        """Requests that may run at the same time."""
        return self.limits.max_num_seqs

    def free_blocks(self) -> int:
        """Blocks that no request references."""
        return self.pool.free

    def coming_blocks(self) -> int:
        """None: blocks are freed immediately."""
        return 0

    def running_tokens(self) -> int:
        return sum(self.requests[key].total for key in self.session.calls.running_keys)

    def tokens(self, key: str) -> int:
        """Prompt and answer of a request so far."""
        return self.requests[key].total

    def computed_tokens(self, key: str) -> int:
        """Tokens of a request with KV."""
        return self.requests[key].computed

    def released_blocks(self, key: str) -> int:
        """Blocks that only this request references."""
        return self.pool.returns(self.requests[key].blocks)

    def preemptable(self, key: str) -> bool:
        """Every running request is."""
        return True

    def admission_check(self) -> Callable[[str], bool]:
        """Nothing but room keeps a request from starting."""
        return _always

    def context(self, key: str) -> Sequence[object]:
        """The hashes of a request's full blocks."""
        return self.requests[key].hashes(self.limits.block_size)

    def cached_blocks(self, key: str) -> tuple[int, int]:
        """(blocks found in the cache, those of them that no request references)."""
        found = self._cached(self.requests[key])
        return len(found), self.pool.cost(found)

    def _cached(self, request: SimRequest) -> list[int]:
        # The last token is always computed: without it there is no answer.
        size = self.limits.block_size
        return self.pool.lookup(request.hashes(size)[: (request.total - 1) // size])

    # -- what the session asks (agentserving_engine.session.SessionEngine) ---------------------------------------

    def preempt(self, key: str) -> bool:
        """Releases the blocks of a running request; False if it does not run."""
        if not self.session.calls.is_running(key):
            return False
        self._release(self.requests[key])
        self._preempted.add(key)
        return True

    def abort(self, keys: Sequence[str]) -> None:
        """Ends requests; their clients receive the tokens generated so far."""
        for key in keys:
            self.cancel(key, self._now_us)

    def reorder(self) -> None:
        """Nothing to do: every step sorts the running requests."""

    def read_load(self, load: Load) -> None:
        """Sets the gauges."""
        load.running, load.waiting = self.session.calls.running_count, self.session.calls.waiting_count
        load.free_blocks, load.total_blocks = self.pool.free, self.pool.size

    # -- a step --------------------------------------------------------------------------------------------------

    def begin_step(self, now_us: int) -> tuple[list[str], int]:
        """Directives, decision, starts and token budget: (requests of this step, its length); ([], 0) if none runs."""
        self._now_us = now_us
        session = self.session
        session.take_directives(now_us)
        session.abort_refused()
        session.decide(now_us)
        self._start_waiting(now_us)
        self._preempted.clear()
        batch, length_us = self._schedule(now_us)
        if batch:
            session.step_began(sum(self.requests[key].scheduled for key in batch), now_us)
        return batch, length_us

    def _start_waiting(self, now_us: int) -> None:
        """Starts waiting calls, best first, while there are slots, tokens and blocks (vLLM's `schedule`)."""
        calls, size = self.session.calls, self.limits.block_size
        slots = self.limits.max_num_seqs - calls.running_count
        running = [self.requests[key] for key in calls.running_keys]
        budget = self.limits.max_batched_tokens - sum(request.total - request.computed for request in running)
        startable = self.session.startable(
            now_us, free_slots=slots, waiting=self._waiting(), whole_order=not self._preempted
        )
        if slots <= 0 or budget <= 0:
            return
        # Blocks that prompts need of those running, in later steps: the whole prompt must fit.
        promised = sum(max(0, -(-request.total // size) - len(request.blocks)) for request in running)
        for key in startable if startable is not None else self._first_waiting(slots):
            request = self.requests[key]
            found = self._cached(request)
            needed = request.total // size + 1 - len(found)
            if needed > self.pool.free - self.pool.cost(found) - promised:
                return
            self._start(request, found, now_us)
            promised += needed
            slots -= 1
            budget -= request.total - request.computed
            if slots <= 0 or budget <= 0:
                return

    def _waiting(self) -> Iterator[str]:
        return (key for key in self.session.calls.iter_waiting() if key not in self._preempted)

    def _first_waiting(self, count: int) -> list[str]:
        keys = self.session.calls.first_waiting(count + len(self._preempted))
        return [key for key in keys if key not in self._preempted]

    def _start(self, request: SimRequest, found: list[int], now_us: int) -> None:
        request.blocks = found
        self.pool.share(found)
        request.computed = len(found) * self.limits.block_size
        self.session.started(request.request_id, now_us)
        if not request.started:
            request.started = True
            request.cached_tokens = request.computed
            size = self.limits.block_size
            usable = (request.prompt_tokens - 1) // size * size
            self.session.first_started(
                request.request_id,
                prompt_tokens=request.prompt_tokens,
                cached_tokens=request.computed,
                prompt=Prompt(request.hashes(size), size, request.computed, usable, request.salt),
            )

    def _schedule(self, now_us: int) -> tuple[list[str], int]:
        calls = self.session.calls
        order = sorted(calls.running_keys, key=calls.rank)
        budget, context = self.limits.max_batched_tokens, 0
        batch: list[str] = []
        while order and budget:
            request = self.requests[order.pop(0)]
            tokens = min(budget, request.total - request.computed)
            needed = -(-(request.computed + tokens) // self.limits.block_size) - len(request.blocks)
            while needed > self.pool.free and order:
                # The worst-ranked request is preempted, as in vLLM when the pool runs out.
                self._preempt_for_blocks(order.pop(), now_us)
            if needed > self.pool.free:
                self._preempt_for_blocks(request.request_id, now_us)
                break
            request.blocks += self.pool.take(needed)
            budget -= tokens
            request.scheduled = tokens
            context += request.computed + tokens
            batch.append(request.request_id)
        new_tokens = self.limits.max_batched_tokens - budget
        return batch, self.cost.step_us(new_tokens, context) if batch else 0

    def _preempt_for_blocks(self, key: str, now_us: int) -> None:
        self._release(self.requests[key])
        self.session.preempted(key, now_us)

    def end_step(self, batch: list[str], now_us: int) -> None:
        """The step is over: its requests are charged, and those with all tokens computed get the next one."""
        alive = [key for key in batch if key in self.requests]
        self.session.step_ended({key: self.requests[key].scheduled for key in alive}, now_us)
        for key in alive:
            request = self.requests[key]
            self._computed(request)
            if request.computed == request.total:
                self._produce(request, now_us)
        self.session.report(now_us, idle=not self.requests)

    def _computed(self, request: SimRequest) -> None:
        size = self.limits.block_size
        full = request.computed // size
        request.computed += request.scheduled
        request.scheduled = 0
        hashes = request.hashes(size)
        for index in range(full, request.computed // size):
            self.pool.remember(request.blocks[index], hashes[index])

    def _produce(self, request: SimRequest, now_us: int) -> None:
        request.produce()
        self.session.produced(request.request_id, 1)
        if reason := request.end_reason(self.limits.max_model_len):
            context = request.hashes(self.limits.block_size)
            self.session.remember(
                request.request_id,
                context,
                tokens=request.total,
                prompt_tokens=request.prompt_tokens,
                block_size=self.limits.block_size,
                salt=request.salt,
            )
            self.session.retain(request.request_id, context, request.total, now_us)
            self._end(request.request_id, reason, now_us)

    def _release(self, request: SimRequest) -> None:
        self.pool.give(request.blocks)
        request.blocks = []
        request.computed = request.scheduled = 0

    def _end(self, key: str, reason: str, now_us: int) -> None:
        request = self.requests.pop(key)
        self._release(request)
        self.session.ended(key, "cancelled" if reason == "abort" else "completed", request.generated, now_us)
        request.outputs.put_nowait((request.choice, Finished(reason)))

    async def run(self) -> None:
        """Makes steps until it is cancelled; waits for a request when there is none."""
        while True:
            batch, length_us = self.begin_step(now_us())
            if batch:
                await asyncio.sleep(length_us / 1e6)
                self.end_step(batch, now_us())
                continue
            self._arrived.clear()
            self.session.report(now_us(), idle=not self.requests)
            if self.requests:
                await asyncio.sleep(NOTHING_RUNS_S)
            else:
                await self._arrived.wait()
