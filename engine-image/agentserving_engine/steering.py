"""Who runs: turns the policy's decision into vLLM's queues, before each step, and learns what vLLM made of it after."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.request import RequestStatus

from agentserving_engine.plugin_state import PluginState, now_us
from agentserving_engine.policy import CallQueue, lost_tokens, wanted_blocks
from agentserving_engine.waiting_queue import Rank, RankedQueue

# Behind every call: a request that the policy does not know (taking it in has failed).
STRANGER: Rank = (1 << 30, 0, 0)


class Steering:
    """Decides, preempts and orders on behalf of `state.calls`."""

    def __init__(self, state: PluginState) -> None:
        self._state = state
        vllm = state.vllm
        vllm.waiting = self.waiting = RankedQueue(self.rank, self.is_held)
        self.queues = [self.waiting]
        if hasattr(vllm, "skipped_waiting"):
            # Up to 0.30 a request that could not start (grammar, LoRA, output in flight) waits here from then on. From
            # 0.31 it stays in `waiting`, and a second queue has those that hold KV blocks: these vLLM drains itself.
            vllm.skipped_waiting = RankedQueue(self.rank, self.is_held)
            self.queues.append(vllm.skipped_waiting)

    def rank(self, key: str) -> Rank:
        """Place of any request in the order; lower runs first."""
        calls = self._state.calls
        return calls.rank(key) if key in calls else STRANGER

    def is_held(self, key: str) -> bool:
        """True when the request's program is paused."""
        return self._state.calls.is_held(key)

    def best_queue(self) -> RankedQueue | None:
        """Of vLLM's two waiting queues the one whose head runs next; None when nothing may start."""
        heads = [(head, queue) for queue in self.queues if (head := queue.head()) is not None]
        return min(heads, key=lambda pair: pair[0])[1] if heads else None

    # -- before a step -------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Executes the policy's decision for the next step; the preempted are hidden until it is over."""
        state, vllm, calls = self._state, self._state.vllm, self._state.calls
        if calls.settled:
            return
        if state.load.steps % calls.policy.decision_interval_steps or vllm._pause_state != PauseState.UNPAUSED:
            return
        block_size, requests = vllm.block_size, vllm.requests
        free_blocks = self.free_blocks() + self._coming_blocks()
        loras = self._running_loras()
        decision = calls.decide(
            now_us(),
            slots=self.slots(),
            free_blocks=free_blocks,
            need_blocks=lambda key: requests[key].num_tokens // block_size + 1,
            returns_blocks=lambda key: -(-requests[key].num_computed_tokens // block_size),
            preemptable=self._preemptable,
            admissible=lambda key: self._admissible(requests[key], loras),
            resume_us=partial(self._resume_us, free_blocks, self._waiting_blocks()),
        )
        for key in (*decision.promoted, *decision.demoted):
            self._rekey(key)
        state.load.promotions += len(decision.promoted)
        state.load.demotions += len(decision.demoted)
        state.order_changed |= bool(decision.demoted or decision.promoted)
        for key in decision.preempt:
            self.preempt(key)
        if state.order_changed and calls.waiting_count:
            # vLLM takes blocks from the end of `running` first when they run out: the worst must stand there.
            vllm.running[:] = sorted(vllm.running, key=lambda request: self.rank(request.request_id))
            state.order_changed = False

    def _waiting_blocks(self) -> int:
        """What the waiting calls will take; nothing is summed up while nobody waits."""
        vllm, waiting = self._state.vllm, self._state.calls.waiting_count
        if not waiting:
            return 0
        tokens = sum(int(request.num_tokens) for request in vllm.running)
        return wanted_blocks(waiting, len(vllm.running), tokens, int(vllm.block_size))

    def _resume_us(self, free_blocks: int, waiting_blocks: int, key: str) -> float:
        """Time to compute again what the request would lose."""
        vllm = self._state.vllm
        lost = lost_tokens(
            int(vllm.requests[key].num_computed_tokens),
            block_size=vllm.block_size,
            findable=bool(vllm.vllm_config.cache_config.enable_prefix_caching),
            free_blocks=free_blocks,
            # Behind an offloading connector what is evicted is loaded again beside the batch, not computed in it.
            waiting_blocks=waiting_blocks if vllm.connector is None else 0,
        )
        return lost * self._state.prefill.us_per_token

    def free_blocks(self) -> int:
        """Blocks that vLLM may give to calls that start."""
        manager = self._state.vllm.kv_cache_manager
        return int(manager.block_pool.get_num_free_blocks()) - int(getattr(manager, "watermark_blocks", 0))

    def _coming_blocks(self) -> int:
        """Blocks that come back when the steps in flight are over.

        Beside a connector that loads KV, vLLM frees only then what such a step may still write to: nobody must give way
        a second time for that.
        """
        return sum(len(blocks) for _, blocks in self._state.vllm.deferred_frees)

    def slots(self) -> int:
        """Calls that may run beside each other."""
        vllm = self._state.vllm
        if not hasattr(vllm, "max_num_active_reqs"):
            return int(vllm.max_num_running_reqs)
        # From 0.31 on, a streaming-input session that waits for input keeps its slot.
        return int(vllm.max_num_active_reqs - vllm.num_waiting_for_streaming_input)

    def _running_loras(self) -> set[int]:
        vllm = self._state.vllm
        if not vllm.lora_config:
            return set()
        return {request.lora_request.lora_int_id for request in vllm.running if request.lora_request}

    def _admissible(self, request: Any, loras: set[int]) -> bool:
        """False when vLLM would pass the request over in this step, whoever gave way to it."""
        vllm = self._state.vllm
        if vllm._is_blocked_waiting_status(request.status) or request.num_stale_output_tokens:
            return False
        if not vllm.lora_config or not request.lora_request or request.lora_request.lora_int_id in loras:
            return True
        if len(loras) >= vllm.lora_config.max_loras:
            return False
        loras.add(request.lora_request.lora_int_id)
        return True

    def _preemptable(self, key: str) -> bool:
        request = self._state.vllm.requests.get(key)
        return request is not None and request.status == RequestStatus.RUNNING and not request.resumable

    def preempt(self, key: str) -> None:
        """Puts a running request back to waiting, not to start again in the step that follows."""
        state, vllm = self._state, self._state.vllm
        request = vllm.requests.get(key)
        if request is None or request.status != RequestStatus.RUNNING:
            return
        drop, place = vllm.requires_kv_delivery, vllm.running.index(request)
        # Model runner V1 must be told all tokens again, whenever the request comes back.
        vllm.prev_step_scheduled_req_ids.discard(key)
        del vllm.running[place]
        try:
            vllm._preempt_request(request, time.monotonic(), drop_stale_output=drop)
        except Exception:
            self._put_back(request, place)
            raise
        # In this step it would be recomputed for nothing.
        self.waiting.hide(key)
        state.load.preemptions_proactive += 1
        state.calls.preempt(key, now_us())

    def _put_back(self, request: Any, place: int) -> None:
        """A preemption broke off: the request must stand in one place, whichever its status says."""
        vllm = self._state.vllm
        if request.status == RequestStatus.RUNNING:
            vllm.running.insert(place, request)
            return
        if request.request_id not in self.waiting:
            self.waiting.add_request(request)
        # What tells model runner V2 to give up the slot.
        vllm.reset_preempted_req_ids.add(request.request_id)

    # -- after a step --------------------------------------------------------------------------------------------

    def after_schedule(self, output: Any) -> None:
        """Takes over what vLLM decided: who was preempted for blocks, who started."""
        state, vllm = self._state, self._state.vllm
        now = now_us()
        self.waiting.show_hidden()
        for key in output.preempted_req_ids or ():
            stats = state.calls.stats(key, now)
            if stats is not None and stats.running:
                state.calls.preempt(key, now)
                self._rekey(key)
                state.load.preemptions_reactive += 1
        for new in output.scheduled_new_reqs:
            self._started(new.req_id, now)
            # Model runner V2 is sent a resumed request as a new one: only its first start brings a prompt.
            if not vllm.requests[new.req_id].num_preemptions:
                self._count_prompt(new)
        for key in output.scheduled_cached_reqs.resumed_req_ids:
            self._started(key, now)
        if not output.num_scheduled_tokens and (state.calls.held_count or self.waiting.limited):
            # Only calls are left that may not start: vLLM would spin. A millisecond here delays nobody.
            time.sleep(0.001)

    def _started(self, key: str, now: int) -> None:
        self._state.calls.start(key, now)
        self._state.order_changed = True

    def _count_prompt(self, new: Any) -> None:
        state = self._state
        call = state.book.call_of(new.req_id)
        if call is not None:
            call.record.cached_tokens += new.num_computed_tokens
        state.load.cached_tokens += new.num_computed_tokens
        state.load.prompt_tokens += len(new.prompt_token_ids or ())

    # -- when anything has changed -------------------------------------------------------------------------------

    def _rekey(self, key: str) -> None:
        for queue in self.queues:
            queue.rekey(key)

    def refresh(self) -> None:
        """Ranks or holds of many calls have changed."""
        for queue in self.queues:
            queue.refresh()
        self._state.order_changed = True

    def repair(self) -> None:
        """Makes the policy's queue anew from vLLM's own lists, after a hook broke off in the middle of its work.

        Accounts and records live in the book and are kept; what is lost is how far a call had come in its quantum.
        """
        state, vllm, now = self._state, self._state.vllm, now_us()
        for key in state.book.request_ids:
            if key not in vllm.requests:
                state.book.end(key, None, "failed", now, state.calls.policy.accounting)
        calls = CallQueue(state.calls.policy)
        for program in state.calls.held_programs:
            calls.pause(program, True, now)
        for request in sorted(vllm.requests.values(), key=lambda request: float(request.arrival_time)):
            calls.arrive(state.book.facts(request.request_id, calls.policy.accounting), now)
        for request in vllm.running:
            calls.start(request.request_id, now)
        state.calls = calls
        self.waiting.show_hidden()
        self.refresh()

    def go_stock(self) -> None:
        """Hands vLLM queues of its own, in order of arrival: from now on nothing here orders, holds or preempts."""
        vllm = self._state.vllm
        for name in ("waiting", "skipped_waiting"):
            ours = getattr(vllm, name, None)
            if isinstance(ours, RankedQueue):
                stock = create_request_queue(vllm.policy)
                for request in sorted(ours, key=lambda request: float(request.arrival_time)):
                    stock.add_request(request)
                setattr(vllm, name, stock)
