"""vLLM's scheduler, ordered by program. ``--scheduler-cls agentserving_engine.scheduler.ProgramScheduler`` selects it.

Nothing of vLLM is patched: the subclass overrides five methods and puts its own queue in the place of `waiting`. Before
each step it takes in directives (`directives`) and lets the policy decide (`steering`); after each step it charges the
members and reports (`reporting`). Every hook falls back to stock behaviour when it raises, and after `MAX_HOOK_ERRORS`
the policy is switched off for good: an engine that serves in the wrong order beats one that does not serve.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from typing import Any

import vllm
from agentserving.channel import EngineHello
from agentserving.policy import FCFS
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from agentserving_engine.call_book import CallBook
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.conformance import UnsupportedEngineError, check_config, check_version, missing_symbols
from agentserving_engine.directives import Directives
from agentserving_engine.plugin_state import PluginState, now_us
from agentserving_engine.policy import CallQueue
from agentserving_engine.reporting import Reporting
from agentserving_engine.settings import PluginSettings
from agentserving_engine.steering import Steering
from agentserving_engine.waiting_queue import RankedQueue

logger = logging.getLogger("vllm.agentserving")

PLUGIN_VERSION = "0.1.0"
MAX_HOOK_ERRORS = 20


class _ProgramMixin:
    """What both schedulers get; `self` is a vLLM Scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self_: Any = self
        missing = missing_symbols(Scheduler, Request, self_)
        if missing:
            raise UnsupportedEngineError(f"vLLM {vllm.__version__} lacks {', '.join(missing)}")
        settings = PluginSettings.from_env(os.environ)
        calls = CallQueue(FCFS)
        self._plugin = PluginState(self_, calls, CallBook(settings.engine_id, settings.ticket_key))
        self._steering = Steering(self._plugin)
        self._reporting = Reporting(self._plugin)
        self._directives = Directives(self._plugin, self._steering)
        self._hook_error_count = 0
        self_.waiting = RankedQueue(calls.rank, calls.is_held)
        self._plugin.channel = self._open_channel(settings)

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
        unacked = self._plugin.book.unacked
        return ChannelServer(settings.channel_dir / f"rank{rank}.sock", hello, lambda: list(unacked.values()))

    def _hook_failed(self, where: str) -> None:
        self._hook_error_count += 1
        self._plugin.load.hook_errors += 1
        logger.exception("agentserving: %s failed; this step is scheduled as stock vLLM does", where)
        if self._hook_error_count == MAX_HOOK_ERRORS:
            logger.error("agentserving: %d failures, the policy is off until the engine restarts", MAX_HOOK_ERRORS)

    @property
    def _active(self) -> bool:
        return self._hook_error_count < MAX_HOOK_ERRORS

    def add_request(self, request: Request) -> None:
        """Scheduler.add_request: the request's ticket is verified and its call joins the queue."""
        self_: Any = self
        calls, book = self._plugin.calls, self._plugin.book
        if request.request_id not in self_.requests and request.request_id not in calls:
            now = now_us()
            facts = book.arrive(request.request_id, request.session_id, now, time.time(), calls.policy.accounting)
            calls.arrive(facts, now)
            call = book.call_of(request.request_id)
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
            self._directives.take()
            if self._active:
                victims = self._steering.decide()
        except Exception:
            self._hook_failed("the decision")
        spent = time.perf_counter_ns() - began
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        began = time.perf_counter_ns()
        try:
            self._steering.after_schedule(output, victims)
        except Exception:
            self._hook_failed("the book-keeping after schedule")
        self._reporting.step_scheduled()
        self._plugin.load.policy_time_us += (spent + time.perf_counter_ns() - began) // 1000
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Scheduler.update_from_output: the step is charged before vLLM ends the requests it finished."""
        try:
            self._reporting.charge(scheduler_output)
        except Exception:
            self._hook_failed("charging a step")
        result = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        try:
            self._reporting.count_outputs(result)
            self._directives.answer_cancelled(result)
            self._reporting.report()
        except Exception:
            self._hook_failed("reporting")
        return result

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Scheduler._free_request: the one place where a request ends, however it ends."""
        try:
            self._reporting.ended(request)
        except Exception:
            self._hook_failed("ending a call")
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]


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
