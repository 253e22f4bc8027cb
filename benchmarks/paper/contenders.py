"""What is compared: policies as values, and the engine settings that go with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentserving.contract.policy import (
    ATLAS,
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
from agentserving_simulator.virtual.engine import EngineLimits

# The engine decides every so many steps (paper, section 4.3: multi-step scheduling; N is not published).
INTERVAL = 8


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of every comparison."""

    name: str
    policy: Policy
    about: str
    prefix_caching: bool = True
    # Calls carry what their program still needs in the place of what it has attained.
    clairvoyant: bool = False

    def limits(self, limits: EngineLimits) -> EngineLimits:
        """The engine's settings under it."""
        return replace(limits, prefix_caching=limits.prefix_caching and self.prefix_caching)


def _every(policy: Policy, **changes: object) -> Policy:
    return replace(policy, decision_interval_steps=INTERVAL, **changes)  # type: ignore[arg-type]


# Fine levels of the time a program still needs, from 10 ms on; a call stays at the level at which it came.
_REMAINING = (*(Level(int(10_000 * 1.35**i), 1 << 50) for i in range(50)), Level())

# As fine, of the service that a program has attained: vLLM's own priorities, set once when the call comes.
_ATTAINED = _REMAINING

CONTENDERS = {
    each.name: each
    for each in (
        Contender("vllm", FCFS, "stock vLLM of the paper's time: FCFS, no prefix cache", prefix_caching=False),
        Contender("vllm-opt", _every(FCFS), "FCFS with prefix cache, chunked prefill, multi-step"),
        Contender(
            "vllm-priority",
            Policy(name="vllm-priority", accounting=Accounting.SUM, levels=_ATTAINED),
            "stock vLLM whose request priority is the program's attained service: no preemption but for KV blocks",
        ),
        Contender("program-fcfs", _every(PROGRAM_FCFS), "the program that came first goes first"),
        Contender("mlfq", _every(MLFQ), "multi-level feedback over calls, which know nothing of their programs"),
        Contender("plas", _every(PLAS), "the paper's PLAS: least attained service, summed"),
        Contender("atlas", _every(ATLAS), "the paper's ATLAS: least attained service along the critical path"),
        Contender("program-plas", _every(PROGRAM_PLAS), "PLAS, in a level first come first; KV stays while tools work"),
        Contender(
            "program-plas-forgets",
            _every(PROGRAM_PLAS, retention_milli=0),
            "program-plas that keeps no KV while tools work",
        ),
        Contender("program-atlas", _every(PROGRAM_ATLAS), "program-plas with the account of ATLAS"),
        Contender("gittins", _every(GITTINS), "likeliest to end soonest, as finished programs of its class tell"),
        Contender(
            "srpt",
            Policy(name="srpt", levels=_REMAINING, order=Order.ATTAINED_SERVICE, max_preemptions=64,
                   decision_interval_steps=INTERVAL),
            "clairvoyant: the program that needs least goes first",
            clairvoyant=True,
        ),
    )
}  # fmt: skip
