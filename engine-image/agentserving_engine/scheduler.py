"""vLLM's scheduler, ordered by program. ``--scheduler-cls agentserving_engine.scheduler.ProgramScheduler`` selects it.

Nothing in vLLM is patched: the subclass overrides five methods and replaces the queue in `waiting`. Before each step it
executes directives and the policy's decision; after each step it charges the members and reports. What it decides is in
`session`, what it does to vLLM in `vllm_adapter`. Every hook falls back to stock behaviour when it raises (`guard`),
and after too many failures the policy is switched off for good: an engine that serves in the wrong order is better than
one that does not serve.
"""

from __future__ import annotations

import os
import time
from typing import Any

import agentserving
import vllm
from agentserving.contract.channel import EngineHello, socket_name
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from agentserving_engine.boot import boot_of_parent, new_boot, write_boot
from agentserving_engine.calls import CallBook, Outbox
from agentserving_engine.calls.salts import salt_of
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.clock import now_us
from agentserving_engine.conformance import check_config, check_symbols, check_version, rank_of
from agentserving_engine.guard import Guard
from agentserving_engine.policy import KvTraits
from agentserving_engine.session import EngineSession
from agentserving_engine.settings import PluginSettings
from agentserving_engine.vllm_adapter import VllmAdapter

# When only calls are left that may not start, vLLM would spin: this pause is too short to delay a call.
NOTHING_STARTS_S = 0.001


class SyncProgramScheduler(Scheduler):
    """For engines without asynchronous scheduling (CPU)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_symbols(vllm.__version__, self, Request("", [0], SamplingParams(max_tokens=1), None))
        settings = PluginSettings.from_env(os.environ)
        self._separate_caches = settings.separate_caches
        outbox = Outbox() if settings.channel_dir is not None else Outbox(limit=0)
        rank = rank_of(self.vllm_config.parallel_config)
        self._adapter = VllmAdapter(self, lambda: self._session.calls)
        hello = _hello(self, settings.ranks, self._adapter.kv)
        book = CallBook(settings.ticket_check(hello.boot_id), outbox)
        self._session = EngineSession(self._adapter, self._adapter.memory, book)
        self._guard = Guard(self._session.load)
        if settings.channel_dir is not None:
            if rank == 0:
                write_boot(settings.channel_dir, hello.boot_id)
            self._session.channel = ChannelServer(settings.channel_dir / socket_name(rank), hello, outbox)

    def add_request(self, request: Request) -> None:
        """Scheduler.add_request: the request's ticket is verified and its call joins the queue."""
        with self._guard("the arrival of a call"):
            if not self._guard.off and not self._adapter.knows(request):
                self._arrive(request)
        super().add_request(request)

    def _arrive(self, request: Request) -> None:
        if request.request_id in self._session.calls:
            return
        call = self._session.arrive(
            request.request_id,
            request.session_id,
            prompt_tokens=request.num_prompt_tokens,
            now_us=now_us(),
            unix_s=time.time(),
        )
        if call is not None:
            self._adapter.set_session(request, call.record.tenant, call.record.program_id)
        if self._separate_caches:
            self._adapter.set_salt(request, salt_of(self._session.calls.facts(request.request_id).program.tenant))

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Scheduler.schedule: directives and the decision, then vLLM's own step in our order."""
        began_ns = time.perf_counter_ns()
        self._before_step()
        spent_ns = time.perf_counter_ns() - began_ns
        output = super().schedule(*args, **kwargs)
        began_ns = time.perf_counter_ns()
        tokens = self._adapter.scheduled_tokens(output)
        with self._guard("the bookkeeping after a step was scheduled"):
            self._after_schedule(output)
        self._session.step_began(sum(tokens.values()), now_us())
        self._session.load.policy_time_us += (spent_ns + time.perf_counter_ns() - began_ns) // 1000
        if not tokens and (self._session.calls.paused_count or self._adapter.order.limited):
            time.sleep(NOTHING_STARTS_S)
        return output

    def _before_step(self) -> None:
        guard, session, adapter = self._guard, self._session, self._adapter
        if guard.needs_repair:
            guard.needs_repair = False
            with guard("the repair after a failure"):
                adapter.order.show_hidden()
                session.rebuild(adapter.by_arrival(), adapter.running(), now_us())
        if guard.off:
            with guard("the return to stock queues"):
                adapter.restore_stock_queues()
        with guard("a directive"):
            session.take_directives(now_us(), steers=not guard.off)
            session.abort_refused()
        if not guard.off:
            with guard("the decision"):
                self._decide()

    def _decide(self) -> None:
        session, adapter, now = self._session, self._adapter, now_us()
        startable = None
        if not adapter.paused:
            session.decide(now)
            if session.calls.waiting_count:
                adapter.sort_running()
            startable = session.startable(
                now,
                free_slots=adapter.free_slots(),
                waiting=adapter.order.waiting(),
                whole_order=not adapter.order.hides,
            )
        adapter.order.limit(startable)

    def _after_schedule(self, output: Any) -> None:
        session, adapter, now = self._session, self._adapter, now_us()
        adapter.order.show_hidden()
        for key in adapter.preempted(output):
            session.preempted(key, now)
        for started in adapter.started(output):
            session.started(started.key, now)
            if started.prompt_tokens is not None:
                session.first_started(
                    started.key,
                    prompt_tokens=started.prompt_tokens,
                    cached_tokens=started.cached_tokens,
                    prompt=started.prompt,
                )

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Scheduler.update_from_output: the step is charged before vLLM ends the requests it finished."""
        session, adapter = self._session, self._adapter
        with self._guard("charging a step"):
            session.step_ended(adapter.scheduled_tokens(scheduler_output), now_us())
        result = super().update_from_output(scheduler_output, model_runner_output)
        with self._guard("the last outputs of aborted calls"):
            adapter.answer_aborted(result)
        with self._guard("counting tokens"):
            for key, count in adapter.produced(result):
                session.produced(key, count)
        with self._guard("reporting"):
            session.report(now_us(), idle=adapter.idle)
        return result

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Scheduler._free_request: the one place where a request ends, however it ends."""
        for work in (self._retain, self._end):
            try:
                work(request)
            except Exception as error:
                # Also runs inside other guarded blocks (a cancel), so it has none of its own.
                self._guard.failed("the end of a call", error)
        return super()._free_request(request, *args, **kwargs)

    def _retain(self, request: Request) -> None:
        ended = self._adapter.ended(request)
        if self._adapter.is_comparable(ended):
            self._session.remember(
                ended.key,
                ended.context,
                tokens=ended.tokens,
                prompt_tokens=ended.prompt_tokens,
                block_size=self._adapter.kv.block_size,
                salt=ended.salt,
            )
        if ended.goes_on:
            self._session.retain(ended.key, ended.context, ended.tokens, now_us())

    def _end(self, request: Request) -> None:
        ended = self._adapter.ended(request)
        self._session.ended(ended.key, ended.outcome, ended.output_tokens, now_us())


class AsyncProgramScheduler(SyncProgramScheduler, AsyncScheduler):
    """For engines that overlap scheduling and execution."""


def _hello(vllm_scheduler: Scheduler, ranks: int, kv: KvTraits) -> EngineHello:
    config = vllm_scheduler.vllm_config
    return EngineHello(
        boot_id=new_boot() if ranks == 1 else boot_of_parent(),
        pid=os.getpid(),
        engine_kind="VLLM",
        engine_version=vllm.__version__,
        plugin_version=agentserving.__version__,
        max_num_seqs=vllm_scheduler.max_num_running_reqs,
        max_model_len=config.model_config.max_model_len,
        block_size=int(vllm_scheduler.block_size),
        num_blocks=config.cache_config.num_gpu_blocks or 0,
        data_parallel_size=ranks,
        async_scheduling=bool(config.scheduler_config.async_scheduling),
        policy_version=0,
        retention_obstacle=kv.retention_obstacle or "",
        working_set_obstacle=kv.working_set_obstacle or "",
    )


def ProgramScheduler(*args: Any, **kwargs: Any) -> Scheduler:
    """Factory for ``--scheduler-cls``: the scheduler for this engine. Raises UnsupportedEngineError."""
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    check_version(vllm.__version__)
    check_config(config, PluginSettings.from_env(os.environ).ranks)
    cls = AsyncProgramScheduler if config.scheduler_config.async_scheduling else SyncProgramScheduler
    return cls(*args, **kwargs)
