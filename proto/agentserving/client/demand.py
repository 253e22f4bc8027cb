"""What live programs need of engines, as the control plane says it: the signals of autoscaling. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.ids import EngineId


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesNeeded:
    """Full engines' worth of what live programs need, by each signal; the largest counts."""

    context: float
    calls: float
    service: float
    waiting: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDemand:
    """What would be lost, or would have to wait, if one engine went."""

    engine_id: EngineId
    kept_tokens: int
    programs: int
    calls_in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What live programs need of engines. A program is a tree here: a root with its sub-agents."""

    # Those whose context counts; those with calls of which none runs; those with calls that gateways hold.
    programs: int
    programs_waiting: int
    programs_held: int
    calls: int
    calls_held: int
    context_tokens: int
    # Within the next minute.
    owed_service_us: int
    # Of one engine; 0 = no engine has said so far.
    engine_context_tokens: int
    engine_calls: int
    needed: EnginesNeeded
    engines: tuple[EngineDemand, ...]
