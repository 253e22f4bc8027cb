"""An engine in virtual time: vLLM's scheduling with the production policy, thousands of steps a second.

Consecutive steps in which only token counts change are simulated as one stretch: `begin` returns when it ends, `end`
charges it. The running calls, their blocks, their ends and their block needs are updated as they change (`decoding`),
so a stretch costs as much as one step. The result is exact: everything that would cut a stretch short does (`cut`).
Pure: the caller passes the time, microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agentserving.contract.ids import ProgramKey
from agentserving.contract.policy import Policy
from agentserving_engine.policy import CallEnd, CallFacts, EnginePolicy, origin_of

from agentserving_simulator.cost_model import BLOCK_SIZE, CostModel
from agentserving_simulator.virtual.context_cache import ContextCache
from agentserving_simulator.virtual.decoding import Decoding
from agentserving_simulator.virtual.limits import EngineLimits
from agentserving_simulator.virtual.path_memory import PathMemory
from agentserving_simulator.virtual.requests import Counters, Ended, Request

# Longest stretch, in steps, when no call waits.
MAX_STRETCH = 512
# No tool wait is announced in virtual time.
NO_ORIGIN = origin_of("")


@dataclass(slots=True)
class _Stretch:
    """`steps` steps in progress from `begin_us` to `end_us`, and the prompt tokens that each request computes."""

    begin_us: int
    end_us: int
    steps: int
    chunks: list[tuple[Request, int]] = field(default_factory=list)


def _always(key: str) -> bool:
    return True


class VirtualEngine:
    """Call `arrive`, then `begin` and `end` in turn, and `cut` when a call arrives during a stretch."""

    def __init__(self, policy: Policy, cost: CostModel, limits: EngineLimits) -> None:
        self.cost, self.limits = cost, limits
        self.cache = ContextCache(
            limits.num_blocks or cost.num_blocks * BLOCK_SIZE // limits.block_size,
            block_size=limits.block_size,
            host_blocks=limits.host_blocks,
            reuse=limits.prefix_caching,
        )
        self.kv = limits.kv_traits(self.cache.size)
        self._policy = EnginePolicy(policy, self, PathMemory(self.cache))
        self.queue, self.counters = self._policy.queue, Counters()
        self.requests: dict[str, Request] = {}
        self._decoding = Decoding(limits.block_size)
        self._prefilling: dict[str, Request] = {}
        self._stretch: _Stretch | None = None
        self._since = 0
        self._seen_us = 0
        self._next_policy: Policy | None = None

    # -- what the policy asks (agentserving_engine.policy.Engine) ------------------------------------------------

    def slots(self) -> int:
        """Requests that may run at the same time."""
        return self.limits.max_num_seqs

    def free_blocks(self) -> int:
        """Blocks that no request references."""
        return self.cache.free

    def coming_blocks(self) -> int:
        """None: blocks are freed immediately."""
        return 0

    def running_tokens(self) -> int:
        """Tokens of all running requests, those that still compute their prompts included."""
        return self._decoding.context + sum(request.total for request in self._prefilling.values())

    def tokens(self, key: str) -> int:
        """Prompt and answer of a request so far."""
        return self.requests[key].total

    def computed_tokens(self, key: str) -> int:
        """Tokens of a request with KV."""
        return self._decoding.computed(key) or self.requests[key].computed

    def released_blocks(self, key: str) -> int:
        """Blocks that preempting the request would give back; its last one counts whole."""
        return -(-self.computed_tokens(key) // self.limits.block_size)

    def preemptable(self, key: str) -> bool:
        """Every running request is."""
        return True

    def admission_check(self) -> Callable[[str], bool]:
        """Nothing but room keeps a request from starting."""
        return _always

    def context(self, key: str) -> Sequence[object]:
        """The segments of a request's prompt and answer."""
        return self.requests[key].path

    def cached_blocks(self, key: str) -> tuple[int, int]:
        """(blocks found on the GPU, those of them that no request references)."""
        request = self.requests[key]
        found, _ = self.cache.find(request.path, request.total - 1)
        return found, self.cache.idle(request.path, found)

    @property
    def prefill_us_per_token(self) -> float:
        """Measured cost of a prompt token; 0 = none yet."""
        return self._policy.prefill.us_per_token

    # -- events --------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A stretch is in progress."""
        return self._stretch is not None

    def arrive(self, request: Request, facts: CallFacts, now_us: int) -> None:
        """A call arrives. ValueError when the engine could never run it."""
        blocks = (request.prompt + request.output) // self.limits.block_size + 1
        if blocks > self.cache.size:
            raise ValueError(f"call {request.key} needs {blocks} blocks of KV, the engine has {self.cache.size}")
        self._watch(now_us)
        self.requests[request.key] = request
        request.facts, request.arrived_us = facts, now_us
        self._policy.arrive(facts, now_us)

    def set_policy(self, policy: Policy) -> None:
        """Executes another policy after the steps in progress, as the plugin does with a directive."""
        self._next_policy = policy

    def program_ended(self, program: ProgramKey) -> None:
        """The control plane says that a program is over."""
        self._policy.program_ended(program)

    def _watch(self, now_us: int) -> None:
        self.counters.call_us += len(self.requests) * (now_us - self._seen_us)
        self._seen_us = now_us

    # -- steps ---------------------------------------------------------------------------------------------------

    def begin(self, now_us: int) -> int | None:
        """Decides and starts a stretch; returns when it ends, or None when nothing can run."""
        if self._next_policy is not None and self._next_policy != self.queue.policy:
            self._policy.set_policy(self._next_policy, now_us=now_us)
        self._next_policy = None
        interval = self.queue.policy.decision_interval_steps
        if self._since % interval == 0 or not self._decoding.requests:
            self._since = 0
            self._decide(now_us)
        self._admit(now_us)
        self._make_room(now_us)
        chunks = self._chunks(now_us)
        decoding = self._decoding
        steps = 1 if chunks else self._steps(interval, now_us)
        blocks, free = decoding.blocks_for(steps), self.cache.free
        while steps > 1 and blocks > free:
            steps //= 2
            blocks = decoding.blocks_for(steps)
        calls = len(decoding.requests)
        if not chunks and not calls:
            return self._wakes_us(now_us)
        if chunks:
            tokens, context, pairs = 0, decoding.context, 0.0
            for request, count in chunks:
                tokens += count
                context += request.computed + count
                pairs += count * (request.computed + count / 2)
            took = self.cost.step_us(calls + tokens, context, calls + len(chunks), pairs)
            self._policy.prefill.observe(took, calls + len(chunks), calls + tokens)
        else:
            took = self.cost.decode_us(calls, decoding.context, steps)
            self._policy.prefill.observe(took // steps, calls, calls)
        self.cache.take(blocks)
        self._stretch = _Stretch(now_us, now_us + took, steps, chunks)
        return now_us + took

    def _wakes_us(self, now_us: int) -> int | None:
        """When the first request gets its KV from the host, or the policy lets another one start."""
        ends: list[float] = [request.ready_us for request in self._prefilling.values()]
        if self.queue.waiting_count:
            ends.append(max(self._policy.next_end_us(), now_us + 1))
        next_us = min(ends, default=math.inf)
        return None if next_us == math.inf else int(next_us)

    def _decide(self, now_us: int) -> None:
        decision = self._policy.decide(now_us)
        for key in decision.preempt:
            self._preempt(key, now_us)
            self.counters.preemptions_proactive += 1

    def _admit(self, now_us: int) -> None:
        """Starts waiting calls, best first, while there are slots, tokens and blocks (vLLM's `schedule`)."""
        decoding, prefilling = len(self._decoding.requests), self._prefilling
        slots = self.limits.max_num_seqs - decoding - len(prefilling)
        if slots <= 0 or not self.queue.waiting_count:
            return
        budget = self.limits.max_batched_tokens - decoding
        for request in prefilling.values():
            if request.ready_us <= now_us:
                budget -= request.total - request.computed
        if budget <= 0:
            return
        startable = self._startable(slots, now_us)
        while slots > 0 and budget > 0 and (key := next(startable, None)) is not None:
            request = self.requests[key]
            found, loaded = self.cache.find(request.path, request.total - 1)
            # Cached blocks without references leave the free ones, too (vLLM counts so when the whole prompt must fit).
            if request.total // self.limits.block_size + 1 - found > self.cache.free - self.cache.idle(
                request.path, found
            ):
                return
            self._start(request, found, loaded, now_us)
            slots -= 1
            budget -= request.total - request.computed

    def _startable(self, slots: int, now_us: int) -> Iterator[str]:
        """Waiting calls that may start, best first: all of them, unless KV is retained for others."""
        startable = self._policy.startable(
            now_us, slots=slots, taken_tokens=self.counters.computed_tokens, waiting=self.queue.iter_waiting()
        )
        return iter(self.queue.best_waiting, None) if startable is None else iter(startable)

    def _start(self, request: Request, found: int, loaded: int, now_us: int) -> None:
        request.held = self.cache.hold(request.path, found)
        request.computed = (found + loaded) * self.limits.block_size
        if request.cached < 0:
            request.cached = request.computed
            request.loaded = loaded * self.limits.block_size
            # With its hits, as the plugin counts: the difference, tokens prefilled, never falls.
            self.counters.prompt_tokens += request.prompt
            self.counters.cached_tokens += request.computed
        if loaded:
            request.ready_us = now_us + int(loaded * self.limits.block_size * self.cost.transfer_us_per_token)
            self.counters.loaded_tokens += loaded * self.limits.block_size
        # Blocks for the whole prompt are allocated when it starts (vLLM's scheduler_reserve_full_isl).
        self.cache.grow(request.held, request.total)
        self.cache.settle(request.held, request.computed)
        self.queue.start(request.key, now_us)
        self._prefilling[request.key] = request

    def _chunks(self, now_us: int) -> list[tuple[Request, int]]:
        """Requests that compute prompt tokens in the next step, and how many; best first."""
        ready = [r for r in self._prefilling.values() if r.ready_us <= now_us]
        if len(ready) > 1:
            ready.sort(key=lambda r: self.queue.rank(r.key))
        budget = self.limits.max_batched_tokens - len(self._decoding.requests)
        chunks = []
        for request in ready:
            if budget <= 0:
                break
            count = min(budget, request.total - request.computed)
            budget -= count
            chunks.append((request, count))
            assert request.held is not None
            # In vLLM, blocks can be found as soon as their computation is scheduled.
            self.cache.settle(request.held, request.computed + count)
        return chunks

    def _steps(self, interval: int, now_us: int) -> int:
        """How many decode steps only an arrival can interrupt."""
        decoding = self._decoding
        if not decoding.requests:
            return 1
        steps = min(decoding.steps_to_end(), self.cost.even_steps(len(decoding.requests), decoding.context))
        if self.queue.waiting_count:
            steps = self._steps_until(self._policy.next_end_us() - now_us, steps)
            return min(steps, interval - self._since % interval)
        if self._prefilling:
            # KV of these is being loaded from the host.
            return min(steps, self._steps_until(min(r.ready_us for r in self._prefilling.values()) - now_us, steps))
        spent_us = self.queue.spends_after_us()
        if spent_us is not None:
            # A call whose quantum is spent is demoted at the next decision, and demoted calls keep that order.
            spent = self._steps_until(spent_us, steps)
            steps = min(steps, spent + -(spent + self._since) % interval)
        return min(steps, MAX_STRETCH)

    def _steps_until(self, after_us: float, most: int) -> int:
        """The smallest number of steps that take at least `after_us`, `most` at most."""
        decoding, low, high = self._decoding, 1, most
        while low < high:
            middle = (low + high) // 2
            if self.cost.decode_us(len(decoding.requests), decoding.context, middle) >= after_us:
                high = middle
            else:
                low = middle + 1
        return low

    def _make_room(self, now_us: int) -> None:
        """Frees blocks for one step by preempting the worst-ranked requests (vLLM: reactive preemption)."""
        decoding = self._decoding
        while decoding.blocks_for(1) > self.cache.free:
            worst = max((*decoding.requests, *self._prefilling), key=self.queue.rank)
            self._preempt(worst, now_us)
            self.counters.preemptions_reactive += 1

    def _preempt(self, key: str, now_us: int) -> None:
        request = self.requests[key]
        self._stop(request)
        self.queue.preempt(key, now_us)
        request.computed = 0

    def _stop(self, request: Request) -> None:
        """Releases slot and blocks."""
        if self._prefilling.pop(request.key, None) is None:
            self._decoding.leave(request)
        assert request.held is not None
        self.cache.release(request.held, request.computed)
        request.held = None

    # -- ends ----------------------------------------------------------------------------------------------------

    def cut(self, now_us: int, *, directive: bool = False) -> int | None:
        """A call or directive arrived: returns when the stretch ends, as early as vLLM would notice it."""
        stretch = self._stretch
        if stretch is None or stretch.steps == 1:
            return stretch.end_us if stretch else None
        decoding, interval = self._decoding, self.queue.policy.decision_interval_steps
        steps = self._steps_until(now_us - stretch.begin_us, stretch.steps)
        if not directive and len(decoding.requests) + len(self._prefilling) >= self.limits.max_num_seqs:
            # No slot is free: only a decision can let it run.
            steps = min(stretch.steps, steps + -(steps + self._since) % interval)
        if steps < stretch.steps:
            self.cache.used -= decoding.blocks_for(stretch.steps) - decoding.blocks_for(steps)
            stretch.end_us = stretch.begin_us + self.cost.decode_us(len(decoding.requests), decoding.context, steps)
            stretch.steps = steps
        return stretch.end_us

    def end(self, now_us: int) -> list[Ended]:
        """The stretch is over: charges it and returns the calls that ended with it."""
        stretch, self._stretch = self._stretch, None
        if stretch is None:
            return []
        took, decoding, counters = stretch.end_us - stretch.begin_us, self._decoding, self.counters
        self._since += stretch.steps
        counters.steps += stretch.steps
        counters.busy_us += took
        calls = len(decoding.requests)
        counters.output_tokens += calls * stretch.steps
        counters.computed_tokens += calls * stretch.steps
        if self.queue.is_shared:
            chunks = {request.key: count for request, count in stretch.chunks}
            self._policy.charge_tenants(took, dict.fromkeys(decoding.requests, 1) | chunks)
        self.queue.charge(decoding.requests, took)
        finished = decoding.advance(stretch.steps)
        if stretch.chunks:
            self.queue.charge([request.key for request, _ in stretch.chunks], took)
        ended = [self._finish(request, now_us) for request in finished]
        for request, count in stretch.chunks:
            request.computed += count
            counters.computed_tokens += count
            if request.computed == request.total:
                self._first(request, now_us, ended)
        return ended

    def _first(self, request: Request, now_us: int, ended: list[Ended]) -> None:
        """The prompt is computed: produces a token, the first one unless the request was preempted before."""
        self.counters.output_tokens += 1
        request.generated += 1
        request.first_token_us = request.first_token_us or now_us
        if request.generated >= request.output:
            ended.append(self._finish(request, now_us))
            return
        del self._prefilling[request.key]
        self._decoding.enter(request)

    def _finish(self, request: Request, now_us: int) -> Ended:
        self._watch(now_us)
        if self.queue.policy.retention_milli:
            end = CallEnd(key=request.key, origin=NO_ORIGIN, context=request.path, tokens=request.total)
            self._policy.retain(end, now_us)
        self._stop(request)
        del self.requests[request.key]
        stats = self._policy.finish(request.key, now_us)
        assert stats is not None
        return Ended(request, stats, now_us)
