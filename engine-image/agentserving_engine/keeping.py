"""What stays of a program's KV between its calls: vLLM's block pool, asked and turned for the policy's retention.

A context is a request's list of block hashes. They are chained (v1/core/kv_cache_utils.py: `hash_block_tokens`), so two
contexts are the same up to where their hashes are; and blocks of a request are freed last one first, so those of a
context that are still cached are a beginning of it, and so are those that somebody holds. All is found by halving.

Nothing is pinned: kept blocks stay in vLLM's free queue, at its young end (`BlockPool.touch` and `free_blocks`), and
waiting calls that would take them are not offered to vLLM for a while.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from agentserving_engine.plugin_state import PluginState, now_us
from agentserving_engine.policy import Retention, Wanted
from agentserving_engine.steering import Steering


class BlockMemory:
    """agentserving_engine.policy.retention.Memory over a BlockPool with one group of layers."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def _block(self, block_hash: object) -> Any | None:
        found = self.pool.get_cached_block(block_hash, [0])
        return found[0] if found else None

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Leading blocks that both have."""
        return bisect_left(range(min(len(one), len(other))), True, key=lambda at: one[at] != other[at])

    def cached(self, context: Sequence[object], most: int) -> int:
        """Leading blocks, `most` at most, that are in the pool."""
        return bisect_left(range(min(len(context), most)), True, key=lambda at: self._block(context[at]) is None)

    def held(self, context: Sequence[object], cached: int) -> int:
        """Of the `cached` first blocks, how many somebody holds."""
        return bisect_left(range(cached), True, key=lambda at: not getattr(self._block(context[at]), "ref_cnt", 0))

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks from `first` on that are cached and that nobody holds."""
        cached = self.cached(context, len(context))
        return max(0, cached - max(first, self.held(context, cached)))

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Makes those the last ones to be evicted, the end of the context before its beginning."""
        cached = self.cached(context, len(context))
        found = (self._block(context[at]) for at in range(max(first, self.held(context, cached)), cached))
        blocks = [block for block in found if block is not None]
        self.pool.touch(blocks)
        self.pool.free_blocks(reversed(blocks))


class Keeping:
    """Tells the retention who leaves and who comes, and lets vLLM see the waiting calls that may start."""

    def __init__(self, state: PluginState, steering: Steering) -> None:
        self._state, self._steering = state, steering
        vllm = state.vllm
        pool = vllm.kv_cache_manager.block_pool
        # Behind an offloading connector what is evicted is loaded again, not computed. Other layouts (hybrid models,
        # context parallelism) have blocks that are not one hash each.
        self._possible = (
            vllm.connector is None
            and bool(vllm.vllm_config.cache_config.enable_prefix_caching)
            and len(vllm.kv_cache_config.kv_cache_groups) == 1
            and pool.hash_block_size == vllm.block_size
        )
        self._memory = BlockMemory(pool)
        self._retention = Retention(self._memory)
        self._taken_tokens = 0

    def came(self, program: str) -> None:
        """A call of the program has arrived."""
        self._retention.back(program, now_us())

    def left(self, request: Request) -> None:
        """A request ends; the policy's queue still knows it."""
        state, key = self._state, request.request_id
        calls, call = state.calls, state.book.call_of(key)
        milli = calls.policy.retention_milli
        if not (milli and self._possible and call is not None and key in calls) or request.resumable:
            return
        if request.status == RequestStatus.FINISHED_ABORTED:
            # Nobody goes on with what was cut off.
            return
        keep_us = request.num_tokens * state.prefill.us_per_token * milli / 1000
        root = call.record.root_program_id
        self._retention.left(root, call.application, calls.place(key), request.block_hashes, keep_us, now_us())

    def policy_changed(self) -> None:
        """What was kept under another policy is kept no more."""
        self._retention.clear()

    def before_step(self) -> None:
        """Offers vLLM the waiting calls that fit beside what is kept, and only those."""
        able = None if self._retention.empty else self._able()
        for queue in self._steering.queues:
            queue.offer_only(able)
        load = self._state.load
        load.kept_blocks, load.behind_kept = self._retention.kept_blocks, self._retention.passed_over

    def _able(self) -> list[str] | None:
        state, vllm = self._state, self._state.vllm
        slots = self._steering.slots() - len(vllm.running)
        if slots <= 0 or state.calls.waiting_count <= state.calls.held_count:
            return None
        if vllm._pause_state != PauseState.UNPAUSED:
            return None
        free_blocks = self._steering.free_blocks()
        self._retention.refresh(self._taken_tokens // int(vllm.block_size), free_blocks)
        return self._retention.may_start(
            self._offered(), now_us(), slots=slots, free_blocks=free_blocks, wanted=self._wanted
        )

    def _offered(self) -> Iterator[str]:
        """Waiting calls that vLLM may see in the next step, best first."""
        queues = self._steering.queues
        return (key for key in self._state.calls.iter_waiting() if any(queue.offers(key) for queue in queues))

    def _wanted(self, key: str) -> Wanted:
        vllm, memory = self._state.vllm, self._memory
        request, block_size = vllm.requests[key], int(vllm.block_size)
        call = self._state.book.call_of(key)
        # vLLM computes the last token anew even when all of the prompt is there.
        cached = memory.cached(request.block_hashes, (request.num_tokens - 1) // block_size)
        return Wanted(
            call.record.root_program_id if call is not None else key,
            self._state.calls.place(key),
            request.num_tokens // block_size + 1 - cached,
            cached - memory.held(request.block_hashes, cached),
        )

    def after_step(self, output: Any) -> None:
        """Counts what the step takes of the free blocks."""
        self._taken_tokens += sum(output.num_scheduled_tokens.values())
