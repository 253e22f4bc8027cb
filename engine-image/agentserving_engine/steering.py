"""Who runs: turns the policy's decision into vLLM's queues, before each step, and learns what vLLM made of it after."""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from agentserving_engine.plugin_state import PluginState, now_us


class Steering:
    """Decides, preempts and orders on behalf of `state.calls`."""

    def __init__(self, state: PluginState) -> None:
        self._state = state

    def decide(self) -> list[str]:
        """Executes the policy's decision for the next step; gives the preempted, set aside for that step."""
        state, vllm, calls = self._state, self._state.vllm, self._state.calls
        if state.load.steps % calls.policy.decision_interval_steps or vllm._pause_state != PauseState.UNPAUSED:
            return []
        manager, block_size, requests = vllm.kv_cache_manager, vllm.block_size, vllm.requests
        decision = calls.decide(
            now_us(),
            slots=vllm.max_num_running_reqs,
            free_blocks=manager.block_pool.get_num_free_blocks() - getattr(manager, "watermark_blocks", 0),
            need_blocks=lambda key: requests[key].num_tokens // block_size + 1,
            returns_blocks=lambda key: -(-requests[key].num_computed_tokens // block_size),
            preemptable=self._preemptable,
        )
        for key in (*decision.promoted, *decision.demoted):
            vllm.waiting.rekey(key)
        state.load.promotions += len(decision.promoted)
        state.load.demotions += len(decision.demoted)
        state.order_changed |= bool(decision.demoted or decision.promoted)
        for key in decision.preempt:
            self.preempt(key)
        if state.order_changed and calls.waiting_count:
            # vLLM takes blocks from the end of `running` first when they run out: the worst must stand there.
            vllm.running.sort(key=lambda request: calls.rank(request.request_id))
            state.order_changed = False
        return list(decision.preempt)

    def _preemptable(self, key: str) -> bool:
        vllm = self._state.vllm
        request = vllm.requests.get(key)
        if request is None or request.status != RequestStatus.RUNNING or request.resumable:
            return False
        can_free = getattr(vllm, "_request_blocks_can_be_freed", None)
        return can_free is None or bool(can_free(request))

    def preempt(self, key: str) -> None:
        """Puts a running request back to waiting, out of sight until it is offered again."""
        state, vllm = self._state, self._state.vllm
        request = vllm.requests.get(key)
        if request is None or request.status != RequestStatus.RUNNING:
            return
        vllm.running.remove(request)
        state.calls.preempt(key, now_us())
        vllm._preempt_request(request, time.monotonic(), drop_stale_output=vllm.requires_kv_delivery)
        vllm.prev_step_scheduled_req_ids.discard(key)
        # Not in this step again: it would be recomputed for nothing.
        vllm.waiting.set_aside(key)
        state.load.preemptions_proactive += 1

    def after_schedule(self, output: Any, victims: list[str]) -> None:
        """Takes over what vLLM decided: who was preempted for blocks, who started."""
        state, vllm = self._state, self._state.vllm
        now = now_us()
        for key in victims:
            vllm.waiting.offer(key)
        for key in output.preempted_req_ids or ():
            stats = state.calls.stats(key, now)
            if stats is not None and stats.running:
                state.calls.preempt(key, now)
                vllm.waiting.rekey(key)
                state.load.preemptions_reactive += 1
        for new in output.scheduled_new_reqs:
            self._started(new.req_id, now)
            call = state.book.call_of(new.req_id)
            if call is not None and not call.record.first_token_us:
                call.record.cached_tokens += new.num_computed_tokens
            state.load.cached_tokens += new.num_computed_tokens
            state.load.prompt_tokens += len(new.prompt_token_ids or ())
        for key in getattr(output.scheduled_cached_reqs, "resumed_req_ids", ()):
            self._started(key, now)
        if not output.num_scheduled_tokens and state.calls.held_count:
            # Only held calls are left: vLLM would spin. A millisecond here delays nobody.
            time.sleep(0.001)

    def _started(self, key: str, now: int) -> None:
        self._state.calls.start(key, now)
        self._state.order_changed = True
