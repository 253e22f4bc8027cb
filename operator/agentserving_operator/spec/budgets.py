"""The budget of programs in the API: `controlPlane.programBudget` of a cluster, `programBudget` of a tenant.

`to_budget` converts it to the value of agentserving.contract.budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract import budgets as values

from agentserving_operator.spec.fields import integer

# Exact in JSON, and in microseconds below the contract's bound.
MAX_TOKENS, MAX_SECONDS, MAX_CALLS = values.MAX_AMOUNT - 1, values.MAX_AMOUNT // 1_000_000, 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramBudget:
    """What a program and its sub-agents may use before they are paused. Absent: no limit."""

    tokens: int | None = integer("Tokens of prompts and answers.", 1, MAX_TOKENS, default=None)
    engine_seconds: int | None = integer("Seconds of model execution, of all calls.", 1, MAX_SECONDS, default=None)
    calls: int | None = integer("Calls.", 1, MAX_CALLS, default=None)


def to_budget(budget: ProgramBudget | None) -> values.Budget:
    """The value that control planes use; without limits for an absent one."""
    if budget is None:
        return values.UNLIMITED
    return values.Budget(
        tokens=budget.tokens or 0, engine_us=(budget.engine_seconds or 0) * 1_000_000, calls=budget.calls or 0
    )
