"""Budgets of programs: what a tree of programs may use before it is paused. Pure.

A budget has up to three units, and text has one form everywhere (header, flags, CRD): tokens=200k,engine-seconds=300.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# From this share of a unit on, answers carry what remains.
WARN_FROM = 0.8
# Anything larger is a mistake: exact in JSON, and far below what a row's sums saturate at.
MAX_AMOUNT = 1 << 53

_US = 1_000_000
_SCALES = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_AMOUNT = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,6})?)([kMG]?)")
TOKENS, ENGINE_SECONDS, CALLS = "tokens", "engine-seconds", "calls"
# Word of the text form -> field, and how many of the field one of the unit is.
UNITS: Mapping[str, tuple[str, int]] = {
    TOKENS: ("tokens", 1),
    ENGINE_SECONDS: ("engine_us", _US),
    CALLS: ("calls", 1),
}
FORM = "tokens=200k,engine-seconds=300,calls=50, or some of these"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Amounts by unit: a limit, where 0 = none, or what has been spent of one.

    tokens: of prompts, cached ones included, and of answers. engine_us: model-execution time of all calls, in
    microseconds. calls: those that an engine has run.
    """

    tokens: int = 0
    engine_us: int = 0
    calls: int = 0

    def __bool__(self) -> bool:
        """False when no unit is limited."""
        return bool(self.tokens or self.engine_us or self.calls)

    def or_else(self, other: Budget) -> Budget:
        """This budget, with the other's limits of the units that it does not limit."""
        return Budget(
            tokens=self.tokens or other.tokens,
            engine_us=self.engine_us or other.engine_us,
            calls=self.calls or other.calls,
        )

    def share(self, spent: Budget) -> float:
        """Spent share of the unit of which least is left; 0 without limits, 1 and more: the budget is spent."""
        return max((have / most for have, most in self._pairs(spent)), default=0.0)

    def is_spent(self, spent: Budget) -> bool:
        """True once any limited unit has been used up."""
        return any(have >= most for have, most in self._pairs(spent))

    def _pairs(self, spent: Budget) -> list[tuple[int, int]]:
        each = ((spent.tokens, self.tokens), (spent.engine_us, self.engine_us), (spent.calls, self.calls))
        return [(have, most) for have, most in each if most]


UNLIMITED = Budget()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """The budget of a tree of programs, and what the tree has spent since its root was opened."""

    limit: Budget
    spent: Budget


def parse(text: str) -> Budget:
    """A budget as users write it. ValueError says what is wrong and what is expected."""
    amounts: dict[str, int] = {}
    for part in text.split(","):
        unit, _, amount = (each.strip() for each in part.partition("="))
        if unit not in UNITS:
            raise ValueError(f"{part.strip()!r} is no part of a budget: write {FORM}")
        field, factor = UNITS[unit]
        if field in amounts:
            raise ValueError(f"{unit} is given twice: give each unit once")
        found = _AMOUNT.fullmatch(amount)
        value = round(float(found[1]) * _SCALES[found[2]] * factor) if found else 0
        if not 1 <= value <= MAX_AMOUNT:
            raise ValueError(f"{unit}={amount}: a positive number is needed, such as 300, 1.5 or 200k")
        amounts[field] = value
    return Budget(**amounts)


def text_of(budget: Budget) -> str:
    """Inverse of `parse`; "" when no unit is limited."""
    return ",".join(f"{unit}={_plain(budget, unit)}" for unit in UNITS if getattr(budget, UNITS[unit][0]))


def _plain(budget: Budget, unit: str) -> str:
    field, factor = UNITS[unit]
    amount: int = getattr(budget, field)
    return f"{amount / factor:.6f}".rstrip("0").rstrip(".") if factor > 1 else str(amount)


def remaining(state: BudgetState) -> str:
    """What is left of each limited unit, as a list of structured fields (RFC 9651): of answers' headers.

    tokens;remaining=12000;limit=200000, calls;remaining=4;limit=50. Spent units have remaining=0.
    """
    parts = []
    for unit, (field, factor) in UNITS.items():
        limit, spent = getattr(state.limit, field), getattr(state.spent, field)
        if limit:
            left = max(0, limit - spent)
            shown = (f"{left // 1000 / 1000:.3f}", f"{limit / factor:.3f}") if factor > 1 else (left, limit)
            parts.append(f"{unit};remaining={shown[0]};limit={shown[1]}")
    return ", ".join(parts)


def remaining_in_words(state: BudgetState) -> str:
    """What is left of each limited unit: 20000 tokens left, 295.8 engine-seconds left."""
    left = {field: max(0, getattr(state.limit, field) - getattr(state.spent, field)) for field, _ in UNITS.values()}
    return ", ".join(
        f"{_plain(Budget(**left), unit)} {unit} left" for unit in UNITS if getattr(state.limit, UNITS[unit][0])
    )


def in_words(state: BudgetState) -> str:
    """What has been spent of each limited unit: 180000 of 200000 tokens, 4.2 of 300 engine-seconds."""
    return ", ".join(
        f"{_plain(state.spent, unit)} of {_plain(state.limit, unit)} {unit}"
        for unit in UNITS
        if getattr(state.limit, UNITS[unit][0])
    )
