"""Where the time of calls goes, and what became of their prefixes, as the clients return it (types.proto)."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.phases import PhaseKind, PrefixMiss


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a call's time in its engine."""

    kind: PhaseKind
    duration_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit:
    """Time of a program's finished calls by phase; `tools_us`: between two calls, with none in flight."""

    gateway_us: int
    held_us: int
    queue_us: int
    prefill_us: int
    decode_us: int
    preempted_us: int
    tools_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixMisses:
    """Finished calls with one fate of their prefix; `lost_tokens`: evicted, and computed again."""

    miss: PrefixMiss
    calls: int
    lost_tokens: int
