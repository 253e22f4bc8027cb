"""vLLM's scheduler, ordered by program. ``--scheduler-cls agentserving_engine.scheduler.ProgramScheduler`` selects it.

Nothing of vLLM is patched: the subclass overrides six methods and puts its own queue in the place of `waiting`. Before
each step it takes in directives (`directives`) and lets the policy decide (`steering`); after each step it charges the
members and reports (`reporting`). Every hook falls back to stock behaviour when it raises (`guard`), and after too many
failures the policy is switched off for good: an engine that serves in the wrong order beats one that does not serve.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import vllm
from agentserving.contract.channel import EngineHello
from agentserving.contract.policy import FCFS
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from agentserving_engine.call_book import CallBook
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.conformance import check_config, check_symbols, check_version
from agentserving_engine.directives import Directives
from agentserving_engine.guard import Guard
from agentserving_engine.keeping import Keeping
from agentserving_engine.plugin_state import PluginState, now_us
from agentserving_engine.policy import CallQueue
from agentserving_engine.reporting import Reporting
from agentserving_engine.settings import PluginSettings
from agentserving_engine.steering import Steering

PLUGIN_VERSION = "0.1.0"


class _ProgramMixin:
    """What both schedulers get; `self` is a vLLM Scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self_: Any = self
        check_symbols(vllm.__version__, self_, Request("", [0], SamplingParams(max_tokens=1), None))
        settings = PluginSettings.from_env(os.environ)
        self._plugin = PluginState(self_, CallQueue(FCFS), CallBook(settings.engine_id, settings.ticket_keys))
        self._guard = Guard(self._plugin.load)
        self._steering = Steering(self._plugin)
        self._reporting = Reporting(self._plugin)
        self._keeping = Keeping(self._plugin, self._steering)
        self._directives = Directives(self._plugin, self._steering, self._keeping)
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

    def add_request(self, request: Request) -> None:
        """Scheduler.add_request: the request's ticket is verified and its call joins the queue."""
        with self._guard("taking in a call"):
            self_: Any = self
            if not self._guard.off and request.request_id not in self_.requests:
                self._arrive(request)
        super().add_request(request)  # type: ignore[misc]

    def _arrive(self, request: Request) -> None:
        calls, book, now = self._plugin.calls, self._plugin.book, now_us()
        if request.request_id in calls:
            return
        facts = book.arrive(request.request_id, request.session_id, now, time.time(), calls.policy.accounting)
        calls.arrive(facts, now)
        self._keeping.came(facts.program)
        call = book.call_of(request.request_id)
        if call is not None:
            call.record.prompt_tokens += request.num_prompt_tokens
            # Upstream keys prefix retention and hints by session: give it the program, not a one-time ticket.
            request.session_id = call.record.program_id

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Scheduler.schedule: directives, decision, then vLLM's own step over our order."""
        began = time.perf_counter_ns()
        self._before_step()
        spent = time.perf_counter_ns() - began
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        began = time.perf_counter_ns()
        with self._guard("the book-keeping after a step was scheduled"):
            self._steering.after_schedule(output)
            self._keeping.after_step(output)
        self._reporting.step_scheduled()
        self._plugin.load.policy_time_us += (spent + time.perf_counter_ns() - began) // 1000
        return output

    def _before_step(self) -> None:
        guard = self._guard
        if guard.needs_repair:
            guard.needs_repair = False
            with guard("the repair after a failure"):
                self._steering.repair()
        if guard.off:
            with guard("going back to stock"):
                self._steering.go_stock()
        with guard("a directive"):
            self._directives.take(steers=not guard.off)
        if not guard.off:
            with guard("the decision"):
                self._steering.decide()
                self._keeping.before_step()

    def _select_waiting_queue_for_scheduling(self) -> Any:
        """Scheduler's, up to 0.30: which of its two waiting queues comes next. Ours are ordered by rank alone."""
        if self._guard.off:
            return super()._select_waiting_queue_for_scheduling()  # type: ignore[misc]
        return self._steering.best_queue()

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Scheduler.update_from_output: the step is charged before vLLM ends the requests it finished."""
        with self._guard("charging a step"):
            self._reporting.charge(scheduler_output)
        result = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        with self._guard("answering cancelled calls"):
            self._directives.answer_cancelled(result)
        with self._guard("counting tokens"):
            self._reporting.count_outputs(result)
        with self._guard("reporting"):
            self._reporting.report()
        return result

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Scheduler._free_request: the one place where a request ends, however it ends."""
        for work in (self._keeping.left, self._reporting.ended):
            try:
                work(request)
            except Exception as error:
                # Runs inside other guarded work as well (a cancel), hence no block of its own.
                self._guard.failed("ending a call", error)
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
