"""A slot engine: every step runs the chosen calls for one second. Enough for the paper's toys and for properties."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentserving.contract.accounting import account_at_admit, charge_call
from agentserving.contract.policy import Policy
from agentserving_engine.policy import CallQueue, Room
from engine.policy.builders import call

SECOND = 1_000_000


@dataclass
class Plan:
    """A program: stages one after another, each a list of call lengths (seconds) that run in parallel,
    from `at_s` on."""

    name: str
    stages: list[list[int]]
    at_s: int = 0
    left: dict[str, int] = field(default_factory=dict)


def total_wait_s(policy: Policy, plans: list[Plan], slots: int) -> int:
    """Runs the programs; gives the calls' waits added up."""
    queue = CallQueue(policy)
    accounts = dict.fromkeys((plan.name for plan in plans), 0)
    admitted: dict[str, int] = {}
    waits = now = 0

    def begin(plan: Plan) -> None:
        for index, seconds in enumerate(plan.stages.pop(0)):
            key = f"{plan.name}/{len(plan.stages)}/{index}"
            account = account_at_admit(policy.accounting, accounts[plan.name])
            admitted[key] = account
            plan.left[key] = seconds
            queue.arrive(call(key, plan.name, account, arrival_us=1), now)

    for plan in plans:
        if plan.at_s == 0:
            begin(plan)
    while any(plan.left or plan.stages for plan in plans):
        decision = queue.decide(
            now, Room(slots=slots, free_blocks=1 << 30, need_blocks=lambda key: 1, returns_blocks=lambda key: 1)
        )
        for key in decision.preempt:
            queue.preempt(key, now)
        for key in decision.admit:
            queue.start(key, now)
        running = queue.running_keys
        assert len(running) <= slots
        now += SECOND
        queue.charge(running, SECOND)
        for plan in plans:
            for key in [key for key in running if key in plan.left]:
                plan.left[key] -= 1
                if plan.left[key] == 0:
                    del plan.left[key]
                    stats = queue.finish(key, now)
                    assert stats is not None
                    waits += stats.wait_us // SECOND
                    accounts[plan.name] = charge_call(
                        policy.accounting, accounts[plan.name], admitted[key], stats.service_us
                    )
            if not plan.left and plan.stages and now >= plan.at_s * SECOND:
                begin(plan)
    return waits
