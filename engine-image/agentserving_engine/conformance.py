"""Every private symbol of vLLM that the plugin stands on, and which engines it refuses.

Checked when the engine starts: a version that moved one of them is refused by name, before it serves a call.
"""

from __future__ import annotations

import inspect
from typing import Any

OLDEST = (0, 28)
NEWEST = (0, 33)

# Attributes of a constructed scheduler.
SCHEDULER_ATTRIBUTES = (
    "running",
    "waiting",
    "requests",
    "finished_req_ids",
    "max_num_running_reqs",
    "prev_step_scheduled_req_ids",
    "kv_cache_manager",
    "block_size",
    "vllm_config",
    "requires_kv_delivery",
    "_pause_state",
)
# Methods and the parameters they are called or overridden with.
SCHEDULER_METHODS = {
    "schedule": ("throttle_prefills",),
    "add_request": ("request",),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "finish_requests": ("request_ids", "finished_status"),
    "_free_request": ("request",),
    "_preempt_request": ("request", "timestamp", "drop_stale_output"),
}
REQUEST_ATTRIBUTES = ("session_id", "num_preemptions", "num_computed_tokens", "num_tokens", "client_index", "resumable")


class UnsupportedEngineError(RuntimeError):
    """This engine cannot be scheduled by program; the message says why and what to change."""


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor of a version such as 0.32.0+cpu."""
    parts = text.split("+")[0].split(".")
    return int(parts[0]), int(parts[1])


def check_version(text: str) -> None:
    """Raises UnsupportedEngineError outside OLDEST..NEWEST."""
    version = parse_version(text)
    if not OLDEST <= version <= NEWEST:
        raise UnsupportedEngineError(
            f"vLLM {text} is not supported: use {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        )


def check_config(vllm_config: Any) -> None:
    """Refuses what the plugin does not do right: pooling and diffusion models, prefill/decode disaggregation."""
    model = vllm_config.model_config
    if getattr(model, "runner_type", "generate") != "generate":
        raise UnsupportedEngineError(f"runner {model.runner_type!r} has no decode steps to schedule: use stock vLLM")
    if getattr(model, "is_diffusion", False):
        raise UnsupportedEngineError("diffusion models are not scheduled by program: use stock vLLM")
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    if transfer is not None and getattr(transfer, "is_kv_producer", False) and not transfer.is_kv_consumer:
        raise UnsupportedEngineError("a prefill-only engine (KV producer) cannot preempt: use stock vLLM there")


def missing_symbols(scheduler_class: type, request_class: type, scheduler: Any | None = None) -> list[str]:
    """Symbols that this vLLM lacks; empty when the plugin can stand on it."""
    missing: list[str] = []
    for name, parameters in SCHEDULER_METHODS.items():
        method = getattr(scheduler_class, name, None)
        if method is None:
            missing.append(f"Scheduler.{name}")
            continue
        have = inspect.signature(method).parameters
        missing += [f"Scheduler.{name}({parameter})" for parameter in parameters if parameter not in have]
    if scheduler is not None:
        missing += [f"Scheduler.{name}" for name in SCHEDULER_ATTRIBUTES if not hasattr(scheduler, name)]
        pool = getattr(getattr(scheduler, "kv_cache_manager", None), "block_pool", None)
        if not hasattr(pool, "get_num_free_blocks"):
            missing.append("Scheduler.kv_cache_manager.block_pool.get_num_free_blocks")
    source = inspect.getsource(request_class)
    missing += [f"Request.{name}" for name in REQUEST_ATTRIBUTES if name not in source]
    return missing
