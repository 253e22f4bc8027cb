"""The only module that writes into vLLM's scheduler, and knows its attributes; `block_memory` knows its block pool.

What differs between the supported versions (the range is in `conformance`, which checks every name at start-up):

| attribute or behaviour | versions | what is done here |
|---|---|---|
| `skipped_waiting` | up to 0.30 | blocked requests move there: it becomes a `PolicyQueue` as well |
| `kv_holding_waiting` | from 0.31 | waiting requests that hold KV; vLLM drains it first, and it stays vLLM's own |
| `max_num_active_reqs`, `num_waiting_for_streaming_input` | from 0.31 | a waiting streaming session keeps its slot |
| `max_num_running_reqs` | all | the slot limit up to 0.30 |
| `reset_preempted_req_ids` | all | makes model runner V2 release the slot of a request preempted between two steps |
| `prev_step_scheduled_req_ids` | all | model runner V1 must be sent all tokens of a request that was preempted |
| `deferred_frees` | all | with a connector that loads KV, blocks are freed when the steps in flight end |
| `use_eagle_block_drop` | from 0.30 | the last block that was found is computed again; before, `use_eagle` says it |
| resumed requests in `scheduled_new_reqs` | model runner V2 | distinguished by `num_preemptions` |
| `session_id` of beams | from 0.29 | on 0.28 the requests of a beam search have no ticket and are unmanaged |

Everything runs on the engine core's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentserving.contract.channel import Load
from agentserving.contract.kv_obstacles import KvObstacle
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from agentserving_engine.block_memory import BlockMemory, LayerGroups, groups_of
from agentserving_engine.calls.prefixes import Prompt
from agentserving_engine.policy import CallQueue, KvTraits
from agentserving_engine.waiting_queue import PolicyQueue, WaitingOrder

# vLLM's connectors to host memory; both are given its size as `cpu_bytes_to_use`.
HOST_CONNECTORS = ("OffloadingConnector", "SimpleCPUOffloadConnector")


class Started(NamedTuple):
    """A request that starts in a step; `prompt_tokens` is None when it is resumed."""

    key: str
    prompt_tokens: int | None
    cached_tokens: int
    prompt: Prompt | None = None


class Ended(NamedTuple):
    """A request that leaves the engine. `goes_on`: its program may continue with its context."""

    key: str
    outcome: str
    output_tokens: int
    goes_on: bool
    tokens: int
    context: Sequence[Hashable]
    prompt_tokens: int
    salt: str


def host_blocks_of(scheduler: Any) -> int:
    """Blocks of host memory behind the engine's KV (`--kv-offloading-size`); 0 = none, or of unknown size."""
    transfer = getattr(scheduler.vllm_config, "kv_transfer_config", None)
    if scheduler.connector is None or transfer is None or transfer.kv_connector not in HOST_CONNECTORS:
        return 0
    groups = scheduler.kv_cache_config.kv_cache_groups
    block = sum(group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in groups)
    # The bytes are those of all ranks together (CacheConfig.kv_offloading_size), the pages those of one.
    block *= scheduler.vllm_config.parallel_config.world_size
    return int(transfer.kv_connector_extra_config.get("cpu_bytes_to_use") or 0) // max(1, int(block))


class VllmAdapter:
    """agentserving_engine.session.SessionEngine over vLLM's Scheduler."""

    def __init__(self, scheduler: Any, calls: Callable[[], CallQueue]) -> None:
        vllm = self.vllm = scheduler
        self.order = WaitingOrder(calls)
        vllm.waiting = PolicyQueue(self.order)
        if hasattr(vllm, "skipped_waiting"):
            vllm.skipped_waiting = PolicyQueue(self.order)
        block_pool = vllm.kv_cache_manager.block_pool
        prefix_caching = bool(vllm.vllm_config.cache_config.enable_prefix_caching)
        # Of other layouts (state space models, blocks of several sizes, context parallelism) no context is found.
        # Speculative decoding with hidden states computes the last block that was found again.
        self._drops_a_block = bool(getattr(vllm, "use_eagle_block_drop", vllm.use_eagle))
        groups = groups_of(vllm.kv_cache_config, int(vllm.block_size), self._drops_a_block)
        whole = groups is not None and block_pool.hash_block_size == vllm.block_size
        self.memory = BlockMemory(block_pool, groups or LayerGroups())
        self._has_whole_hashes = prefix_caching and whole
        host_blocks, layout = host_blocks_of(vllm), self.memory.layout
        not_found = KvObstacle.NO_PREFIX_CACHING if not prefix_caching else KvObstacle.KV_LAYOUT if not whole else None
        not_counted = KvObstacle.SLIDING_WINDOWS if layout.windows else None
        if vllm.connector is not None and not host_blocks:
            # Behind a connector the tier that bounds is its memory.
            not_counted = not_counted or KvObstacle.UNKNOWN_HOST_MEMORY
        self.kv = KvTraits(
            block_size=int(vllm.block_size),
            blocks=int(block_pool.num_gpu_blocks),
            findable=prefix_caching,
            # Behind an offloading connector, evicted KV is loaded in parallel to the batch.
            reloadable=vllm.connector is not None,
            retention_obstacle=not_found or (None if vllm.connector is None else KvObstacle.KV_CONNECTOR),
            working_set_obstacle=not_found or not_counted,
            host_blocks=host_blocks,
            layout=layout,
        )
        self._answers: list[tuple[int, EngineCoreOutput]] = []
        self._unsorted = False

    # -- what the policy asks (agentserving_engine.policy.Engine) ------------------------------------------------

    def slots(self) -> int:
        """Requests that may run at the same time."""
        vllm = self.vllm
        if not hasattr(vllm, "max_num_active_reqs"):
            return int(vllm.max_num_running_reqs)
        return int(vllm.max_num_active_reqs - vllm.num_waiting_for_streaming_input)

    def free_slots(self) -> int:
        """Requests that may start now."""
        return self.slots() - len(self.vllm.running)

    def free_blocks(self) -> int:
        """Blocks that vLLM may allocate to calls that start."""
        manager = self.vllm.kv_cache_manager
        return int(manager.block_pool.get_num_free_blocks()) - int(getattr(manager, "watermark_blocks", 0))

    def coming_blocks(self) -> int:
        """Blocks of ended requests that the steps in flight may still write to: freed when these steps end."""
        return sum(len(blocks) for _, blocks in self.vllm.deferred_frees)

    def running_tokens(self) -> int:
        return sum(int(request.num_tokens) for request in self.vllm.running)

    def tokens(self, key: str) -> int:
        """Tokens of a request: prompt and answer."""
        return int(self.vllm.requests[key].num_tokens)

    def computed_tokens(self, key: str) -> int:
        """Tokens of a request with KV."""
        return int(self.vllm.requests[key].num_computed_tokens)

    def released_blocks(self, key: str) -> int:
        """Blocks that preempting the request would give back; its last one counts whole."""
        return self.kv.layout.held(-(-self.computed_tokens(key) // self.kv.block_size))

    def preemptable(self, key: str) -> bool:
        """The request runs, and is no streaming session, which would lose its input."""
        request = self.vllm.requests.get(key)
        return request is not None and request.status == RequestStatus.RUNNING and not request.resumable

    def admission_check(self) -> Callable[[str], bool]:
        """For one decision: False for a request that vLLM would pass over in this step."""
        vllm = self.vllm
        loras: set[int] = set()
        if vllm.lora_config:
            loras = {request.lora_request.lora_int_id for request in vllm.running if request.lora_request}

        def admissible(key: str) -> bool:
            request = vllm.requests[key]
            if vllm._is_blocked_waiting_status(request.status) or request.num_stale_output_tokens:
                return False
            if not vllm.lora_config or not request.lora_request or request.lora_request.lora_int_id in loras:
                return True
            if len(loras) >= vllm.lora_config.max_loras:
                return False
            loras.add(request.lora_request.lora_int_id)
            return True

        return admissible

    def context(self, key: str) -> Sequence[object]:
        """The hashes of a request's full blocks."""
        hashes: Sequence[object] = self.vllm.requests[key].block_hashes
        return hashes

    def cached_blocks(self, key: str) -> tuple[int, int]:
        """(blocks of a waiting request that are in the cache, those of them that no request references)."""
        request = self.vllm.requests[key]
        # vLLM always computes the last token, even if the whole prompt is cached.
        return self.memory.found(request.block_hashes, (request.num_tokens - 1) // self.kv.block_size)

    # -- what the session asks (agentserving_engine.session.SessionEngine) ---------------------------------------

    def preempt(self, key: str) -> bool:
        """Puts a running request back to waiting, not to start again in the step that follows."""
        vllm = self.vllm
        request = vllm.requests.get(key)
        if request is None or request.status != RequestStatus.RUNNING:
            return False
        drop, position = vllm.requires_kv_delivery, vllm.running.index(request)
        vllm.prev_step_scheduled_req_ids.discard(key)
        del vllm.running[position]
        try:
            vllm._preempt_request(request, time.monotonic(), drop_stale_output=drop)
        except Exception:
            self._put_back(request, position)
            raise
        # Resuming it in this step would only recompute it.
        self.order.hide(key)
        return True

    def _put_back(self, request: Any, position: int) -> None:
        """A preemption failed half way: the request must be in the one list that its status says."""
        vllm = self.vllm
        if request.status == RequestStatus.RUNNING:
            vllm.running.insert(position, request)
            return
        if request.request_id not in vllm.waiting:
            vllm.waiting.add_request(request)
        vllm.reset_preempted_req_ids.add(request.request_id)

    def abort(self, keys: Sequence[str]) -> None:
        """Ends requests. vLLM's own abort sends the front end nothing, so `answer_aborted` adds their last outputs."""
        for request in self.vllm.finish_requests(keys, RequestStatus.FINISHED_ABORTED):
            output = EngineCoreOutput(
                request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason()
            )
            self._answers.append((request.client_index, output))

    def reorder(self) -> None:
        """The order of the running calls may have changed."""
        self._unsorted = True

    def read_load(self, load: Load) -> None:
        """Sets the gauges that only vLLM knows."""
        block_pool = self.vllm.kv_cache_manager.block_pool
        load.running, load.waiting = self.vllm.get_request_counts()
        load.free_blocks, load.total_blocks = block_pool.get_num_free_blocks(), block_pool.num_gpu_blocks

    # -- arrivals and ends ---------------------------------------------------------------------------------------

    def knows(self, request: Any) -> bool:
        """The request is in the engine: a streaming session sends more input under the same id."""
        return request.request_id in self.vllm.requests

    def set_session(self, request: Any, tenant: str, program_id: str) -> None:
        """vLLM keys prefix retention and hints by session: give it the program instead of a one-time ticket."""
        request.session_id = f"{tenant}/{program_id}"

    def set_salt(self, request: Any, salt: str) -> None:
        """The salt of the tenant, whatever the request came with: the middleware has set it for the known routes."""
        if (request.cache_salt or "") != salt:
            request.cache_salt = salt or None
            request.block_hashes.clear()
            request.update_block_hashes()

    def ended(self, request: Any) -> Ended:
        """A request that vLLM is about to free."""
        outcome = "completed"
        if request.status == RequestStatus.FINISHED_ABORTED:
            outcome = "cancelled"
        elif request.status == RequestStatus.FINISHED_ERROR:
            outcome = "failed"
        return Ended(
            key=request.request_id,
            outcome=outcome,
            output_tokens=request.num_output_tokens,
            # Nothing continues from an answer that was cut off.
            goes_on=outcome != "cancelled" and not request.resumable,
            tokens=int(request.num_tokens),
            context=request.block_hashes,
            prompt_tokens=int(request.num_prompt_tokens),
            salt=request.cache_salt or "",
        )

    def is_comparable(self, ended: Ended) -> bool:
        """Later prompts of the program can be compared with its context."""
        return self._has_whole_hashes and ended.goes_on

    def answer_aborted(self, result: dict[int, Any]) -> None:
        """Adds the last outputs of aborted requests to those for the front end."""
        answers, self._answers = self._answers, []
        for client_index, output in answers:
            result.setdefault(client_index, EngineCoreOutputs()).outputs.append(output)

    # -- a step --------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """vLLM itself is paused (sleep mode, weight update): nothing is preempted meanwhile."""
        return bool(self.vllm._pause_state != PauseState.UNPAUSED)

    @property
    def idle(self) -> bool:
        """No request runs or waits."""
        return not (self.vllm.running or any(self.vllm.get_request_counts()))

    def sort_running(self) -> None:
        """Sorts the running requests: when blocks run out, vLLM preempts the last one, which must be the worst."""
        if self._unsorted:
            self.vllm.running[:] = sorted(self.vllm.running, key=lambda request: self.order.rank(request.request_id))
            self._unsorted = False

    def scheduled_tokens(self, output: Any) -> Mapping[str, int]:
        """Tokens that a step computes, by request."""
        tokens: Mapping[str, int] = output.num_scheduled_tokens
        return tokens

    def preempted(self, output: Any) -> list[str]:
        """Requests preempted for this step, by vLLM or before it by us."""
        return list(output.preempted_req_ids or ())

    def started(self, output: Any) -> Iterator[Started]:
        """Requests that start or resume in this step."""
        for new in output.scheduled_new_reqs:
            first = not self.vllm.requests[new.req_id].num_preemptions
            prompt_tokens = len(new.prompt_token_ids or ()) if first else None
            found = int(new.num_computed_tokens)
            yield Started(new.req_id, prompt_tokens, found, self._prompt(new.req_id, found) if first else None)
        for key in output.scheduled_cached_reqs.resumed_req_ids:
            yield Started(key, None, 0)

    def _prompt(self, key: str, found: int) -> Prompt | None:
        """What was looked up for a request; None when the prefix cache was not asked, or has no whole hashes."""
        request = self.vllm.requests[key]
        if not self._has_whole_hashes or request.skip_reading_prefix_cache:
            return None
        size = self.kv.block_size
        usable = (int(request.num_prompt_tokens) - 1) // size * size
        if self._drops_a_block and found:
            found += size
        return Prompt(request.block_hashes, size, found, usable, request.cache_salt or "")

    def produced(self, result: Mapping[int, Any]) -> Iterator[tuple[str, int]]:
        """(request, number of new output tokens) of a step."""
        for outputs in result.values():
            for item in outputs.outputs:
                yield item.request_id, len(item.new_token_ids)

    # -- after a failure -----------------------------------------------------------------------------------------

    def by_arrival(self) -> list[str]:
        """All requests in the engine, in the order of arrival."""
        requests = sorted(self.vllm.requests.values(), key=lambda request: float(request.arrival_time))
        return [request.request_id for request in requests]

    def running(self) -> list[str]:
        """Running requests, in vLLM's order."""
        return [request.request_id for request in self.vllm.running]

    def restore_stock_queues(self) -> None:
        """Gives vLLM its own queues back, in the order of arrival: from now on nothing here orders or pauses."""
        vllm = self.vllm
        for name in ("waiting", "skipped_waiting"):
            ours = getattr(vllm, name, None)
            if isinstance(ours, PolicyQueue):
                stock = create_request_queue(vllm.policy)
                for request in sorted(ours, key=lambda request: float(request.arrival_time)):
                    stock.add_request(request)
                setattr(vllm, name, stock)
