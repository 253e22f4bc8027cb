"""An engine in virtual time: what vLLM's scheduler does with the production call queue, thousands of steps a second.

Steps in which nothing can change but token counts are taken as one: `begin` says until when, `end` books them. Who is
running, what each holds, when the next one ends and who needs a block when are kept as they change (`decoding`), so a
stretch of steps costs as much as one. Exact, not an approximation: whatever would cut a stretch short does (`cut`).
Pure: the caller gives the time, microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from agentserving.contract.policy import Policy
from agentserving_engine.policy import (
    CallFacts,
    CallQueue,
    PrefillCost,
    Retention,
    Wanted,
    lost_tokens,
    wanted_blocks,
)

from agentserving_simulator.cost_model import BLOCK_SIZE, CostModel
from agentserving_simulator.virtual.context_cache import ContextCache
from agentserving_simulator.virtual.decoding import Decoding
from agentserving_simulator.virtual.path_memory import PathMemory
from agentserving_simulator.virtual.requests import Counters, Ended, Request

# Steps taken as one when nobody waits.
MAX_STRETCH = 512


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """vLLM's settings of the same names; `host_blocks` is the offloading connector's room."""

    max_num_seqs: int = 48
    max_batched_tokens: int = 2048
    prefix_caching: bool = True
    host_blocks: int = 0
    block_size: int = BLOCK_SIZE
    # 0: what fits beside the weights.
    num_blocks: int = 0


@dataclass(slots=True)
class _Stretch:
    """Steps under way: `steps` of them from `begin_us` to `end_us`; the tokens that prefilling requests get."""

    begin_us: int
    end_us: int
    steps: int
    chunks: list[tuple[Request, int]] = field(default_factory=list)


class VirtualEngine:
    """`arrive`, then `begin` and `end` in turn; `cut` when a call comes in between."""

    def __init__(self, policy: Policy, cost: CostModel, limits: EngineLimits) -> None:
        self.queue = CallQueue(policy)
        self.cost, self.limits = cost, limits
        self.cache = ContextCache(
            limits.num_blocks or cost.num_blocks * BLOCK_SIZE // limits.block_size,
            block_size=limits.block_size,
            host_blocks=limits.host_blocks,
            reuse=limits.prefix_caching,
        )
        self.counters = Counters()
        self.requests: dict[str, Request] = {}
        self._decoding = Decoding(limits.block_size)
        self._prefilling: dict[str, Request] = {}
        self._prefill_cost = PrefillCost()
        self._retention = Retention(PathMemory(self.cache))
        self._stretch: _Stretch | None = None
        self._since = 0
        self._seen_us = 0
        self._next_policy: Policy | None = None

    @property
    def busy(self) -> bool:
        """Steps are under way."""
        return self._stretch is not None

    def arrive(self, request: Request, facts: CallFacts, now_us: int) -> None:
        """A call joins. ValueError when it could never run."""
        blocks = (request.prompt + request.output) // self.limits.block_size + 1
        if blocks > self.cache.size:
            raise ValueError(f"call {request.key} needs {blocks} blocks of KV, the engine has {self.cache.size}")
        self._watch(now_us)
        self.requests[request.key] = request
        request.facts = facts
        self.queue.arrive(facts, now_us)
        self._retention.back(facts.program, now_us)
        self.counters.prompt_tokens += request.prompt

    def set_policy(self, policy: Policy) -> None:
        """Another policy from the next step on, as the plugin takes a directive: what steps under way give counts."""
        self._next_policy = policy

    def _watch(self, now_us: int) -> None:
        self.counters.call_us += len(self.requests) * (now_us - self._seen_us)
        self._seen_us = now_us

    # -- steps ---------------------------------------------------------------------------------------------------

    def begin(self, now_us: int) -> int | None:
        """Decides and starts steps; when they will be over, or None when there is nothing to run."""
        if self._next_policy is not None and self._next_policy != self.queue.policy:
            self.queue.set_policy(self._next_policy)
            self._retention.clear()
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
        while steps > 1 and decoding.blocks_for(steps) > self.cache.free:
            steps //= 2
        calls = len(decoding.requests)
        if not chunks and not calls:
            return self._wakes_us(now_us)
        if chunks:
            tokens = sum(count for _, count in chunks)
            context = decoding.context + sum(r.computed + count for r, count in chunks)
            pairs = sum(count * (r.computed + count / 2) for r, count in chunks)
            took = self.cost.step_us(calls + tokens, context, calls + len(chunks), pairs)
            self._prefill_cost.observe(took, calls + len(chunks), calls + tokens)
        else:
            took = self.cost.decode_us(calls, decoding.context, steps)
            self._prefill_cost.observe(took // steps, calls, calls)
        self.cache.take(decoding.blocks_for(steps))
        self._stretch = _Stretch(now_us, now_us + took, steps, chunks)
        return now_us + took

    def _wakes_us(self, now_us: int) -> int | None:
        """Whoever is there waits for KV from the host, or until what is kept for others is kept no more."""
        ends = [request.ready_us for request in self._prefilling.values()]
        if self.queue.waiting_count and (kept_until_us := self._retention.next_end_us()) is not None:
            ends.append(max(kept_until_us, now_us + 1))
        return min(ends, default=None)

    def _decide(self, now_us: int) -> None:
        decision = self.queue.decide(
            now_us,
            slots=self.limits.max_num_seqs,
            free_blocks=self.cache.free,
            need_blocks=lambda key: self.requests[key].total // self.limits.block_size + 1,
            returns_blocks=lambda key: -(-self._computed(key) // self.limits.block_size),
            resume_us=partial(self._resume_us, self._waiting_blocks()),
        )
        for key in decision.preempt:
            self._preempt(key, now_us)
            self.counters.preemptions_proactive += 1

    def _computed(self, key: str) -> int:
        return self._decoding.computed(key) or self.requests[key].computed

    def _resume_us(self, waiting_blocks: int, key: str) -> float:
        lost = lost_tokens(
            self._computed(key),
            block_size=self.limits.block_size,
            findable=self.limits.prefix_caching,
            free_blocks=self.cache.free,
            waiting_blocks=0 if self.limits.host_blocks else waiting_blocks,
        )
        return lost * self._prefill_cost.us_per_token

    def _waiting_blocks(self) -> int:
        """As the plugin estimates it: of all that run, those that still compute their prompts included."""
        decoding, prefilling = self._decoding, self._prefilling
        running = len(decoding.requests) + len(prefilling)
        tokens = decoding.context + sum(request.total for request in prefilling.values())
        return wanted_blocks(self.queue.waiting_count, running, tokens, self.limits.block_size)

    def _admit(self, now_us: int) -> None:
        """Starts waiting calls, best first, while there are slots, tokens and blocks (vLLM's `schedule`)."""
        running = len(self._decoding.requests) + len(self._prefilling)
        budget = self.limits.max_batched_tokens - len(self._decoding.requests)
        budget -= sum(r.total - r.computed for r in self._prefilling.values() if r.ready_us <= now_us)
        slots = self.limits.max_num_seqs - running
        if slots <= 0 or budget <= 0 or not self.queue.waiting_count:
            return
        able = self._able(slots, now_us)
        while slots > 0 and budget > 0 and (key := next(able, None)) is not None:
            request = self.requests[key]
            found, loaded = self.cache.find(request.path, request.total - 1)
            # Found blocks that nobody holds leave the free ones, too: as vLLM counts when the whole prompt must fit.
            if request.total // self.limits.block_size + 1 - found > self.cache.free - self.cache.idle(
                request.path, found
            ):
                return
            self._start(request, found, loaded, now_us)
            slots -= 1
            budget -= request.total - request.computed

    def _able(self, slots: int, now_us: int) -> Iterator[str]:
        """Waiting calls that may start, best first: all of them, unless KV is kept for others."""
        if not self._retention.empty:
            free = self.cache.free
            self._retention.refresh(self.counters.computed_tokens // self.limits.block_size, free)
            able = self._retention.may_start(
                self.queue.iter_waiting(), now_us, slots=slots, free_blocks=free, wanted=self._wanted
            )
            if able is not None:
                return iter(able)
        return iter(self.queue.best_waiting, None)

    def _wanted(self, key: str) -> Wanted:
        request = self.requests[key]
        assert request.facts is not None
        found, _ = self.cache.find(request.path, request.total - 1)
        return Wanted(
            request.facts.program,
            self.queue.place(key),
            request.total // self.limits.block_size + 1 - found,
            self.cache.idle(request.path, found),
        )

    def _keep(self, request: Request, now_us: int) -> None:
        """The context of a call that ends now is worth some of the time that computing it again would take."""
        facts, milli = request.facts, self.queue.policy.retention_milli
        # What host memory still has is loaded again, not computed.
        if milli and facts is not None and facts.managed and not self.limits.host_blocks:
            keep_us = request.total * self._prefill_cost.us_per_token * milli / 1000
            place = self.queue.place(request.key)
            self._retention.left(facts.program, facts.application, place, request.path, keep_us, now_us)

    def _start(self, request: Request, found: int, loaded: int, now_us: int) -> None:
        request.held = self.cache.hold(request.path, found)
        request.computed = (found + loaded) * self.limits.block_size
        if request.cached < 0:
            request.cached = request.computed
            self.counters.cached_tokens += request.computed
        if loaded:
            request.ready_us = now_us + int(loaded * self.limits.block_size * self.cost.transfer_us_per_token)
            self.counters.loaded_tokens += loaded * self.limits.block_size
        # Room for the whole prompt is taken at once (vLLM's scheduler_reserve_full_isl).
        self.cache.grow(request.held, request.total)
        self.cache.settle(request.held, request.computed)
        self.queue.start(request.key, now_us)
        self._prefilling[request.key] = request

    def _chunks(self, now_us: int) -> list[tuple[Request, int]]:
        """Who computes how many prompt tokens in the next step, best first."""
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
            # vLLM lets others find blocks from the moment that their computation is scheduled.
            self.cache.settle(request.held, request.computed + count)
        return chunks

    def _steps(self, interval: int, now_us: int) -> int:
        """How many decode steps nothing can interrupt but an arrival."""
        decoding = self._decoding
        if not decoding.requests:
            return 1
        steps = min(decoding.steps_to_end(), self.cost.even_steps(len(decoding.requests), decoding.context))
        if self.queue.waiting_count:
            kept_until_us = self._retention.next_end_us()
            if kept_until_us is not None:
                steps = self._steps_until(kept_until_us - now_us, steps)
            return min(steps, interval - self._since % interval)
        if self._prefilling:
            # Somebody's KV is on its way from the host.
            return min(steps, self._steps_until(min(r.ready_us for r in self._prefilling.values()) - now_us, steps))
        spent_us = self.queue.spends_after_us()
        if spent_us is not None:
            # Whose quantum is spent moves down at the next decision, and who moves first stands first there.
            spent = self._steps_until(spent_us, steps)
            steps = min(steps, spent + -(spent + self._since) % interval)
        return min(steps, MAX_STRETCH)

    def _steps_until(self, after_us: int, most: int) -> int:
        """The first number of steps that take at least so long."""
        decoding, low, high = self._decoding, 1, most
        while low < high:
            middle = (low + high) // 2
            if self.cost.decode_us(len(decoding.requests), decoding.context, middle) >= after_us:
                high = middle
            else:
                low = middle + 1
        return low

    def _make_room(self, now_us: int) -> None:
        """Blocks for one step: when they have run out, the worst-ranked gives way (vLLM: reactive preemption)."""
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
        """Gives up slot and blocks."""
        if self._prefilling.pop(request.key, None) is None:
            self._decoding.leave(request)
        assert request.held is not None
        self.cache.release(request.held, request.computed)
        request.held = None

    # -- ends ----------------------------------------------------------------------------------------------------

    def cut(self, now_us: int, *, directive: bool = False) -> int | None:
        """A call or a directive came: when the steps under way end, so that it is seen as early as vLLM would."""
        stretch = self._stretch
        if stretch is None or stretch.steps == 1:
            return stretch.end_us if stretch else None
        decoding, interval = self._decoding, self.queue.policy.decision_interval_steps
        steps = self._steps_until(now_us - stretch.begin_us, stretch.steps)
        if not directive and len(decoding.requests) + len(self._prefilling) >= self.limits.max_num_seqs:
            # Only a decision could let it run.
            steps = min(stretch.steps, steps + -(steps + self._since) % interval)
        if steps < stretch.steps:
            self.cache.used -= decoding.blocks_for(stretch.steps) - decoding.blocks_for(steps)
            stretch.end_us = stretch.begin_us + self.cost.decode_us(len(decoding.requests), decoding.context, steps)
            stretch.steps = steps
        return stretch.end_us

    def end(self, now_us: int) -> list[Ended]:
        """The steps are over: charges them, and gives the calls that ended with them."""
        stretch, self._stretch = self._stretch, None
        if stretch is None:
            return []
        took = stretch.end_us - stretch.begin_us
        decoding, counters = self._decoding, self.counters
        self._since += stretch.steps
        counters.steps += stretch.steps
        counters.busy_us += took
        calls = len(decoding.requests)
        counters.output_tokens += calls * stretch.steps
        counters.computed_tokens += calls * stretch.steps
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
        """All that was there is computed: a token, the first one unless the request was preempted before."""
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
        self._keep(request, now_us)
        self._stop(request)
        del self.requests[request.key]
        stats = self.queue.finish(request.key, now_us)
        assert stats is not None
        return Ended(request, stats, now_us)
