"""Invariants between any two steps: vLLM's queues, the policy's queue and the book agree."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from engine.versions.rig import Engine


def waiting_queues(scheduler: Any) -> list[Any]:
    """Every queue of requests that do not run: the second one has another name from 0.31 on."""
    second = "kv_holding_waiting" if hasattr(scheduler, "kv_holding_waiting") else "skipped_waiting"
    return [scheduler.waiting, getattr(scheduler, second)]


def check(engine: Engine) -> None:
    """AssertionError names the request and the two places that disagree."""
    scheduler, session = engine.scheduler, engine.session
    running = [request.request_id for request in scheduler.running]
    waiting = [request.request_id for queue in waiting_queues(scheduler) for request in queue]
    for key, count in Counter(running + waiting).items():
        assert count == 1, f"{key} is in {count} places: running {running}, waiting {waiting}"
    assert set(running + waiting) == set(scheduler.requests), (
        f"lost or dead: {set(running + waiting) ^ set(scheduler.requests)}"
    )
    for request in scheduler.running:
        assert request.status == RequestStatus.RUNNING, f"{request.request_id} runs as {request.status!r}"
    assert len(running) <= engine.options.slots, f"{len(running)} run in {engine.options.slots} slots"
    if hasattr(scheduler, "deferred_waiting"):
        deferred = {request.request_id for request in scheduler.deferred_waiting}
        assert deferred <= set(waiting), f"deferred but not waiting: {deferred - set(waiting)}"
    if not (scheduler._guard.needs_repair or scheduler._guard.off):
        _check_calls(scheduler, session, running, waiting)
    _check_blocks(scheduler)


def _check_calls(scheduler: Any, session: Any, running: list[str], waiting: list[str]) -> None:
    calls = session.calls
    assert set(calls.running_keys) == set(running), f"policy runs {calls.running_keys}, vLLM {running}"
    assert calls.waiting_count == len(waiting), f"policy waits for {calls.waiting_count}, vLLM for {waiting}"
    for key in running + waiting:
        assert key in calls, f"{key} is unknown to the policy"
    for key in waiting:
        if calls.is_paused(key):
            assert all(_offered(queue) != key for queue in waiting_queues(scheduler)), f"{key} is paused and offered"
    members = {key for call in session.book._open.values() for key in call.members}
    assert members <= set(scheduler.requests), f"the book has dead requests: {members - set(scheduler.requests)}"


def _offered(queue: Any) -> str | None:
    return queue.peek_request().request_id if queue else None


def _check_blocks(scheduler: Any) -> None:
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    used = set()
    for request in scheduler.requests.values():
        groups = manager.get_blocks(request.request_id).blocks
        used |= {block.block_id for blocks in groups for block in blocks if not block.is_null}
    # Freed while a step in flight may write to them; a block of these that another request shares is in use.
    used |= {block.block_id for _, blocks in scheduler.deferred_frees for block in blocks if not block.is_null}
    # One block is vLLM's own null block.
    assert pool.get_num_free_blocks() + len(used) == pool.num_gpu_blocks - 1, "blocks leak or are freed twice"
