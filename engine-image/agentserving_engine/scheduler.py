"""vLLM's scheduler, ordered by program. ``--scheduler-cls agentserving_engine.scheduler.ProgramScheduler`` selects it.

Nothing of vLLM is patched: the subclass overrides five methods and puts its own queue in the place of `waiting`. Before
each step it takes in directives and lets the call queue decide; after each step it charges the members. Every hook
falls back to stock behaviour when it raises, and after `MAX_HOOK_ERRORS` the policy is switched off for good: an engine
that serves in the wrong order beats one that does not serve. This module and `waiting_queue` are all that imports vLLM.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import uuid
from collections import deque
from typing import Any

import vllm
from agentserving.channel import (
    AckCalls,
    Cancel,
    EngineHello,
    EngineReport,
    Load,
    Preempt,
    SetAccounts,
    SetHolds,
    SetPolicy,
    ToEngine,
)
from agentserving.policy import FCFS, from_dict
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from agentserving_engine.call_book import CallBook, copy_record
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.conformance import UnsupportedEngineError, check_config, check_version, missing_symbols
from agentserving_engine.policy import CallQueue
from agentserving_engine.settings import PluginSettings
from agentserving_engine.waiting_queue import RankedQueue

logger = logging.getLogger("vllm.agentserving")

PLUGIN_VERSION = "0.1.0"
MAX_HOOK_ERRORS = 20
REPORT_INTERVAL_US = 250_000
# Open calls reported per interval: every waiting call is heard of in time, whatever the length of the queue.
REPORTED_PER_INTERVAL = 64


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class _ProgramMixin:
    """What both schedulers get; `self` is a vLLM Scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self_: Any = self
        missing = missing_symbols(Scheduler, Request, self_)
        if missing:
            raise UnsupportedEngineError(f"vLLM {vllm.__version__} lacks {', '.join(missing)}")
        settings = PluginSettings.from_env(os.environ)
        self._calls = CallQueue(FCFS)
        self._policy_version = 0
        self._book = CallBook(settings.engine_id, settings.ticket_key)
        self._load = Load()
        self._steps_in_flight: deque[int] = deque()
        self._last_update_us = 0
        self._last_report_us = 0
        self._hook_error_count = 0
        self._dirty_order = False
        self._cancelled: list[tuple[int, Any]] = []
        self_.waiting = RankedQueue(self._calls.rank, self._calls.is_held)
        self._channel = self._open_channel(settings)

    def _open_channel(self, settings: PluginSettings) -> ChannelServer | None:
        if settings.channel_dir is None:
            return None
        self_: Any = self
        config = self_.vllm_config
        rank = getattr(config.parallel_config, "data_parallel_index", 0) or 0
        hello = EngineHello(
            boot_id=uuid.uuid4().hex,
            pid=os.getpid(),
            rank=rank,
            engine_kind="VLLM",
            engine_version=vllm.__version__,
            plugin_version=PLUGIN_VERSION,
            max_num_seqs=self_.max_num_running_reqs,
            max_model_len=config.model_config.max_model_len,
            block_size=self_.block_size,
            num_blocks=config.cache_config.num_gpu_blocks or 0,
            data_parallel_size=config.parallel_config.data_parallel_size,
            async_scheduling=bool(config.scheduler_config.async_scheduling),
            policy_version=0,
        )
        unacked = self._book.unacked
        return ChannelServer(settings.channel_dir / f"rank{rank}.sock", hello, lambda: list(unacked.values()))

    # -- hooks ---------------------------------------------------------------------------------------------------

    def _hook_failed(self, where: str) -> None:
        self._hook_error_count += 1
        self._load.hook_errors += 1
        logger.exception("agentserving: %s failed; this step is scheduled as stock vLLM does", where)
        if self._hook_error_count == MAX_HOOK_ERRORS:
            logger.error("agentserving: %d failures, the policy is off until the engine restarts", MAX_HOOK_ERRORS)

    @property
    def _active(self) -> bool:
        return self._hook_error_count < MAX_HOOK_ERRORS

    def add_request(self, request: Request) -> None:
        """Scheduler.add_request: the request's ticket is verified and its call joins the queue."""
        self_: Any = self
        if request.request_id not in self_.requests and request.request_id not in self._calls:
            now = _now_us()
            facts = self._book.arrive(
                request.request_id, request.session_id, now, time.time(), self._calls.policy.accounting
            )
            self._calls.arrive(facts, now)
            call = self._book.call_of(request.request_id)
            if call is not None:
                call.record.prompt_tokens += request.num_prompt_tokens
                # Upstream keys prefix retention and hints by session: give it the program, not a one-time ticket.
                request.session_id = call.record.program_id
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Scheduler.schedule: directives, decision, then vLLM's own step over our order."""
        began = time.perf_counter_ns()
        victims: list[str] = []
        try:
            self._take_directives()
            if self._active:
                victims = self._decide()
        except Exception:
            self._hook_failed("the decision")
        spent = time.perf_counter_ns() - began
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        began = time.perf_counter_ns()
        try:
            self._after_schedule(output, victims)
        except Exception:
            self._hook_failed("the book-keeping after schedule")
        self._steps_in_flight.append(_now_us())
        self._load.policy_time_us += (spent + time.perf_counter_ns() - began) // 1000
        return output

    def _decide(self) -> list[str]:
        self_: Any = self
        calls = self._calls
        if self._load.steps % calls.policy.decision_interval_steps or self_._pause_state != PauseState.UNPAUSED:
            return []
        manager, block_size, requests = self_.kv_cache_manager, self_.block_size, self_.requests
        decision = calls.decide(
            _now_us(),
            slots=self_.max_num_running_reqs,
            free_blocks=manager.block_pool.get_num_free_blocks() - getattr(manager, "watermark_blocks", 0),
            need_blocks=lambda key: requests[key].num_tokens // block_size + 1,
            returns_blocks=lambda key: -(-requests[key].num_computed_tokens // block_size),
            preemptable=self._preemptable,
        )
        for key in (*decision.promoted, *decision.demoted):
            self_.waiting.rekey(key)
        self._load.promotions += len(decision.promoted)
        self._load.demotions += len(decision.demoted)
        self._dirty_order |= bool(decision.demoted or decision.promoted)
        for key in decision.preempt:
            self._preempt(key)
        if self._dirty_order and calls.waiting_count:
            # vLLM takes blocks from the end of `running` first when they run out: the worst must stand there.
            self_.running.sort(key=lambda request: calls.rank(request.request_id))
            self._dirty_order = False
        return list(decision.preempt)

    def _preemptable(self, key: str) -> bool:
        self_: Any = self
        request = self_.requests.get(key)
        if request is None or request.status != RequestStatus.RUNNING or request.resumable:
            return False
        can_free = getattr(self_, "_request_blocks_can_be_freed", None)
        return can_free is None or bool(can_free(request))

    def _preempt(self, key: str) -> None:
        self_: Any = self
        request = self_.requests.get(key)
        if request is None or request.status != RequestStatus.RUNNING:
            return
        self_.running.remove(request)
        self._calls.preempt(key, _now_us())
        self_._preempt_request(request, time.monotonic(), drop_stale_output=self_.requires_kv_delivery)
        self_.prev_step_scheduled_req_ids.discard(key)
        # Not in this step again: it would be recomputed for nothing.
        self_.waiting.set_aside(key)
        self._load.preemptions_proactive += 1

    def _after_schedule(self, output: Any, victims: list[str]) -> None:
        self_: Any = self
        now = _now_us()
        for key in victims:
            self_.waiting.offer(key)
        for key in output.preempted_req_ids or ():
            stats = self._calls.stats(key, now)
            if stats is not None and stats.running:
                self._calls.preempt(key, now)
                self_.waiting.rekey(key)
                self._load.preemptions_reactive += 1
        for new in output.scheduled_new_reqs:
            self._started(new.req_id, now)
            call = self._book.call_of(new.req_id)
            if call is not None and not call.record.first_token_us:
                call.record.cached_tokens += new.num_computed_tokens
            self._load.cached_tokens += new.num_computed_tokens
            self._load.prompt_tokens += len(new.prompt_token_ids or ())
        resumed = getattr(output.scheduled_cached_reqs, "resumed_req_ids", ())
        for key in resumed:
            self._started(key, now)
        if not output.num_scheduled_tokens and self._calls.held_count:
            # Only held calls are left: vLLM would spin. A millisecond here delays nobody.
            time.sleep(0.001)

    def _started(self, key: str, now: int) -> None:
        self._calls.start(key, now)
        self._dirty_order = True

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Scheduler.update_from_output: the step is charged before vLLM ends the requests it finished."""
        try:
            self._charge(scheduler_output)
        except Exception:
            self._hook_failed("charging a step")
        result = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        try:
            self._count_outputs(result)
            for client_index, cancelled in self._cancelled:
                result.setdefault(client_index, EngineCoreOutputs()).outputs.append(cancelled)
            self._cancelled.clear()
            self._report()
        except Exception:
            self._hook_failed("reporting")
        return result

    def _charge(self, output: Any) -> None:
        now = _now_us()
        since = self._steps_in_flight.popleft() if self._steps_in_flight else now
        dt = now - max(since, self._last_update_us)
        self._last_update_us = now
        self._load.steps += 1
        if dt > 0 and output.num_scheduled_tokens:
            self._calls.charge(output.num_scheduled_tokens, dt)
            for key in output.num_scheduled_tokens:
                self._book.charge(key, self._load.steps, dt)

    def _count_outputs(self, result: dict[int, Any]) -> None:
        now = _now_us()
        for outputs in result.values():
            for item in outputs.outputs:
                count = len(item.new_token_ids)
                self._load.output_tokens += count
                call = self._book.call_of(item.request_id)
                if call is not None:
                    call.record.output_tokens += count
                    call.tokens[item.request_id] = call.tokens.get(item.request_id, 0) + count
                    if count and not call.record.first_token_us:
                        stats = self._calls.stats(item.request_id, now)
                        call.record.first_token_us = stats.service_us + stats.wait_us if stats else 0

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Scheduler._free_request: the one place where a request ends, however it ends."""
        try:
            self._ended(request)
        except Exception:
            self._hook_failed("ending a call")
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def _ended(self, request: Request) -> None:
        key = request.request_id
        now = _now_us()
        call = self._book.call_of(key)
        if call is not None:
            # vLLM frees a request before it hands out the last tokens: count what has not been seen yet.
            call.record.output_tokens += request.num_output_tokens - call.tokens.pop(key, 0)
        stats = self._calls.finish(key, now)
        outcome = "cancelled" if request.status == RequestStatus.FINISHED_ABORTED else "completed"
        if request.status == getattr(RequestStatus, "FINISHED_ERROR", None):
            outcome = "failed"
        record = self._book.end(key, stats, outcome, now, self._calls.policy.accounting)
        if record is not None:
            attained, wait = self._book.account(record.root_program_id)
            self._calls.set_account(record.root_program_id, attained, wait)
            if self._channel is not None:
                self._channel.post(EngineReport(self._load_now(), [record], self._policy_version), wake=True)

    # -- reports -------------------------------------------------------------------------------------------------

    def _load_now(self) -> Load:
        self_: Any = self
        load = self._load
        pool = self_.kv_cache_manager.block_pool
        load.running, load.waiting = len(self_.running), len(self_.waiting)
        load.free_blocks, load.total_blocks = pool.get_num_free_blocks(), pool.num_gpu_blocks
        load.unmanaged_calls = self._book.totals.unmanaged_calls
        load.rejected_tickets = self._book.totals.rejected_tickets
        load.last_step_age_us = 0
        return copy.copy(load)

    def _report(self) -> None:
        now = _now_us()
        if self._channel is None:
            return
        self._channel.step_ended()
        self_: Any = self
        idle = not self_.running and not self_.waiting
        if now - self._last_report_us < REPORT_INTERVAL_US and not idle:
            return
        self._last_report_us = now
        records = []
        for call in self._book.snapshot(REPORTED_PER_INTERVAL):
            for key in call.members:
                stats = self._calls.stats(key, now)
                if stats is not None:
                    self._book.observe(call, stats)
            records.append(copy_record(call.record))
        load = self._load_now()
        self._channel.set_load(load, self._policy_version)
        self._channel.post(EngineReport(load, records, self._policy_version), wake=True)

    # -- directives ----------------------------------------------------------------------------------------------

    def _take_directives(self) -> None:
        if self._channel is None:
            return
        inbox = self._channel.inbox
        while inbox:
            self._execute(inbox.popleft())

    def _execute(self, message: ToEngine) -> None:
        match message:
            case AckCalls():
                self._book.acknowledge(message.calls)
            case SetAccounts():
                for root, attained, wait in message.accounts:
                    self._book.learn(root, attained, wait)
                    self._calls.set_account(root, attained, wait)
            case SetPolicy():
                self._set_policy(message)
            case Preempt():
                for key in self._book.requests_of(message.call_id):
                    self._give_way(key)
            case SetHolds():
                wanted, held = set(message.program_ids), self._calls.held_programs
                for program_id in sorted(wanted ^ held):
                    self._pause(program_id, program_id in wanted)
            case Cancel():
                self._cancel([key for call_id in message.call_ids for key in self._book.requests_of(call_id)])

    def _give_way(self, key: str) -> None:
        self_: Any = self
        self._preempt(key)
        self_.waiting.offer(key)

    def _set_policy(self, message: SetPolicy) -> None:
        self_: Any = self
        self._calls.set_policy(from_dict(message.policy))
        self._policy_version = message.version
        self_.waiting.rekey_all()
        self._dirty_order = True

    def _pause(self, program_id: str, paused: bool) -> None:
        self_: Any = self
        for key in self._calls.pause(program_id, paused, _now_us()):
            self._preempt(key)
        for request in list(self_.waiting):
            if paused and self._calls.is_held(request.request_id):
                self_.waiting.set_aside(request.request_id)
            elif not paused:
                self_.waiting.offer(request.request_id)

    def _cancel(self, keys: list[str]) -> None:
        """Aborts requests and answers their clients: vLLM's own abort tells the front end nothing."""
        self_: Any = self
        for request in self_.finish_requests(keys, RequestStatus.FINISHED_ABORTED) or ():
            self._cancelled.append(
                (
                    request.client_index,
                    EngineCoreOutput(
                        request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason()
                    ),
                )
            )


class SyncProgramScheduler(_ProgramMixin, Scheduler):
    """For engines without asynchronous scheduling (CPU)."""


class AsyncProgramScheduler(_ProgramMixin, AsyncScheduler):
    """For engines that overlap scheduling and execution."""


def ProgramScheduler(*args: Any, **kwargs: Any) -> Scheduler:
    """Factory for ``--scheduler-cls``: the scheduler for this engine, or UnsupportedEngineError."""
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    check_version(vllm.__version__)
    check_config(config)
    cls = AsyncProgramScheduler if config.scheduler_config.async_scheduling else SyncProgramScheduler
    return cls(*args, **kwargs)
