"""The contenders of every comparison: policies as values with their engine settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentserving.contract.policy import (
    ATLAS,
    AUTO,
    FCFS,
    GITTINS,
    MLFQ,
    PLAS,
    PROGRAM_ATLAS,
    PROGRAM_FCFS,
    PROGRAM_PLAS,
    Accounting,
    Level,
    Order,
    Policy,
)
from agentserving_simulator.virtual.limits import EngineLimits

# Steps between decisions (paper, section 4.3: multi-step scheduling; N is not published).
INTERVAL = 8


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with its engine settings. `about` describes it in the tables."""

    name: str
    policy: Policy
    about: str
    prefix_caching: bool = True
    # Calls carry their program's remaining work in place of its attained service.
    clairvoyant: bool = False

    def limits(self, limits: EngineLimits) -> EngineLimits:
        """The engine's limits under this contender."""
        return replace(limits, prefix_caching=limits.prefix_caching and self.prefix_caching)


def _every(policy: Policy, **changes: object) -> Policy:
    return replace(policy, decision_interval_steps=INTERVAL, **changes)  # type: ignore[arg-type]


# Fine levels of the remaining work, from 10 ms on; a call stays at the level at which it arrived.
_REMAINING = (*(Level(int(10_000 * 1.35**i), 1 << 50) for i in range(50)), Level())

# Equally fine levels of the attained service, for vLLM's own priorities, which are set once at arrival.
_ATTAINED = _REMAINING

CONTENDERS = {
    each.name: each
    for each in (
        Contender("vllm", FCFS, "stock vLLM at the time of the paper: FCFS, no prefix cache", prefix_caching=False),
        Contender("vllm-opt", _every(FCFS), "FCFS with prefix cache, chunked prefill, multi-step"),
        Contender(
            "vllm-priority",
            Policy(name="vllm-priority", accounting=Accounting.SUM, levels=_ATTAINED),
            "stock vLLM with the program's attained service as the request's priority: preempts only for KV blocks",
        ),
        Contender("program-fcfs", _every(PROGRAM_FCFS), "the program that arrived first goes first"),
        Contender("mlfq", _every(MLFQ), "multi-level feedback queue over calls, unaware of programs"),
        Contender("plas", _every(PLAS), "the paper's PLAS: least attained service, summed"),
        Contender("atlas", _every(ATLAS), "the paper's ATLAS: least attained service along the critical path"),
        Contender("program-plas", _every(PROGRAM_PLAS), "PLAS by program arrival in a level; retains KV in tool calls"),
        Contender(
            "program-plas-forgets",
            _every(PROGRAM_PLAS, retention_milli=0),
            "program-plas without KV retention",
        ),
        Contender("program-atlas", _every(PROGRAM_ATLAS), "program-plas with the account of ATLAS"),
        Contender("auto", _every(AUTO), "the default: chooses fcfs, program-fcfs or program-plas by what it has seen"),
        Contender("gittins", _every(GITTINS), "likeliest to end soonest, by finished programs of the class"),
        Contender(
            "srpt",
            Policy(name="srpt", levels=_REMAINING, order=Order.ATTAINED_SERVICE, max_preemptions=64,
                   decision_interval_steps=INTERVAL),
            "clairvoyant: the program with the least remaining work goes first",
            clairvoyant=True,
        ),
    )
}  # fmt: skip
