"""`agents` with host memory behind the engine's KV cache: vLLM's connector with copies on a CPU (host_kv.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentserving.contract.policy import AUTO, FCFS, PROGRAM_PLAS

from benchmarks import agents
from benchmarks.bars import Bar

# A twentieth of what 100 GiB hold of Llama 8B's KV, which docs/results has behind an A100.
HOST_TOKENS = 40_960
# Contexts of sixteen agents nearly fit into it, those of thirty-two do not.
CONCURRENCY = (16, 32)
# Whole programs, while their contexts fit into host memory.
BOUNDED = replace(PROGRAM_PLAS, name="working-set", working_set=True)


def measure() -> Any:
    """Runs the benchmark and prints its table; gives its raw figures."""
    return agents.measure(agents.Plan(host_tokens=HOST_TOKENS, concurrency=CONCURRENCY, policies=(FCFS, AUTO, BOUNDED)))


def summarise(raw: dict[str, Any]) -> list[Bar]:
    """The bars of raw figures."""
    return agents.summarise(raw, "agents-host")
