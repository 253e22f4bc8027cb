"""Every symbol of vLLM that the plugin depends on, and the engine configurations that it refuses.

Checked when the engine starts: if a version lacks one of them, the engine is refused before it serves a call, and the
error names the symbol. The tables list exactly what is used: tests/engine/test_conformance.py compares them with the
plugin's source.
"""

from __future__ import annotations

import inspect
from typing import Any

from agentserving.contract.channel import RANKS_VARIABLE

OLDEST = (0, 28)
NEWEST = (0, 33)

# Attributes of a constructed scheduler, read or replaced.
SCHEDULER_ATTRIBUTES = (
    "_pause_state",
    "block_size",
    "connector",
    "deferred_frees",
    "kv_cache_config",
    "kv_cache_manager",
    "lora_config",
    "max_num_running_reqs",
    "policy",
    "prev_step_scheduled_req_ids",
    "requests",
    "requires_kv_delivery",
    "reset_preempted_req_ids",
    "running",
    "use_eagle",
    "vllm_config",
    "waiting",
)
# Methods and the parameters they are called or overridden with.
SCHEDULER_METHODS: dict[str, tuple[str, ...]] = {
    "_free_request": ("request",),
    "_is_blocked_waiting_status": ("status",),
    "_preempt_request": ("request", "timestamp", "drop_stale_output"),
    "add_request": ("request",),
    "finish_requests": ("request_ids", "finished_status"),
    "get_request_counts": (),
    "schedule": (),
    "update_from_output": ("scheduler_output", "model_runner_output"),
}
# Symbols that only some versions have; the plugin checks before it uses them.
OPTIONAL_SCHEDULER_SYMBOLS = {
    "max_num_active_reqs": "0.31 and later",
    "num_waiting_for_streaming_input": "counts against the slot limit from 0.31 on",
    "skipped_waiting": "up to 0.30",
    "use_eagle_block_drop": "0.30 and later; before, use_eagle says the same",
}
REQUEST_ATTRIBUTES = (
    "arrival_time",
    "block_hashes",
    "cache_salt",
    "client_index",
    "get_finished_reason",
    "lora_request",
    "num_computed_tokens",
    "num_output_tokens",
    "num_preemptions",
    "num_prompt_tokens",
    "num_stale_output_tokens",
    "num_tokens",
    "request_id",
    "resumable",
    "session_id",
    "skip_reading_prefix_cache",
    "status",
    "update_block_hashes",
)


BLOCK_POOL_SYMBOLS = (
    "free_blocks",
    "get_cached_block",
    "get_num_free_blocks",
    "hash_block_size",
    "num_gpu_blocks",
    "touch",
)
SCHEDULER_OUTPUT_ATTRIBUTES = (
    "num_scheduled_tokens",
    "preempted_req_ids",
    "scheduled_cached_reqs",
    "scheduled_new_reqs",
)


class UnsupportedEngineError(RuntimeError):
    """The engine cannot be scheduled by program; the message says why and what to change."""


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor of a version such as 0.32.0+cpu."""
    parts = text.split("+")[0].split(".")
    return int(parts[0]), int(parts[1])


def _range() -> str:
    return f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def check_version(text: str) -> None:
    """Raises UnsupportedEngineError outside OLDEST..NEWEST."""
    try:
        known = OLDEST <= parse_version(text) <= NEWEST
    except (ValueError, IndexError):
        known = False
    if not known:
        raise UnsupportedEngineError(
            f"vLLM {text} is not supported: use {_range()}, or leave --scheduler-cls out to serve without programs"
        )


def check_config(vllm_config: Any, ranks: int = 1) -> None:
    """Refuses configurations that the plugin would get wrong. Raises UnsupportedEngineError with the alternative.

    `ranks`: how many data-parallel ranks the engine was said to have.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if getattr(model, "runner_type", "generate") != "generate":
        raise UnsupportedEngineError(f"runner {model.runner_type!r} has no decode steps to schedule: use stock vLLM")
    if getattr(model, "is_diffusion", False):
        raise UnsupportedEngineError("diffusion models are not scheduled by program: use stock vLLM")
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    if transfer is not None and getattr(transfer, "is_kv_producer", False) and not transfer.is_kv_consumer:
        raise UnsupportedEngineError("a prefill-only engine (KV producer) cannot preempt: use stock vLLM there")
    _check_ranks(parallel, ranks)


def rank_of(parallel_config: Any) -> int:
    """Which of the engine's data-parallel ranks this process is."""
    return int(getattr(parallel_config, "data_parallel_index", 0) or 0)


def _check_ranks(parallel: Any, ranks: int) -> None:
    """The front end must know how many ranks there are, to keep a program on one of them."""
    # vLLM sets the size of a dense model's ranks to one; only the index shows that there are others. One refused rank
    # ends all of them.
    size, rank = parallel.data_parallel_size, rank_of(parallel)
    if rank >= ranks or size not in (1, ranks):
        raise UnsupportedEngineError(
            f"--data-parallel-size is not {RANKS_VARIABLE}, which is {ranks} (size {size}, this is rank {rank}): set "
            "the variable to the same number, so that each program stays on one rank"
        )
    if getattr(parallel, "data_parallel_external_lb", False) or getattr(parallel, "data_parallel_hybrid_lb", False):
        raise UnsupportedEngineError(
            "ranks behind several HTTP fronts (--data-parallel-external-lb, --data-parallel-hybrid-lb): start one "
            "engine, with its own engine id and port, for each front; the load balancer spreads programs over them"
        )


def check_symbols(version: str, scheduler: Any, request: Any) -> None:
    """Raises UnsupportedEngineError naming each symbol that this vLLM lacks; `request` is any vLLM Request."""
    missing = missing_symbols(scheduler, request)
    if missing:
        raise UnsupportedEngineError(
            f"vLLM {version} lacks {', '.join(missing)}, which the plugin needs: use a release of {_range()} (this may "
            "be a modified one), or leave --scheduler-cls out to serve without programs"
        )


def missing_symbols(scheduler: Any, request: Any) -> list[str]:
    """Symbols that this vLLM lacks."""
    missing = [f"Scheduler.{name}" for name in SCHEDULER_ATTRIBUTES if not hasattr(scheduler, name)]
    for name, parameters in SCHEDULER_METHODS.items():
        method = _vllms_own(type(scheduler), name)
        if method is None:
            missing.append(f"Scheduler.{name}")
            continue
        have = inspect.signature(method).parameters
        missing += [f"Scheduler.{name}({parameter})" for parameter in parameters if parameter not in have]
    pool = getattr(getattr(scheduler, "kv_cache_manager", None), "block_pool", None)
    missing += [
        f"Scheduler.kv_cache_manager.block_pool.{name}" for name in BLOCK_POOL_SYMBOLS if not hasattr(pool, name)
    ]
    return missing + [f"Request.{name}" for name in REQUEST_ATTRIBUTES if not hasattr(request, name)]


def _vllms_own(scheduler_class: type, name: str) -> Any | None:
    """The nearest definition of a method that is not ours: ours accepts any arguments."""
    for owner in scheduler_class.__mro__:
        if name in vars(owner) and not owner.__module__.startswith("agentserving_engine"):
            method = vars(owner)[name]
            return getattr(method, "__func__", method)
    return None
