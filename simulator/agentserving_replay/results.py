"""The outcomes of programs and calls in virtual time. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.ids import ProgramId
from agentserving_simulator.virtual.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramResult:
    """The outcome of one program; seconds."""

    program_id: ProgramId
    name: str
    arrival_s: float
    latency_s: float
    # Time without an open call, in which the program's tools ran.
    tool_s: float
    wait_s: float
    service_s: float
    calls: int
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int

    @property
    def token_latency_s(self) -> float:
        """Response time per token (paper, section 6), without tool times, which no scheduler can shorten."""
        return (self.latency_s - self.tool_s) / max(1, self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """One call; instants in microseconds, 0 = not yet. `gpu_tokens` and `host_tokens` of its prompt were cached."""

    arrived_us: int
    first_token_us: int
    ended_us: int
    prompt_tokens: int
    gpu_tokens: int
    host_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, request: Request, ended_us: int) -> CallResult:
        """The call of a request. `ended_us` 0: it has not ended, and `output_tokens` counts those so far."""
        return cls(
            arrived_us=request.arrived_us,
            first_token_us=request.first_token_us,
            ended_us=ended_us,
            prompt_tokens=request.prompt,
            gpu_tokens=max(0, request.cached - request.loaded),
            host_tokens=request.loaded,
            output_tokens=request.generated,
        )

    def ttft_s(self, now_us: int) -> float:
        """Time to first token, seconds; of a call without one its wait so far."""
        return ((self.first_token_us or now_us) - self.arrived_us) / 1e6
