"""Budgets of trees: kept, charged and judged on the row of the root, which is what the store has. Pure.

Whether a tree may go on follows from its root's row alone. Nothing else records that a budget is spent, so no crash,
failover or repeated report can make the two differ. What calls use counts when they end (or are charged late), so a
budget is overshot by the calls in flight when it is reached, and by nothing else.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from agentserving.contract.budgets import MAX_AMOUNT, UNITS, UNLIMITED, WARN_FROM, Budget, BudgetState, in_words

from agentserving_controlplane.errors import BudgetSpentError, ConflictError, ExistsError, InvalidError
from agentserving_controlplane.table.rows import MAX_SUM, BudgetRow, ProgramRow

# Remembered ids of a tree's additions, and the length of an id. 32 take at most 5 kB of a row.
MAX_ADDITIONS, MAX_ADDITION_BYTES = 32, 128
# The sender of a refused call asks again after so long; it may hold the call and ask more often.
RETRY_S = 10.0
_FIELDS = tuple(field for field, _ in UNITS.values())


@dataclass(frozen=True, slots=True)
class Addition:
    """What ResumeProgram adds to a budget; with an id it is added once. `digest` identifies the request."""

    amounts: Budget = UNLIMITED
    addition_id: str = ""
    digest: str = ""


def spent_of(root: ProgramRow) -> Budget:
    """What a tree has used since its root was opened."""
    return Budget(tokens=root.tree_tokens, engine_us=root.tree_engine_us, calls=root.tree_calls)


def limit_of(root: ProgramRow) -> Budget:
    """A tree's limits; UNLIMITED when it has no budget."""
    row = root.budget
    return Budget(tokens=row.tokens, engine_us=row.engine_us, calls=row.calls) if row is not None else UNLIMITED


def state_of(root: ProgramRow) -> BudgetState | None:
    """A tree's budget; None when it has none."""
    return BudgetState(limit=limit_of(root), spent=spent_of(root)) if root.budget is not None else None


def is_spent(root: ProgramRow) -> bool:
    """True while a tree has used up a unit of its budget."""
    row = root.budget
    return row is not None and (
        0 < row.tokens <= root.tree_tokens
        or 0 < row.engine_us <= root.tree_engine_us
        or 0 < row.calls <= root.tree_calls
    )


def warning_of(root: ProgramRow) -> BudgetState | None:
    """A tree's budget from WARN_FROM of it on; None before."""
    state = state_of(root)
    return state if state is not None and state.limit.share(state.spent) >= WARN_FROM else None


def check_amounts(budget: Budget, field: str) -> None:
    """InvalidError for amounts that cannot be."""
    for name in _FIELDS:
        if not 0 <= getattr(budget, name) <= MAX_AMOUNT:
            raise InvalidError("BAD_BUDGET", f"{field}.{name}: 0 (no limit) to {MAX_AMOUNT}", field=f"{field}.{name}")


def check_call(root: ProgramRow, limit: Budget, in_flight: int) -> None:
    """BudgetSpentError when a tree may not have one more call. Calls in flight count as calls that will have run."""
    if not limit:
        return
    spent = spent_of(root)
    spent_soon = Budget(tokens=spent.tokens, engine_us=spent.engine_us, calls=spent.calls + in_flight)
    if limit.is_spent(spent_soon):
        state = BudgetState(limit=limit, spent=spent)
        waits = "" if limit.is_spent(spent) else f", with {in_flight} calls in flight"
        raise BudgetSpentError(
            "PROGRAM_BUDGET_SPENT",
            f"the budget is spent ({in_words(state)}{waits}) and the program is paused until more is added:"
            f" agentserving resume {root.program_id} --add {_example(state)}",
            budget=state,
            retry_after_s=RETRY_S,
        )


def _example(state: BudgetState) -> str:
    """An addition of the unit of which least is left."""
    return max(
        (getattr(state.spent, field) / limit, f"{unit}={'100k' if unit == 'tokens' else 60}")
        for unit, (field, _) in UNITS.items()
        if (limit := getattr(state.limit, field))
    )[1]


def give(root: ProgramRow, budget: Budget) -> bool:
    """Gives a tree its budget; False when it has one, or the new one limits nothing."""
    if root.budget is not None or not budget:
        return False
    root.budget = BudgetRow(tokens=budget.tokens, engine_us=budget.engine_us, calls=budget.calls)
    return True


def charge(root: ProgramRow, *, tokens: int, engine_us: int, calls: int) -> bool:
    """Adds what a call has used; True when that spends the budget."""
    was_spent = root.budget is not None and is_spent(root)
    root.tree_tokens = min(root.tree_tokens + tokens, MAX_SUM)
    root.tree_engine_us = min(root.tree_engine_us + engine_us, MAX_SUM)
    root.tree_calls = min(root.tree_calls + calls, MAX_SUM)
    return root.budget is not None and not was_spent and is_spent(root)


def resume(root: ProgramRow, addition: Addition) -> bool:
    """Adds to a tree's limits; True when that changed them. Refuses, and changes nothing, when it stays spent."""
    key, amounts = addition.addition_id, addition.amounts
    check_amounts(amounts, "add")
    if len(key.encode()) > MAX_ADDITION_BYTES:
        raise InvalidError("KEY_TOO_LONG", f"addition_id: at most {MAX_ADDITION_BYTES} bytes", field="addition_id")
    row = root.budget
    if row is not None and key and key in row.additions:
        if row.additions[key] != addition.digest:
            raise ExistsError(
                "IDEMPOTENCY_KEY_REUSED",
                f"addition_id: {key!r} was used for another addition: choose a new one",
                field="addition_id",
            )
        amounts = UNLIMITED
    limit = limit_of(root)
    for unit, (field, _) in UNITS.items():
        if getattr(amounts, field) and not getattr(limit, field):
            raise InvalidError(
                "NO_SUCH_BUDGET",
                f"add.{field}: program {root.program_id!r} has no budget of {unit}, so there is nothing to add to",
                field=f"add.{field}",
            )
    after = Budget(**{each: min(getattr(limit, each) + getattr(amounts, each), MAX_AMOUNT) for each in _FIELDS})
    if after.is_spent(spent_of(root)):
        _refuse(root, BudgetState(limit=after, spent=spent_of(root)), added=bool(amounts))
    if row is None or not amounts:
        return False
    row.tokens, row.engine_us, row.calls = after.tokens, after.engine_us, after.calls
    if key:
        row.additions[key] = addition.digest
        for oldest in list(itertools.islice(row.additions, max(0, len(row.additions) - MAX_ADDITIONS))):
            del row.additions[oldest]
    return True


def _refuse(root: ProgramRow, state: BudgetState, *, added: bool) -> None:
    spent = "would still be spent" if added else "is spent"
    raise ConflictError(
        "BUDGET_SPENT",
        f"the program stays paused: its budget {spent} ({in_words(state)}). Add more than that, for example:"
        f" agentserving resume {root.program_id} --add {_example(state)}",
        field="add",
    )
