"""What engines report of themselves: capabilities, fixed for one boot, and load, at one instant. Pure values.

Fields and units are those of EngineCapabilities and EngineLoad in types.proto.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Of one engine, for one boot."""

    engine_kind: str = ""
    engine_version: str = ""
    plugin_version: str = ""
    models: tuple[str, ...] = ()
    max_num_seqs: int = 0
    max_model_len: int = 0
    block_size: int = 0
    num_blocks: int = 0
    data_parallel_size: int = 0
    async_scheduling: bool = False
    retention_obstacle: str = ""
    working_set_obstacle: str = ""


class Load(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Gauges, and counters since the engine's boot."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    steps: int = 0
    last_step_age_us: int = 0
    preemptions_proactive: int = 0
    preemptions_reactive: int = 0
    promotions: int = 0
    demotions: int = 0
    unmanaged_calls: int = 0
    rejected_tickets: int = 0
    policy_time_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    hook_errors: int = 0
    kept_blocks: int = 0
    behind_kept: int = 0
    # Measured cost of computing one prompt token; 0 = not measured yet.
    prefill_us_per_token: float = 0.0

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens computed since the boot: each one displaces a token of cached context."""
        return self.prompt_tokens - self.cached_tokens
