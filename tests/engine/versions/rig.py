"""One engine core in this process: the real scheduler with our plugin, a fake runner, steps in flight as vLLM has them.
`Engine.step` follows EngineCore.step and step_with_batch_queue, then checks the invariants. A step lasts STEP_US.
"""

from __future__ import annotations

import inspect
import itertools
import os
import random
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agentserving.contract.channel import CallRecord, Cancel, SetPaused, SetPolicy, ToEngine, ToolWait
from agentserving.contract.policy import Policy, to_dict
from agentserving.contract.signatures import public_bytes
from agentserving_engine import clock
from agentserving_engine.scheduler import ProgramScheduler
from engine.versions.fake_runner import BLOCK_SIZE, FakeRunner, next_token
from engine.versions.host_memory import HostMemory
from engine.versions.invariants import check
from engine.versions.options import PIPELINES, Options, Pipeline, make_config, make_kv_cache
from engine.versions.tickets import ENGINE_ID, SECRET, TENANT, ticket
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

# Cases take these from here.
__all__ = ["PIPELINES", "Engine", "Options", "Pipeline"]

STEP_US = 10_000
MAX_STEPS = 20_000
# For work of vLLM's other threads, on a busy machine.
WAIT_LIMIT_S = 45.0


@dataclass
class Sent:
    """A request and what has come back."""

    request: Request
    prompt: int
    max_tokens: int
    tokens: list[int]
    finish_reason: Any = None
    aborted: bool = False


class Clock:
    """Virtual time, in place of the plugin's clock."""

    def __init__(self) -> None:
        self.ns = 10**12

    def monotonic_ns(self) -> int:
        return self.ns


class Engine:
    """An engine core with one scheduler."""

    def __init__(
        self,
        pipeline: Pipeline,
        options: Options | None = None,
        *,
        seed: int = 0,
        choose: Callable[[str, int], int] = next_token,
    ) -> None:
        self.pipeline, self.options = pipeline, options or Options()
        self.rng, self.choose = random.Random(seed), choose
        self.clock = Clock()
        clock.time = SimpleNamespace(monotonic_ns=self.clock.monotonic_ns)  # type: ignore[assignment]
        self.scheduler = self._make_scheduler()
        self.session = self.scheduler._session
        self.runner = FakeRunner(pipeline.v2, self.options.slots, choose, self.options.windows)
        self.host: HostMemory | None = None
        if self.options.host_blocks:
            self.host = HostMemory(self.config, self.scheduler.kv_cache_config, self.runner.kv, BLOCK_SIZE)
        self.sent: dict[str, Sent] = {}
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._count = itertools.count()
        self._preemptions: list[str] = []
        self.steps = 0
        self.session.take_directives = self._take_directives

    def _make_scheduler(self) -> Any:
        options, asynchronous = self.options, self.pipeline.asynchronous
        directory = Path(tempfile.mkdtemp(prefix="agentserving-matrix-"))
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        (directory / "key").write_bytes(public_bytes(SECRET))
        os.environ["AGENTSERVING_ENGINE_ID"] = ENGINE_ID
        os.environ["AGENTSERVING_TICKET_KEY_FILE"] = str(directory / "key")
        os.environ["AGENTSERVING_CHANNEL_DIR"] = str(directory)
        os.environ["AGENTSERVING_UNTICKETED"] = options.unticketed
        os.environ["AGENTSERVING_TENANT_CACHE"] = options.tenant_cache
        os.environ["AGENTSERVING_RANKS"] = str(options.ranks)
        config = self.config = make_config(options, asynchronous)
        self.structured_output = StructuredOutputManager(config)
        arguments = {
            "vllm_config": config,
            "kv_cache_config": make_kv_cache(options),
            "block_size": BLOCK_SIZE,
            "log_stats": True,
            "structured_output_manager": self.structured_output,
        }
        if "hash_block_size" in inspect.signature(Scheduler.__init__).parameters:
            arguments["hash_block_size"] = BLOCK_SIZE
        scheduler: Any = ProgramScheduler(**arguments)
        # A property of the configuration that asks the platform; the CPU's answer is always V1.
        scheduler.use_v2_model_runner = self.pipeline.v2
        scheduler.defer_block_free = options.late_frees
        init_none_hash(sha256)
        self._block_hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        return scheduler

    def close(self) -> None:
        """Ends the channel's thread."""
        if self.session.channel is not None:
            self.session.channel.close()

    # -- what comes from outside ---------------------------------------------------------------------------------

    def send(
        self,
        *,
        prompt: int = 20,
        max_tokens: int = 10,
        program: str | None = None,
        call: str | None = None,
        request_id: str | None = None,
        tenant: str = TENANT,
        attained_us: int = 0,
        prompt_tokens: list[int] | None = None,
        compiled: bool = True,
        **request_fields: Any,
    ) -> str:
        """A request arrives; returns its id. With `program` it carries a ticket (of class `service`), else it has none.

        A grammar is compiled before, unless `compiled` is false: then the case calls `compile`.
        """
        number, service = next(self._count), request_fields.pop("service", 0)
        call = call or f"{program or 'none'}.1.{number}"
        request_id = request_id or f"chatcmpl-{call}-{number:08x}"
        tokens = prompt_tokens or [self.rng.randint(0, 200) for _ in range(prompt)]
        sampling = request_fields.pop("sampling_params", None) or SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        request = Request(
            request_id=request_id,
            prompt_token_ids=tokens,
            sampling_params=sampling,
            pooling_params=None,
            session_id=ticket(program, call, attained_us, tenant, service) if program else None,
            block_hasher=self._block_hasher if self.options.prefix_caching else None,
            **request_fields,
        )
        self.sent[request_id] = Sent(request, len(tokens), max_tokens, [])
        if request.use_structured_output and compiled:
            self.compile(request_id)
        self.scheduler.add_request(request)
        return request_id

    def _take_directives(self, now_us: int, *, steers: bool = True) -> None:
        """The session's own method, and then the preemptions that a case forces."""
        type(self.session).take_directives(self.session, now_us, steers=steers)
        while self._preemptions:
            request_id = self._preemptions.pop()
            if steers:
                self.session._preempt(request_id, now_us)

    def compile(self, request_id: str) -> None:
        """The request's grammar compiles now, on vLLM's own thread; it is ready when this returns."""
        request = self.sent[request_id].request
        self.structured_output.grammar_init(request)
        wait_until(lambda: self.compiled(request_id))

    def compiled(self, request_id: str) -> bool:
        """The request's grammar is ready, or has failed to compile."""
        request = self.sent[request_id].request
        if request.status != RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            return True
        try:
            return request.structured_output_request.grammar is not None
        except Exception:
            # A grammar that does not compile: its error is raised here, and vLLM handles it in the next step.
            return True

    def direct(self, message: ToEngine) -> None:
        """Puts a directive into the inbox, as the channel's thread does."""
        self.session.channel.inbox.append(message)

    def set_policy(self, policy: Policy, version: int = 1) -> None:
        """A policy to execute from the next step on."""
        self.direct(SetPolicy(version, to_dict(policy)))

    def preempt(self, request_id: str) -> None:
        """Preempts the request before the next step."""
        self._preemptions.append(request_id)

    def pause(self, program: str, paused: bool) -> None:
        """Pauses this program and no other, or resumes all, in the next step."""
        self.direct(SetPaused([(TENANT, program)] if paused else []))

    def tool_wait(self, program: str, waiting: bool, *, expected_us: int = 0) -> None:
        """The program's tool wait begins or ends."""
        message = ToolWait(
            tenant=TENANT, root_program_id=program, program_id=program, thread_id="", waiting=waiting,
            expected_us=expected_us,
        )  # fmt: skip
        self.direct(message)

    def cancel(self, *request_ids: str) -> None:
        """Cancels the calls of these requests in the next step."""
        calls = [self.session.book.call_of(request_id) for request_id in request_ids]
        self.direct(Cancel([call.record.call_id for call in calls if call is not None]))

    def records(self) -> dict[str, CallRecord]:
        """Terminal records of calls that have ended, by call id."""
        return {record.call_id: record for record in self.session.book.outbox.unacked()}

    def abort(self, request_id: str) -> None:
        """The client has hung up."""
        if self.sent[request_id].finish_reason is None:
            self.sent[request_id].aborted = True
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    # -- the loop ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """EngineCore.step, or step_with_batch_queue when scheduling is asynchronous."""
        self.steps += 1
        scheduler, depth, deferred = self.scheduler, 2 if self.pipeline.asynchronous else 1, None
        if scheduler.has_requests():
            output = scheduler.schedule()
            if output.pending_structured_output_tokens and self._in_flight:
                deferred = output
            else:
                self._launch(output)
                executed = output.total_num_scheduled_tokens > 0
                if len(self._in_flight) < depth and (executed or scheduler.has_requests()):
                    self._checked()
                    return
        if self._in_flight:
            self._update(*self._in_flight.popleft())
        if deferred is not None:
            self._launch(deferred)
        self._checked()

    def _launch(self, output: Any) -> None:
        grammar = self.scheduler.get_grammar_bitmask(output) if output.total_num_scheduled_tokens else None
        if self.host is not None:
            self.host.before(output)
        result = self.runner.run(output, grammar)
        if self.host is not None:
            result.kv_connector_output = self.host.after(output)
        self._in_flight.append((output, result))

    def _update(self, output: Any, result: Any) -> None:
        self.clock.ns += STEP_US * 1000
        for outputs in self.scheduler.update_from_output(output, result).values():
            for item in outputs.outputs:
                sent = self.sent[item.request_id]
                assert sent.finish_reason is None, f"{item.request_id}: output after its last one"
                sent.tokens += item.new_token_ids
                sent.finish_reason = item.finish_reason

    def _checked(self) -> None:
        check(self)

    def run(self, *, steps: int | None = None, until: Callable[[], bool] | None = None) -> None:
        """Steps on: `steps` times, until a condition holds, or until nothing is left to do."""
        for count in itertools.count():
            if count == steps or (until is not None and until()):
                return
            if steps is None and until is None and not self.scheduler.has_requests() and not self._in_flight:
                return
            assert count < MAX_STEPS, f"no end after {count} steps; left: {self.unfinished()}"
            self.step()

    def unfinished(self) -> list[str]:
        """Requests whose last output has not come."""
        return [key for key, sent in self.sent.items() if sent.finish_reason is None and not sent.aborted]

    def running(self) -> list[str]:
        """Ids that vLLM runs, in its order."""
        return [request.request_id for request in self.scheduler.running]

    def expected(self, request_id: str) -> list[int]:
        """Every token that the request gets if it runs to its end."""
        sent = self.sent[request_id]
        return [self.choose(request_id, sent.prompt + at) for at in range(sent.max_tokens)]

    def finish(self) -> None:
        """Runs to the end; every token of every request must be right, and nothing may be left anywhere."""
        self.run()
        for key, sent in self.sent.items():
            expected = self.expected(key)
            assert sent.aborted or sent.finish_reason is not None, f"{key} never finished"
            if sent.finish_reason in (None, FinishReason.ABORT):
                expected = expected[: len(sent.tokens)]
            assert sent.tokens == expected, f"{key}: tokens differ: {sent.tokens[:8]} for {expected[:8]}"
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "blocks leak"
        assert not self.scheduler.requests, f"requests leak: {list(self.scheduler.requests)}"
        assert not self.session.calls.running_keys, f"calls leak: {self.session.calls.running_keys}"
        assert not self.session.calls.waiting_count, "waiting calls leak"


def wait_until(condition: Callable[[], bool], limit_s: float = WAIT_LIMIT_S) -> None:
    """Waits for what another thread does; AssertionError after the limit. Real time passes, not the engine's."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {limit_s} s"
        time.sleep(0.001)
