"""Tenants whose calls need different things of an engine share it so that each is better off than with a part of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count

import pytest
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import FCFS, PLAS, Policy
from agentserving_engine.policy import CallFacts
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.context_cache import Segment
from agentserving_simulator.virtual.engine import VirtualEngine
from agentserving_simulator.virtual.limits import EngineLimits
from agentserving_simulator.virtual.requests import Request

A100 = cost_model("a100-80gb", "llama-3.1-8b")
# Slots, KV and the tokens of a step are each the bottleneck of one of the loads.
LIMITS = EngineLimits(max_num_seqs=32, max_batched_tokens=1024, num_blocks=4000)
SECONDS = 120


@dataclass(frozen=True)
class Shape:
    prompt: int
    output: int


CHAT = Shape(64, 128)
LARGE_CONTEXT = Shape(8_000, 500)
READING = Shape(3_000, 1)


def served(policy: Policy, loads: dict[str, Shape]) -> Counter[str]:
    """Calls that each tenant completes; each always has 60 in the engine, every one of a new program."""
    engine = VirtualEngine(policy, A100, LIMITS)
    numbers, now = count(), 0
    done: Counter[str] = Counter()

    def send(tenant: str) -> None:
        number, shape = next(numbers), loads[tenant]
        request = Request(
            f"{tenant}/{number}", [Segment(number, shape.prompt + shape.output)], shape.prompt, shape.output
        )
        program = ProgramKey(Tenant(tenant), ProgramId(f"p{number}"))
        engine.arrive(request, CallFacts(request.key, program, program_arrival_us=now + 1), now)

    for _ in range(60):
        for tenant in loads:
            send(tenant)
    while now < SECONDS * 1_000_000:
        ends = engine.begin(now)
        assert ends is not None
        now = ends
        for ended in engine.end(now):
            tenant = ended.request.key.partition("/")[0]
            done[tenant] += 1
            send(tenant)
    return done


# PLAS preempts inside a tenant, and what that recomputes is lost.
@pytest.mark.parametrize(("policy", "least"), [(FCFS, 0.44), (PLAS, 0.25)], ids=["fcfs", "plas"])
@pytest.mark.parametrize("other", [LARGE_CONTEXT, READING, CHAT], ids=["large contexts", "long prompts", "alike"])
def test_each_tenant_has_nearly_half_of_what_it_would_have_alone(policy: Policy, least: float, other: Shape) -> None:
    alone = {"chat": served(policy, {"chat": CHAT})["chat"], "other": served(policy, {"other": other})["other"]}
    shared = served(policy, {"chat": CHAT, "other": other})
    parts = {tenant: shared[tenant] / alone[tenant] for tenant in alone}
    assert all(part > least for part in parts.values()), parts
