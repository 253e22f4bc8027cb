"""What was received: charges steps, counts tokens, ends calls, and tells the sidecar."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

from agentserving.contract.channel import EngineReport, Load
from vllm.v1.request import Request, RequestStatus

from agentserving_engine.call_book import copy_record
from agentserving_engine.plugin_state import PluginState, now_us

REPORT_INTERVAL_US = 250_000
# Open calls reported per interval: every waiting call is heard of in time, whatever the length of the queue.
REPORTED_PER_INTERVAL = 64


class Reporting:
    """Accounts of the calls in `state.book` and the reports made of them."""

    def __init__(self, state: PluginState) -> None:
        self._state = state
        self._steps_in_flight: deque[int] = deque()
        self._last_update_us = 0
        self._last_report_us = 0

    def step_scheduled(self) -> None:
        """A step goes to the model now; its output comes back in the same order."""
        self._steps_in_flight.append(now_us())

    def charge(self, output: Any) -> None:
        """Charges the members of a step with its time: none of it twice, however many steps overlap."""
        state, now = self._state, now_us()
        since = self._steps_in_flight.popleft() if self._steps_in_flight else now
        dt = now - max(since, self._last_update_us)
        self._last_update_us = now
        state.load.steps += 1
        tokens = output.num_scheduled_tokens
        if dt > 0 and tokens:
            state.prefill.observe(dt, len(tokens), sum(tokens.values()))
            state.calls.charge(tokens, dt)
            for key in tokens:
                state.book.charge(key, state.load.steps, dt)

    def count_outputs(self, result: dict[int, Any]) -> None:
        """Counts the tokens that go out, and takes the time of each call's first one."""
        state, now = self._state, now_us()
        for outputs in result.values():
            for item in outputs.outputs:
                count = len(item.new_token_ids)
                state.load.output_tokens += count
                call = state.book.call_of(item.request_id)
                if call is not None:
                    call.record.output_tokens += count
                    call.tokens[item.request_id] = call.tokens.get(item.request_id, 0) + count
                    if count and not call.record.first_token_us:
                        stats = state.calls.stats(item.request_id, now)
                        call.record.first_token_us = stats.service_us + stats.wait_us if stats else 0

    def ended(self, request: Request) -> None:
        """A request has left the engine; the last one of its call makes the terminal record, told at once."""
        state, key, now = self._state, request.request_id, now_us()
        call = state.book.call_of(key)
        if call is not None:
            # vLLM frees a request before it hands out the last tokens: count what has not been seen yet.
            call.record.output_tokens += request.num_output_tokens - call.tokens.pop(key, 0)
        stats = state.calls.finish(key, now)
        outcome = "cancelled" if request.status == RequestStatus.FINISHED_ABORTED else "completed"
        if request.status == RequestStatus.FINISHED_ERROR:
            outcome = "failed"
        record = state.book.end(key, stats, outcome, now, state.calls.policy.accounting)
        if record is not None:
            attained, wait = state.book.account(record.root_program_id)
            state.calls.set_account(record.root_program_id, attained, wait)
            if state.channel is not None:
                state.channel.post(EngineReport(self._load_now(), [record], state.policy_version), wake=True)

    def report(self) -> None:
        """Progress to the sidecar, each REPORT_INTERVAL_US and when the engine has become idle."""
        state, now = self._state, now_us()
        if state.channel is None:
            return
        state.channel.step_ended()
        if now - self._last_report_us < REPORT_INTERVAL_US and (
            state.vllm.running or any(state.vllm.get_request_counts())
        ):
            return
        self._last_report_us = now
        records = []
        for call in state.book.snapshot(REPORTED_PER_INTERVAL):
            for key in call.members:
                stats = state.calls.stats(key, now)
                if stats is not None:
                    state.book.observe(call, stats)
            records.append(copy_record(call.record))
        load = self._load_now()
        state.channel.set_load(load, state.policy_version)
        state.channel.post(EngineReport(load, records, state.policy_version), wake=True)

    def _load_now(self) -> Load:
        state, vllm = self._state, self._state.vllm
        load, pool = state.load, vllm.kv_cache_manager.block_pool
        load.running, load.waiting = vllm.get_request_counts()
        load.free_blocks, load.total_blocks = pool.get_num_free_blocks(), pool.num_gpu_blocks
        load.unmanaged_calls = state.book.totals.unmanaged_calls
        load.rejected_tickets = state.book.totals.rejected_tickets
        load.last_step_age_us = 0
        return copy.copy(load)
